"""The last samples before a job's start travel apart from it: exactly those, and no window counts them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from builders import messages
from hypothesis import given, settings
from hypothesis import strategies as st
from misbehaving import HurriedEvent
from oracle import windows
from test_pipeline import T0, as_cells, assert_same, histories, run
from test_reader import (
    HOUR,
    PODS,
    START,
    ByName,
    MemorySource,
    Question,
    Samples,
    held_by,
    labels_of,
    reader_of,
    regular,
    rejected,
    samples_of,
    too_many,
)

from ingestor.catalogue import Meaning
from ingestor.core.chunk import LOOKBACK_MS, Refused
from ingestor.core.durations import ChunkSize
from ingestor.core.errors import SourceError, TooManySeries
from ingestor.core.time_range import TimeRange
from ingestor.packing import PackedRange
from ingestor.presets import PRESETS
from ingestor.reader import RangeReader, Selection
from ingestor.telemetry import Telemetry
from stream_app.view import View

BEFORE = TimeRange(START - LOOKBACK_MS, START)


def lasts_of(source: MemorySource, time_range: TimeRange = BEFORE) -> Samples:
    """Return the last sample of each series in a range, the short way."""
    lasts: Samples = {}
    for labels, (stamps, values) in source.series.items():
        inside = [(t, v) for t, v in zip(stamps.tolist(), values.tolist(), strict=True) if t < time_range.end_ms]
        if inside and inside[-1][0] >= time_range.start_ms:
            lasts[labels, inside[-1][0]] = inside[-1][1]
    return lasts


def lookback_of(packed: PackedRange) -> PackedRange:
    assert packed.lookback is not None
    return packed.lookback


def within(samples: Samples, time_range: TimeRange) -> Samples:
    return {key: value for key, value in samples.items() if time_range.start_ms <= key[1] < time_range.end_ms}


_stamps = st.lists(
    st.integers(START - 400_000, START + 60_000)
    | st.sampled_from([BEFORE.start_ms - 1, BEFORE.start_ms, START - 1, START]),
    min_size=1,
    max_size=12,
    unique=True,
).map(sorted)


@settings(max_examples=60)
@given(
    st.dictionaries(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), _stamps, max_size=12),
    st.sampled_from([1, 2, 5, 10**9]),
    st.sampled_from([1, 2, 10**9]),
    st.sampled_from([1000, 7_000, 10**9]),
)
def test_exactly_the_last_samples_are_read(
    times: dict[tuple[str, int], list[int]], most_samples: int, most_series: int, longest_ms: int
) -> None:
    """Each series' last sample in the five minutes before, to the millisecond, in however many parts it is given."""
    series = {labels_of(*key): (np.array(found), np.array(found) % 977 / 7) for key, found in times.items()}

    def refuse(question: Question) -> SourceError | None:
        if len(question.series) > most_series:
            return TooManySeries("too many series")
        is_long = question.time_range.length_ms > 1000
        too_large = question.samples > most_samples or question.time_range.length_ms > longest_ms
        return too_many() if is_long and too_large else None

    source = MemorySource(series, refuse)
    first = TimeRange(START, START + 60_000)
    with reader_of(source) as reader:
        packed = reader.read(first, lookback=True)
        following = reader.read(TimeRange(first.end_ms, first.end_ms + 60_000))
    assert not packed.incomplete
    assert samples_of(packed) == within(held_by(source), first)
    assert packed.samples == len(samples_of(packed))
    before = lookback_of(packed)
    assert before.time_range == BEFORE
    assert samples_of(before) == lasts_of(source)
    assert following.lookback is None


def test_time_begins_at_its_epoch() -> None:
    """A job that begins there has nothing before it, and one that begins soon after it only what there is."""
    source = MemorySource({labels_of("a", 0): (np.array([0, 999, 1000]), np.array([1.0, 2.0, 3.0]))})
    with reader_of(source) as reader:
        assert reader.read(TimeRange(0, 5_000), lookback=True).lookback is None
        before = lookback_of(reader.read(TimeRange(1_000, 5_000), lookback=True))
    assert before.time_range == TimeRange(0, 1_000)
    assert samples_of(before) == {(labels_of("a", 0), 999): 2.0}


@pytest.mark.parametrize("error", [too_many, rejected, lambda: TooManySeries("too many series")])
def test_what_is_refused_before_a_job_is_told_of_its_first_moment(error: Callable[[], SourceError]) -> None:
    """Nothing of the range itself is lost, nor is any other metric, and no time before the job is named."""

    def refuse(question: Question) -> SourceError | None:
        return error() if question.metric == "a" and question.time_range.start_ms < START else None

    source = MemorySource(regular(TimeRange(BEFORE.start_ms, HOUR.end_ms), 15_000), refuse)
    with reader_of(source) as reader:
        packed = reader.read(HOUR, lookback=True)
        assert packed.incomplete == (Refused("a", START, START + 1),)
        assert samples_of(packed) == within(held_by(source), HOUR)
        assert samples_of(lookback_of(packed)) == {
            (labels, t): value for (labels, t), value in lasts_of(source).items() if dict(labels)["__name__"] == "b"
        }
        before = len(source.asked)
        assert not reader.read(HOUR).incomplete
    of_it = [question for question in source.asked[before:] if "a" in question.metric.split("|")]
    assert len(of_it) == 1, "it is not thought hopeless"


def test_what_is_refused_there_and_later_is_told_once() -> None:
    """One stretch, not two that overlap; and a hopeless metric costs two questions more."""
    source = MemorySource(regular(HOUR, 15_000), lambda q: rejected() if q.metric == "a" else None)
    counts = []
    for lookback in (False, True):
        with reader_of(source) as reader:
            before = len(source.asked)
            packed = reader.read(HOUR, lookback=lookback)
            assert packed.incomplete == (Refused("a", HOUR.start_ms, HOUR.end_ms),)
            counts.append(sum(question.metric == "a" for question in source.asked[before:]))
    assert counts[1] == counts[0] + 2


def test_a_metric_that_has_gone_is_read_too() -> None:
    """It may come back in a later range, and its first increase then begins where it was."""
    gone = labels_of("gone", 3)
    source = MemorySource(regular(HOUR, 15_000) | {gone: (np.array([START - 60_000]), np.array([7.0]))})
    with reader_of(source) as reader:
        packed = reader.read(HOUR, lookback=True)
    assert samples_of(lookback_of(packed)) == {(gone, START - 60_000): 7.0}


def test_series_that_rewriting_makes_one_have_one_last_sample() -> None:
    """Of a pod that was scraped at two addresses the later sample counts, once the address is dropped."""
    one, other = (
        tuple(sorted({"__name__": "a", "pod": "db-0", "instance": instance}.items())) for instance in ("x", "y")
    )
    series = {
        one: (np.array([START - 90_000, START - 60_000]), np.array([1.0, 2.0])),
        other: (np.array([START - 30_000, START - 15_000]), np.array([3.0, 4.0])),
    }
    meaning = Meaning(lambda labels: {name: value for name, value in labels.items() if name != "instance"})
    with RangeReader(
        Selection(PRESETS["none"].readings(PODS), meaning),
        MemorySource(series),
        ByName(),
        2,
        HurriedEvent(0.0),
        concurrency=2,
        most_samples=10**9,
        samples_per_second=None,
        telemetry=Telemetry("test"),
    ) as reader:
        packed = reader.read(HOUR, lookback=True)
    assert samples_of(lookback_of(packed)) == {((("__name__", "a"), ("pod", "db-0")), START - 15_000): 4.0}


def test_the_time_before_is_read_in_parts_that_fit_into_memory() -> None:
    """How much comes at once is bounded by what the range itself has shown, and costs no refusals."""
    whole = TimeRange(BEFORE.start_ms, START + 60_000)
    source = MemorySource(regular(whole, 1_000, ("a",), number=20))
    with reader_of(source, most_samples=2_000) as reader:
        packed = reader.read(TimeRange(START, whole.end_ms), lookback=True)
    assert samples_of(lookback_of(packed)) == lasts_of(source)
    parts = [question for question in source.asked if question.time_range.start_ms < START]
    assert 4 < len(parts) < 10
    assert max(part.samples for part in parts) <= 1_000


@settings(max_examples=60, deadline=None)
@given(
    histories(),
    st.integers(0, 60_000),
    st.sampled_from(["30s", "1m", "7m"]),
    st.lists(st.integers(0, 20), max_size=4).map(sorted),
)
def test_no_window_counts_what_came_before(
    history: tuple[pd.DataFrame, list[TimeRange]], later_ms: int, size: str, restarts: list[int]
) -> None:
    """Windows, and which of them are partial, are the same with and without it, wherever a worker restarts."""
    samples, ranges = history
    start_ms = min(ranges[0].start_ms + later_ms, ranges[0].end_ms - 1)
    cut = [TimeRange(start_ms, ranges[0].end_ms), *ranges[1:]]
    view = View(ChunkSize.parse(size), "sum")
    plain = run(messages(samples, cut), view)
    records = run(messages(samples, cut, looks_back=True), view, restarts)
    topic = view.topics.pods
    inside = samples[samples["timestamp"] >= start_ms]
    assert_same(as_cells(records, topic), windows(inside, size, "sum", "pod"))
    partial, expected = ({(r.pod, r.window_start_ms, r.partial) for _, r in found} for found in (records, plain))
    assert partial == expected


def test_a_job_begins_where_what_came_before_ends() -> None:
    """Also where a partition has nothing else for a while: its first window is the job's, not one five minutes ago."""
    samples = pd.DataFrame(
        {
            "namespace": "shop",
            "pod": "web-7d9f8b6c5-x2x4z",
            "metric": "up",
            "series": 0,
            "timestamp": range(T0 - 60_000, T0 + 180_000, 15_000),
            "value": 1.0,
        }
    )
    streams = messages(samples, [TimeRange(T0 + i * 60_000, T0 + (i + 1) * 60_000) for i in range(3)], looks_back=True)
    records = run([max(streams, key=len)], View(ChunkSize.parse("1m"), "sum"))
    assert [(r.window_start_ms - T0, r.partial, r.samples) for _, r in records] == [
        (0, False, 4),
        (60_000, False, 4),
        (120_000, False, 4),
    ]
