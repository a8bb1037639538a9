"""Parquet in Hive's layout: ``<storage>/namespace=…/service=…/date=…/part-….parquet``, exactly once.

With both groupings there is a folder of each on top, ``group=pod`` and ``group=service``:
their rows are not of one table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa

from stream_app.records import BoolArray, Float64Array, Int64Array, Records, joined
from stream_app.sinks.base import View
from stream_app.sinks.checkpoint import Storage
from stream_app.sinks.owners import owners_of
from stream_app.sinks.part_parquet import ParquetParts
from stream_app.sinks.part_rows import TEXT, TIME, TIME_TYPE, Layout, Rows
from stream_app.sinks.part_store import TIDYING_ROWS, Limits, PartitionPath, PartStore
from stream_app.sinks.paths import column_name, hive

_POD = Layout(pa.schema([(TIME, TIME_TYPE), ("pod", TEXT)]), keys=("pod", TIME), extra=pa.float64())
_SERVICE = Layout(pa.schema([(TIME, TIME_TYPE)]), keys=(TIME,), extra=pa.float64())

_TAKEN = frozenset({TIME, "pod", "group", "namespace", "service", "date"})
"""Columns and folders, which no metric may be called."""

_DAY_MS = 86_400_000

_HIGHEST_REVISION = 2**61
_PARTIAL = 2**62
"""What a partial record's rank is below that of a whole one: more than any revision makes up for."""


class ParquetSink:
    """A ``Sink`` of Parquet files; the storage must be open, and is closed with the sink.

    Args:
        storage: the folder, and nobody else's.
        group_by: ``pod``, ``service`` or both.
        limits: how large parts get, and how much is written anew.
    """

    def __init__(self, storage: Storage, group_by: Sequence[str], limits: Limits | None = None) -> None:
        self._storage = storage
        groupings = sorted(set(group_by))
        roots: dict[str, PartitionPath] = {name: (hive("group", name),) * (len(groupings) > 1) for name in groupings}
        layouts = {"pod": _POD, "service": _SERVICE}
        self._stores = {
            name == "service": PartStore(storage, ParquetParts(layouts[name]), roots[name], limits)
            for name in groupings
        }
        self._held: list[Records] = []

    @property
    def offsets(self) -> Mapping[str, Mapping[int, int]]:
        return self._storage.offsets

    @property
    def view(self) -> View | None:
        return self._storage.view

    @property
    def file_count(self) -> int:
        """The number of parts as of the last commit."""
        return sum(store.part_count for store in self._stores.values())

    @property
    def is_behind(self) -> bool:
        return any(store.is_behind for store in self._stores.values())

    def write(self, records: Records) -> None:
        self._held.append(records)

    def commit(self, offsets: Mapping[str, Mapping[int, int]], view: View | None) -> None:
        if any(map(len, self._held)):
            self._hand_out(joined(self._held))
        self._held.clear()
        self._commit(offsets, view)

    def complete(self) -> None:
        while self.is_behind:
            self._commit(self.offsets, self.view, TIDYING_ROWS)

    def finish(self) -> None:
        self.complete()
        while not all(store.is_tidy for store in self._stores.values()):
            self._commit(self.offsets, self.view, TIDYING_ROWS)

    def close(self) -> None:
        self._storage.close()

    def _commit(self, offsets: Mapping[str, Mapping[int, int]], view: View | None, more_rows: int = 0) -> None:
        for store in self._stores.values():
            store.plan(more_rows)
        self._storage.commit(offsets, view)

    def _hand_out(self, records: Records) -> None:
        """Give each service's day its rows, sorted and one a key, as parts have them."""
        names, owner, pod = owners_of(records)
        order = _latest(records, owner, pod)
        rows, owner = records.take(order), owner[order]
        day = rows.window_start_ms // _DAY_MS
        starts = np.flatnonzero(_differs(owner) | _differs(day)).tolist()
        for group, rows_of_group in _tables(rows, starts):
            namespace, service, is_service = names[owner[starts[group]]]
            date = str(np.datetime64(int(day[starts[group]]), "D"))
            path = hive("namespace", namespace), hive("service", service), hive("date", date)
            self._stores[is_service].add(path, rows_of_group)


def _latest(records: Records, owner: Int64Array, pod: Int64Array) -> Int64Array:
    """Return which rows stay of those with one key, in the order of owner, day, pod and time."""
    start, day = records.window_start_ms, records.window_start_ms // _DAY_MS
    # Stable: of one rank, what came later comes last.
    order = np.lexsort((_ranks(records), start, pod, day, owner))
    is_last = np.roll(_differs(owner[order]) | _differs(pod[order]) | _differs(start[order]), -1)
    latest: Int64Array = order[is_last]
    return latest


def _differs(values: Int64Array) -> BoolArray:
    """Tell of each value whether it is another than the one before; the first is."""
    differs = np.ones(len(values), np.bool_)
    differs[1:] = values[1:] != values[:-1]
    return differs


def _ranks(records: Records) -> Int64Array:
    ranks: Int64Array = np.clip(records.revision, -_HIGHEST_REVISION, _HIGHEST_REVISION) - records.partial * _PARTIAL
    return ranks


def _tables(records: Records, starts: Sequence[int]) -> Iterator[tuple[int, Rows]]:
    """Yield the number and the rows of each group, which begins at its place in *starts*.

    Neighbours of the same columns share them: most of a small table's costs are for each column.
    """
    lowest, highest = (ufunc.reduceat(records.layout, starts) for ufunc in (np.minimum, np.maximum))
    is_service = np.array([who[1] is None for who in records.whos], np.int64)[records.who[starts]]
    is_alone = (lowest != highest) | _differs(lowest) | _differs(highest) | _differs(is_service)
    firsts = np.flatnonzero(is_alone).tolist()
    edges = [*starts, len(records)]
    for first, last in pairwise([*firsts, len(starts)]):
        begin = edges[first]
        rows = _rows(records[begin : edges[last]])
        for group in range(first, last):
            yield group, rows.slice(edges[group] - begin, edges[group + 1] - edges[group])


def _rows(records: Records) -> Rows:
    whos, number = np.unique(records.who, return_inverse=True)
    pods = pa.array([records.whos[who][1] for who in whos.tolist()], pa.string())
    table = {TIME: pa.array(records.window_start_ms).view(TIME_TYPE)}
    if not pods.null_count:
        table["pod"] = pods.take(pa.array(number))
    metrics, values, present = _values(records)
    for metric, column, there in zip(metrics, values, present, strict=True):
        table[column_name(metric, _TAKEN, "metric")] = pa.array(column, mask=None if there is None else ~there)
    return Rows(pa.table(table), _ranks(records))


def _values(records: Records) -> tuple[Sequence[str], Sequence[Float64Array], Sequence[BoolArray | None]]:
    """Return the metrics, and of each a column of values and of whether they are there; None: all are."""
    layouts = [records.layouts[number] for number in np.unique(records.layout).tolist()]
    if len(layouts) == 1:
        metrics = layouts[0]
        columns = np.ascontiguousarray(records.values.reshape(len(records), len(metrics)).T)
        return metrics, list(columns), [None] * len(metrics)
    metrics = tuple(dict.fromkeys(name for layout in layouts for name in layout))
    values, present = records.matrix(metrics)
    return metrics, list(np.ascontiguousarray(values.T)), list(np.ascontiguousarray(present.T))
