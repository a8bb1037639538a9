"""Whatever comes in whatever order, the parts have each row once, readers see one table, and little is written anew."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_app.sinks.checkpoint import Identity, Storage
from stream_app.sinks.part_parquet import ParquetParts
from stream_app.sinks.part_rows import TEXT, TIME, TIME_TYPE, Layout, Rows, merged
from stream_app.sinks.part_store import Limits, PartStore

LAYOUT = Layout(pa.schema([(TIME, TIME_TYPE), ("pod", TEXT)]), keys=("pod", TIME), extra=pa.float64())
IDENTITY = Identity("cluster", {"topic": "id"}, {"format": "parquet"})
SMALL = Limits(part_cells=120, rewritten_per_row=2, rewritten_per_commit=5)
NOON_MS = 1_795_435_200_000

Row = tuple[str, int, str, int, tuple[tuple[str, float], ...]]
"""Service, time, pod, rank, values."""


@contextmanager
def opened(folder: Path, limits: Limits) -> Iterator[tuple[Storage, PartStore]]:
    storage = Storage(folder)
    try:
        storage.open(IDENTITY)
        yield storage, PartStore(storage, ParquetParts(LAYOUT), limits=limits)
    finally:
        storage.close()


def path_of(service: str, time: int) -> tuple[str, ...]:
    return f"service={service}", f"date=2026-11-{20 + time // 20}"


def rows_of(rows: Sequence[Row]) -> Rows:
    names = sorted({name for row in rows for name, _ in row[4]})
    values = [dict(row[4]) for row in rows]
    return Rows(
        pa.table(
            {
                TIME: pa.array([NOON_MS + row[1] for row in rows], TIME_TYPE),
                "pod": pa.array([row[2] for row in rows]).dictionary_encode(),
                **{name: pa.array([one.get(name) for one in values], pa.float64()) for name in names},
            }
        ),
        np.array([row[3] for row in rows], np.int64),
    )


def give(store: PartStore, rows: Sequence[Row]) -> None:
    for path in dict.fromkeys(path_of(row[0], row[1]) for row in rows):
        mine = [row for row in rows if path_of(row[0], row[1]) == path]
        # In two pieces, as jobs that overlap may come.
        for piece in (mine[: len(mine) // 2], mine[len(mine) // 2 :]):
            if piece:
                store.add(path, merged(LAYOUT, [rows_of(piece)]))


def oracle(rows: Sequence[Row]) -> dict[tuple[str, int, str], dict[str, float]]:
    best: dict[tuple[str, int, str], Row] = {}
    for row in rows:
        if row[:3] not in best or row[3] >= best[row[:3]][3]:
            best[row[:3]] = row
    return {key: dict(row[4]) for key, row in best.items()}


def found(frame: pd.DataFrame) -> dict[tuple[str, int, str], dict[str, float]]:
    """Return what a reader sees; it must not see a row twice."""
    metrics = [name for name in frame.columns if name not in (TIME, "pod", "service", "date")]
    times = (frame[TIME].astype("datetime64[ms, UTC]").astype("int64") - NOON_MS).tolist()
    keys = list(zip(frame["service"].astype(str), times, frame["pod"], strict=True))
    assert len(set(keys)) == len(keys)
    values = frame[metrics].to_dict("records")
    return {
        key: {name: value for name, value in row.items() if not pd.isna(value)}
        for key, row in zip(keys, values, strict=True)
    }


def check_parts(folder: Path) -> int:
    """Insist that parts of a partition are sorted, apart from one another and of one schema; count them."""
    count = 0
    for partition in {path.parent for path in folder.glob("service=*/date=*/part-*.parquet")}:
        parts = [pq.ParquetFile(path).read() for path in sorted(partition.glob("part-*.parquet"))]
        assert len({str(part.schema.remove_metadata()) for part in parts}) == 1
        spans = []
        for part in parts:
            keys = list(zip(part["pod"].to_pylist(), part[TIME].to_pylist(), strict=True))
            assert keys == sorted(set(keys))
            spans.append((min(part[TIME].to_pylist()), max(part[TIME].to_pylist())))
        spans.sort()
        assert all(a[1] < b[0] for a, b in pairwise(spans))
        count += len(parts)
    return count


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b-c", "b", "_"]),
        st.integers(0, 59),
        st.sampled_from(["x", "y", "z"]),
        st.integers(-1, 1),
        st.dictionaries(st.sampled_from(["cpu", "rss", "net"]), st.floats(0, 9), min_size=1).map(
            lambda values: tuple(values.items())
        ),
    ),
    max_size=12,
)


@given(st.lists(st.tuples(ROWS, st.booleans()), max_size=8))
@settings(max_examples=40)
def test_any_rows_in_any_order(tmp_path_factory: pytest.TempPathFactory, batches: list[tuple[list[Row], bool]]) -> None:
    """After every commit readers see no row twice, and once it is settled all rows, whatever was begun anew between."""
    folder, so_far = tmp_path_factory.mktemp("parts"), list[Row]()
    for rows, settle in batches:
        so_far += rows
        with opened(folder, SMALL) as (storage, store):
            give(store, rows)
            store.plan(10_000 * settle)
            storage.commit({"topic": {0: len(so_far)}}, None)
            assert check_parts(folder) == store.part_count
        if so_far:
            frame = pd.read_parquet(folder)
            visible, expected = found(frame), oracle(so_far)
            assert visible.keys() <= expected.keys()
            if settle:
                assert visible == expected
    with opened(folder, SMALL) as (storage, store):
        store.plan(10_000)
        storage.commit({"topic": {0: len(so_far)}}, None)
        assert store.is_tidy
        assert not list((folder / ".stream-app").glob("late/**/0*"))
    if so_far:
        assert all(frame == oracle(so_far) for frame in map(found, read_by_all(folder)))


def read_by_all(folder: Path) -> list[pd.DataFrame]:
    """Read the whole in the one line that each reader needs."""
    return [
        pd.read_parquet(folder),
        ds.dataset(folder, partitioning="hive").to_table().to_pandas(),
        pl.read_parquet(folder / "**/*.parquet", hive_partitioning=True, missing_columns="insert").to_pandas(),
        duckdb.sql(f"from read_parquet('{folder}/**/*.parquet', union_by_name=true)").df(),
    ]


def test_little_is_written_anew(tmp_path: Path) -> None:
    """Rows in the order of time are rewritten as often as a part can double, late ones as far as they pay for it."""
    limits = Limits(rewritten_per_row=4, rewritten_per_commit=100)
    minutes, pods = 300, 4
    with opened(tmp_path, limits) as (storage, store):
        written = 0

        def commit(rows: Rows) -> None:
            nonlocal written
            before = set(storage.files)
            store.add(("service=a", "date=2026-11-23"), rows)
            store.plan()
            storage.commit({"topic": {0: storage.generation + 1}}, None)
            written += sum(state.note[2] for name, state in storage.files.items() if name not in before)

        def minute(at: int, rank: int) -> Rows:
            return rows_of([("a", at, f"pod-{pod}", rank, (("cpu", 1.0),)) for pod in range(pods)])

        for at in range(minutes):
            commit(minute(at, 0))
        assert store.part_count <= 3 * math.log(minutes, 4) + 1
        assert written <= minutes * pods * (math.log2(minutes) + 1)
        written = 0
        for at in range(minutes):
            commit(minute(at, 1))
        # Each is written when it comes, perhaps aside first, and what it pays for.
        assert written <= minutes * (2 * pods + pods * limits.rewritten_per_row + limits.rewritten_per_commit)
        store.plan(10_000)
        storage.commit({"topic": {0: 0}}, None)
    assert len(pd.read_parquet(tmp_path)) == minutes * pods


def test_a_partition_that_is_over_becomes_one_part(tmp_path: Path) -> None:
    with opened(tmp_path, Limits()) as (storage, store):
        for day in (0, 1):
            for at in range(3):
                give(store, [("a", 20 * day + at, "x", 0, (("cpu", 1.0),))])
                store.plan()
                storage.commit({"topic": {0: storage.generation + 1}}, None)
        assert store.is_tidy
    assert len(list(tmp_path.glob("service=a/date=2026-11-20/part-*"))) == 1
    assert len(list(tmp_path.glob("service=a/date=2026-11-21/part-*"))) == 3


def test_large_parts_are_cut_in_time(tmp_path: Path) -> None:
    """No part has more cells than it may, or one moment more."""
    with opened(tmp_path, Limits(part_cells=300)) as (storage, store):
        rows = [("a", at, f"pod-{pod}", 0, (("cpu", float(at)),)) for at in range(20) for pod in range(30)]
        give(store, rows)
        store.plan()
        storage.commit({"topic": {0: 1}}, None)
    assert check_parts(tmp_path) >= 6
    assert all(pq.read_metadata(path).num_rows <= 100 + 30 for path in tmp_path.glob("service=a/*/*"))
    assert found(pd.read_parquet(tmp_path)) == oracle(rows)


def test_every_folder_reads_as_one_table(tmp_path: Path) -> None:
    """Columns that only some partitions have are there in every reader, for the whole and for each folder below."""
    rows: list[Row] = [
        ("b", 0, "x", 0, (("cpu", 1.0),)),
        ("b", 20, "x", 0, (("cpu", 2.0), ("net", 3.0))),
        ("b-c", 0, "x", 0, (("rss", 4.0),)),
        ("007", 0, "x", 0, (("cpu", 5.0),)),
    ]
    for row in rows:
        with opened(tmp_path, Limits()) as (storage, store):
            give(store, [row])
            store.plan()
            storage.commit({"topic": {0: storage.generation + 1}}, None)
    for frame in read_by_all(tmp_path):
        assert found(frame) == oracle(rows)
    expected = [[1.0, None], [2.0, 3.0]]
    service = tmp_path / "service=b"
    for frame in (
        pd.read_parquet(service),
        pl.read_parquet(service, missing_columns="insert").to_pandas(),
        duckdb.sql(f"from read_parquet('{service}/**/*.parquet', union_by_name=true)").df(),
    ):
        assert (
            frame.sort_values(TIME)[["cpu", "net"]].astype(object).replace({math.nan: None}).values.tolist() == expected
        )
    # No folder means something that is not there, and a single service has no other's columns.
    assert set(pd.read_parquet(tmp_path)["service"].cat.categories) == {"007", "b", "b-c"}
    assert set(pd.read_parquet(tmp_path / "service=007").columns) == {TIME, "pod", "cpu", "date"}
