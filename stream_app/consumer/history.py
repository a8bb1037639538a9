"""PURE: what is remembered of one pod: its rows in columns, for as long as a lookback can ask for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

Stretch = tuple[int, int]
"""Windows that start from the first to the second moment, both included, in milliseconds."""

Stretches = Callable[[], Sequence[Stretch]]
"""Says which windows a later one may still look back at."""

# A NaN of our own: a pod may report NaN, and a metric that says nothing else is there all the same.
_ABSENT_BITS = np.int64(0x7FF8_0000_0000_0AB5)
ABSENT = float(_ABSENT_BITS.view(np.float64))

_FIRST_ROWS = 16
_MOST_RUNS = 8
"""Live data, its recheck and a backfill are three."""


class Row(NamedTuple):
    """A record as it is kept."""

    start_ms: int
    rank: int
    offset: int
    names: tuple[str, ...]
    values: list[float]


class Rows(NamedTuple):
    """Rows of one pod, one a window, in the order of time."""

    starts_ms: Int64Array
    """Shape (rows,), strictly rising."""
    names: Sequence[str]
    """The metrics, in no order."""
    values: Float64Array
    """Shape (rows, metrics); NaN where there is nothing, and where that was the value."""
    ranks: Int64Array
    """Shape (rows,), as `rank_of` makes them."""


class Part(NamedTuple):
    """The first *size* rows of a run as they were once: later rows come behind them."""

    size: int
    names: tuple[str, ...]
    starts_ms: Int64Array
    ranks: Int64Array
    offsets: Int64Array
    values: Float64Array

    def rows(self, chosen: slice) -> Part:
        """Return some of the rows."""
        return Part(
            chosen.stop - chosen.start,
            self.names,
            self.starts_ms[chosen],
            self.ranks[chosen],
            self.offsets[chosen],
            self.values[chosen],
        )


Snapshot = tuple[Part, ...]


def rank_of(revision: int, *, partial: bool) -> int:
    """Return a number that is higher for what counts: complete beats partial, then the higher revision."""
    return revision + (0 if partial else _COMPLETE)


_COMPLETE = 1 << 40


def is_partial(ranks: Int64Array) -> npt.NDArray[np.bool_]:
    """Tell of each rank whether it is a partial record's, shape as *ranks*."""
    return ranks < _COMPLETE


def revisions(ranks: Int64Array) -> Int64Array:
    """Return the revision of each rank, shape as *ranks*."""
    return ranks & (_COMPLETE - 1)


def rows_between(snapshot: Snapshot, from_ms: int, to_ms: int) -> Rows:
    """Return the rows of windows that start in [*from_ms*, *to_ms*]: of each window the one that counts.

    Values are not shared with the snapshot; metrics that no row has are left out.
    """
    found = []
    for part in snapshot:
        first, last = np.searchsorted(part.starts_ms[: part.size], (from_ms, to_ms + 1)).tolist()
        if first < last:
            found.append(part.rows(slice(first, last)))
    if len(found) == 1:
        part = found[0]
        return _of_present(part.starts_ms.copy(), part.names, part.values.copy(), part.ranks.copy())
    merged = merge(found)
    return _of_present(merged.starts_ms, merged.names, merged.values, merged.ranks)


def merge(parts: Sequence[Part]) -> Part:
    """Return one part of all rows, in the order of time: of each window the one that counts."""
    names = tuple(dict.fromkeys(name for part in parts for name in part.names))
    column = {name: at for at, name in enumerate(names)}
    total = sum(part.size for part in parts)
    starts, ranks, offsets = (np.empty(total, np.int64) for _ in range(3))
    values = np.full((total, len(names)), ABSENT)
    at = 0
    for part in parts:
        rows = slice(at, at + part.size)
        starts[rows], ranks[rows], offsets[rows] = (
            part.starts_ms[: part.size],
            part.ranks[: part.size],
            part.offsets[: part.size],
        )
        values[rows, [column[name] for name in part.names]] = part.values[: part.size]
        at += part.size
    order = np.lexsort((offsets, ranks, starts))
    if total:
        order = order[np.append(np.diff(starts[order]) != 0, [True])]
    return Part(len(order), names, starts[order], ranks[order], offsets[order], values[order])


def _of_present(starts_ms: Int64Array, names: tuple[str, ...], values: Float64Array, ranks: Int64Array) -> Rows:
    there = (values.view(np.int64) != _ABSENT_BITS).any(axis=0)
    if there.all():
        return Rows(starts_ms, names, values, ranks)
    present = [name for name, is_there in zip(names, there.tolist(), strict=True) if is_there]
    return Rows(starts_ms, present, values[:, there], ranks)


class PodHistory:
    """One pod's rows, in runs that are each in the order of time: one, but for what comes late.

    A row goes behind the run that ends nearest before it, so live data, its recheck and a
    backfill have runs of their own, and adding is an append. What a `Part` shows never changes.
    """

    __slots__ = ("_runs", "newest_ms")

    def __init__(self) -> None:
        self._runs: list[_Run] = []
        self.newest_ms = -1
        """When the latest window starts that was ever added."""

    def add(self, row: Row, stretches: Stretches) -> None:
        """Keep a row; earlier ones that no stretch has any more may be forgotten."""
        is_next = len(self._runs) == 1 and row.start_ms > self._runs[0].last_ms
        run = self._runs[0] if is_next else self._run_for(row)
        run.append(row, stretches)
        self.newest_ms = max(self.newest_ms, row.start_ms)

    def best(self, start_ms: int) -> tuple[int, dict[str, float]] | None:
        """Return rank and metrics of the row that counts for a window, or None where none is kept."""
        rows = [(run.ranks[at], run.offsets[at], run, at) for run in self._runs if (at := run.find(start_ms)) >= 0]
        if not rows:
            return None
        rank, _, run, at = max(rows, key=lambda row: row[:2])
        return int(rank), run.metrics(at)

    def snapshot(self) -> Snapshot:
        """Return all rows as they are now."""
        return tuple([run.part() for run in self._runs])

    def forget(self, stretches: Sequence[Stretch]) -> bool:
        """Let go of runs that no stretch touches; return whether nothing is left."""
        self._runs = [
            run for run in self._runs if any(first <= run.last_ms and run.first_ms <= last for first, last in stretches)
        ]
        return not self._runs

    def _run_for(self, row: Row) -> _Run:
        fitting = [run for run in self._runs if run.last_ms < row.start_ms]
        if fitting:
            return max(fitting, key=lambda run: run.last_ms)
        if len(self._runs) == _MOST_RUNS:
            self._runs = [_Run(merge(self.snapshot()))]
        run = _Run(_no_rows(row.names))
        self._runs.append(run)
        return run


class _Run:
    """Rows in the order of time; arrays have room behind the last."""

    __slots__ = ("column", "first_ms", "last_ms", "names", "offsets", "ranks", "size", "starts_ms", "values")

    def __init__(self, part: Part) -> None:
        """Take rows that are in order, or none."""
        self.size, self.names, self.starts_ms, self.ranks, self.offsets, self.values = part
        self.column = {name: at for at, name in enumerate(part.names)}
        self.first_ms, self.last_ms = (
            (int(part.starts_ms[0]), int(part.starts_ms[part.size - 1])) if part.size else (-1, -1)
        )

    def append(self, row: Row, stretches: Stretches) -> None:
        """Add a row behind the last."""
        if self.size == len(self.starts_ms):
            self._make_room(stretches())
        at = self.size
        self.starts_ms[at], self.ranks[at], self.offsets[at] = row.start_ms, row.rank, row.offset
        if row.names == self.names:
            self.values[at] = row.values
        else:
            self._widen(row.names)
            self.values[at] = ABSENT
            self.values[at, [self.column[name] for name in row.names]] = row.values
        self.size = at + 1
        self.last_ms = row.start_ms
        if at == 0:
            self.first_ms = row.start_ms

    def find(self, start_ms: int) -> int:
        """Return where a window's row is, or -1."""
        at = int(np.searchsorted(self.starts_ms[: self.size], start_ms))
        return at if at < self.size and self.starts_ms[at] == start_ms else -1

    def metrics(self, at: int) -> dict[str, float]:
        """Return what a row says."""
        there = self.values[at].view(np.int64) != _ABSENT_BITS
        pairs = zip(self.names, self.values[at].tolist(), there.tolist(), strict=True)
        return {name: value for name, value, is_there in pairs if is_there}

    def part(self) -> Part:
        """Return the rows as they are now."""
        return Part(self.size, self.names, self.starts_ms, self.ranks, self.offsets, self.values)

    def _widen(self, names: tuple[str, ...]) -> None:
        """Have a column for each of the metrics; where these are all that there are, in their order."""
        wanted = set(names)
        if wanted <= self.column.keys():
            return
        new_names = names if wanted >= self.column.keys() else (*self.names, *(wanted - self.column.keys()))
        values = np.full((len(self.values), len(new_names)), ABSENT)
        places = {name: at for at, name in enumerate(new_names)}
        values[: self.size, [places[name] for name in self.names]] = self.values[: self.size]
        self.names, self.column, self.values = new_names, places, values

    def _make_room(self, stretches: Sequence[Stretch]) -> None:
        """Move to larger arrays what a stretch has, and what is between; leave metrics behind that are gone."""
        starts = self.starts_ms[: self.size]
        first = self.size
        for from_ms, to_ms in stretches:
            at = int(np.searchsorted(starts, from_ms))
            if at < first and starts[at] <= to_ms:
                first = at
        kept = self.part().rows(slice(first, self.size))
        names, values = self.names, kept.values
        if kept.size:
            _, present, values, _ = _of_present(kept.starts_ms, kept.names, kept.values, kept.ranks)
            names = tuple(present)
            self.first_ms = int(kept.starts_ms[0])
        room = max(_FIRST_ROWS, kept.size)
        self.starts_ms, self.ranks, self.offsets = (
            np.append(array, np.empty(room, np.int64)) for array in (kept.starts_ms, kept.ranks, kept.offsets)
        )
        self.values = np.concatenate([values, np.empty((room, len(names)))])
        self.size, self.names, self.column = kept.size, names, {name: at for at, name in enumerate(names)}


def _no_rows(names: tuple[str, ...]) -> Part:
    nothing = np.empty(0, np.int64)
    return Part(0, names, nothing, nothing, nothing, np.empty((0, len(names))))


def keep_all() -> Sequence[Stretch]:
    """Say that nothing is to be forgotten."""
    return ((-1, 1 << 62),)
