"""Range chunks become rows of samples: each once, labels as columns, whatever jobs have published twice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingestor.core.chunk import Header, RangeChunk, SeriesColumns
from ingestor.core.time_range import TimeRange
from ingestor.splitting import Splits
from stream_app.raw_files import FORMATS
from stream_app.raw_samples import LAYOUT, metric_days, name_of
from stream_app.sinks.checkpoint import Identity, Storage
from stream_app.sinks.part_csv import CsvParts
from stream_app.sinks.part_store import Limits, PartStore
from stream_app.sinks.paths import hive

DAY_MS = 86_400_000


class Series(NamedTuple):
    namespace: str
    pod: str
    metric: str
    labels: tuple[tuple[str, str], ...]
    column: str = ""
    """Where the metric is split: what it is called then."""

    @property
    def fingerprint(self) -> int:
        return hash((self.metric, self.labels, self.namespace, self.pod)) % 2**64


def chunk(samples: Sequence[tuple[Series, list[tuple[int, float]]]], revision: int = 0) -> RangeChunk:
    """Return a chunk of series and their samples, some of its arrays' values outside."""

    def texts(values: list[str]) -> pa.DictionaryArray:
        return pa.array(values, pa.string()).dictionary_encode()

    rows = [row for row, _ in samples]
    flat = [sample for _, found in samples for sample in found]
    times = np.array([7, *(at for at, _ in flat), 9], np.int64)
    values = np.array([0.5, *(value for _, value in flat), 0.5])
    return RangeChunk(
        Header("job", TimeRange(0, 2**40), 0, "test", revision),
        SeriesColumns(
            *(texts([getattr(row, name) for row in rows]) for name in ("namespace", "pod")),
            texts(["svc"] * len(rows)),
            texts([row.column or row.metric for row in rows]),
            texts(["gauge"] * len(rows)),
            pa.array([list(row.labels) for row in rows], pa.map_(pa.string(), pa.string())),
            np.array([row.fingerprint for row in rows], np.uint64),
            np.cumsum([1, *(len(found) for _, found in samples)]).astype(np.int64),
            times,
            values,
        ),
    )


Row = tuple[str, str, str, str, int, tuple[tuple[str, str], ...]]


def bits(value: float) -> int:
    return int(np.float64(value).view(np.uint64))


def expected(chunks: Sequence[RangeChunk]) -> dict[Row, int]:
    """Return the bits of each sample's value, the short way."""
    best: dict[Row, tuple[int, int]] = {}
    for one in chunks:
        series, revision = one.series, one.header.revision
        for row in range(len(series)):
            metric, labels = series.metric[row].as_py().partition("{")[0], tuple(series.labels[row].as_py())
            who = series.namespace[row].as_py(), series.pod[row].as_py()
            for at in range(int(series.offsets[row]), int(series.offsets[row + 1])):
                time = int(series.timestamps_ms[at])
                key = (metric, str(np.datetime64(time // DAY_MS, "D")), *who, time, labels)
                if key not in best or revision >= best[key][0]:
                    best[key] = revision, bits(series.values[at])
    return {key: value for key, (_, value) in best.items()}


def found_rows(metric: str, date: str, table: pa.Table) -> dict[Row, int]:
    """Return what a table says, with the labels that its columns stand for; rows must be sorted and unique."""
    fixed = LAYOUT.fixed.names
    rows: dict[Row, int] = {}
    order = []
    for row in table.to_pylist():
        labels = {name.removeprefix("label."): value for name, value in row.items() if name not in fixed}
        labels = {name: value for name, value in labels.items() if value is not None}
        # What the columns say is not said twice.
        labels |= {name: row[name] for name in ("namespace", "pod") if row[name] and name not in labels}
        time = int(row["timestamp"].timestamp() * 1000 + 0.5)
        rows[metric, date, row["namespace"], row["pod"], time, tuple(sorted(labels.items()))] = bits(row["value"])
        order.append((row["namespace"], row["pod"], row["series"], time))
    assert order == sorted(set(order))
    return rows


NAN_PAYLOAD = float(np.array([0x7FF0000000000002], np.uint64).view(np.float64)[0])
VALUES = st.sampled_from([0.0, -0.0, 1.5, math.inf, -math.inf, math.nan, NAN_PAYLOAD, 5e-324])
TIMES = st.integers(0, 12).map(lambda step: 3 * DAY_MS - 6 * 1000 + step * 1000)
LABELS = st.dictionaries(
    st.sampled_from(["code", "value", "le", "type"]), st.sampled_from(["a", "b", "+Inf"]), max_size=3
)
SERIES = st.builds(
    lambda namespace, pod, metric, labels: Series(
        namespace,
        pod,
        metric,
        tuple(sorted((labels | {"namespace": namespace} | ({"pod": pod} if pod else {})).items())),
    ),
    st.sampled_from(["prod", "stage"]),
    st.sampled_from(["api-1", "api-2", ""]),
    st.sampled_from(["cpu", "rss"]),
    LABELS,
)
CHUNKS = st.lists(
    st.builds(
        chunk,
        st.lists(
            st.tuples(
                SERIES,
                st.lists(st.tuples(TIMES, VALUES), max_size=6, unique_by=lambda one: one[0]).map(sorted),
            ),
            max_size=4,
            unique_by=lambda one: one[0],
        ),
        st.integers(0, 2),
    ),
    max_size=6,
)


@given(CHUNKS)
@settings(max_examples=100)
def test_every_sample_once(chunks: list[RangeChunk]) -> None:
    """Any chunks, overlapping in any way, give each series' sample once, bit for bit, in its metric and day."""
    rows: dict[Row, int] = {}
    for one in metric_days(chunks):
        rows |= found_rows(one.metric, one.date, one.rows.table)
    assert rows == expected(chunks)


@given(CHUNKS, st.integers(1, 3), st.sampled_from(["parquet", "csv"]))
@settings(max_examples=40)
def test_commits_do_not_show(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[RangeChunk], batch: int, kind: str
) -> None:
    """However chunks are cut into commits, with a restart after each, the files have every sample once."""
    folder = tmp_path_factory.mktemp("raw")
    for first in range(0, len(chunks) + 1, batch):
        storage = Storage(folder)
        storage.open(Identity("cluster", {"topic": "id"}, {"format": kind}))
        store = PartStore(storage, FORMATS[kind](), limits=Limits(150, 1, 1))
        for one in metric_days(chunks[first : first + batch]):
            store.add((hive("metric", one.metric), hive("date", one.date)), one.rows)
        store.plan()
        storage.commit({"topic": {0: first + batch}}, None)
        while not store.is_tidy:
            store.plan(1000)
            storage.commit(storage.offsets, None)
        storage.close()
    rows: dict[Row, int] = {}
    for path in folder.glob(f"metric=*/date=*/part-*.{kind}"):
        metric, date = (part.partition("=")[2] for part in path.relative_to(folder).parts[:2])
        table = (
            pq.ParquetFile(path).read()
            if kind == "parquet"
            else CsvParts(LAYOUT).decoded(path.read_bytes(), None).table
        )
        part = found_rows(metric, date, table)
        assert not rows.keys() & part.keys()
        rows |= part
    wanted = expected(chunks)
    if kind == "csv":
        # A NaN's payload has no spelling.
        rows, wanted = ({key: _plain(value) for key, value in one.items()} for one in (rows, wanted))
    assert rows == wanted


def _plain(value: int) -> int:
    number = float(np.array([value], np.uint64).view(np.float64)[0])
    return bits(math.nan) if math.isnan(number) else value


def test_metrics_and_times_that_are_not_wanted() -> None:
    series = [Series("prod", "api-1", name, ()) for name in ("cpu", "rss")]
    one = chunk([(who, [(1000, 1.0), (2000, 2.0), (3000, 3.0)]) for who in series])
    (found,) = metric_days([one], lambda metric: metric == "rss", from_ms=2000)
    assert found.metric == "rss"
    assert found.rows.table["value"].to_pylist() == [2.0, 3.0]
    assert not list(metric_days([one], lambda _: False))
    assert not list(metric_days([]))


def test_labels_that_are_called_like_columns() -> None:
    """Such labels are called ``label.…``; those that only repeat namespace and pod are left out."""
    labels = (("namespace", "prod"), ("pod", "api-1"), ("service", "web"), ("timestamp", "x"), ("label.a", "y"))
    (found,) = metric_days([chunk([(Series("prod", "api-1", "cpu", labels), [(1000, 1.0)])])])
    names = set(found.rows.table.column_names) - set(LAYOUT.fixed.names)
    assert names == {"label.service", "label.timestamp", "label.label.a"}
    (found,) = metric_days([chunk([(Series("prod", "api-1", "cpu", (("pod", "exporter"),)), [(1000, 1.0)])])])
    assert found.rows.table["label.pod"].to_pylist() == ["exporter"]


@pytest.mark.parametrize("metric", ["http_requests_total", "cpu:rate", "http.requests", 'odd "name"\\ {x}\n'])
def test_split_metrics_have_their_own_name_back(metric: str) -> None:
    """Whatever a metric is split by, its samples lie with those of the metric."""
    splits = Splits({metric: ("code", "odd.label")})
    labels: dict[str, Any] = {"code": 'a"}{\n', "odd.label": "b,c="}
    assert splits.column(metric, labels) != metric
    assert name_of(splits.column(metric, labels)) == metric
    assert name_of(metric) == metric


def test_csv_is_plain(tmp_path: Path) -> None:
    """A header a file, ISO 8601 in UTC, Prometheus' spelling of what is no number."""
    series = Series("prod", "", "up", (("job", 'a"b,c'),))
    (found,) = metric_days([chunk([(series, [(1_500, 1.0), (2_000, math.inf)])])])
    content, ranks = CsvParts(LAYOUT).encoded(found.rows, found.rows.extras(LAYOUT))
    header, *lines = content.to_pybytes().decode().splitlines()
    assert ranks is None
    assert header.replace('"', "") == "timestamp,value,namespace,pod,service,type,series,job"
    assert lines[0].replace('"', "").startswith("1970-01-01T00:00:01.500Z,1,prod,,svc,gauge,")
    assert lines[1].replace('"', "").startswith("1970-01-01T00:00:02.000Z,+Inf,prod,,svc,gauge,")
