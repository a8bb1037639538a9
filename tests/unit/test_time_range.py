"""Half-open ranges of event time."""

from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingestor.core.time_range import TimeRange, floor_ms, iso

LAST_MS = 253_402_300_799_999  # the end of the year 9999
TIMES = st.integers(0, LAST_MS)


@pytest.mark.parametrize(("start_ms", "end_ms"), [(0, 0), (1, 0), (10**30, 10**30)])
def test_an_empty_range_is_refused(start_ms, end_ms):
    """No range is empty or reversed, and saying so never fails, however large the numbers."""
    with pytest.raises(ValueError, match="is not after the start"):
        TimeRange(start_ms, end_ms)


@given(TIMES, st.integers(2, 10**12))
@settings(max_examples=50, deadline=None)
def test_halves_make_the_whole(start_ms, length_ms):
    """Two halves touch and cover the range, cut at the whole second next to the middle, or else in the middle."""
    whole = TimeRange(start_ms, start_ms + length_ms)
    left, right = whole.halves()
    assert (left.start_ms, left.end_ms, right.end_ms) == (whole.start_ms, right.start_ms, whole.end_ms)
    assert left.length_ms + right.length_ms == whole.length_ms
    seconds = [t for t in (left.end_ms // 1000 * 1000, -(-left.end_ms // 1000) * 1000) if start_ms < t < whole.end_ms]
    assert left.end_ms % 1000 == 0 if seconds else 0 <= right.length_ms - left.length_ms <= 1
    assert abs(right.length_ms - left.length_ms) <= 1000


def test_a_millisecond_has_no_halves():
    """Halving ends: the smallest range refuses."""
    with pytest.raises(ValueError, match="is not after the start"):
        TimeRange(5, 6).halves()


def test_ranges_sort_by_start():
    """Ranges compare by start, then by end."""
    ranges = [TimeRange(2, 3), TimeRange(1, 5), TimeRange(1, 2)]
    assert sorted(ranges) == [TimeRange(1, 2), TimeRange(1, 5), TimeRange(2, 3)]


@given(st.integers(-(10**15), 10**15), st.integers(1, 10**10))
@settings(max_examples=50, deadline=None)
def test_floor(time_ms, size_ms):
    """The floor is a multiple, at or before the time, less than a length away; before 1970, too."""
    start_ms = floor_ms(time_ms, size_ms)
    assert start_ms % size_ms == 0
    assert start_ms <= time_ms < start_ms + size_ms


@pytest.mark.parametrize(
    ("time_ms", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1_795_435_200_000, "2026-11-23T12:00:00Z"),
        (1_795_435_200_007, "2026-11-23T12:00:00.007Z"),
        (-1, "1969-12-31T23:59:59.999Z"),
        (10**30, f"{10**30} ms"),
        (LAST_MS + 1, "253402300800000 ms"),
    ],
)
def test_iso(time_ms, text):
    """Times are written in UTC, with milliseconds only where there are any."""
    assert iso(time_ms) == text


@given(TIMES)
@settings(max_examples=50, deadline=None)
def test_iso_loses_nothing(time_ms):
    """What is written reads back to the same millisecond."""
    delta = datetime.fromisoformat(iso(time_ms)) - datetime.fromisoformat("1970-01-01T00:00:00Z")
    assert (delta.days * 86_400 + delta.seconds) * 1000 + delta.microseconds // 1000 == time_ms


def test_a_range_is_written_as_two_times():
    """A range in a message reads as start..end."""
    assert str(TimeRange(0, 60_000)) == "1970-01-01T00:00:00Z..1970-01-01T00:01:00Z"
