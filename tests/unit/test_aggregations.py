"""Cells are put into order without comparing them, and divided exactly."""

from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_app.aggregations import cell_keys, mean_of_pairs, radix_order


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
