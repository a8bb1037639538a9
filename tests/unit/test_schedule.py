"""Ranges adjoin, stay inside what is due, and grow or shrink toward their target."""

from hypothesis import given, settings
from hypothesis import strategies as st

from ingestor import schedule
from ingestor.core.time_range import TimeRange


@settings(deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 10**7), st.lists(st.integers(1000, 10**8), min_size=1, max_size=30))
def test_ranges_cover_a_job_without_gap_or_overlap(start, length, lengths):
    """Whatever the lengths are, the ranges of a job are its whole stretch, each millisecond once."""
    end, position, at = start + length, start, 0
    while (due := schedule.due(position, end, lengths[at % len(lengths)])) is not None:
        assert due.start_ms == position
        assert due.end_ms <= end
        position, at = due.end_ms, at + 1
    assert position == end


@given(st.integers(1, 10**7), st.floats(1e-6, 1e3))
def test_lengths_settle_near_the_target(series, samples_per_ms):
    """After a few ranges of a steady cluster, a range holds about what was aimed at, or has reached a limit."""
    length = schedule.first_length_ms(series)
    for _ in range(30):
        length = schedule.next_length_ms(length, TimeRange(0, length), int(length * samples_per_ms))
    expected = schedule.TARGET_SAMPLES / samples_per_ms
    assert 1000 <= length <= 10 * 86_400_000
    assert length in (1000, 10 * 86_400_000) or 0.9 < length / expected < 1.1


@given(st.integers(1000, 10**8), st.integers(1, 10**8), st.integers(0, 10**8))
def test_a_short_range_never_lengthens(length, found, samples):
    """What little was due just now says nothing about how much may be asked for at once."""
    found = min(found, length - 1) or 1
    assert schedule.next_length_ms(length, TimeRange(0, found), samples) <= max(length, 1000)
