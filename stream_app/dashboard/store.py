"""PURE: what is remembered of the pods: their newest windows, for as long and in as much memory as is allowed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ingestor.core.durations import LATEST_MS, ChunkSize
from stream_app.consumer.history import (
    ABSENT,
    BoolArray,
    Float64Array,
    Int64Array,
    Part,
    PodHistory,
    merge,
    ranks_of,
    rows_between,
)
from stream_app.consumer.selection import Found
from stream_app.records import Names, Record, Records

MOST_WINDOWS = 120
"""Two hours of minutes."""

MOST_BYTES = 128 * 1024 * 1024
"""Of values, in the memory of a process that has other work: 10,000 pods of 25 metrics have room for 29 windows,
2,400 for all."""

_FOREVER_MS = 1 << 62
_MOST_OTHERS = 100
_MOST_RUNS = 2
"""Live data and its recheck."""

_CELL_BYTES = 8
_ROW_CELLS = 3
"""Start, rank and offset."""
_ROOM = 2
"""A history grows to twice of what it must hold before it lets go of what is old."""

Key = tuple[str, str]
"""A namespace, and a name in it."""


@dataclass(slots=True)
class Pod:
    """One pod, or where records are services' one service: its newest record, and its windows."""

    namespace: str
    name: str
    service: str
    last: Record
    """What counts for the newest window."""
    last_at: tuple[int, int]
    """When that starts, and the record's rank."""
    history: PodHistory


class PodStore:
    """The newest windows of all pods of one view. No I/O, no lock.

    Args:
        chunk_size: of the view.
        method: as the view's records name it; others are left out.
        most_bytes: of memory for values, about: where all windows do not fit in, fewer are kept.
    """

    def __init__(self, chunk_size: ChunkSize, method: str, most_bytes: int = MOST_BYTES) -> None:
        self.chunk_size, self.method = chunk_size, method
        self._size_name = str(chunk_size)
        self._most_bytes = most_bytes
        self._pods: dict[Key, Pod] = {}
        self._services: dict[Key, dict[str, Pod]] = {}
        self._names: dict[Names, Names] = {}
        self._windows = MOST_WINDOWS
        self._length_ms = chunk_size.longest_ms
        self.newest_ms: int | None = None
        """When the newest window starts; None: there is none."""
        self.newest_end_ms: int | None = None
        self.others: set[str] = set()
        """Views whose records are on the topic too, a few of them."""

    def __len__(self) -> int:
        return len(self._pods)

    @property
    def windows(self) -> int:
        """How many windows are kept at most: fewer where memory is short."""
        return self._windows

    @property
    def from_ms(self) -> int:
        """Windows that start earlier are not kept."""
        return -1 if self.newest_ms is None else self.newest_ms - (self._windows - 1) * self._length_ms

    def add(self, records: Records) -> BoolArray:
        """Keep records, in any order; return which are of this view and of the time that is kept, shape (n,)."""
        kept = self._is_of_view(records)
        starts_ms, ends_ms = records.window_start_ms, records.window_end_ms
        kept &= (starts_ms >= 0) & (starts_ms < ends_ms) & (ends_ms <= LATEST_MS)
        if not kept.any():
            return kept
        newest = int(np.argmax(np.where(kept, starts_ms, -1)))
        if self.newest_ms is None or starts_ms[newest] > self.newest_ms:
            self.newest_ms, self.newest_end_ms = int(starts_ms[newest]), int(ends_ms[newest])
        kept &= starts_ms >= self.from_ms
        found = Found(records, [(self._one(names), None) for names in records.layouts])
        for who, numbers, parts in found.of_each(np.flatnonzero(kept)):
            self._keep(records, who, numbers, parts)
        return kept

    def tidy(self) -> None:
        """Forget pods that have no window any more, and keep fewer windows where memory is short; call it now and then.

        O(pods).
        """
        stretches = self._stretches()
        self._names.clear()
        gone = [key for key, pod in self._pods.items() if pod.history.forget(stretches)]
        for key in gone:
            pod = self._pods.pop(key)
            pods = self._services[pod.namespace, pod.service]
            del pods[pod.name]
            if not pods:
                del self._services[pod.namespace, pod.service]
        widths = sum(len(pod.last.metrics) + _ROW_CELLS for pod in self._pods.values())
        fit = self._most_bytes // (max(widths, 1) * _CELL_BYTES * _ROOM)
        self._windows = max(1, min(MOST_WINDOWS, fit))

    def pod(self, namespace: str, name: str) -> Pod | None:
        """Return a pod, or None where nothing is known of it."""
        return self._pods.get((namespace, name))

    def services(self) -> Iterable[tuple[Key, dict[str, Pod]]]:
        """Return all services and their pods by name, in no order."""
        return self._services.items()

    def metric_names(self) -> Counter[str]:
        """Return the metrics of the pods' newest records, and how many pods have each."""
        # Few pods differ in which metrics they have.
        counts: Counter[str] = Counter()
        for names, pods in Counter(tuple(pod.last.metrics) for pod in self._pods.values()).items():
            for name in names:
                counts[name] += pods
        return counts

    def axis(self, windows: int) -> Int64Array:
        """Return when the newest windows start, up to so many, with no holes; shape (windows,)."""
        if self.newest_ms is None:
            return np.empty(0, np.int64)
        windows = min(windows, self._windows)
        first_ms = max(self.newest_ms - (windows - 1) * self._length_ms, 0)
        return self.chunk_size.edges_ms(first_ms, self.newest_ms + 1)[:-1][-windows:]

    def _is_of_view(self, records: Records) -> BoolArray:
        ours = np.zeros(len(records.origins), bool)
        for number, (chunk_size, method, _) in enumerate(records.origins):
            ours[number] = chunk_size == self._size_name and method == self.method
            if not ours[number] and len(self.others) < _MOST_OTHERS:
                self.others.add(f"{method} of {chunk_size}")
        return ours[records.origin]

    def _keep(self, records: Records, who: int, numbers: list[int], parts: list[Part]) -> None:
        """Keep one pod's records."""
        namespace, pod_name, service = records.whos[who]
        name = service if pod_name is None else pod_name
        starts_ms, ranks = (
            np.concatenate(columns) for columns in zip(*((p.starts_ms, p.ranks) for p in parts), strict=True)
        )
        last = int(np.lexsort((ranks, starts_ms))[-1])
        at = int(starts_ms[last]), int(ranks[last])
        pod = self._pods.get((namespace, name))
        if pod is None:
            pod = Pod(namespace, name, service, records.record(numbers[last]), at, PodHistory())
            self._pods[namespace, name] = pod
            self._services.setdefault((namespace, service), {})[name] = pod
        elif at >= pod.last_at:
            pod.last, pod.last_at = records.record(numbers[last]), at
        if (starts_ms[1:] <= starts_ms[:-1]).any():
            parts = [part.rows(row, row + 1) for part in parts for row in range(part.size)]
        for part in parts:
            pod.history.add(part, self._stretches)
        if len(runs := pod.history.snapshot()) > _MOST_RUNS:
            # What is read backwards makes a run a block, and each run has room to grow.
            pod.history = PodHistory()
            pod.history.add(merge(runs), self._stretches)

    def _one(self, names: Names) -> Names:
        """Return one tuple for all that are equal: pods of a service have the same metrics."""
        return self._names.setdefault(names, names)

    def _stretches(self) -> Sequence[tuple[int, int]]:
        return ((self.from_ms, _FOREVER_MS),)


def columns(pod: Pod, metrics: Sequence[str], axis: Int64Array) -> Float64Array:
    """Return a pod's values at the windows of *axis*, shape (metrics, windows); `ABSENT` where there is none."""
    values = np.full((len(metrics), len(axis)), ABSENT)
    if len(axis):
        rows = rows_between(pod.history.snapshot(), int(axis[0]), int(axis[-1]))
        at = {name: column for column, name in enumerate(rows.names)}
        # A window that another calendar has cut has no place here.
        inside = np.isin(rows.starts_ms, axis)
        places = np.searchsorted(axis, rows.starts_ms[inside])
        for row, name in enumerate(metrics):
            if name in at:
                values[row, places] = rows.values[inside, at[name]]
    return values


# The lowest rank of a record that is whole.
_WHOLE = int(ranks_of(np.zeros(1, np.int64), np.zeros(1, bool))[0])


def partial_windows(pod: Pod, axis: Int64Array) -> list[int]:
    """Return when those windows of *axis* start of which the pod's record is partial."""
    if not len(axis):
        return []
    rows = rows_between(pod.history.snapshot(), int(axis[0]), int(axis[-1]))
    starts_ms: list[int] = rows.starts_ms[rows.ranks < _WHOLE].tolist()
    return starts_ms


def metrics_between(pod: Pod, axis: Int64Array) -> list[str]:
    """Return the metrics that the pod has in some window of *axis*, in order."""
    return sorted(rows_between(pod.history.snapshot(), int(axis[0]), int(axis[-1])).names) if len(axis) else []


def means(pods: Iterable[Pod], metrics: Sequence[str], axis: Int64Array) -> Float64Array:
    """Return the mean of the pods' finite values in each window, shape (metrics, windows); `ABSENT` without any.

    The sum of very large values may be infinite, and so is then the mean.
    """
    shape = len(metrics), len(axis)
    sums, counts = np.zeros(shape), np.zeros(shape, np.int64)
    for pod in pods:
        values = columns(pod, metrics, axis)
        finite = np.isfinite(values)
        sums += np.where(finite, values, 0.0)
        counts += finite
    result = np.full(shape, ABSENT)
    np.divide(sums, counts, out=result, where=counts > 0)
    return result


_ABSENT_BITS = np.float64(ABSENT).view(np.int64)


def spelled(values: Float64Array) -> list[float | str | None]:
    """Return values as JSON has them: None where there is none, ``"NaN"``, ``"+Inf"``, ``"-Inf"``; shape (n,)."""
    listed: list[float | str | None] = values.tolist()
    for at in np.flatnonzero(~np.isfinite(values)).tolist():
        listed[at] = None if values[at].view(np.int64) == _ABSENT_BITS else spelled_value(float(values[at]))
    return listed


def spelled_value(value: float) -> float | str:
    """Return one value as JSON has it; JSON itself has neither NaN nor infinities."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("+Inf" if value > 0 else "-Inf")
