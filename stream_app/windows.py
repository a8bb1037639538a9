"""Samples in, closed windows out, for the samples of one job grouped one way. No clock, no I/O.

What a chunk adds to a window is a *partial*: a row (window, group, metric, samples,
state), for reductions over time a row a series. Partials are merged when the window
closes, so adding is appending, and how samples were cut into chunks does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ingestor.core.arrow import as_array, as_column, texts
from ingestor.core.chunk import LOOKBACK_MS, SeriesColumns, UInt64Array
from ingestor.core.durations import ChunkSize
from stream_app.aggregations import (
    Float64Array,
    Int64Array,
    cell_keys,
    radix_order,
    seldom_twice,
    sum_counts,
    values_of_runs,
    window_runs,
)
from stream_app.counters import counted
from stream_app.methods import GroupBy, Reduction, Reductions
from stream_app.states import Columns, Counted, Counts, Extremes, Held, Latest, Moments, State, Sums

_Name = TypeVar("_Name")
Column = Literal["group", "metric"]

_NO_POD = texts([""])[0]

_MERGE_ABOVE = 100_000
"""Merge the partials of open windows when so many more have come: a day-long window
that is fed every few seconds then holds a cell once or twice, not thousands of times."""

_POOLED: dict[str, type[State]] = {
    "sum": Sums,
    "mean": Sums,
    "count": Counts,
    "stddev": Moments,
    "min": Extremes,
    "max": Extremes,
}
"""What is remembered of pooled samples; all others need all values."""
_OVER_TIME: dict[str, type[State]] = {"last": Latest, "mean": Sums, "increase": Counted, "rate": Counted}
"""What is remembered of each series."""

_FORGET_ABOVE = 1000
"""So many pods, and metrics, are remembered at any rate."""


@dataclass(frozen=True, slots=True)
class Group:
    """What a record is about; *pod* is None in service groups."""

    namespace: str
    pod: str | None
    service: str

    @property
    def sort_key(self) -> tuple[str, str]:
        return self.namespace, self.service if self.pod is None else self.pod


@dataclass(frozen=True, slots=True)
class Runs:
    """The stretches of one series' samples in one window; see ``aggregations``."""

    window_ms: Int64Array
    row: Int64Array
    starts: Int64Array

    @property
    def samples(self) -> Int64Array:
        return np.diff(self.starts)


def runs_of(series: SeriesColumns, chunk_size: ChunkSize) -> Runs:
    """Assign the samples of *series* to windows."""
    if not series.samples:
        empty = np.empty(0, np.int64)
        return Runs(empty, empty, np.zeros(1, np.int64))
    stamps = series.timestamps_ms[series.offsets[0] : series.offsets[-1]]
    edges = chunk_size.edges_around_ms(stamps)
    row, window, starts = window_runs(series.offsets, series.timestamps_ms, edges)
    return Runs(edges[window], row.astype(np.int64), starts)


@dataclass(frozen=True, slots=True)
class Closed:
    """The cells of closed windows, sorted by window, group and metric name; one entry a cell."""

    window_ms: Int64Array
    group: Int64Array
    metric: Int64Array
    samples: Int64Array
    value: Float64Array
    groups: list[Group]
    metrics: list[str]

    def __len__(self) -> int:
        return len(self.window_ms)


@dataclass(frozen=True, slots=True)
class _Cells(Columns):
    """The key columns of partials."""

    window_ms: Int64Array
    group: Int64Array
    metric: Int64Array
    samples: Int64Array

    def __len__(self) -> int:
        return len(self.window_ms)

    def entry_changes(self, keys: Int64Array, order: Int64Array) -> npt.NDArray[np.bool_]:
        """Tell of each entry but the first, in *order*, whether it is not to be merged with the one before."""
        keys = keys[order]
        changes: npt.NDArray[np.bool_] = keys[1:] != keys[:-1]
        return changes

    def order(self) -> Int64Array:
        """Return the order that must hold within a cell before merging."""
        return np.arange(len(self))

    def merged(self, order: Int64Array, starts: Int64Array) -> _Cells:
        return replace(self.take(order[starts[:-1]]), samples=sum_counts(order, starts, self.samples))


@dataclass(frozen=True, slots=True)
class _SeriesCells(_Cells):
    """The same for each series of its own."""

    fingerprint: UInt64Array
    first_ms: Int64Array
    last_ms: Int64Array

    def entry_changes(self, keys: Int64Array, order: Int64Array) -> npt.NDArray[np.bool_]:
        keys, fingerprint = keys[order], self.fingerprint[order]
        changes: npt.NDArray[np.bool_] = (keys[1:] != keys[:-1]) | (fingerprint[1:] != fingerprint[:-1])
        return changes

    def order(self) -> Int64Array:
        return np.lexsort((self.first_ms, self.fingerprint))

    def merged(self, order: Int64Array, starts: Int64Array) -> _SeriesCells:
        first, last = order[starts[:-1]], order[starts[1:] - 1]
        samples = sum_counts(order, starts, self.samples)
        return replace(self.take(first), samples=samples, last_ms=self.last_ms[last])


@dataclass(frozen=True, slots=True)
class _Reduced(Columns):
    """Cells with their values, sorted by window, group and metric name."""

    window_ms: Int64Array
    group: Int64Array
    metric: Int64Array
    samples: Int64Array
    value: Float64Array


class _Table:
    """The partials of those metrics of open windows that are reduced in one way."""

    def __init__(self, reduction: Reduction, chunk_size: ChunkSize) -> None:
        self.looks_back = reduction.looks_back
        self._method, self._chunk_size = reduction.method, chunk_size
        # The last of all samples is the last one's of each series.
        self._over_time = "last" if reduction == Reduction("last") else reduction.over_time
        self._by_series = self._over_time != "pooled"
        self._state = _OVER_TIME[self._over_time] if self._by_series else _POOLED.get(reduction.method, Held)
        self._cells: list[_Cells] = []
        self._states: list[State] = []
        self._unmerged = 0

    def __len__(self) -> int:
        return sum(map(len, self._cells))

    @property
    def held_values(self) -> int:
        """How many samples are in memory one by one."""
        return sum(len(state.values) for state in self._states if isinstance(state, Held))

    @property
    def window_starts_ms(self) -> Int64Array:
        """The windows that partials are of."""
        return np.unique(np.concatenate([cells.window_ms for cells in self._cells] or [np.empty(0, np.int64)]))

    def add(self, series: SeriesColumns, runs: Runs, keep: Int64Array, group: Int64Array, metric: Int64Array) -> None:
        """Add the runs *keep*, with the group and the metric of each."""
        window_ms, samples = runs.window_ms[keep], runs.samples[keep]
        if self._by_series:
            fingerprint, stamps, starts = series.fingerprint[runs.row[keep]], series.timestamps_ms, runs.starts
            first_ms, last_ms = stamps[starts[:-1][keep]], stamps[starts[1:][keep] - 1]
            cells: _Cells = _SeriesCells(window_ms, group, metric, samples, fingerprint, first_ms, last_ms)
        else:
            cells = _Cells(window_ms, group, metric, samples)
        self._cells.append(cells)
        self._states.append(self._state.of(runs.starts, series.values, keep))
        self._unmerged += len(keep)

    @property
    def is_untidy(self) -> bool:
        """Whether many more partials have come than there are cells."""
        return self._unmerged > _MERGE_ABOVE + len(self._cells[0])

    def tidy(self, ranks: _Ranks) -> None:
        """Merge the partials of each cell."""
        self._replace(*self._merged(*self._joined(), ranks))

    def close(self, from_ms: int, before_ms: int, ranks: _Ranks) -> _Reduced | None:
        """Take out the windows that start in [*from_ms*, *before_ms*), and forget what lies before."""
        if not self._cells:
            return None
        cells, state = self._joined()
        closing = cells.window_ms < before_ms
        if not closing.any():
            self._replace(cells, state)
            return None
        if closing.all():
            self._cells, self._states, self._unmerged = [], [], 0
        else:
            left, index = np.flatnonzero(~closing), np.flatnonzero(closing)
            self._replace(cells.take(left), state.take(left))
            cells, state = cells.take(index), state.take(index)
        merged, merged_state = self._merged(cells, state, ranks)
        if not isinstance(merged, _SeriesCells):
            value = merged_state.result(self._method, merged.samples)
            return _Reduced(merged.window_ms, merged.group, merged.metric, merged.samples, value)
        if not isinstance(merged_state, Counted):
            return self._across(merged, merged_state.result(self._over_time, merged.samples))
        return self._counted(merged, merged_state, from_ms, before_ms)

    def _counted(self, cells: _SeriesCells, state: Counted, from_ms: int, before_ms: int) -> _Reduced | None:
        """Reduce counters; their last samples stay, for the windows to come."""
        value, has_value, is_last = counted(cells, state)
        if self._over_time == "rate":
            windows_ms, window = np.unique(cells.window_ms, return_inverse=True)
            value = value / (self._window_lengths_ms(windows_ms)[window] / 1000)
        stays = np.flatnonzero(is_last & (cells.last_ms >= before_ms - LOOKBACK_MS))
        if len(stays):
            self._cells.append(cells.take(stays))
            self._states.append(state.take(stays))
        counts = np.flatnonzero(has_value & (cells.window_ms >= from_ms))
        return self._across(cells.take(counts), value[counts]) if len(counts) else None

    def _window_lengths_ms(self, windows_ms: Int64Array) -> Int64Array:
        ends = [int(self._chunk_size.edges_ms(start, start + 1)[-1]) for start in windows_ms.tolist()]
        return np.array(ends, np.int64) - windows_ms

    def _across(self, cells: _SeriesCells, values: Float64Array) -> _Reduced:
        """Apply the method across the series of each cell."""
        starts = _starts(_changes(cells))
        if self._method == "last":
            number = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
            values = values[np.lexsort((cells.fingerprint, cells.last_ms, number))]
        samples = np.add.reduceat(cells.samples, starts[:-1])
        first = starts[:-1]
        value = values_of_runs(self._method, starts, values)
        return _Reduced(cells.window_ms[first], cells.group[first], cells.metric[first], samples, value)

    def _joined(self) -> tuple[_Cells, State]:
        if len(self._cells) == 1:
            return self._cells[0], self._states[0]
        return type(self._cells[0]).concat(self._cells), self._state.concat(self._states)

    def _merged(self, cells: _Cells, state: State, ranks: _Ranks) -> tuple[_Cells, State]:
        """Merge the partials of each cell (and series); the result lies in order of window, group and metric name."""
        keys, end = _keys(cells, ranks)
        order = radix_order(keys, end, cells.order())
        starts = _starts(cells.entry_changes(keys, order))
        return cells.merged(order, starts), state.merge(order, starts)

    def _replace(self, cells: _Cells, state: State) -> None:
        self._cells, self._states = ([cells], [state]) if len(cells) else ([], [])
        self._unmerged = 0

    def numbers(self, column: Column) -> Int64Array:
        """Return the numbers of the groups, or metrics, in use."""
        return np.unique(np.concatenate([getattr(cells, column) for cells in self._cells] or [np.empty(0, np.int64)]))

    def renumber(self, column: Column, renumbered: Int64Array) -> None:
        """Give each group, or metric, its new number."""
        for at, cells in enumerate(self._cells):
            numbers: Int64Array = renumbered[getattr(cells, column)]
            self._cells[at] = replace(cells, group=numbers) if column == "group" else replace(cells, metric=numbers)


class _Ranks(NamedTuple):
    """The place of each group's and each metric's number in the order of their names."""

    group: Int64Array
    metric: Int64Array


class GroupWindows:
    """The open windows of one job, grouped by pod or by service.

    Args:
        group_by: what a record is about.
        reductions: what is done with which metric.
        chunk_size: how long windows are.
    """

    def __init__(self, group_by: GroupBy, reductions: Reductions, chunk_size: ChunkSize) -> None:
        self._by_pod = group_by == "pod"
        self._reductions, self._chunk_size = reductions, chunk_size
        self._groups = _Names[Group](lambda group: group.sort_key)
        self._metrics = _Names[str](lambda name: name)
        self._tables: dict[Reduction, _Table] = {}
        self._reduction_of: dict[tuple[str, str], Reduction] = {}
        self._kinds: dict[str, str] = {}

    def __len__(self) -> int:
        """How many partials are in memory."""
        return sum(map(len, list(self._tables.values())))

    @property
    def held_values(self) -> int:
        """How many samples are in memory one by one, for median and quantiles."""
        return sum(table.held_values for table in list(self._tables.values()))

    @property
    def window_starts_ms(self) -> set[int]:
        """The windows that partials are of."""
        return {start for table in list(self._tables.values()) for start in table.window_starts_ms.tolist()}

    def add(self, series: SeriesColumns, runs: Runs, not_before_ms: int, *, is_lookback: bool = False) -> None:
        """Add the samples of *series* whose windows start at *not_before_ms* or later.

        Of windows before, and of all of a lookback, only the increases of counters need anything.
        """
        if not len(runs.row):
            return
        usable = _has_pod(series)[runs.row]
        groups, metrics = self._group_ids(series), self._metric_ids(series)
        in_time = np.zeros(len(usable), bool) if is_lookback else runs.window_ms >= not_before_ms
        recent = None
        for table, in_table in self._rows_of_tables(series):
            wanted = in_time
            if table.looks_back:
                if recent is None:
                    recent = series.timestamps_ms[runs.starts[1:] - 1] >= not_before_ms - LOOKBACK_MS
                wanted = in_time | recent
            if in_table is not None:
                wanted = wanted & in_table[runs.row]
            keep = np.flatnonzero(wanted & usable)
            if not len(keep):
                continue
            row = runs.row[keep]
            kept = runs
            if is_lookback:
                # It may lie in the job's first window, whose own samples it must not be taken for.
                kept = replace(runs, window_ms=np.minimum(runs.window_ms, not_before_ms - 1))
            table.add(series, kept, keep, groups[row], metrics[row])
            if table.is_untidy:
                table.tidy(self._ranks())

    def close(self, from_ms: int, before_ms: int) -> Closed | None:
        """Take out all windows that start in [*from_ms*, *before_ms*); None where there are none."""
        ranks = self._ranks()
        reduced = [r for table in self._tables.values() if (r := table.close(from_ms, before_ms, ranks)) is not None]
        cells = _joined(reduced, ranks) if reduced else None
        groups, metrics = self._groups.names, self._metrics.names
        self._forget_unused()
        if cells is None:
            return None
        return Closed(cells.window_ms, cells.group, cells.metric, cells.samples, cells.value, groups, metrics)

    def _rows_of_tables(self, series: SeriesColumns) -> Iterator[tuple[_Table, npt.NDArray[np.bool_] | None]]:
        """Yield each table and which rows of *series* are its; None: all."""
        names, kinds = series.metric.dictionary.to_pylist(), series.type.dictionary.to_pylist()
        codes = as_array(series.metric.indices).astype(np.int64) * len(kinds) + as_array(series.type.indices)
        distinct, inverse = np.unique(codes, return_inverse=True)
        reductions = [
            self._reduction(names[code // len(kinds)], kinds[code % len(kinds)]) for code in distinct.tolist()
        ]
        used = list(dict.fromkeys(reductions))
        numbers = np.array([used.index(reduction) for reduction in reductions], np.int64)[inverse]
        for number, reduction in enumerate(used):
            table = self._tables.get(reduction)
            if table is None:
                table = self._tables[reduction] = _Table(reduction, self._chunk_size)
            yield table, None if len(used) == 1 else numbers == number

    def _reduction(self, metric: str, kind: str) -> Reduction:
        # A backend that has just started knows no types yet: what it has said before still holds.
        kind = self._kinds.setdefault(metric, kind) if kind == "unknown" else kind
        self._kinds[metric] = kind
        known = self._reduction_of.get((metric, kind))
        if known is None:
            known = self._reduction_of[metric, kind] = self._reductions.of(metric, kind)
        return known

    def _ranks(self) -> _Ranks:
        return _Ranks(self._groups.ranks(), self._metrics.ranks())

    def _group_ids(self, series: SeriesColumns) -> Int64Array:
        """Return the group of each row; Python sees each group of the chunk once, not each row."""
        fields = [series.namespace, series.service, *([series.pod] if self._by_pod else [])]
        codes = np.zeros(len(series), np.int64)
        for field in fields:
            codes = codes * len(field.dictionary) + as_array(field.indices)
        distinct, inverse = np.unique(codes, return_inverse=True)
        values: list[list[str]] = []
        for field in reversed(fields):
            distinct, at = np.divmod(distinct, len(field.dictionary))
            values.append(field.dictionary.take(as_column(np.asarray(at, np.int64), pa.int64())).to_pylist())
        *pods, services, namespaces = values
        ids = [
            self._groups.id(Group(namespace, pod, service))
            for namespace, service, pod in zip(
                namespaces, services, pods[0] if pods else [None] * len(services), strict=True
            )
        ]
        return np.array(ids, np.int64)[inverse]

    def _metric_ids(self, series: SeriesColumns) -> Int64Array:
        ids = [self._metrics.id(name) for name in series.metric.dictionary.to_pylist()]
        ids_of_rows: Int64Array = np.array(ids, np.int64)[as_array(series.metric.indices)]
        return ids_of_rows

    def _forget_unused(self) -> None:
        """Forget pods and metrics that no open window holds, or a year of churn would stay in memory."""
        if not len(self):
            self._groups.clear()
            self._metrics.clear()
            self._reduction_of.clear()
            self._kinds.clear()
            return
        numbered: dict[Column, _Names[Any]] = {"group": self._groups, "metric": self._metrics}
        for column, names in numbered.items():
            if len(names.names) <= _FORGET_ABOVE:
                continue
            used = np.unique(np.concatenate([table.numbers(column) for table in self._tables.values()]))
            if len(names.names) > 2 * len(used) + _FORGET_ABOVE:
                renumbered = names.keep(used)
                for table in self._tables.values():
                    table.renumber(column, renumbered)
                self._reduction_of.clear()
                self._kinds.clear()


def _joined(reduced: list[_Reduced], ranks: _Ranks) -> _Reduced:
    """Put the cells of several tables into one order."""
    if len(reduced) == 1:
        return reduced[0]
    cells = _Reduced.concat(reduced)
    keys, end = _keys(cells, ranks)
    cells = cells.take(radix_order(keys, end, np.arange(len(keys))))
    # A metric whose type has changed inside the window is in two tables.
    is_last = np.append(_changes(cells), True)
    return cells if is_last.all() else cells.take(np.flatnonzero(is_last))


def _keys(cells: _Cells | _Reduced, ranks: _Ranks) -> tuple[Int64Array, int]:
    """Return numbers that rise as window, group and metric name do, and what they are all below."""
    windows_ms = np.unique(seldom_twice(cells.window_ms))
    keys = cell_keys(windows_ms, ranks.group, ranks.metric, cells.window_ms, cells.group, cells.metric)
    return keys, len(windows_ms) * len(ranks.group) * len(ranks.metric)


def _changes(cells: _Cells | _Reduced) -> npt.NDArray[np.bool_]:
    """Tell of each sorted entry but the first whether it begins a cell."""
    changes: npt.NDArray[np.bool_] = (
        (cells.metric[1:] != cells.metric[:-1])
        | (cells.group[1:] != cells.group[:-1])
        | (cells.window_ms[1:] != cells.window_ms[:-1])
    )
    return changes


def _starts(changes: npt.NDArray[np.bool_]) -> Int64Array:
    """Return where each stretch between changes starts, and the number of entries at the end."""
    starts: Int64Array = np.flatnonzero(np.concatenate(([True], changes, [True])))
    return starts


def _has_pod(series: SeriesColumns) -> npt.NDArray[np.bool_]:
    """Return which rows are of a pod: a poller may be told to read nodes and the control plane too."""
    without = series.pod.dictionary.index(_NO_POD).as_py()
    has_pod: npt.NDArray[np.bool_] = as_array(series.pod.indices) != without
    return has_pod


class _Names(Generic[_Name]):
    """Numbers names in the order in which they come, and ranks them in sorted order."""

    def __init__(self, sort_key: Callable[[_Name], Any]) -> None:
        self.names: list[_Name] = []
        self._ids: dict[_Name, int] = {}
        self._sort_key = sort_key
        self._ranks = np.empty(0, np.int64)

    def id(self, name: _Name) -> int:
        number = self._ids.setdefault(name, len(self.names))
        if number == len(self.names):
            self.names.append(name)
        return number

    def ranks(self) -> Int64Array:
        """Return the rank of each number's name; shape (names,)."""
        if len(self._ranks) != len(self.names):
            order = sorted(range(len(self.names)), key=lambda number: self._sort_key(self.names[number]))
            self._ranks = np.empty(len(order), np.int64)
            self._ranks[order] = np.arange(len(order))
        return self._ranks

    def keep(self, used: Int64Array) -> Int64Array:
        """Forget all numbers but *used*; return the new number of each old one (-1: forgotten)."""
        renumbered = np.full(len(self.names), -1, np.int64)
        renumbered[used] = np.arange(len(used))
        names = [self.names[number] for number in used]
        self.clear()
        for name in names:
            self.id(name)
        return renumbered

    def clear(self) -> None:
        """Forget all; what was handed out before stays as it was."""
        self.names, self._ids, self._ranks = [], {}, np.empty(0, np.int64)
