"""Rows that wait beside a CSV file until it is worth rewriting."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from contract.sink_scenario import TOPIC, VIEW, expected, found, late_scenario, open_csv, play, record
from record_columns import columns

from ingestor.core.errors import SinkError
from stream_app.records import Record
from stream_app.sinks.csv_files import CsvSink

LIVE = [record(1000 + minute, "a", cpu=float(minute)) for minute in range(100)]
LATE = [record(minute, "a", cpu=-float(minute)) for minute in range(5)]
FILE = "prod/api.csv"
LIST = ".stream-app/waiting/prod/api.csv"


def put(sink: CsvSink, records: Sequence[Record]) -> None:
    at = sink.offsets.get(TOPIC, {}).get(0, 0)
    sink.write(columns(records, at))
    sink.commit({TOPIC: {0: at + len(records)}}, VIEW)


def test_a_few_late_rows_wait(tmp_path: Path) -> None:
    """They leave the file as it is, fresh rows go on to its end, and both are there when it is complete."""
    sink = open_csv(tmp_path)
    put(sink, LIVE)
    before = (tmp_path / FILE).read_bytes()
    assert not sink.is_behind
    put(sink, LATE)
    assert sink.is_behind
    assert (tmp_path / FILE).read_bytes() == before
    fresh = [record(2000, "a", cpu=1.0)]
    put(sink, fresh)
    assert (tmp_path / FILE).read_bytes() == before + b"2026-11-24T21:20:00Z,a,1.0\n"
    sink.complete()
    assert not sink.is_behind
    assert not (tmp_path / LIST).exists()
    assert found(tmp_path) == expected([*LIVE, *LATE, *fresh])
    put(sink, LATE)
    assert sink.is_behind
    sink.close()


def test_history_is_rewritten_a_few_times(tmp_path: Path) -> None:
    """However many commits history comes in, what is rewritten in all is a few times what is there in the end."""
    sink = open_csv(tmp_path)
    put(sink, LIVE[:1])
    history = [record(minute, "a", cpu=minute / 3) for minute in range(990)]
    versions, rewritten = set[int](), 0
    for first in range(0, len(history), 3):
        put(sink, history[first : first + 3])
        state = (tmp_path / FILE).stat()
        if state.st_ino not in versions:
            versions.add(state.st_ino)
            rewritten += state.st_size
    sink.complete()
    sink.close()
    assert found(tmp_path) == expected([*LIVE[:1], *history])
    assert rewritten < 4 * (tmp_path / FILE).stat().st_size


def test_columns_that_come_one_by_one(tmp_path: Path) -> None:
    """New metrics wait in the order in which they came, and so are the columns; what is late has its own cells."""
    sink = open_csv(tmp_path)
    put(sink, LIVE)
    later = [
        record(3000, "a", z=1.0),
        record(3001, "a", b=2.0, cpu=3.0),
        record(3, "a", z=4.0),
        record(3, "b", cpu=5.0),
    ]
    for one in later:
        put(sink, [one])
        sink.close()
        sink = open_csv(tmp_path)
    sink.complete()
    sink.close()
    assert (tmp_path / FILE).read_text().startswith("timestamp,pod,cpu,z,b\n2026-11-23T12:03:00Z,a,,4.0,\n")
    assert found(tmp_path) == expected([*LIVE, *later])


def test_a_list_that_was_edited_is_refused(tmp_path: Path) -> None:
    sink = open_csv(tmp_path)
    put(sink, LIVE)
    put(sink, LATE)
    sink.close()
    content = (tmp_path / LIST).read_bytes()
    (tmp_path / LIST).write_bytes(content[:-4] + b"9.0\n")
    with pytest.raises(SinkError, match=r"waiting/prod/api.csv was changed by something else"):
        open_csv(tmp_path)
    (tmp_path / LIST).write_bytes(content)
    sink = open_csv(tmp_path)
    sink.complete()
    sink.close()
    assert found(tmp_path) == expected([*LIVE, *LATE])


def test_a_file_that_is_edited_while_rows_wait(tmp_path: Path) -> None:
    """It is left as it is found, and what waits is not lost once it is put back."""
    sink = open_csv(tmp_path)
    put(sink, LIVE)
    put(sink, LATE)
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(b"mine\n" + content)
    with pytest.raises(SinkError, match="changed by something else"):
        sink.complete()
    sink.close()
    assert (tmp_path / FILE).read_bytes() == b"mine\n" + content
    (tmp_path / FILE).write_bytes(content)
    sink = open_csv(tmp_path)
    sink.complete()
    sink.close()
    assert found(tmp_path) == expected([*LIVE, *LATE])


def test_many_files_are_completed_in_several_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that not all of them are on the disk twice; nothing else shows of it."""
    monkeypatch.setattr("stream_app.sinks.csv_files._STAGED_BYTES", 10_000)
    records = [
        record(minute, "a", service=f"s{i}", cpu=float(minute))
        for minutes in (range(1000, 1040), range(3))
        for i in range(20)
        for minute in minutes
    ]
    sink = open_csv(tmp_path)
    play(sink, records, 800, complete=False)
    generation = sink._storage.generation
    sink.complete()
    assert sink._storage.generation > generation + 2
    sink.close()
    assert found(tmp_path) == expected(records)


PROGRAM = """
import os, resource, sys
from pathlib import Path
from ingestor.core.errors import SinkError
from contract.sink_scenario import *
os.chdir(sys.argv[1])
folder = Path()
sink = open_csv(folder)
if sys.argv[2] == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, ((folder / "prod/api.csv").stat().st_size + 100,) * 2)
else:
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o222)
    if os.getuid() == 0:
        # Nothing is read-only for root.
        os.setresuid(65534, 65534, 65534)
try:
    sink.complete()
except SinkError as error:
    print(error)
"""


@pytest.mark.parametrize("what", ["full", "read-only"])
def test_a_disk_that_takes_nothing_more(tmp_path: Path, what: str) -> None:
    """It is told in a line that says what to do; the file stays, what waits stays, and a later start has both."""
    records = late_scenario(200, 80)
    sink = open_csv(tmp_path)
    play(sink, records, 50, complete=False)
    assert sink.is_behind
    sink.close()
    before = found(tmp_path)
    modes = {path: path.stat().st_mode for path in (tmp_path, *tmp_path.rglob("*"))}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(str(Path(__file__).parents[up]) for up in (2, 1))}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), what]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    for path, mode in modes.items():
        path.chmod(mode)
    assert "start again; nothing is lost" in done.stdout
    assert found(tmp_path) == before
    sink = open_csv(tmp_path)
    assert sink.is_behind
    sink.complete()
    sink.close()
    assert found(tmp_path) == expected(records)
