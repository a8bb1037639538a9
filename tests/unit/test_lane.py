"""Ranges are read when enough has come, in order, and no more of them than may be in memory."""

from concurrent.futures import Future
from itertools import pairwise

from ingestor.core.errors import TooManySamples
from ingestor.core.time_range import TimeRange
from ingestor.lane import Bounds, Lane
from ingestor.packing import PackedRange
from ingestor.positions import Position


class MemoryReader:
    """Reads ranges of a steady stream; those of more than *most* samples are too large."""

    def __init__(self, samples_per_s: int, most: int = 10**9) -> None:
        self.samples_per_s, self.most = samples_per_s, most
        self.asked: list[TimeRange] = []
        self.looked_back: list[int] = []
        """The starts of the ranges that were read as the first ones of their job."""

    def start(self, time_range: TimeRange, *, lookback: bool) -> Future[PackedRange]:
        self.asked.append(time_range)
        self.looked_back += [time_range.start_ms] * lookback
        future: Future[PackedRange] = Future()
        samples = time_range.length_ms * self.samples_per_s // 1000
        if samples > self.most:
            future.set_exception(TooManySamples("too many"))
        else:
            future.set_result(PackedRange(time_range, "test", samples, 1, [[]]))
        return future


def lane(reader: MemoryReader, until_ms: list[int], length_ms: int, bounds: Bounds) -> Lane:
    position = Position("live", 0, None, 0, (0,))
    return Lane(position, reader, bounds, lambda: until_ms[0], length_ms)


def publish(a_lane: Lane) -> TimeRange | None:
    """Take the oldest range and move the position, as the poller does."""
    packed = a_lane.take()
    if packed is None:
        return None
    a_lane.position = a_lane.position.moved(packed.time_range, packed.samples, [0])
    return packed.time_range


def test_a_live_job_waits_for_a_poll_interval() -> None:
    """Little is not worth a transaction; what came meanwhile is read in one piece."""
    now = [0]
    live = lane(MemoryReader(100), now, 60_000, Bounds(10**6, 10**7, poll_interval_ms=15_000))
    assert not live.fill()
    now[0] = 14_999
    assert not live.fill()
    now[0] = 17_000
    assert live.fill()
    assert publish(live) == TimeRange(0, 17_000)
    assert not live.fill()


def test_ranges_may_be_shorter_than_the_poll_interval() -> None:
    """Where a range may hold less than an interval brings, all is read all the same, and in order."""
    now, published = [0], []
    reader = MemoryReader(1_000)
    live = lane(reader, now, 60_000, Bounds(5_000, 20_000, poll_interval_ms=15_000))
    for second in range(1, 301):
        now[0] = second * 1000
        while live.fill():
            published.append(publish(live))
    assert published[0].start_ms == 0
    assert all(a.end_ms == b.start_ms for a, b in pairwise(published))
    assert now[0] - published[-1].end_ms <= 15_000
    assert published[-1].length_ms == 5_000


def test_a_range_that_is_too_large_is_read_in_shorter_ones() -> None:
    """Nothing is left out, and what was read ahead behind it is read again."""
    reader = MemoryReader(1_000, most=20_000)
    history = lane(reader, [100_000], 80_000, Bounds(50_000, 10**6))
    published = []
    while history.fill():
        published += [found] if (found := publish(history)) else []
    assert published[0] == TimeRange(0, 20_000)
    assert published[-1].end_ms == 100_000
    assert sum(found.length_ms for found in published) == 100_000


def test_what_follows_is_read_while_a_range_is_published() -> None:
    """What is taken is not read again, and makes room, before the position says that it is published."""
    reader = MemoryReader(1_000)
    history = lane(reader, [60_000], 20_000, Bounds(20_000, 30_000))
    taken = []
    while history.fill():
        taken.append(history.take().time_range)
        assert history.position.position_ms == 0
    assert taken == reader.asked == [TimeRange(start, start + 20_000) for start in (0, 20_000, 40_000)]
    assert reader.looked_back == [0]


def test_no_more_is_read_ahead_than_may_be_in_memory() -> None:
    """One range is always read, however large; others only as the bound allows."""
    reader = MemoryReader(1_000)
    history = lane(reader, [10**9], 10_000, Bounds(10_000, 25_000))
    assert history.fill()
    assert len(reader.asked) == 2
    tight = MemoryReader(1_000)
    assert lane(tight, [10**9], 10_000, Bounds(10_000, 1)).fill()
    assert len(tight.asked) == 1


def test_only_a_jobs_first_range_looks_back() -> None:
    """Each time that it is read: also in a shorter piece, or again because it was never published."""
    reader = MemoryReader(1_000, most=20_000)
    history = lane(reader, [100_000], 80_000, Bounds(50_000, 10**6))
    while history.fill():
        publish(history)
    assert reader.looked_back == [0, 0]
    assert reader.asked.count(TimeRange(0, 20_000)) == 1
    reader.looked_back.clear()
    begun = Position("live", 0, None, 20_000, (2,))
    assert Lane(begun, reader, Bounds(50_000, 10**6), lambda: 100_000, 20_000).fill()
    assert reader.looked_back == []
