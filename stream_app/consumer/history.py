"""PURE: what is remembered of one pod: its rows in columns, for as long as a lookback can ask for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

Stretch = tuple[int, int]
"""Windows that start from the first to the second moment, both included, in milliseconds."""

Stretches = Callable[[], Sequence[Stretch]]
"""Says which windows a later one may still look back at."""

# A NaN of our own: a pod may report NaN, and a metric that says nothing else is there all the same.
_ABSENT_BITS = np.int64(0x7FF8_0000_0000_0AB5)
ABSENT = float(_ABSENT_BITS.view(np.float64))

_COMPLETE = 1 << 40
_FIRST_ROWS = 16
_MOST_RUNS = 8
"""Live data, its recheck and a backfill are three."""


def ranks_of(revision: Int64Array, partial: BoolArray) -> Int64Array:
    """Return numbers that are higher for what counts: complete beats partial, then the higher revision."""
    return revision + np.where(partial, 0, _COMPLETE)


class Part(NamedTuple):
    """Some rows of one pod, in the order of time; a view of arrays that may have more behind the last of them."""

    size: int
    names: tuple[str, ...]
    """The metrics, in no order."""
    starts_ms: Int64Array
    """Strictly rising up to *size*."""
    ranks: Int64Array
    offsets: Int64Array
    values: Float64Array
    """Shape (size or more, metrics); `ABSENT` where a record does not have a metric."""

    def rows(self, first: int, last: int) -> Part:
        """Return some of the rows."""
        rows = slice(first, last)
        return Part(
            last - first, self.names, self.starts_ms[rows], self.ranks[rows], self.offsets[rows], self.values[rows]
        )

    def without_absent(self) -> Part:
        """Return the same without metrics that no row has."""
        there = (self.values.view(np.int64) != _ABSENT_BITS).any(axis=0)
        if there.all():
            return self
        names = tuple(name for name, is_there in zip(self.names, there.tolist(), strict=True) if is_there)
        return self._replace(names=names, values=self.values[:, there])


Snapshot = tuple[Part, ...]


def rows_between(snapshot: Sequence[Part], from_ms: int, to_ms: int) -> Part:
    """Return the rows of windows that start in [*from_ms*, *to_ms*]: of each window the one that counts.

    Metrics that no row has are left out. What is returned may be a view: it is to be copied before it is changed.
    """
    found = []
    for part in snapshot:
        first, last = np.searchsorted(part.starts_ms[: part.size], (from_ms, to_ms + 1)).tolist()
        if first < last:
            found.append(part.rows(first, last))
    if not found:
        nothing = np.empty(0, np.int64)
        return Part(0, (), nothing, nothing, nothing, np.empty((0, 0)))
    return (found[0] if len(found) == 1 else merge(found)).without_absent()


def merge(parts: Sequence[Part]) -> Part:
    """Return one part of all rows of one and more, in the order of time: of each window the one that counts."""
    starts, ranks, offsets = (
        np.concatenate(columns)
        for columns in zip(
            *((p.starts_ms[: p.size], p.ranks[: p.size], p.offsets[: p.size]) for p in parts), strict=True
        )
    )
    names, values = _side_by_side(parts)
    merged = Part(len(starts), names, starts, ranks, offsets, values)
    is_later = np.diff(starts) > 0
    if is_later.all():
        return merged
    order = np.lexsort((offsets, ranks, starts))
    order = order[np.append(np.diff(starts[order]) != 0, [True])]
    return Part(len(order), names, starts[order], ranks[order], offsets[order], values[order])


def _side_by_side(parts: Sequence[Part]) -> tuple[tuple[str, ...], Float64Array]:
    names = parts[0].names
    if all(part.names == names for part in parts):
        return names, np.concatenate([part.values[: part.size] for part in parts])
    names = tuple(dict.fromkeys(name for part in parts for name in part.names))
    column = {name: at for at, name in enumerate(names)}
    values = np.full((sum(part.size for part in parts), len(names)), ABSENT)
    at = 0
    for part in parts:
        values[at : at + part.size, [column[name] for name in part.names]] = part.values[: part.size]
        at += part.size
    return names, values


class PodHistory:
    """One pod's rows, in runs that are each in the order of time: one, but for what comes late.

    Rows go behind the run that ends nearest before them, so live data, its recheck and a
    backfill have runs of their own, and adding is an append. What a `Part` shows never changes.
    """

    __slots__ = ("_runs", "newest_ms")

    def __init__(self) -> None:
        self._runs: list[_Run] = []
        self.newest_ms = -1
        """When the latest window starts that was ever added."""

    def add(self, part: Part, stretches: Stretches) -> None:
        """Keep one row, or several that are later than all before; what no stretch has may be forgotten."""
        self._run_for(part).append(part, stretches)
        self.newest_ms = max(self.newest_ms, int(part.starts_ms[part.size - 1]))

    def is_no_news(self, row: Part) -> bool:
        """Tell whether what is known of the window of a single row is better than that, or the same."""
        start_ms, rank = int(row.starts_ms[0]), int(row.ranks[0])
        found = [(run.ranks[at], run.offsets[at], run, at) for run in self._runs if (at := run.find(start_ms)) >= 0]
        if not found:
            return False
        known, _, run, at = max(found, key=lambda place: place[:2])
        return bool(known > rank or (known == rank and run.says(at, row)))

    def snapshot(self) -> Snapshot:
        """Return all rows as they are now."""
        return tuple([run.part() for run in self._runs])

    def forget(self, stretches: Sequence[Stretch]) -> bool:
        """Let go of runs that no stretch touches; return whether nothing is left."""
        self._runs = [
            run for run in self._runs if any(first <= run.last_ms and run.first_ms <= last for first, last in stretches)
        ]
        return not self._runs

    def _run_for(self, part: Part) -> _Run:
        start_ms = int(part.starts_ms[0])
        fitting = [run for run in self._runs if run.last_ms < start_ms]
        if fitting:
            return max(fitting, key=lambda run: run.last_ms)
        if len(self._runs) == _MOST_RUNS:
            self._runs = [_Run(merge(self.snapshot()))]
        run = _Run(part.rows(0, 0))
        self._runs.append(run)
        return run


class _Run:
    """Rows in the order of time; arrays have room behind the last."""

    __slots__ = ("column", "first_ms", "last_ms", "names", "offsets", "ranks", "size", "starts_ms", "values")

    def __init__(self, part: Part) -> None:
        self.size, self.names, self.starts_ms, self.ranks, self.offsets, self.values = part
        self.column = {name: at for at, name in enumerate(part.names)}
        self.first_ms, self.last_ms = (
            (int(part.starts_ms[0]), int(part.starts_ms[part.size - 1])) if part.size else (-1, -1)
        )

    def append(self, part: Part, stretches: Stretches) -> None:
        """Add rows behind the last."""
        if self.size + part.size > len(self.starts_ms):
            self._make_room(stretches(), part.size)
        rows = slice(self.size, self.size + part.size)
        self.starts_ms[rows], self.ranks[rows], self.offsets[rows] = part.starts_ms, part.ranks, part.offsets
        if part.names == self.names:
            self.values[rows] = part.values
        else:
            self._widen(part.names)
            self.values[rows] = ABSENT
            self.values[rows][:, [self.column[name] for name in part.names]] = part.values
        if self.size == 0:
            self.first_ms = int(part.starts_ms[0])
        self.last_ms = int(part.starts_ms[-1])
        self.size = rows.stop

    def find(self, start_ms: int) -> int:
        """Return where a window's row is, or -1."""
        at = int(np.searchsorted(self.starts_ms[: self.size], start_ms))
        return at if at < self.size and self.starts_ms[at] == start_ms else -1

    def says(self, at: int, row: Part) -> bool:
        """Tell whether the row there has the metrics and the values of a single one."""
        there = self.values[at].view(np.int64) != _ABSENT_BITS
        if {name for name, is_there in zip(self.names, there.tolist(), strict=True) if is_there} != set(row.names):
            return False
        own = self.values[at, [self.column[name] for name in row.names]]
        return np.array_equal(own, row.values[0], equal_nan=True)

    def part(self) -> Part:
        """Return the rows as they are now."""
        return Part(self.size, self.names, self.starts_ms, self.ranks, self.offsets, self.values)

    def _widen(self, names: tuple[str, ...]) -> None:
        """Have a column for each of the metrics; where these are all that there are, in their order."""
        wanted = set(names)
        if wanted <= self.column.keys():
            return
        new = names if wanted >= self.column.keys() else (*self.names, *(wanted - self.column.keys()))
        place = {name: at for at, name in enumerate(new)}
        values = np.full((len(self.values), len(new)), ABSENT)
        values[: self.size, [place[name] for name in self.names]] = self.values[: self.size]
        self.names, self.column, self.values = new, place, values

    def _make_room(self, stretches: Sequence[Stretch], more: int) -> None:
        """Move to larger arrays what a stretch has, and what is between; leave metrics behind that are gone."""
        starts = self.starts_ms[: self.size]
        first = self.size
        for from_ms, to_ms in stretches:
            at = int(np.searchsorted(starts, from_ms))
            if at < first and starts[at] <= to_ms:
                first = at
        kept = self.part().rows(first, self.size)
        if kept.size:
            kept = kept.without_absent()
            self.first_ms = int(kept.starts_ms[0])
        room = more + max(_FIRST_ROWS, kept.size)
        self.starts_ms, self.ranks, self.offsets = (
            np.concatenate([array, np.empty(room, np.int64)]) for array in (kept.starts_ms, kept.ranks, kept.offsets)
        )
        self.values = np.concatenate([kept.values, np.empty((room, len(kept.names)))])
        self.size, self.names = kept.size, kept.names
        self.column = {name: at for at, name in enumerate(kept.names)}
