"""Samples in, closed windows out, for the samples of one job grouped one way. No clock, no I/O.

What a chunk adds to a window is a *partial*: a row (window, group, metric, samples,
state). Partials of a cell, one (window, group, metric), are merged when the window
closes, so adding is appending, and how samples were cut into chunks does not matter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ingestor.core.chunk import SeriesColumns, UInt64Array
from ingestor.core.durations import ChunkSize
from stream_app.aggregations import (
    Float64Array,
    Int64Array,
    counting_order,
    gather_runs,
    mean_of_pairs,
    median_runs,
    sum_counts,
    sum_pairs,
    sum_runs,
    window_runs,
)

Method = Literal["sum", "mean", "median"]
OverTime = Literal["pooled", "last"]
GroupBy = Literal["pod", "service"]

METHODS: tuple[Method, ...] = ("sum", "mean", "median")
OVER_TIME: tuple[OverTime, ...] = ("pooled", "last")
GROUP_BY: tuple[GroupBy, ...] = ("pod", "service")

_Name = TypeVar("_Name")

_MERGE_ABOVE = 100_000
"""Merge the partials of open windows when so many more have come: a day-long window
that is fed every few seconds then holds a cell once or twice, not thousands of times."""


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
    edges = chunk_size.edges_ms(int(stamps.min()), int(stamps.max()) + 1)
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


@dataclass(frozen=True, slots=True)
class _Cells:
    """The key columns of partials."""

    window_ms: Int64Array
    group: Int64Array
    metric: Int64Array
    samples: Int64Array

    def take(self, index: Int64Array) -> _Cells:
        return _Cells(self.window_ms[index], self.group[index], self.metric[index], self.samples[index])

    def __len__(self) -> int:
        return len(self.window_ms)


class _State(Protocol):
    """What partials remember of their samples; one entry a partial."""

    @staticmethod
    def of(runs: Runs, series: SeriesColumns, keep: Int64Array) -> _State: ...
    @staticmethod
    def concat(parts: list[Any]) -> _State: ...
    def take(self, index: Int64Array) -> _State: ...
    @property
    def held(self) -> int:
        """How many values are kept as they came."""

    def order(self) -> Int64Array:
        """Return the order that must hold within a cell before merging."""

    def merge_starts(self, order: Int64Array, cell_starts: Int64Array) -> Int64Array:
        """Refine where cells start (in *order*) to where what may be merged starts."""

    def merge(self, order: Int64Array, starts: Int64Array) -> _State: ...
    def result(self, method: Method, cell_starts: Int64Array, samples: Int64Array) -> Float64Array:
        """Return each cell's value; the partials are merged and lie in order."""


@dataclass(frozen=True, slots=True)
class _Sums:
    """Double-double sums, for sum and mean."""

    highs: Float64Array
    lows: Float64Array

    @staticmethod
    def of(runs: Runs, series: SeriesColumns, keep: Int64Array) -> _Sums:
        return _Sums(*sum_runs(runs.starts, series.values)).take(keep)

    @staticmethod
    def concat(parts: list[_Sums]) -> _Sums:
        return _Sums(np.concatenate([p.highs for p in parts]), np.concatenate([p.lows for p in parts]))

    def take(self, index: Int64Array) -> _Sums:
        return _Sums(self.highs[index], self.lows[index])

    @property
    def held(self) -> int:
        return 0

    def order(self) -> Int64Array:
        return np.arange(len(self.highs))

    def merge_starts(self, order: Int64Array, cell_starts: Int64Array) -> Int64Array:  # noqa: ARG002 - the protocol's
        return cell_starts

    def merge(self, order: Int64Array, starts: Int64Array) -> _Sums:
        return _Sums(*sum_pairs(order, starts, self.highs, self.lows))

    def result(self, method: Method, cell_starts: Int64Array, samples: Int64Array) -> Float64Array:  # noqa: ARG002
        return mean_of_pairs(self.highs, self.lows, samples) if method == "mean" else self.highs


@dataclass(frozen=True, slots=True)
class _Held:
    """All values, for the median: partial i holds ``values[begins[i]:begins[i] + counts[i]]``."""

    begins: Int64Array
    counts: Int64Array
    values: Float64Array

    @staticmethod
    def of(runs: Runs, series: SeriesColumns, keep: Int64Array) -> _Held:
        return _Held(runs.starts[:-1], runs.samples, series.values).take(keep)

    @staticmethod
    def concat(parts: list[_Held]) -> _Held:
        shifts = np.cumsum([0] + [len(p.values) for p in parts[:-1]])
        begins = [p.begins + shift for p, shift in zip(parts, shifts, strict=True)]
        return _Held(
            np.concatenate(begins),
            np.concatenate([p.counts for p in parts]),
            np.concatenate([p.values for p in parts]),
        )

    def take(self, index: Int64Array) -> _Held:
        counts = self.counts[index]
        return _Held(_begins(counts), counts, gather_runs(self.values, self.begins, self.counts, index))

    @property
    def held(self) -> int:
        return len(self.values)

    def order(self) -> Int64Array:
        return np.arange(len(self.counts))

    def merge_starts(self, order: Int64Array, cell_starts: Int64Array) -> Int64Array:  # noqa: ARG002 - the protocol's
        return cell_starts

    def merge(self, order: Int64Array, starts: Int64Array) -> _Held:
        counts = sum_counts(order, starts, self.counts)
        return _Held(_begins(counts), counts, self.take(order).values)

    def result(self, method: Method, cell_starts: Int64Array, samples: Int64Array) -> Float64Array:  # noqa: ARG002
        return _finish(method, np.append(self.begins, len(self.values)), self.values)


@dataclass(frozen=True, slots=True)
class _Last:
    """The last value of each series, for ``--over-time last``; merged by series, not by cell."""

    fingerprint: UInt64Array
    timestamp_ms: Int64Array
    value: Float64Array

    @staticmethod
    def of(runs: Runs, series: SeriesColumns, keep: Int64Array) -> _Last:
        last = runs.starts[1:][keep] - 1
        return _Last(series.fingerprint[runs.row[keep]], series.timestamps_ms[last], series.values[last])

    @staticmethod
    def concat(parts: list[_Last]) -> _Last:
        return _Last(
            np.concatenate([p.fingerprint for p in parts]),
            np.concatenate([p.timestamp_ms for p in parts]),
            np.concatenate([p.value for p in parts]),
        )

    def take(self, index: Int64Array) -> _Last:
        return _Last(self.fingerprint[index], self.timestamp_ms[index], self.value[index])

    @property
    def held(self) -> int:
        return len(self.value)

    def order(self) -> Int64Array:
        return np.lexsort((self.timestamp_ms, self.fingerprint))

    def merge_starts(self, order: Int64Array, cell_starts: Int64Array) -> Int64Array:
        series = self.fingerprint[order]
        starts = np.flatnonzero(np.concatenate(([True], series[1:] != series[:-1])))
        return np.union1d(starts, cell_starts)

    def merge(self, order: Int64Array, starts: Int64Array) -> _Last:
        return self.take(order[starts[1:] - 1])

    def result(self, method: Method, cell_starts: Int64Array, samples: Int64Array) -> Float64Array:  # noqa: ARG002
        return _finish(method, cell_starts, self.value)


def _begins(counts: Int64Array) -> Int64Array:
    return np.cumsum(counts) - counts


def _finish(method: Method, starts: Int64Array, values: Float64Array) -> Float64Array:
    """Apply *method* to each ``values[starts[i]:starts[i + 1]]``."""
    if method == "median":
        return median_runs(starts, values)
    highs, lows = sum_runs(starts, values)
    return mean_of_pairs(highs, lows, np.diff(starts)) if method == "mean" else highs


def _state_for(method: Method, over_time: OverTime) -> type[_State]:
    if over_time == "last":
        return _Last
    return _Held if method == "median" else _Sums


class GroupWindows:
    """The open windows of one job, grouped by pod or by service."""

    def __init__(self, group_by: GroupBy, method: Method, over_time: OverTime) -> None:
        self._by_pod = group_by == "pod"
        self._method = method
        self._state = _state_for(method, over_time)
        self._groups = _Names[Group](lambda group: group.sort_key)
        self._metrics = _Names[str](lambda name: name)
        self._cells: list[_Cells] = []
        self._states: list[_State] = []
        self._unmerged = 0
        self._open: set[int] = set()

    @property
    def open_windows(self) -> set[int]:
        """Where the windows start that hold something."""
        return self._open

    @property
    def open_cells(self) -> int:
        """Partials of open windows: a cell is one, or several until they are merged."""
        return sum(map(len, self._cells))

    @property
    def held_values(self) -> int:
        """Values kept as they came, for methods that need them all."""
        return sum(state.held for state in self._states)

    def add(self, series: SeriesColumns, runs: Runs, not_before_ms: int) -> None:
        """Add the samples of *series* whose windows start at *not_before_ms* or later."""
        keep = np.flatnonzero((runs.window_ms >= not_before_ms) & _has_pod(series)[runs.row])
        if not len(keep):
            return
        row = runs.row[keep]
        group, metric = self._group_ids(series)[row], self._metric_ids(series)[row]
        self._cells.append(_Cells(runs.window_ms[keep], group, metric, runs.samples[keep]))
        self._states.append(self._state.of(runs, series, keep))
        self._unmerged += len(keep)
        self._open.update(np.unique(runs.window_ms[keep]).tolist())
        if self._unmerged > _MERGE_ABOVE + len(self._cells[0]):
            self._replace(*self._merged(*self._joined()))

    def close(self, before_ms: int) -> Closed | None:
        """Take out all windows that start before *before_ms*; None where there are none."""
        if not self._cells:
            return None
        cells, state = self._joined()
        closing = cells.window_ms < before_ms
        if not closing.any():
            self._replace(cells, state)
            return None
        index = np.flatnonzero(closing)
        cells_left = np.flatnonzero(~closing)
        merged, merged_state = self._merged(cells.take(index), state.take(index))
        starts = _cell_starts(merged)
        first = starts[:-1]
        samples = np.add.reduceat(merged.samples, first)
        closed = Closed(
            merged.window_ms[first],
            merged.group[first],
            merged.metric[first],
            samples,
            merged_state.result(self._method, starts, samples),
            self._groups.names,
            self._metrics.names,
        )
        self._replace(cells.take(cells_left), state.take(cells_left))
        self._open = {start_ms for start_ms in self._open if start_ms >= before_ms}
        self._forget_unused()
        return closed

    def _group_ids(self, series: SeriesColumns) -> Int64Array:
        """Return the group of each row; Python sees each group of the chunk once, not each row."""
        fields = [series.namespace, series.service, *([series.pod] if self._by_pod else [])]
        codes = np.zeros(len(series), np.int64)
        for field in fields:
            codes = codes * len(field.dictionary) + field.indices.to_numpy()
        distinct, inverse = np.unique(codes, return_inverse=True)
        values: list[list[str]] = []
        for field in reversed(fields):
            distinct, at = np.divmod(distinct, len(field.dictionary))
            values.append(field.dictionary.take(pa.array(at)).to_pylist())
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
        ids_of_rows: Int64Array = np.array(ids, np.int64)[series.metric.indices.to_numpy()]
        return ids_of_rows

    def _joined(self) -> tuple[_Cells, _State]:
        if len(self._cells) == 1:
            return self._cells[0], self._states[0]
        columns = (
            np.concatenate([getattr(c, name) for c in self._cells])
            for name in ("window_ms", "group", "metric", "samples")
        )
        return _Cells(*columns), self._state.concat(self._states)

    def _merged(self, cells: _Cells, state: _State) -> tuple[_Cells, _State]:
        """Merge the partials of each cell; the result lies in order of window, group and metric name."""
        order = state.order()
        windows, window = np.unique(cells.window_ms, return_inverse=True)
        for key, buckets in (
            (self._metrics.ranks()[cells.metric], len(self._metrics.names)),
            (self._groups.ranks()[cells.group], len(self._groups.names)),
            (window, len(windows)),
        ):
            order = counting_order(key, buckets, order)
        starts = state.merge_starts(order, _cell_starts(cells.take(order)))
        first = cells.take(order[starts[:-1]])
        samples = sum_counts(order, starts, cells.samples)
        return _Cells(first.window_ms, first.group, first.metric, samples), state.merge(order, starts)

    def _replace(self, cells: _Cells, state: _State) -> None:
        self._cells, self._states = ([cells], [state]) if len(cells) else ([], [])
        self._unmerged = 0

    def _forget_unused(self) -> None:
        """Forget pods that no open window holds, or a year of pod churn would stay in memory."""
        if not self._cells:
            self._groups.clear()
            self._metrics.clear()
            return
        cells = self._cells[0]
        used = np.unique(cells.group)
        if len(self._groups.names) > 2 * len(used) + 1000:
            renumbered = self._groups.keep(used)
            self._cells = [_Cells(cells.window_ms, renumbered[cells.group], cells.metric, cells.samples)]


def _has_pod(series: SeriesColumns) -> npt.NDArray[np.bool_]:
    """Return which rows are of a pod: a poller may be told to read nodes and the control plane too."""
    without = series.pod.dictionary.index(pa.scalar("")).as_py()
    has_pod: npt.NDArray[np.bool_] = series.pod.indices.to_numpy() != without
    return has_pod


def _cell_starts(cells: _Cells) -> Int64Array:
    """Return where each cell starts in sorted *cells*, and their number at the end."""
    changes = np.ones(len(cells) + 1, bool)
    changes[1:-1] = (
        (cells.metric[1:] != cells.metric[:-1])
        | (cells.group[1:] != cells.group[:-1])
        | (cells.window_ms[1:] != cells.window_ms[:-1])
    )
    starts: Int64Array = np.flatnonzero(changes)
    return starts


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
