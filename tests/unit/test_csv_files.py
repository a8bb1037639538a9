"""What is in a CSV file: columns, cells, order."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from record_columns import columns

from ingestor.core.errors import SinkError
from stream_app.records import Record
from stream_app.sinks.base import View
from stream_app.sinks.checkpoint import Identity, Storage
from stream_app.sinks.csv_files import CsvSink
from stream_app.sinks.csv_style import CsvStyle
from stream_app.sinks.csv_text import Table

NOON_MS = 1_795_435_200_000
DEFAULT = CsvStyle()
INF, NAN = float("inf"), float("nan")


def record(minute: int, pod: str | None, metrics: dict[str, float], service: str = "api") -> Record:
    start_ms = NOON_MS + minute * 60_000
    return Record(
        namespace="prod",
        pod=pod,
        service=service,
        window_start_ms=start_ms,
        window_end_ms=start_ms + 60_000,
        chunk_size="1m",
        method="mean",
        job="live",
        revision=0,
        partial=False,
        samples=4,
        metrics=metrics,
    )


def write(
    folder: Path, *commits: list[Record], group_by: tuple[str, ...] = ("pod",), style: CsvStyle = DEFAULT
) -> None:
    """Write each list in a commit of its own, by a process of its own."""
    for commit in commits:
        storage = Storage(folder)
        storage.open(Identity("c", {"t": "i"}, {"group_by": ",".join(group_by)}))
        sink = CsvSink(storage, group_by, style)
        at = sink.offsets.get("t", {}).get(0, 0)
        sink.write(columns(commit, at))
        sink.commit({"t": {0: at + len(commit)}}, View("1m", "mean"))
        sink.complete()
        sink.close()


def test_a_file_as_people_see_it(tmp_path: Path) -> None:
    write(
        tmp_path,
        [record(1, "b", {"rss": 1e16, "cpu": 0.1}), record(0, "a", {"cpu": 1e-05}), record(0, "b", {"cpu": NAN})],
        [record(2, "a", {"cpu": INF, "rss": -INF})],
    )
    assert (tmp_path / "prod/api.csv").read_text() == (
        "timestamp,pod,cpu,rss\n"
        "2026-11-23T12:00:00Z,a,1e-05,\n"
        "2026-11-23T12:00:00Z,b,NaN,\n"
        "2026-11-23T12:01:00Z,b,0.1,1e+16\n"
        "2026-11-23T12:02:00Z,a,+Inf,-Inf\n"
    )


def test_a_new_metric_is_a_column_at_the_end(tmp_path: Path) -> None:
    write(
        tmp_path,
        [record(0, "a", {"m": 1.0})],
        [record(1, "a", {"z": 2.0, "b": 3.0})],
        [record(2, "a", {"b": 4.0, "m": 5.0})],
    )
    assert (tmp_path / "prod/api.csv").read_text() == (
        "timestamp,pod,m,b,z\n"
        "2026-11-23T12:00:00Z,a,1.0,,\n"
        "2026-11-23T12:01:00Z,a,,3.0,2.0\n"
        "2026-11-23T12:02:00Z,a,5.0,4.0,\n"
    )


def test_service_records_alone_and_beside_pods(tmp_path: Path) -> None:
    one, two = record(0, None, {"m": 1.0}), record(0, "a", {"m": 2.0})
    write(tmp_path / "alone", [one], group_by=("service",))
    write(tmp_path / "both", [one, two], group_by=("pod", "service"))
    text = "timestamp,m\n2026-11-23T12:00:00Z,1.0\n"
    assert (tmp_path / "alone/prod/api.csv").read_text() == text
    assert (tmp_path / "both/prod/api.service.csv").read_text() == text
    assert (tmp_path / "both/prod/api.csv").read_text() == "timestamp,pod,m\n2026-11-23T12:00:00Z,a,2.0\n"


def test_a_service_called_like_a_service_file(tmp_path: Path) -> None:
    write(
        tmp_path, [record(0, None, {"m": 1.0}), record(0, "a", {"m": 2.0}, "api.service")], group_by=("pod", "service")
    )
    assert len(list(tmp_path.glob("*/*.csv"))) == 2


def test_pandas_reads_what_was_written(tmp_path: Path) -> None:
    values = {
        "a": 0.1 + 0.2,
        "b": 5e-324,
        "c": -1.7976931348623157e308,
        "d": INF,
        "e": -INF,
        "f": NAN,
        'g{x="1,2"}': 1.5,
    }
    write(tmp_path, [record(0, 'odd "pod", really', values)])
    frame = pd.read_csv(tmp_path / "prod/api.csv", parse_dates=["timestamp"])
    assert frame["timestamp"][0] == pd.Timestamp("2026-11-23T12:00:00Z")
    assert frame["pod"][0] == 'odd "pod", really'
    pd.testing.assert_series_equal(
        frame.drop(columns=["timestamp", "pod"]).loc[0], pd.Series(values), check_names=False
    )


def test_a_record_without_metrics_is_a_row(tmp_path: Path) -> None:
    write(tmp_path, [record(0, "a", {})], [record(1, "a", {})], [record(0, "b", {"m": 1.0})])
    assert (tmp_path / "prod/api.csv").read_text() == (
        "timestamp,pod,m\n2026-11-23T12:00:00Z,a,\n2026-11-23T12:00:00Z,b,1.0\n2026-11-23T12:01:00Z,a,\n"
    )


def test_a_file_with_other_lines_is_refused(tmp_path: Path) -> None:
    """A merge that cannot read a line leaves the file alone."""
    write(tmp_path, [record(minute, "a" * 100, {"m": 1.0}) for minute in range(100)])
    path = tmp_path / "prod/api.csv"
    path.write_text(path.read_text().replace("2026-11-23T12:01:00Z", "23.11.26,12:01-----"))
    content = path.read_text()
    with pytest.raises(SinkError, match="changed by something else"):
        write(tmp_path, [record(0, "b", {"m": 1.0})])
    assert path.read_text() == content


@given(st.lists(st.floats() | st.none(), min_size=1, max_size=8))
def test_cells_are_written_as_repr(values: list[float | None]) -> None:
    """The fast path writes what Python does: orjson's spelling may change, ours may not."""
    names = [f"m{i}" for i in range(len(values))]
    metrics = {name: value for name, value in zip(names, values, strict=True) if value is not None}
    (line,) = Table(names, DEFAULT, with_pod=True).lines(columns([record(0, "a", metrics)], 0))
    spelled = {"nan": "NaN", "inf": "+Inf", "-inf": "-Inf"}
    cells = ["" if value is None else spelled.get(repr(value), repr(value)) for value in values]
    assert line.decode() == "2026-11-23T12:00:00Z,a," + ",".join(cells) + "\n"


@given(st.lists(st.text(), max_size=5, unique=True), st.booleans())
def test_any_header_can_be_read_back(metrics: list[str], with_pod: bool) -> None:  # noqa: FBT001
    table = Table(metrics, DEFAULT, with_pod=with_pod)
    read = Table.read(io.BytesIO(table.header() + b"rest\n"), DEFAULT, with_pod=with_pod)
    assert read.metrics == tuple(metrics)
