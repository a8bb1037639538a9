"""What partials remember of their samples, a column a field, one entry a partial.

Partials of one cell, or of one series in a cell, are merged in the order of time; how
samples were cut into partials must not show in what comes out.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Protocol, Self, cast

import numpy as np

from stream_app.aggregations import (
    Float64Array,
    Int64Array,
    gather_runs,
    mean_of_pairs,
    merge_moments,
    merge_resets,
    moment_runs,
    reset_runs,
    stddev_of_sums,
    sum_counts,
    sum_pairs,
    sum_runs,
    values_of_runs,
)
from stream_app.methods import Method


class State(Protocol):
    """The state of many partials."""

    @classmethod
    def of(cls, starts: Int64Array, values: Float64Array, keep: Int64Array) -> Self:
        """Return the state of the runs *keep*, where run i is ``values[starts[i]:starts[i + 1]]``."""

    @classmethod
    def concat(cls, parts: list[Any]) -> Self: ...
    def take(self, index: Int64Array) -> Self: ...
    def merge(self, order: Int64Array, starts: Int64Array) -> Self:
        """Merge each ``order[starts[g]:starts[g + 1]]`` into one, in the order of time."""

    def result(self, method: Method, samples: Int64Array) -> Float64Array:
        """Return what the method makes of each entry, which had so many samples."""


class Columns:
    """What tables of plain columns have in common."""

    __slots__ = ()

    @classmethod
    def concat(cls, parts: list[Any]) -> Self:
        return cls(*(np.concatenate(columns) for columns in zip(*(part.columns() for part in parts), strict=True)))

    def columns(self) -> list[Any]:
        names: Any = fields(cast(Any, self))
        return [getattr(self, field.name) for field in names]

    def take(self, index: Int64Array) -> Self:
        return type(self)(*(column[index] for column in self.columns()))

    def only(self, rows: Int64Array) -> Self:
        """Return the entries of these numbers, which rise: all, without a copy, where they are as many."""
        columns = self.columns()
        return self if len(rows) == len(columns[0]) else self.take(rows)


@dataclass(frozen=True, slots=True)
class Counts(Columns):
    """Nothing but how many there are, which every partial knows: for count."""

    nothing: Int64Array

    @classmethod
    def of(cls, starts: Int64Array, values: Float64Array, keep: Int64Array) -> Counts:  # noqa: ARG003 - the protocol's
        return cls(np.zeros(len(keep), np.int64))

    def merge(self, order: Int64Array, starts: Int64Array) -> Counts:
        return self.take(order[starts[:-1]])

    def result(self, method: Method, samples: Int64Array) -> Float64Array:  # noqa: ARG002 - the protocol's
        return samples.astype(np.float64)


@dataclass(frozen=True, slots=True)
class Sums(Columns):
    """Double-double sums, for sum and mean."""

    highs: Float64Array
    lows: Float64Array

    @classmethod
    def of(cls, starts: Int64Array, values: Float64Array, keep: Int64Array) -> Sums:
        return cls(*sum_runs(starts, values)).only(keep)

    def merge(self, order: Int64Array, starts: Int64Array) -> Sums:
        return Sums(*sum_pairs(order, starts, self.highs, self.lows))

    def result(self, method: Method, samples: Int64Array) -> Float64Array:
        return mean_of_pairs(self.highs, self.lows, samples) if method == "mean" else self.highs


@dataclass(frozen=True, slots=True)
class Moments(Columns):
    """Double-double sums of distances from a value, and of their squares, for stddev."""

    counts: Int64Array
    pivots: Float64Array
    highs: Float64Array
    lows: Float64Array
    square_highs: Float64Array
    square_lows: Float64Array

    @classmethod
    def of(cls, starts: Int64Array, values: Float64Array, keep: Int64Array) -> Moments:
        return cls(np.diff(starts), *moment_runs(starts, values)).only(keep)

    def merge(self, order: Int64Array, starts: Int64Array) -> Moments:
        return Moments(sum_counts(order, starts, self.counts), *merge_moments(order, starts, *self.columns()))

    def result(self, method: Method, samples: Int64Array) -> Float64Array:  # noqa: ARG002 - the protocol's
        return stddev_of_sums(self.highs, self.lows, self.square_highs, self.square_lows, samples)


@dataclass(frozen=True, slots=True)
class Extremes(Columns):
    """Smallest and largest value, for min and max; NaN only where there is nothing else, as in Prometheus."""

    lowest: Float64Array
    highest: Float64Array

    @classmethod
    def of(cls, starts: Int64Array, values: Float64Array, keep: Int64Array) -> Extremes:
        values, first = values[: starts[-1]], starts[:-1]
        return cls(np.fmin.reduceat(values, first), np.fmax.reduceat(values, first)).only(keep)

    def merge(self, order: Int64Array, starts: Int64Array) -> Extremes:
        first = starts[:-1]
        return Extremes(np.fmin.reduceat(self.lowest[order], first), np.fmax.reduceat(self.highest[order], first))

    def result(self, method: Method, samples: Int64Array) -> Float64Array:  # noqa: ARG002 - the protocol's
        # Zeros have two signs; which of them is smaller must not depend on who comes first.
        return (self.lowest if method == "min" else self.highest) + 0.0


@dataclass(frozen=True, slots=True)
class Held:
    """All values, for median and quantiles: partial i holds ``values[begins[i]:begins[i] + counts[i]]``."""

    begins: Int64Array
    counts: Int64Array
    values: Float64Array

    @classmethod
    def of(cls, starts: Int64Array, values: Float64Array, keep: Int64Array) -> Held:
        if len(keep) == len(starts) - 1:
            # Copied: the message that they came in need not stay.
            return cls(starts[:-1] - starts[0], np.diff(starts), values[starts[0] : starts[-1]].copy())
        return cls(starts[:-1], np.diff(starts), values).take(keep)

    @classmethod
    def concat(cls, parts: list[Held]) -> Held:
        shifts = np.cumsum([0] + [len(p.values) for p in parts[:-1]])
        begins = [p.begins + shift for p, shift in zip(parts, shifts, strict=True)]
        return cls(
            np.concatenate(begins),
            np.concatenate([p.counts for p in parts]),
            np.concatenate([p.values for p in parts]),
        )

    def take(self, index: Int64Array) -> Held:
        counts = self.counts[index]
        return Held(_begins(counts), counts, gather_runs(self.values, self.begins, self.counts, index))

    def merge(self, order: Int64Array, starts: Int64Array) -> Held:
        counts = sum_counts(order, starts, self.counts)
        return Held(_begins(counts), counts, self.take(order).values)

    def result(self, method: Method, samples: Int64Array) -> Float64Array:  # noqa: ARG002 - the protocol's
        return values_of_runs(method, np.append(self.begins, len(self.values)), self.values)


@dataclass(frozen=True, slots=True)
class Latest(Columns):
    """The last value."""

    value: Float64Array

    @classmethod
    def of(cls, starts: Int64Array, values: Float64Array, keep: Int64Array) -> Latest:
        return cls(values[starts[1:][keep] - 1])

    def merge(self, order: Int64Array, starts: Int64Array) -> Latest:
        return self.take(order[starts[1:] - 1])

    def result(self, method: Method, samples: Int64Array) -> Float64Array:  # noqa: ARG002 - the protocol's
        return self.value


@dataclass(frozen=True, slots=True)
class Counted(Columns):
    """A stretch of a counter: its ends, and what it had counted before its resets; for increase and rate."""

    first: Float64Array
    last: Float64Array
    highs: Float64Array
    lows: Float64Array

    @classmethod
    def of(cls, starts: Int64Array, values: Float64Array, keep: Int64Array) -> Counted:
        return cls(values[starts[:-1]], values[starts[1:] - 1], *reset_runs(starts, values)).only(keep)

    def merge(self, order: Int64Array, starts: Int64Array) -> Counted:
        return Counted(
            self.first[order[starts[:-1]]],
            self.last[order[starts[1:] - 1]],
            *merge_resets(order, starts, self.first, self.last, self.highs, self.lows),
        )

    def result(self, method: Method, samples: Int64Array) -> Float64Array:  # noqa: ARG002 - the protocol's
        raise TypeError("a counter's increase needs the sample before: see counters.py")


def _begins(counts: Int64Array) -> Int64Array:
    return np.cumsum(counts) - counts
