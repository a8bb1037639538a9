"""Every sink holds each row exactly once, wherever it was stopped."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import orjson
import pytest
import sink_scenario
from hypothesis import given, settings
from hypothesis import strategies as st
from record_columns import columns
from sink_scenario import (
    MIXED,
    SINKS,
    TOPIC,
    VIEW,
    expected,
    found,
    identity,
    late_scenario,
    long_scenario,
    open_csv,
    play,
    record,
)
from system_calls import is_change

from ingestor.core.errors import ConfigError, SinkError
from stream_app.sinks.base import Sink
from stream_app.sinks.checkpoint import Identity, Storage

PATHS = [Path(__file__).parents[2], Path(__file__).parents[1]]
"""Where child processes find what is ours, and what is the tests'."""


@pytest.fixture(params=SINKS)
def open_sink(request: pytest.FixtureRequest) -> Callable[[Path], Sink]:
    return SINKS[request.param]


def finish(open_sink: Callable[[Path], Sink], folder: Path, records: list[Any], batch: int) -> None:
    sink = open_sink(folder)
    try:
        play(sink, records, batch)
    finally:
        sink.close()


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 100])
def test_batches_do_not_show(open_sink: Callable[[Path], Sink], tmp_path: Path, batch: int) -> None:
    """However records are cut into commits, the rows are those of the rule of row identity."""
    finish(open_sink, tmp_path, MIXED, batch)
    assert found(tmp_path) == expected(MIXED)


@pytest.mark.parametrize("batch", [1, 7, 40])
def test_history_behind_live_data(open_sink: Callable[[Path], Sink], tmp_path: Path, batch: int) -> None:
    """What waits to be brought in survives restarts, and in the end nothing shows that it has waited."""
    records = late_scenario(30, 60)
    for until in range(0, len(records), 50):
        sink = open_sink(tmp_path)
        play(sink, records[:until], batch, complete=False)
        sink.close()
    finish(open_sink, tmp_path, records, batch)
    assert found(tmp_path) == expected(records)
    sink = open_sink(tmp_path)
    assert not sink.is_behind
    sink.finish()
    sink.close()
    assert found(tmp_path) == expected(records)


@given(
    st.lists(
        st.builds(
            record,
            st.integers(0, 5),
            st.sampled_from(["a", "b", 'quote" and, comma', "line\nbreak", "cr\rhere", ""]),
            service=st.sampled_from(["api", "web"]),
            partial=st.booleans(),
            revision=st.integers(0, 2),
            cpu=st.floats(allow_nan=False, allow_infinity=False),
        )
        | st.builds(record, st.integers(0, 5), rss=st.floats(-1e-3, 1e-3), **{'requests{code="500"}': st.just(1.0)}),
        max_size=30,
    ),
    st.integers(1, 8),
    st.lists(st.booleans(), min_size=31, max_size=31),
)
@pytest.mark.parametrize("kind", SINKS)
@settings(max_examples=40)
def test_any_order_and_any_batches(
    kind: str, tmp_path_factory: pytest.TempPathFactory, records: list[Any], batch: int, complete: list[bool]
) -> None:
    """Order, revisions, partial records, odd names and restarts between commits never show in the rows."""
    folder = tmp_path_factory.mktemp("any")
    # Long enough for others to wait behind it.
    records = [*(record(3, f"pod-{i:02}", cpu=1.0) for i in range(batch * 4)), *records]
    for until, completes in zip(range(batch * 4, len(records) + batch, batch), complete, strict=False):
        sink = SINKS[kind](folder)
        play(sink, records[:until], batch, complete=completes)
        sink.close()
    finish(SINKS[kind], folder, records, batch)
    assert found(folder) == expected(records)


@pytest.mark.parametrize("scenario", [MIXED, late_scenario(12, 7)], ids=["mixed", "late"])
def test_a_crash_at_any_step_loses_and_doubles_nothing(
    open_sink: Callable[[Path], Sink], tmp_path: Path, scenario: list[Any]
) -> None:
    """From the state of the disk before and after every call to the system, a restart reaches the same files.

    So does one that itself crashed at any step of putting things right.
    """
    folder, copies = tmp_path / "storage", tmp_path / "copies"
    sink = open_sink(folder)
    with _copied_at_every_step(folder, copies):
        play(sink, scenario, 2 if scenario is MIXED else 12)
    sink.close()
    states = sorted(copies.iterdir())
    assert len(states) > 25
    for state in list(states):
        again = tmp_path / "again" / state.name
        with _copied_at_every_step(state, again):
            open_sink(state).close()
        states += again.iterdir()
    assert len(states) > 60
    for state in states:
        finish(open_sink, state, scenario, 4)
        assert found(state) == expected(scenario), state
        assert not list((state / ".stream-app" / "staged").iterdir())


@pytest.mark.parametrize("scenario", ["mixed", "late"])
@pytest.mark.parametrize("kind", SINKS)
def test_kill_9_at_random_moments(kind: str, tmp_path: Path, scenario: str) -> None:
    """Killed again and again, the writer ends with the files of one that was not."""
    records, command = 6_000, [sys.executable, sink_scenario.__file__, kind, str(tmp_path)]
    whole = late_scenario(100, records) if scenario == "late" else long_scenario(records)
    chance, kills = random.Random(7), 0
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, PATHS))}
    while True:
        # However fast the machine is, the first ones cannot come to the end.
        until = 1_000 * (kills + 1) if kills < 4 else len(whole)
        with subprocess.Popen(
            [*command, str(records), "40", scenario, str(until)], stdout=subprocess.PIPE, env=environment
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(chance.uniform(0, 0.2))
            process.kill()
            done = b"done" in process.stdout.read()
        kills += not done
        if done or kills == 15:
            break
    finish(SINKS[kind], tmp_path, whole, 500)
    assert found(tmp_path) == expected(whole)


def test_a_torn_tail_is_cut_at_every_byte(tmp_path: Path) -> None:
    """Whatever part of an append reached the disk, the file is what the checkpoint says."""
    folder = tmp_path / "storage"
    finish(open_csv, folder, MIXED[:2], 2)
    before = (folder / "prod/api.csv").read_bytes()
    committed = (folder / ".stream-app/checkpoint.log").read_bytes()
    finish(open_csv, folder, MIXED[:4], 2)
    after = (folder / "prod/api.csv").read_bytes()
    assert after.startswith(before)
    (folder / ".stream-app/checkpoint.log").write_bytes(committed)
    for length in range(len(before), len(after) + 1):
        (folder / "prod/api.csv").write_bytes(after[:length])
        open_csv(folder).close()
        assert (folder / "prod/api.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda content: content + b"2026-11-23T13:00:00Z,mine,1,2\n", "bytes, and had"),
        (lambda content: content[:-5], "bytes, and had"),
        (lambda content: content[:-5] + b"9.99\n", "its end is another"),
        (lambda _: None, "it is gone"),
    ],
)
def test_files_changed_by_hand_are_refused(tmp_path: Path, edit: Callable[[bytes], bytes | None], message: str) -> None:
    """What someone else did to a file is neither overwritten nor built upon."""
    finish(open_csv, tmp_path, MIXED[:4], 2)
    path = tmp_path / "prod/api.csv"
    content = edit(path.read_bytes())
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(SinkError, match=message):
        open_csv(tmp_path)
    if content is not None:
        assert path.read_bytes() == content


@pytest.mark.parametrize("rows", [MIXED[4:6], MIXED[:1], MIXED[6:7]])
def test_files_changed_while_we_run_are_refused(tmp_path: Path, rows: list[Any]) -> None:
    """Appends and rewrites look at the file once more, and leave it as they find it."""
    sink = open_csv(tmp_path)
    play(sink, MIXED[:4], 4)
    path = tmp_path / "prod/api.csv"
    path.write_bytes(path.read_bytes() + b"mine\n")
    content = path.read_bytes()
    sink.write(columns(rows, 4))
    with pytest.raises(SinkError, match="changed by something else"):  # noqa: PT012 - the first, or the second
        sink.commit({TOPIC: {0: 6}}, VIEW)
        sink.complete()
    sink.close()
    with pytest.raises(SinkError, match="changed by something else"):
        open_csv(tmp_path)
    assert path.read_bytes() == content


def test_a_file_that_is_not_ours_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "prod/api.csv"
    path.parent.mkdir()
    path.write_text("precious")
    sink = open_csv(tmp_path)
    with pytest.raises(SinkError, match="not written from here"):
        play(sink, MIXED[:2], 2)
    sink.close()
    assert path.read_text() == "precious"


def test_a_second_process_is_refused(open_sink: Callable[[Path], Sink], tmp_path: Path) -> None:
    first = open_sink(tmp_path)
    with pytest.raises(ConfigError, match=rf"another process \(pid {os.getpid()}\)"):
        open_sink(tmp_path)
    first.close()
    open_sink(tmp_path).close()


@pytest.mark.parametrize(
    "other",
    [
        Identity("cluster-2", {TOPIC: "topic-1"}, {"format": "csv", "group_by": "pod"}),
        Identity("cluster-1", {TOPIC: "topic-2"}, {"format": "csv", "group_by": "pod"}),
        identity(group_by="pod,service"),
        Identity("cluster-1", {TOPIC: "topic-1"}, {"format": "parquet", "group_by": "pod"}),
    ],
)
def test_the_storage_of_other_data_is_refused(tmp_path: Path, other: Identity) -> None:
    finish(open_csv, tmp_path, MIXED[:2], 2)
    storage = Storage(tmp_path)
    with pytest.raises(ConfigError, match="choose another --storage"):
        storage.open(other)
    storage.close()


def test_a_storage_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="choose another --storage"):
        Storage(tmp_path / "file" / "storage")


def test_a_broken_checkpoint_is_refused(tmp_path: Path) -> None:
    finish(open_csv, tmp_path, MIXED[:2], 2)
    path = tmp_path / ".stream-app/checkpoint.json"
    for content in (b"", b"{", b"[]", b'{"version":2}'):
        path.write_bytes(content)
        with pytest.raises(SinkError, match="cannot be read"):
            open_csv(tmp_path)
    for version in (1, 99):
        path.write_bytes(b'{"version":%d}' % version)
        with pytest.raises(ConfigError, match=f"another version of podstream .* version {version}, not 2"):
            open_csv(tmp_path)


def test_a_full_disk_leaves_the_last_commit(tmp_path: Path) -> None:
    """A refused write is one line that says what to do, and the files stay as they were committed."""
    program = f"""
import resource, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from ingestor.core.errors import SinkError
from sink_scenario import *
folder = Path({str(tmp_path)!r})
sink = open_csv(folder)
records = long_scenario(4000)
play(sink, records[:400], 100)
before = found(folder)
resource.setrlimit(resource.RLIMIT_FSIZE, ((folder / "prod/s0.csv").stat().st_size + 100,) * 2)
try:
    play(sink, records, 100)
except SinkError as error:
    print(error)
    assert found(folder) == before
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, PATHS))}
    result = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment
    )
    assert "free some space" in result.stdout
    finish(open_csv, tmp_path, long_scenario(4000), 400)
    assert found(tmp_path) == expected(long_scenario(4000))


def test_many_files_in_one_commit(tmp_path: Path) -> None:
    """Above a few files threads do the flushing; the result is the same."""
    records = [record(minute, "p", service=f"s{i}", cpu=float(minute)) for minute in range(3) for i in range(50)]
    finish(open_csv, tmp_path, records, 50)
    assert found(tmp_path) == expected(records)


MANY = """
import resource, sys
from pathlib import Path
from test_sinks import *
resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))
count = int(sys.argv[3])
records = [record(minute, "p", service=f"s{i}", cpu=float(minute)) for minute in (1, 2) for i in range(count)]
records += [record(0, "p", service=f"s{i}", cpu=0.5) for i in range(100)]
finish(SINKS[sys.argv[2]], Path(sys.argv[1]), records, count)
finish(SINKS[sys.argv[2]], Path(sys.argv[1]), records, count)
"""


@pytest.mark.parametrize(("name", "count"), [("csv", 10_000), ("parquet", 2_000)])
def test_thousands_of_services_need_few_open_files(tmp_path: Path, name: str, count: int) -> None:
    """New files, appends, rewrites and a restart are done with 48 descriptors, those of Python and its threads too."""
    paths = os.pathsep.join(map(str, [*PATHS, Path(__file__).parent]))
    subprocess.run(
        [sys.executable, "-c", MANY, str(tmp_path), name, str(count)],
        check=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
    files = found(tmp_path)
    assert len(files) == count
    assert {len(rows) for rows in files.values()} == {2, 3}
    assert sum(map(len, files.values())) == 2 * count + 100


def test_a_commit_without_news_writes_nothing(tmp_path: Path) -> None:
    sink = open_csv(tmp_path)
    play(sink, MIXED, 100)
    checkpoint = tmp_path / ".stream-app/checkpoint.json"
    before = checkpoint.stat()
    sink.commit(sink.offsets, sink.view)
    sink.close()
    assert (checkpoint.stat().st_ino, checkpoint.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert orjson.loads(checkpoint.read_bytes())["offsets"] == {TOPIC: {"0": len(MIXED)}}


@contextmanager
def _copied_at_every_step(folder: Path, copies: Path) -> Iterator[None]:
    """Copy *folder* before and after each call that could change a file, where that makes a difference."""
    seen: set[bytes] = set()
    copies.mkdir(parents=True)

    def step(_: FrameType, event: str, function: Any) -> None:
        if event not in ("c_call", "c_return") or not is_change(function):
            return
        sys.setprofile(None)
        state = b"".join(
            bytes(path.relative_to(folder)) + b"\0" + (path.read_bytes() if path.is_file() else b"") + b"\0"
            for path in sorted(folder.rglob("*"))
        )
        if state not in seen:
            seen.add(state)
            shutil.copytree(folder, copies / f"{len(seen):04}")
        sys.setprofile(step)

    sys.setprofile(step)
    try:
        yield
    finally:
        sys.setprofile(None)
