"""What is in a CSV file: columns, cells, order."""

from __future__ import annotations

import csv
import io
import random
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from record_columns import columns

from ingestor.core.errors import SinkError
from stream_app.records import Record
from stream_app.sinks.base import View
from stream_app.sinks.checkpoint import Identity, Storage
from stream_app.sinks.csv_files import CsvSink
from stream_app.sinks.csv_style import ESCAPED, TIME_FORMATS, CsvStyle, absent_text
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
        storage.open(Identity("c", {"t": "i"}, {"group_by": ",".join(group_by), **style.options()}))
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


def test_a_metric_called_as_a_column_is(tmp_path: Path) -> None:
    """pandas would rename the second of two columns with one name."""
    write(
        tmp_path,
        [record(0, "a", {"pod": 1.0, "timestamp": 2.0, "metric.pod": 3.0})],
        [record(1, "a", {"pod": 4.0, "z": 5.0})],
    )
    assert (tmp_path / "prod/api.csv").read_text() == (
        "timestamp,pod,metric.metric.pod,metric.pod,metric.timestamp,z\n"
        "2026-11-23T12:00:00Z,a,3.0,1.0,2.0,\n"
        "2026-11-23T12:01:00Z,a,,4.0,,5.0\n"
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


@given(
    st.lists(st.text() | st.from_regex(r"(metric\.)*(pod|timestamp|m)", fullmatch=True), max_size=5, unique=True),
    st.booleans(),
)
def test_any_header_can_be_read_back(metrics: list[str], with_pod: bool) -> None:  # noqa: FBT001
    table = Table(metrics, DEFAULT, with_pod=with_pod)
    read = Table.read(io.BytesIO(table.header() + b"rest\n"), DEFAULT, with_pod=with_pod)
    assert read.metrics == tuple(metrics)


def test_other_spellings(tmp_path: Path) -> None:
    """What is absent is told from what is NaN and from what is 0, in rows from before a metric came too."""
    style = CsvStyle(absent_text("0"), "epoch-s")
    write(
        tmp_path,
        [record(0, "a", {"m": NAN}), record(0, "b", {})],
        [record(1, "a", {"n": 0.0}), record(1, "b", {"m": INF})],
        style=style,
    )
    assert (tmp_path / "prod/api.csv").read_text() == (
        "timestamp,pod,m,n\n1795435200,a,NaN,0\n1795435200,b,0,0\n1795435260,a,0,0.0\n1795435260,b,+Inf,0\n"
    )


@given(
    st.lists(
        st.builds(
            record,
            st.integers(0, 9),
            st.sampled_from(["a", "b", "=1+1"]),
            st.dictionaries(st.sampled_from("mn"), st.floats()),
        ),
        max_size=20,
    ),
    st.sampled_from(TIME_FORMATS),
    st.sampled_from(["empty", "nan", "0", "1e-9"]),
    st.integers(1, 6),
)
@settings(max_examples=40, deadline=None)
def test_spellings_change_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, records: list[Record], times: str, missing: str, batch: int
) -> None:
    """Rows are found, merged and padded the same, however they are spelled."""
    folder = tmp_path_factory.mktemp("style")
    style = CsvStyle(absent_text(missing), times)
    for first in range(0, len(records), batch):
        write(folder / "plain", records[first : first + batch])
        write(folder / "other", records[first : first + batch], style=style)
    if not records:
        return
    plain, other = ((folder / name / "prod/api.csv").read_text().splitlines() for name in ("plain", "other"))
    assert plain[0] == other[0]
    write_time = style.time_writer()
    for line, spelled in zip(plain[1:], other[1:], strict=True):
        timestamp, pod, *cells = line.split(",")
        ms = int(pd.Timestamp(timestamp).timestamp() * 1000)
        assert spelled == ",".join([write_time(ms), pod, *(cell or style.absent for cell in cells)])


def test_what_a_spreadsheet_sees(tmp_path: Path) -> None:
    """Plain rows of one width in UTF-8 without a mark; what looks like a formula is what was reported, unaltered."""
    odd = ["=1+1", "+1", "-1", "@x", "tab\there", "ümläut", 'quo"te', "com,ma", "line\nbreak"]
    names = ["=cmd()", "a,b", "metric"]
    write(tmp_path, [record(0, pod, dict.fromkeys(names, 1.5)) for pod in sorted(odd)])
    content = (tmp_path / "prod/api.csv").read_bytes()
    assert content.startswith(b'timestamp,pod,=cmd(),"a,b",metric\n')
    header, *rows = csv.reader(io.StringIO(content.decode(), newline=""))
    assert header == ["timestamp", "pod", *names]
    assert rows == [["2026-11-23T12:00:00Z", pod, "1.5", "1.5", "1.5"] for pod in sorted(odd)]
    assert list(pd.read_csv(tmp_path / "prod/api.csv")["pod"]) == sorted(odd)


def test_no_spreadsheet_runs_an_escaped_cell(tmp_path: Path) -> None:
    """Names that look like formulas are text, and can be told from one another; rows are merged as without escapes."""
    odd = ["=1+1", "'=1+1", "''=1+1", "+1", "-1", "@x", "\t=x", " =x", "\r=x", "plain", '"=x', "=a,b"]
    names = ["=cmd()", "'=cmd()", "@a,b", "metric"]
    records = [record(minute, pod, dict.fromkeys(names, 1.5)) for minute in (5, 0, 9) for pod in sorted(odd)]
    more = [record(0, "=1+1", {"=cmd()": 2.5, "-late": 3.5}), record(9, "'=1+1", {"metric": 4.5})]
    style = CsvStyle(formulas=ESCAPED)
    for folder, spelled in ((tmp_path / "plain", DEFAULT), (tmp_path / "escaped", style)):
        for batch in (records[:5], records[5:30], records[30:], more):
            write(folder, batch, style=spelled)
    rows = {
        name: list(csv.reader(io.StringIO((tmp_path / name / "prod/api.csv").read_bytes().decode(), newline="")))
        for name in ("plain", "escaped")
    }
    cells = [name for row in rows["escaped"] for name in (row[1:2] if row[0] != "timestamp" else row)]
    assert not [cell for cell in cells if cell[0] in "=+-@\t\r "]
    back = [[style.read(name) for name in rows["escaped"][0]]]
    back += [[row[0], style.read(row[1]), *row[2:]] for row in rows["escaped"][1:]]
    assert back == rows["plain"]
    assert len(back) == 1 + 3 * len(odd)


@pytest.mark.parametrize("seed", range(3))
def test_frames_of_jobs_that_overlap_are_those_of_an_oracle(tmp_path: Path, seed: int) -> None:
    """Live data, a backfill across its start, a recheck and a repeat, in any interleaving: one row each."""
    chance = random.Random(seed)
    jobs = [
        [(minute, revision, partial_at == minute) for minute in minutes]
        for minutes, revision, partial_at in (
            (range(60, 120), 0, 60),
            (range(80), 0, 79),
            (range(60, 110), 1, -1),
            (range(20, 40), 2, 39),
        )
    ]
    records = []
    while any(jobs):
        minute, revision, partial = chance.choice([job for job in jobs if job]).pop(0)
        for pod in ("a", "b"):
            metrics = {"cpu": chance.random(), f"extra_{minute // 50}": NAN if minute % 9 == 0 else minute * 1e-7}
            one = record(minute, pod, metrics, service=f"s{minute % 2}")
            records.append(replace(one, revision=revision, partial=partial, job=str(revision)))
    write(tmp_path, *(records[first : first + 7] for first in range(0, len(records), 7)))
    rows = pd.DataFrame(
        [
            {
                "timestamp": pd.Timestamp(one.window_start_ms, unit="ms", tz="UTC"),
                "pod": one.pod,
                "service": one.service,
            }
            | {"whole": not one.partial, "revision": one.revision, "offset": offset, **one.metrics}
            for offset, one in enumerate(records)
        ]
    )
    best = rows.sort_values(["whole", "revision", "offset"]).drop_duplicates(["timestamp", "pod"], keep="last")
    for service, expected in best.sort_values(["timestamp", "pod"]).groupby("service"):
        path = tmp_path / f"prod/{service}.csv"
        found = pd.read_csv(path, parse_dates=["timestamp"])
        expected = expected[found.columns].reset_index(drop=True)  # noqa: PLW2901
        pd.testing.assert_frame_equal(found, expected, check_exact=True, check_dtype=False)
