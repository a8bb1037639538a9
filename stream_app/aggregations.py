"""The numba kernels, and what each method makes of values that are all there (`METHODS_OF_VALUES`).

Every kernel works on whole columns and releases the GIL. *Runs* are stretches of
values that belong together: run i is ``values[starts[i]:starts[i + 1]]``, never empty.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

from stream_app.methods import quantile_of

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function) -> _Function:
    """Compile at the first call, keep the machine code on disk, run without the GIL."""
    return cast(_Function, numba.njit(cache=True, nogil=True, error_model="numpy")(function))


@compiled
def window_runs(
    offsets: Int64Array, timestamps_ms: Int64Array, edges_ms: Int64Array
) -> tuple[Int32Array, Int32Array, Int64Array]:
    """Cut each row's samples where windows end.

    Args:
        offsets: shape (rows + 1,); row i has samples ``offsets[i]:offsets[i + 1]``, in time order.
        timestamps_ms: all rows' samples.
        edges_ms: window w is [edges[w], edges[w + 1]); every sample lies in one.

    Returns:
        Row and window of each run, shape (runs,), and starts, shape (runs + 1,).
    """
    rows = len(offsets) - 1
    capacity = offsets[rows] - offsets[0] if rows > 0 else 0
    row_of, window_of = np.empty(capacity, np.int32), np.empty(capacity, np.int32)
    starts = np.empty(capacity + 1, np.int64)
    runs, last = 0, len(edges_ms) - 2
    for row in range(rows):
        window, end = -1, -(2**62)
        for i in range(offsets[row], offsets[row + 1]):
            if timestamps_ms[i] >= end:
                # Mostly it is the next window, or a row's first one the first.
                window += 1
                if window > last or timestamps_ms[i] < edges_ms[window] or timestamps_ms[i] >= edges_ms[window + 1]:
                    window = np.searchsorted(edges_ms, timestamps_ms[i], side="right") - 1
                end = edges_ms[window + 1]
                row_of[runs], window_of[runs], starts[runs] = row, window, i
                runs += 1
    starts[runs] = offsets[rows] if rows > 0 else 0
    return row_of[:runs].copy(), window_of[:runs].copy(), starts[: runs + 1].copy()


@compiled
def add_exactly(high: float, low: float, value: float) -> tuple[float, float]:
    """Add *value* to the double-double number *high* + *low*.

    Source: TwoSum, Knuth, The Art of Computer Programming vol. 2, 4.2.2;
    double-double accumulation, Hida, Li and Bailey, 2001.
    """
    total = high + value
    if not np.isfinite(total):
        return total, 0.0
    part = total - high
    low += (high - (total - part)) + (value - part)
    high = total + low
    return high, low - (high - total)


@compiled
def sum_runs(starts: Int64Array, values: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Return each run's sum as double-double numbers: high and low parts, shape (runs,)."""
    runs = len(starts) - 1
    highs, lows = np.empty(runs), np.empty(runs)
    for run in range(runs):
        high, low = 0.0, 0.0
        for i in range(starts[run], starts[run + 1]):
            high, low = add_exactly(high, low, values[i])
        highs[run], lows[run] = high, low
    return highs, lows


@compiled
def sum_pairs(
    order: Int64Array, starts: Int64Array, highs: Float64Array, lows: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Add up double-double numbers: group g is ``order[starts[g]:starts[g + 1]]``."""
    groups = len(starts) - 1
    out_highs, out_lows = np.empty(groups), np.empty(groups)
    for group in range(groups):
        high, low = 0.0, 0.0
        for i in range(starts[group], starts[group + 1]):
            high, low = add_exactly(high, low, highs[order[i]])
            if np.isfinite(high):
                high, low = add_exactly(high, low, lows[order[i]])
        out_highs[group], out_lows[group] = high, low
    return out_highs, out_lows


@compiled
def split_exactly(value: float) -> tuple[float, float]:
    """Cut *value* into two parts of at most 26 bits each.

    Source: Veltkamp's split, in Dekker, A Floating-Point Technique for Extending the Available Precision, 1971.
    """
    shifted = value * 134_217_729.0
    head = shifted - (shifted - value)
    return head, value - head


@compiled
def add_product_exactly(high: float, low: float, a: float, b: float) -> tuple[float, float]:
    """Add *a* times *b* to the double-double number *high* + *low*.

    Source: Dekker's product, in the same paper.
    """
    product = a * b
    if not np.isfinite(product):
        return high + product, 0.0
    a_head, a_tail = split_exactly(a)
    b_head, b_tail = split_exactly(b)
    rest = ((a_head * b_head - product) + a_head * b_tail + a_tail * b_head) + a_tail * b_tail
    high, low = add_exactly(high, low, product)
    # Above 2**996 the split overflows; the product alone is then what there is.
    return add_exactly(high, low, rest) if np.isfinite(high) and np.isfinite(rest) else (high, low)


@compiled
def subtract_exactly(a: float, b: float) -> tuple[float, float]:
    """Return *a* - *b* as a double-double number."""
    difference = a - b
    if not np.isfinite(difference):
        return difference, 0.0
    part = difference - a
    return difference, (a - (difference - part)) + (-b - part)


@compiled
def moment_runs(
    starts: Int64Array, values: Float64Array
) -> tuple[Float64Array, Float64Array, Float64Array, Float64Array, Float64Array]:
    """Return the sums of each run's distances from its first value, and of their squares.

    Returns:
        The first values, and both sums as double-double numbers, high and low parts, shape (runs,).

    Distances from a value that is one of them cannot be all large where the deviation is small: the
    deviation of n values loses log2(n) bits at most, however far they are from zero.
    """
    runs = len(starts) - 1
    pivots, highs, lows = np.empty(runs), np.empty(runs), np.empty(runs)
    square_highs, square_lows = np.empty(runs), np.empty(runs)
    for run in range(runs):
        pivot = values[starts[run]]
        high, low, square_high, square_low = 0.0, 0.0, 0.0, 0.0
        for i in range(starts[run], starts[run + 1]):
            distance, rest = subtract_exactly(values[i], pivot)
            high, low = add_exactly(high, low, distance)
            square_high, square_low = add_product_exactly(square_high, square_low, distance, distance)
            if rest != 0.0:
                high, low = add_exactly(high, low, rest)
                square_high, square_low = add_exactly(square_high, square_low, 2.0 * distance * rest)
        pivots[run], highs[run], lows[run] = pivot, high, low
        square_highs[run], square_lows[run] = square_high, square_low
    return pivots, highs, lows, square_highs, square_lows


@compiled
def merge_moments(
    order: Int64Array,
    starts: Int64Array,
    counts: Int64Array,
    pivots: Float64Array,
    highs: Float64Array,
    lows: Float64Array,
    square_highs: Float64Array,
    square_lows: Float64Array,
) -> tuple[Float64Array, Float64Array, Float64Array, Float64Array, Float64Array]:
    """Join what `moment_runs` returns of *counts* values each: group g is ``order[starts[g]:starts[g + 1]]``.

    All of a group is moved to its first pivot: where x is d further from it than from its own,
    the sum of (x + d) is that of x and n d, the sum of (x + d)^2 that of x^2, 2 d x and n d^2.
    """
    groups = len(starts) - 1
    out_pivots, out_highs, out_lows = np.empty(groups), np.empty(groups), np.empty(groups)
    out_square_highs, out_square_lows = np.empty(groups), np.empty(groups)
    for group in range(groups):
        pivot = pivots[order[starts[group]]]
        high, low, square_high, square_low = 0.0, 0.0, 0.0, 0.0
        for at in range(starts[group], starts[group + 1]):
            i = order[at]
            high, low = add_exactly(high, low, highs[i])
            high, low = add_exactly(high, low, lows[i])
            square_high, square_low = add_exactly(square_high, square_low, square_highs[i])
            square_high, square_low = add_exactly(square_high, square_low, square_lows[i])
            d, rest = subtract_exactly(pivots[i], pivot)
            if d != 0.0:
                n = float(counts[i])
                high, low = add_product_exactly(high, low, n, d)
                high, low = add_exactly(high, low, n * rest)
                square_high, square_low = add_product_exactly(square_high, square_low, 2.0 * d, highs[i])
                square_high, square_low = add_exactly(
                    square_high, square_low, 2.0 * (d * lows[i] + rest * highs[i] + n * d * rest)
                )
                d2_high, d2_low = add_product_exactly(0.0, 0.0, d, d)
                square_high, square_low = add_product_exactly(square_high, square_low, n, d2_high)
                square_high, square_low = add_exactly(square_high, square_low, n * d2_low)
        out_pivots[group], out_highs[group], out_lows[group] = pivot, high, low
        out_square_highs[group], out_square_lows[group] = square_high, square_low
    return out_pivots, out_highs, out_lows, out_square_highs, out_square_lows


@compiled
def stddev_of_sums(
    highs: Float64Array, lows: Float64Array, square_highs: Float64Array, square_lows: Float64Array, counts: Int64Array
) -> Float64Array:
    """Return population standard deviations from what `moment_runs` sums up, all shape (cells,).

    n * sum(x^2) - sum(x)^2 is worked out in double-double numbers. Infinities and NaN give NaN.
    """
    out = np.empty(len(counts))
    for cell in range(len(counts)):
        n = float(counts[cell])
        high, low = add_product_exactly(0.0, 0.0, n, square_highs[cell])
        high, low = add_exactly(high, low, n * square_lows[cell])
        high, low = add_product_exactly(high, low, -highs[cell], highs[cell])
        high, low = add_exactly(high, low, -2.0 * highs[cell] * lows[cell])
        out[cell] = np.sqrt(max(high, 0.0)) / n if np.isfinite(high) else np.nan
    return out


@compiled
def sum_counts(order: Int64Array, starts: Int64Array, counts: Int64Array) -> Int64Array:
    """Add up *counts* over each group ``order[starts[g]:starts[g + 1]]``."""
    out = np.zeros(len(starts) - 1, np.int64)
    for group in range(len(starts) - 1):
        for i in range(starts[group], starts[group + 1]):
            out[group] += counts[order[i]]
    return out


@compiled
def gather_runs(values: Float64Array, begins: Int64Array, counts: Int64Array, order: Int64Array) -> Float64Array:
    """Lay the runs ``values[begins[r]:begins[r] + counts[r]]`` one behind the other, in *order*."""
    total = 0
    for run in order:
        total += counts[run]
    out = np.empty(total)
    at = 0
    for run in order:
        begin = begins[run]
        for i in range(begin, begin + counts[run]):
            out[at] = values[i]
            at += 1
    return out


@compiled
def median_runs(starts: Int64Array, values: Float64Array) -> Float64Array:
    """Return each run's median (the mean of the middle two of an even number); NaN where a sample is NaN.

    Sorts *values* within the runs.
    """
    runs = len(starts) - 1
    out = np.empty(runs)
    for run in range(runs):
        part = values[starts[run] : starts[run + 1]]
        _sort(part)
        n = len(part)
        if np.isnan(part[n - 1]):
            out[run] = np.nan
        elif n % 2:
            out[run] = part[n // 2]
        else:
            a, b = part[n // 2 - 1], part[n // 2]
            # Halves first only where the sum would overflow: they lose bits of tiny numbers.
            middle = (a + b) / 2
            out[run] = a / 2 + b / 2 if np.isinf(middle) and np.isfinite(a) and np.isfinite(b) else middle
    return out


@compiled
def quantile_runs(starts: Int64Array, values: Float64Array, quantile: float) -> Float64Array:
    """Return each run's quantile, between the two nearest values linearly; NaN where a sample is NaN.

    Sorts *values* within the runs.

    Source: ``quantile_over_time`` of Prometheus, and numpy's default; type 7 in Hyndman and Fan, 1996.
    """
    runs = len(starts) - 1
    out = np.empty(runs)
    for run in range(runs):
        part = values[starts[run] : starts[run + 1]]
        _sort(part)
        n = len(part)
        rank = quantile * (n - 1)
        lower = int(np.floor(rank))
        weight = rank - lower
        if np.isnan(part[n - 1]):
            out[run] = np.nan
        elif weight == 0.0 or part[lower] == part[lower + 1]:
            # The weights of equal values would add up to the value but for its last digit.
            out[run] = part[lower]
        else:
            out[run] = part[lower] * (1.0 - weight) + part[lower + 1] * weight
    return out


@compiled
def _sort(part: Float64Array) -> None:
    """Sort in place, NaN last. Windows are small: insertion beats the general sort below 32 values."""
    n = len(part)
    if n > 32:
        part.sort()
        return
    for i in range(1, n):
        value = part[i]
        j = i - 1
        while j >= 0 and (part[j] > value or (np.isnan(part[j]) and not np.isnan(value))):
            part[j + 1] = part[j]
            j -= 1
        part[j + 1] = value


@compiled
def seldom_twice(times_ms: Int64Array) -> Int64Array:
    """Return all that *times_ms* has, and little of it twice where it repeats stretches of rising times."""
    out = np.empty(len(times_ms), np.int64)
    # How many are noted; the place of the newest time among them, and of the first one of its stretch.
    known, at, begin = 0, 0, 0
    for time_ms in times_ms:
        if known and time_ms == out[at]:
            continue
        if at + 1 < known and time_ms == out[at + 1]:
            at += 1
        elif known and time_ms == out[begin]:
            at = begin
        else:
            if known and time_ms < out[at]:
                begin = known
            at, out[known] = known, time_ms
            known += 1
    return out[:known].copy()


@compiled
def cell_keys(
    windows_ms: Int64Array,
    group_ranks: Int64Array,
    metric_ranks: Int64Array,
    window_ms: Int64Array,
    group: Int64Array,
    metric: Int64Array,
) -> Int64Array:
    """Return a number for each entry that rises as window, rank of the group and rank of the metric do.

    Args:
        windows_ms: the distinct values of *window_ms*, rising.
        group_ranks: of each group, its place in order.
        metric_ranks: of each metric.
        window_ms: of each entry, shape (n,).
        group: number of each entry's group.
        metric: number of each entry's metric.

    Returns:
        Shape (n,), all below the product of the lengths of the first three.
    """
    out = np.empty(len(window_ms), np.int64)
    window = 0
    for i in range(len(out)):
        if windows_ms[window] != window_ms[i]:
            # Entries come series by series: mostly it is the next one.
            window += 1
            if window == len(windows_ms) or windows_ms[window] != window_ms[i]:
                window = np.searchsorted(windows_ms, window_ms[i])
        out[i] = (window * len(group_ranks) + group_ranks[group[i]]) * len(metric_ranks) + metric_ranks[metric[i]]
    return out


@compiled
def radix_order(keys: Int64Array, end: int, order: Int64Array) -> Int64Array:
    """Return *order* sorted stably by ``keys[order]``, which lie in [0, end).

    As many passes of a counting sort as it takes with about as many buckets as there are entries: one, where
    most keys are in use.
    """
    bits = 0
    while (end - 1) >> bits:
        bits += 1
    at_once = 8
    while at_once < 17 and len(order) > 1 << at_once:
        at_once += 1
    passes = (bits + at_once - 1) // at_once
    for number in range(passes):
        width = (bits + passes - 1) // passes
        shift, mask = number * width, (1 << width) - 1
        at = np.zeros((1 << width) + 1, np.int64)
        for i in order:
            at[((keys[i] >> shift) & mask) + 1] += 1
        for bucket in range(1 << width):
            at[bucket + 1] += at[bucket]
        out = np.empty_like(order)
        for i in order:
            bucket = (keys[i] >> shift) & mask
            out[at[bucket]] = i
            at[bucket] += 1
        order = out
    return order


@compiled
def reset_runs(starts: Int64Array, values: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Return what each run of a counter had counted before its resets, as double-double numbers, shape (runs,).

    A value below the one before it is a reset: that one is added. As in Prometheus' ``increase``,
    comparisons with NaN are false.
    """
    runs = len(starts) - 1
    highs, lows = np.empty(runs), np.empty(runs)
    for run in range(runs):
        high, low = 0.0, 0.0
        for i in range(starts[run] + 1, starts[run + 1]):
            if values[i] < values[i - 1]:
                high, low = add_exactly(high, low, values[i - 1])
        highs[run], lows[run] = high, low
    return highs, lows


@compiled
def merge_resets(
    order: Int64Array,
    starts: Int64Array,
    firsts: Float64Array,
    lasts: Float64Array,
    highs: Float64Array,
    lows: Float64Array,
) -> tuple[Float64Array, Float64Array]:
    """Join stretches of counters: group g is ``order[starts[g]:starts[g + 1]]``, in the order of time.

    Args:
        order: which stretches, group by group.
        starts: where groups start in *order*.
        firsts: the first value of each stretch.
        lasts: its last value.
        highs: what it had counted before its resets, high parts.
        lows: the low parts.

    Returns:
        What each group had counted before its resets, those between its stretches too, shape (groups,).
    """
    groups = len(starts) - 1
    out_highs, out_lows = np.empty(groups), np.empty(groups)
    for group in range(groups):
        high, low = 0.0, 0.0
        for i in range(starts[group], starts[group + 1]):
            stretch = order[i]
            if i > starts[group] and firsts[stretch] < lasts[order[i - 1]]:
                high, low = add_exactly(high, low, lasts[order[i - 1]])
            high, low = add_exactly(high, low, highs[stretch])
            if np.isfinite(high):
                high, low = add_exactly(high, low, lows[stretch])
        out_highs[group], out_lows[group] = high, low
    return out_highs, out_lows


@compiled
def increases(highs: Float64Array, lows: Float64Array, lasts: Float64Array, bases: Float64Array) -> Float64Array:
    """Return last - base + (what was counted before resets), rounded once, shape (n,)."""
    out = np.empty(len(lasts))
    for i in range(len(lasts)):
        high, low = add_exactly(highs[i], lows[i], lasts[i])
        high, low = add_exactly(high, low, -bases[i])
        out[i] = high
    return out


@compiled
def mean_of_pairs(highs: Float64Array, lows: Float64Array, counts: Int64Array) -> Float64Array:
    """Divide double-double sums by counts, and correct the quotient by its remainder.

    Source: Dekker's division, A Floating-Point Technique for Extending the Available Precision, 1971.
    """
    out = np.empty(len(highs))
    for i in range(len(highs)):
        n = float(counts[i])
        quotient = highs[i] / n
        # The product quotient * n in two parts, so that the remainder is exact.
        q_high, q_low = split_exactly(quotient)
        n_high, n_low = split_exactly(n)
        product = quotient * n
        error = ((q_high * n_high - product) + q_high * n_low + q_low * n_high) + q_low * n_low
        corrected = quotient + ((highs[i] - product) - error + lows[i]) / n
        out[i] = corrected if np.isfinite(corrected) else quotient
    return out


def stddev_runs(starts: Int64Array, values: Float64Array) -> Float64Array:
    """Return each run's population standard deviation."""
    counts = np.diff(starts)
    return stddev_of_sums(*moment_runs(starts, values)[1:], counts)


def values_of_runs(method: str, starts: Int64Array, values: Float64Array) -> Float64Array:
    """Apply a method of METHODS_OF_VALUES, or a quantile, to each run; *values* may be sorted within runs."""
    quantile = quantile_of(method)
    of_values = (
        METHODS_OF_VALUES[method](starts, values) if quantile is None else quantile_runs(starts, values, quantile)
    )
    # Zeros have two signs; which of them stands in the middle must not depend on who comes first.
    return of_values + 0.0


METHODS_OF_VALUES: dict[str, Callable[[Int64Array, Float64Array], Float64Array]] = {
    "sum": lambda starts, values: sum_runs(starts, values)[0],
    "mean": lambda starts, values: mean_of_pairs(*sum_runs(starts, values), np.diff(starts)),
    "median": median_runs,
    # NaN counts only where there is nothing else, as in Prometheus.
    "min": lambda starts, values: np.fmin.reduceat(values, starts[:-1]),
    "max": lambda starts, values: np.fmax.reduceat(values, starts[:-1]),
    "count": lambda starts, _: np.diff(starts).astype(np.float64),
    "stddev": stddev_runs,
    # Whoever calls has put them in the order of time.
    "last": lambda starts, values: values[starts[1:] - 1],
}
