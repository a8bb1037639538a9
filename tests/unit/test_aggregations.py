"""Samples find their windows, cells their order without being compared, and means are exact."""

from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_app.aggregations import cell_keys, mean_of_pairs, radix_order, seldom_twice, window_runs


@given(
    st.lists(st.lists(st.integers(0, 299), max_size=12, unique=True).map(sorted), max_size=6),
    st.sets(st.integers(1, 299), max_size=30),
)
@settings(max_examples=200, deadline=None)
def test_runs_are_the_samples_of_one_row_and_window(rows, inner_edges):
    """Whatever windows a row leaves out, and wherever it begins: a sample is in the one run of its row and window."""
    stamps = np.array([stamp for row in rows for stamp in row], np.int64)
    offsets = np.cumsum([0, *map(len, rows)])
    edges = np.array([0, *sorted(inner_edges), 300], np.int64)
    row, window, starts = window_runs(offsets, stamps, edges)
    found = [tuple(pair) for pair in np.repeat(np.column_stack((row, window)), np.diff(starts), axis=0).tolist()]
    expected = [(i, int(np.searchsorted(edges, t, side="right")) - 1) for i, row in enumerate(rows) for t in row]
    assert found == expected
    assert len(set(expected)) == len(row)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9), st.integers(1, 4))))
@settings(max_examples=200, deadline=None)
def test_no_time_is_left_out(stretches):
    """Stretches of rising times, repeated or not: all their times are kept, of one repeated stretch each once."""
    times_ms = np.array([t for first, length, times in stretches for t in [*range(first, first + length)] * times])
    assert set(seldom_twice(times_ms.astype(np.int64)).tolist()) == set(times_ms.tolist())
    once = np.arange(3, 20)
    assert seldom_twice(np.tile(once, 5)).tolist() == seldom_twice(np.repeat(once, 5)).tolist() == once.tolist()


@st.composite
def entries(draw):
    """Entries of few or many windows, groups and metrics, in any order; and the ranks of groups and metrics."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    count, windows, groups, metrics = (draw(st.sampled_from(sizes)) for sizes in ((1, 7, 900), *[(1, 3, 400)] * 3))
    window_ms = np.sort(generator.choice(10**6, windows, replace=False)) * 1000
    columns = [generator.integers(0, most, count) for most in (windows, groups, metrics)]
    if draw(st.booleans()):
        # As chunks bring them: series by series, in the order of time.
        columns[0] = np.arange(count) % windows
    return window_ms[columns[0]], *columns[1:], generator.permutation(groups), generator.permutation(metrics)


@given(entries(), st.randoms())
@settings(max_examples=100, deadline=None)
def test_cells_are_in_the_order_of_their_keys(entries, chance):
    """Sorted by window, group and metric as by comparing them; what is equal stays as it was, however it lay."""
    window_ms, group, metric, group_ranks, metric_ranks = entries
    windows_ms = np.unique(window_ms)
    keys = cell_keys(windows_ms, group_ranks, metric_ranks, window_ms, group, metric)
    end = len(windows_ms) * len(group_ranks) * len(metric_ranks)
    assert (keys >= 0).all()
    assert (keys < end).all()
    before = np.arange(len(keys))
    chance.shuffle(before)
    sorted_by_comparing = np.lexsort((metric_ranks[metric[before]], group_ranks[group[before]], window_ms[before]))
    assert radix_order(keys, end, before).tolist() == before[sorted_by_comparing].tolist()


@given(st.integers(0, 62), st.lists(st.integers(0, 2**62), max_size=40))
@settings(max_examples=100, deadline=None)
def test_keys_of_any_width_are_sorted(bits, numbers):
    """All digits count, the highest too."""
    keys = np.array(numbers, np.int64) % (1 << bits)
    assert radix_order(keys, 1 << bits, np.arange(len(keys))).tolist() == np.argsort(keys, kind="stable").tolist()


@given(st.lists(st.tuples(st.floats(-1e15, 1e15), st.floats(-0.4, 0.4), st.integers(1, 10**9)), min_size=1))
@settings(max_examples=200, deadline=None)
def test_a_mean_is_rounded_once(sums):
    """A double-double sum is divided as exact fractions are, but for half a unit of the last place."""
    highs, lows, counts = (np.array(column) for column in zip(*sums, strict=True))
    # A double-double number: its low part is below the last place of its high one.
    lows = lows * np.spacing(np.abs(highs))
    for mean, high, low, count in zip(mean_of_pairs(highs, lows, counts), highs, lows, counts.tolist(), strict=True):
        exact = (Fraction(high) + Fraction(low)) / count
        assert abs(Fraction(mean) - exact) <= Fraction(float(np.spacing(abs(mean)))) * Fraction(51, 100)


def test_means_beyond_numbers():
    """What is infinite, no number, or too large to be corrected is what plain division gives."""
    highs = np.array([np.inf, -np.inf, np.nan, 1.7e308])
    means = mean_of_pairs(highs, np.zeros(4), np.full(4, 2))
    assert repr(means.tolist()) == repr([np.inf, -np.inf, np.nan, 8.5e307])
