"""Columns that say nothing are left out of finished files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from contract.sink_scenario import TOPIC, VIEW, open_csv, play, record
from hypothesis import given, settings
from hypothesis import strategies as st
from record_columns import columns

from ingestor.core.errors import ConfigError
from stream_app.records import Record
from stream_app.sinks.csv_style import CsvStyle, absent_text

FILE = "prod/api.csv"
NAN = float("nan")
DROPS = [(), ("empty",), ("zero",), ("empty", "zero")]

ROWS = [
    record(0, 'odd "pod", 0.0', busy=1.0, idle=0.0, silent=NAN, late=0.0),
    record(1, "b", busy=2.0, idle=-0.0),
    record(2, "b", busy=0.0, idle=0.0, silent=NAN, late=1e-300),
]


def write(folder: Path, records: list[Record], drop: Collection[str] = (), style: CsvStyle | None = None) -> None:
    """Write and finish, as one run until idle does."""
    sink = open_csv(folder, style=style or CsvStyle(), drop=drop)
    try:
        play(sink, records, 2)
        sink.finish()
    finally:
        sink.close()


@pytest.mark.parametrize(
    ("drop", "text"),
    [
        (("empty",), "timestamp,pod,busy,idle,late\n@0,P,1.0,0.0,0.0\n@1,b,2.0,-0.0,\n@2,b,0.0,0.0,1e-300\n"),
        (("zero",), "timestamp,pod,busy,late,silent\n@0,P,1.0,0.0,NaN\n@1,b,2.0,,\n@2,b,0.0,1e-300,NaN\n"),
        (("empty", "zero"), "timestamp,pod,busy,late\n@0,P,1.0,0.0\n@1,b,2.0,\n@2,b,0.0,1e-300\n"),
    ],
)
def test_what_is_dropped(tmp_path: Path, drop: tuple[str, ...], text: str) -> None:
    """Only NaN is no value, only zeros say nothing, and a single other value keeps a column."""
    write(tmp_path, ROWS, drop)
    for minute in range(3):
        text = text.replace(f"@{minute}", f"2026-11-23T12:0{minute}:00Z")
    assert (tmp_path / FILE).read_text() == text.replace("P", '"odd ""pod"", 0.0"')


@given(
    st.lists(
        st.builds(
            lambda minute, service, metrics: record(minute, "p,1", service=service, **metrics),
            st.integers(0, 30),
            st.sampled_from(["api", "web"]),
            st.dictionaries(st.sampled_from("abcd"), st.sampled_from([0.0, -0.0, NAN, 1.0, float("inf"), 1e-9])),
        ),
        max_size=12,
    ),
    st.sampled_from(DROPS),
    st.sampled_from(["empty", "nan", "0", "0.0", "1e-09"]),
)
@settings(max_examples=60, deadline=None)
def test_files_are_those_of_pandas(
    tmp_path_factory: pytest.TempPathFactory, records: list[Record], drop: tuple[str, ...], missing: str
) -> None:
    """Whatever stands for nothing: columns that pandas finds empty or zero are gone, and nothing else is changed."""
    folder = tmp_path_factory.mktemp("drop")
    style = CsvStyle(absent_text(missing))
    write(folder, records, drop, style)
    write(folder / "whole", records, (), style)
    fill = NAN if missing in ("empty", "nan") else float(missing)
    for service in {one.service for one in records}:
        mine = [one for one in records if one.service == service]
        newest = {one.window_start_ms: one.metrics for one in mine}
        names = {name for one in mine for name in one.metrics}
        reported = pd.DataFrame([newest[start] for start in sorted(newest)], columns=sorted(names), dtype=float)
        is_empty = reported.isna().all()
        is_zero = ~is_empty & ((reported == 0) | reported.isna()).all()
        dropped = is_empty * ("empty" in drop) | is_zero * ("zero" in drop)
        found = pd.read_csv(folder / f"prod/{service}.csv")
        whole = pd.read_csv(folder / f"whole/prod/{service}.csv")
        assert set(found) == set(whole) - set(reported.columns[dropped.astype(bool)])
        pd.testing.assert_frame_equal(found, whole[found.columns])
        for name in set(found) - {"timestamp", "pod"}:
            cells = [metrics.get(name, fill) for _, metrics in sorted(newest.items())]
            np.testing.assert_array_equal(found[name].to_numpy(float), cells)


def test_once_more_does_nothing(tmp_path: Path) -> None:
    write(tmp_path, ROWS, ("empty",))
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in tmp_path.rglob("*") if path.is_file()}
    del before[tmp_path / ".stream-app/lock"]
    write(tmp_path, ROWS, ("empty",))
    write(tmp_path, ROWS)
    assert (
        before.items()
        <= {
            path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in tmp_path.rglob("*") if path.is_file()
        }.items()
    )
    # What was not asked for before can still be.
    write(tmp_path, ROWS, ("zero",))
    assert (tmp_path / FILE).read_text().startswith("timestamp,pod,busy,late\n")


@pytest.mark.parametrize("drop", DROPS)
def test_nothing_is_written_behind_what_is_finished(tmp_path: Path, drop: tuple[str, ...]) -> None:
    """Its rows would have columns that the rows before them had too: so it is refused, and nothing is changed."""
    write(tmp_path, ROWS, ("zero",))
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(ConfigError, match=r"is finished .* choose another --storage"):
        write(tmp_path, [*ROWS, record(3, "b", idle=1.0)], drop)
    assert (tmp_path / FILE).read_bytes() == before
    # Where only the position moves, nothing is missing.
    sink = open_csv(tmp_path)
    sink.write(columns([], 3))
    sink.commit({TOPIC: {0: 9}}, VIEW)
    sink.finish()
    assert sink.offsets == {TOPIC: {0: 9}}
    sink.close()


def test_a_finished_storage_without_anything_to_drop(tmp_path: Path) -> None:
    """Whether it can go on does not depend on what was in it."""
    write(tmp_path, ROWS[:1], ("empty",))
    assert "silent" not in (tmp_path / FILE).read_text()
    write(tmp_path / "other", [record(0, "a", busy=1.0)], ("empty",))
    with pytest.raises(ConfigError, match="is finished"):
        write(tmp_path / "other", [record(0, "a", busy=1.0), record(1, "a", busy=1.0)])


PROGRAM = """
import resource, sys
from pathlib import Path
from ingestor.core.errors import SinkError
from contract.sink_scenario import *
folder = Path(sys.argv[1])
sink = open_csv(folder, drop=("empty", "zero"))
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
try:
    sink.finish()
except SinkError as error:
    print(error)
"""


def test_a_disk_that_is_full_at_the_end(tmp_path: Path) -> None:
    """Of several files none has lost a column, and a later run finishes them all."""
    records = [
        record(minute, "a", service=service, busy=1.0, idle=0.0)
        for service, minutes in (("api", 10), ("web", 600))
        for minute in range(minutes)
    ]
    write(tmp_path, records)
    whole = {path: path.read_bytes() for path in tmp_path.glob("prod/*")}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(str(Path(__file__).parents[up]) for up in (2, 1))}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert "free some space" in done.stdout
    assert {path: path.read_bytes() for path in tmp_path.glob("prod/*")} == whole
    write(tmp_path, records, ("zero",))
    assert {path.read_text().split("\n")[0] for path in whole} == {"timestamp,pod,busy"}
