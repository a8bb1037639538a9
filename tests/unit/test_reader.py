"""What a backend refuses is halved until it gives it; what is lost is named, and nothing else is lost."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from misbehaving import HurriedEvent, finds

from ingestor import presets
from ingestor.catalogue import Meaning
from ingestor.core import wire
from ingestor.core.chunk import Float64Array, Int64Array, Refused
from ingestor.core.errors import (
    ConfigError,
    IngestorError,
    QueryRejected,
    SourceError,
    SourceUnavailable,
    TooManySamples,
    TooManySeries,
)
from ingestor.core.time_range import TimeRange
from ingestor.packing import PackedRange
from ingestor.reader import RangeReader, Selection
from ingestor.selector import Matcher, Selector
from ingestor.sources.base import SeriesBlock, canonical_labels, tidy
from ingestor.sources.remote_read import RemoteReadUnsupported
from ingestor.telemetry import Telemetry
from ingestor.workloads import Pod, service_of

START = 1_700_000_000_000
DAY = TimeRange(START, START + 86_400_000)
HOUR = TimeRange(START, START + 3_600_000)
PODS = Selector.parse('{pod!=""}')

Labels = tuple[tuple[str, str], ...]
Series = Mapping[Labels, tuple[Int64Array, Float64Array]]
Samples = dict[tuple[Labels, int], float]


@dataclass(frozen=True)
class Question:
    """What is asked for, and what the answer would be."""

    metric: str
    """Of several, their names with ``|`` between."""
    time_range: TimeRange
    series: tuple[Labels, ...]
    samples: int
    time: int
    """How often the same was asked, this time included."""


@dataclass
class MemorySource:
    """A `Source` that holds its samples itself.

    Args:
        series: labels with the name, to times and values in rising order.
        refuse: gives the error that answers a question, or None.
        refuse_listing: the same for a list of series.
    """

    series: Series
    refuse: Callable[[Question], IngestorError | None] = lambda _: None
    refuse_listing: Callable[[TimeRange], SourceError | None] = lambda _: None
    name: str = "memory"
    in_pieces: bool = False
    histograms: Collection[str] = ()
    """Metrics that have native histograms too."""
    asked: list[Question] = field(default_factory=list)
    _times: dict[tuple[str, str, TimeRange], int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def now_ms(self) -> int:
        return DAY.end_ms

    def metric_names(self, selector: Selector, time_range: TimeRange) -> list[str]:
        return sorted({dict(labels)["__name__"] for labels, _, _ in self._found(selector, time_range)})

    def count_series(self, selector: Selector, at_ms: int) -> int:
        return len(list(self._found(selector, TimeRange(at_ms - 300_000, at_ms + 1))))

    def metric_types(self) -> dict[str, str]:
        return {}

    def label_sets(self, selectors: Sequence[str], time_range: TimeRange) -> list[dict[str, str]]:
        if error := self.refuse_listing(time_range):
            raise error
        found = {labels for text in selectors for labels, _, _ in self._found(Selector.parse(text), time_range)}
        return [dict(labels) for labels in sorted(found)]

    def fetch(self, selector: Selector, metric: str, time_range: TimeRange) -> SeriesBlock:
        return self._answered(selector, metric, time_range)

    def streams(self, time_range: TimeRange) -> bool:  # noqa: ARG002 - all or none
        return self.in_pieces

    def fetch_together(
        self, selector: Selector, metrics: Sequence[str], time_range: TimeRange, most_samples: int
    ) -> SeriesBlock:
        block = self._answered(selector, "|".join(metrics), time_range)
        if self.in_pieces and block.samples > most_samples:
            raise too_many()
        return block

    def _answered(self, selector: Selector, metric: str, time_range: TimeRange) -> SeriesBlock:
        whole = Selector((*selector.matchers, Matcher("__name__", "=~", metric)))
        found = list(self._found(whole, time_range))
        lengths = [len(stamps) for _, stamps, _ in found]
        with self._lock:
            key = (metric, str(selector), time_range)
            self._times[key] = self._times.get(key, 0) + 1
            question = Question(
                metric, time_range, tuple(labels for labels, _, _ in found), sum(lengths), self._times[key]
            )
            self.asked.append(question)
            error = self.refuse(question)
        if error:
            raise error
        return SeriesBlock(
            [canonical_labels(orjson.dumps(dict(labels))) for labels, _, _ in found],
            np.cumsum([0, *lengths]),
            np.concatenate([np.empty(0, np.int64), *(stamps for _, stamps, _ in found)]),
            np.concatenate([np.empty(0), *(values for _, _, values in found)]),
            sum(name in self.histograms for name in metric.split("|")),
            self.name,
        )

    def _found(self, selector: Selector, time_range: TimeRange) -> Iterator[tuple[Labels, Int64Array, Float64Array]]:
        for labels, (stamps, values) in self.series.items():
            first, last = np.searchsorted(stamps, [time_range.start_ms, time_range.end_ms])
            if first < last and finds(selector, dict(labels)):
                yield labels, stamps[first:last], values[first:last]


class ByName:
    """Places a pod by its name."""

    def place(self, pods: Mapping[Pod, str], time_range: TimeRange) -> dict[Pod, str]:  # noqa: ARG002 - others look at it
        return {pod: service_of(pod.name) for pod in pods}


@contextmanager
def reader_of(
    source: MemorySource, stop: threading.Event | None = None, preset: str = "none", most_samples: int = 10**9
) -> Iterator[RangeReader]:
    chosen = presets.PRESETS[preset]
    with RangeReader(
        Selection(chosen.readings(PODS), Meaning(chosen.rewrite)),
        source,
        ByName(),
        2,
        stop or HurriedEvent(0.0),
        concurrency=2,
        most_samples=most_samples,
        samples_per_second=None,
        telemetry=Telemetry("test"),
    ) as reader:
        yield reader


def read(source: MemorySource, *ranges: TimeRange, stop: threading.Event | None = None) -> list[PackedRange]:
    with reader_of(source, stop) as reader:
        return [reader.read(time_range) for time_range in ranges]


def samples_of(*packed: PackedRange) -> Samples:
    """Return all samples, and see that none is there twice."""
    samples: Samples = {}
    count = 0
    for value in (value for one in packed for chunks in one.partitions for value in chunks):
        series = wire.decode_series(value)
        metrics, labels = series.metric.to_pylist(), series.labels.to_pylist()
        for row in range(len(series)):
            first, last = series.offsets[row : row + 2].tolist()
            key = tuple(sorted([("__name__", metrics[row]), *labels[row]]))
            count += last - first
            stamps, values = series.timestamps_ms[first:last].tolist(), series.values[first:last].tolist()
            samples |= {(key, t): value for t, value in zip(stamps, values, strict=True)}
    assert len(samples) == count
    return samples


def held_by(source: MemorySource, *refused: Refused) -> Samples:
    """Return what must be read, where all of *refused* is missing."""
    return {
        (labels, t): value
        for labels, (stamps, values) in source.series.items()
        for t, value in zip(stamps.tolist(), values.tolist(), strict=True)
        if not any(r.metric == dict(labels)["__name__"] and r.start_ms <= t < r.end_ms for r in refused)
    }


def labels_of(metric: str, number: int) -> Labels:
    labels = {"__name__": metric, "pod": f"web-{number % 4}", "namespace": "shop", "container": f"c{number // 4}"}
    return tuple(sorted(labels.items()))


def regular(time_range: TimeRange, every_ms: int, metrics: Sequence[str] = ("a", "b"), number: int = 8) -> Series:
    """Return series of each metric, a sample at every beginning of so many milliseconds."""
    stamps = np.arange(time_range.start_ms, time_range.end_ms, every_ms)
    return {labels_of(metric, i): (stamps, np.arange(len(stamps)) / 7 + i) for metric in metrics for i in range(number)}


def too_many(_: object = None) -> SourceError:
    return TooManySamples("too many samples")


def rejected(_: object = None) -> SourceError:
    return QueryRejected("no")


SHORT = TimeRange(START + 123, START + 123 + 60_000)
_stamps = st.lists(st.integers(SHORT.start_ms, SHORT.end_ms - 1), min_size=1, max_size=12, unique=True).map(sorted)


@st.composite
def refusing_sources(draw: st.DrawFn) -> MemorySource:
    """Return sources that refuse by samples, series, metric, second, length, and how often they were asked."""
    series = {}
    for metric in ("a", "b", "c"):
        for number in draw(st.sets(st.integers(0, 9), max_size=5)):
            stamps = np.array(draw(_stamps), np.int64)
            series[labels_of(metric, number)] = (stamps, stamps % 977 / 7)
    most_samples = draw(st.sampled_from([1, 2, 5, 20, 10**9]))
    most_series = draw(st.sampled_from([1, 2, 10**9]))
    longest_ms = draw(st.sampled_from([999, 1000, 7_000, 10**9]))
    hopeless = draw(st.sets(st.sampled_from(["a", "b"]), max_size=1))
    bad = draw(st.sets(st.tuples(st.sampled_from([*series, None]), st.integers(0, 60)), max_size=3))
    attempts = draw(st.sampled_from([0, 0, 1, 3]))
    in_pieces = draw(st.booleans())
    error = draw(st.sampled_from([TooManySamples, TooManySeries, QueryRejected]))
    lists = draw(st.booleans())

    def refuse(question: Question) -> SourceError | None:
        if question.time <= attempts or question.samples > most_samples or question.time_range.length_ms > longest_ms:
            return too_many()
        if len(question.series) > most_series:
            return TooManySeries("too many series")
        seconds = {
            number
            for labels, number in bad
            if labels in question.series or (labels is None and "c" in question.metric)
            if question.time_range.start_ms < START + number * 1000 + 1000
            if START + number * 1000 < question.time_range.end_ms
        }
        return error("bad") if seconds or hopeless.intersection(question.metric.split("|")) else None

    return MemorySource(series, refuse, lambda _: None if lists else rejected(), in_pieces=in_pieces)


@settings(max_examples=150)
@given(refusing_sources(), st.sets(st.integers(SHORT.start_ms + 1, SHORT.end_ms - 1), max_size=4))
def test_whatever_is_refused_all_else_is_read_once_and_the_rest_is_named(source: MemorySource, cuts: set[int]) -> None:
    """Missing is only what is reported as missing, in whatever ranges the time is read."""
    edges = [SHORT.start_ms, *sorted(cuts), SHORT.end_ms]
    ranges = [TimeRange(a, b) for a, b in itertools.pairwise(edges)]
    packed = read(source, *ranges)
    refused = [r for one in packed for r in one.incomplete]
    for one in packed:
        for r in one.incomplete:
            assert one.time_range.start_ms <= r.start_ms < r.end_ms <= one.time_range.end_ms
        for r, following in itertools.pairwise(one.incomplete):
            assert (r.metric, r.end_ms) < (following.metric, following.start_ms)
    found, held = samples_of(*packed), held_by(source)
    assert found.items() <= held.items()
    assert held_by(source, *refused).items() <= found.items()
    assert len(source.asked) < 3000


@settings(max_examples=40)
@given(
    st.integers(1, 40),
    st.integers(1, 5),
    st.sampled_from([1000, 5_000, 10**9]),
    st.integers(1000, 30_000),
    st.lists(st.integers(1, 59_999), max_size=4),
)
def test_a_limit_that_leaves_a_second_of_a_series_costs_nothing(
    most_samples: int, most_series: int, longest_ms: int, every_ms: int, lengths: list[int]
) -> None:
    """Everything is read, and refusals are few beside answers."""

    def refuse(question: Question) -> SourceError | None:
        if len(question.series) > most_series:
            return TooManySeries("too many series")
        return too_many() if question.samples > most_samples or question.time_range.length_ms > longest_ms else None

    whole = TimeRange(START, START + 60_000)
    source = MemorySource(regular(whole, every_ms, number=6), refuse)
    edges = sorted({START, whole.end_ms, *(START + length for length in lengths)})
    packed = read(source, *(TimeRange(a, b) for a, b in itertools.pairwise(edges)))
    assert not [r for one in packed for r in one.incomplete]
    assert samples_of(*packed) == held_by(source)


def test_the_source_of_these_tests_keeps_the_promises() -> None:
    """Its blocks are tidy, within the range, and of the series that were asked for."""
    source = MemorySource(regular(HOUR, 15_000))
    part = TimeRange(START + 15_000, START + 60_000)
    block = source.fetch(Selector.parse('{pod="web-1"}'), "a", part)
    assert tidy(block, part) is block
    assert block.offsets.tolist() == [0, 3, 6]
    assert (block.timestamps_ms - START).tolist() == [15_000, 30_000, 45_000] * 2
    assert source.fetch(PODS, "nothing", part).offsets.tolist() == [0]
    assert source.metric_names(PODS, HOUR) == ["a", "b"]
    assert len(source.label_sets(['{__name__="a"}', 'b{container="c0"}'], HOUR)) == 12


@pytest.mark.parametrize("error", [too_many, rejected])
@pytest.mark.parametrize("at_s", [0, 1, 3599, 3600, 43_199, 77_777, 86_399])
def test_one_bad_second_of_one_series(error: Callable[[], SourceError], at_s: int) -> None:
    """It is lost, of that series alone, and a day that has it is read with some dozen questions."""
    bad = TimeRange(START + at_s * 1000, START + at_s * 1000 + 1000)

    def refuse(question: Question) -> SourceError | None:
        overlaps = question.time_range.start_ms < bad.end_ms and bad.start_ms < question.time_range.end_ms
        return error() if overlaps and labels_of("a", 5) in question.series else None

    source = MemorySource(regular(DAY, 1000, number=6), refuse)
    (packed,) = read(source, DAY)
    assert packed.incomplete == (Refused("a", *_bounds(bad)),)
    assert packed.samples == 2 * 6 * 86_400 - 1
    assert len(source.asked) < 150


def _bounds(time_range: TimeRange) -> tuple[int, int]:
    return time_range.start_ms, time_range.end_ms


@pytest.mark.parametrize("error", [too_many, rejected, lambda: TooManySeries("too many series")])
def test_a_hopeless_metric_costs_little(error: Callable[[], SourceError]) -> None:
    """The first range shows it; each of the next ones asks for all and for a bit, and every tenth for every part."""
    source = MemorySource(regular(DAY, 60_000, number=20), lambda q: error() if q.metric == "a" else None)
    ranges = [TimeRange(START + i * 3_600_000, START + (i + 1) * 3_600_000) for i in range(20)]
    stop, counts = HurriedEvent(0.0), []
    with reader_of(source, stop) as reader:
        for time_range in ranges:
            before = len(source.asked)
            packed = reader.read(time_range)
            assert packed.incomplete == (Refused("a", *_bounds(time_range)),)
            assert packed.samples == 20 * 60
            counts.append(sum(question.metric == "a" for question in source.asked[before:]))
    assert [count for i, count in enumerate(counts) if i % 10] == [2] * 18
    assert all(2 < count < 60 for count in counts[::10])
    assert sum(stop.waits_s) < 30


def test_a_hopeless_metric_of_a_whole_day_costs_little() -> None:
    """Halving ends soon where nothing is given at all."""
    source = MemorySource(regular(DAY, 60_000, number=20), lambda q: rejected() if q.metric == "a" else None)
    (packed,) = read(source, DAY)
    assert packed.incomplete == (Refused("a", *_bounds(DAY)),)
    assert len(source.asked) < 60


def test_a_metric_is_hopeless_however_many_ways_there_are_to_ask_for_it() -> None:
    """The kubernetes preset asks twice; what the older names find is no success of the other way."""
    older = tuple(sorted({"__name__": "a", "pod_name": "old", "namespace": "shop"}.items()))
    series = {**regular(HOUR, 60_000, ("a",)), older: (np.array([START]), np.array([1.0]))}
    source = MemorySource(series, lambda q: rejected() if any(dict(s).get("pod") for s in q.series) else None)
    with reader_of(source, preset="kubernetes") as reader:
        reader.read(HOUR)
        before = len(source.asked)
        assert reader.read(HOUR).samples == 1
    assert len(source.asked) - before == 3


def test_what_was_hopeless_is_read_again_once_it_can_be() -> None:
    """Also where it is too large for one piece by then."""
    end_ms = START + 3 * 60_000

    def refuse(question: Question) -> SourceError | None:
        return too_many() if question.time_range.start_ms < end_ms or question.samples > 100 else None

    source = MemorySource(regular(DAY, 60_000, ("a",)), refuse)
    ranges = [TimeRange(START + i * 60_000, START + (i + 1) * 60_000) for i in range(3)]
    ranges += [TimeRange(end_ms + i * 3_600_000, end_ms + (i + 1) * 3_600_000) for i in range(10)]
    packed = read(source, *ranges)
    assert [bool(one.incomplete) for one in packed] == [True] * 3 + [False] * 10


@pytest.mark.parametrize("most", [1, 7, 100])
def test_a_limit_is_learned(most: int) -> None:
    """Parts that are refused are few beside those that are given; when the limit goes, so do the parts."""
    limit = [most]
    source = MemorySource(regular(HOUR, 1000, ("a",), number=1), lambda q: too_many() if q.samples > limit[0] else None)
    with reader_of(source) as reader:
        assert reader.read(HOUR).samples == 3600
        assert sum(question.samples > most for question in source.asked) < 30
        before = len(source.asked)
        assert reader.read(HOUR).samples == 3600
        assert sum(question.samples > most for question in source.asked[before:]) < 10
        limit[0] = 10**9
        for _ in range(14):
            before = len(source.asked)
            assert reader.read(HOUR).samples == 3600
    assert len(source.asked) - before == 1


def test_too_many_series_halve_the_selector() -> None:
    """The time stays whole."""
    source = MemorySource(
        regular(DAY, 60_000, number=20), lambda q: TooManySeries("too many") if len(q.series) > 3 else None
    )
    (packed,) = read(source, DAY)
    assert samples_of(packed) == held_by(source)
    assert {question.time_range for question in source.asked} == {DAY}
    assert len(source.asked) < 2 * 40


def test_where_series_are_not_listed_the_time_is_halved() -> None:
    """A backend may refuse to list what it refuses to read."""

    def refuse(question: Question) -> SourceError | None:
        return TooManySeries("too many") if question.time_range.length_ms > 600_000 else None

    source = MemorySource(regular(HOUR, 60_000), refuse, too_many)
    (packed,) = read(source, HOUR)
    assert samples_of(packed) == held_by(source)


@pytest.mark.parametrize("error", [too_many, rejected])
def test_only_the_last_bit_is_asked_for_again(error: Callable[[], SourceError]) -> None:
    """A server that took too long may only have been busy, one that refuses may be shutting down."""
    second = TimeRange(START, START + 1000)
    source = MemorySource(regular(second, 100, ("a",), number=1), lambda q: error() if q.time < 3 else None)
    stop = HurriedEvent(0.0)
    (packed,) = read(source, second, stop=stop)
    assert [wait_s for wait_s in stop.waits_s if wait_s >= 1] == [1.0, 2.0]
    assert not packed.incomplete


def test_another_refusal_on_asking_again_is_a_refusal_too() -> None:
    """It ends nothing but the hope for that second."""
    second = TimeRange(START, START + 1000)

    def refuse(question: Question) -> SourceError | None:
        error = too_many() if question.time == 1 else rejected()
        return error if question.metric == "a" else None

    (packed,) = read(source := MemorySource(regular(second, 100, number=1), refuse), second)
    assert [question.metric for question in source.asked].count("a") == 4
    assert packed.incomplete == (Refused("a", *_bounds(second)),)
    assert packed.samples == 10


def test_a_stop_ends_reading() -> None:
    """What was being halved is not published."""
    stop = HurriedEvent(0.0)

    def refuse(_: Question) -> SourceError | None:
        stop.set()
        return too_many()

    with pytest.raises(SourceUnavailable, match="stopped while reading"):
        read(MemorySource(regular(HOUR, 60_000), refuse), HOUR, stop=stop)


def test_a_way_that_is_not_supported_is_not_halved() -> None:
    """Shorter ranges would not make a backend stream, and nothing may be lost for it."""
    source = MemorySource(regular(HOUR, 60_000, ("a",)), lambda _: RemoteReadUnsupported("no streamed remote read"))
    with pytest.raises(RemoteReadUnsupported):
        read(source, HOUR)
    assert len(source.asked) == 1


FOUR = ("a", "b", "c", "d")


def asked(source: MemorySource, since: int = 0) -> list[str]:
    """Return the metrics of each question."""
    return sorted(question.metric for question in source.asked[since:])


def test_metrics_that_come_piece_by_piece_are_asked_for_together() -> None:
    """As many questions as there may be at once, and none more for the time before a job."""
    source = MemorySource(regular(DAY, 60_000, FOUR), in_pieces=True)
    ahead = TimeRange(START + 3_600_000 + 30_000, START + 2 * 3_600_000)
    with reader_of(source) as reader:
        packed = reader.read(ahead, lookback=True)
    assert asked(source) == ["a|b", "c|d"]
    one_by_one = MemorySource(source.series)
    with reader_of(one_by_one) as reader:
        wanted = reader.read(ahead, lookback=True)
    assert asked(one_by_one) == sorted(FOUR * 2)
    assert packed.lookback
    assert wanted.lookback
    assert samples_of(packed) == samples_of(wanted)
    assert samples_of(packed.lookback) == samples_of(wanted.lookback)
    assert {t for _, t in samples_of(packed.lookback)} == {START + 3_600_000}
    assert packed.samples == wanted.samples == 4 * 8 * 59


def test_few_samples_are_asked_for_together_once_it_is_known_that_they_are_few() -> None:
    """An answer that comes as a whole is bounded: 50,000 samples."""
    hours = [TimeRange(START + i * 3_600_000, START + (i + 1) * 3_600_000) for i in range(3)]
    source = MemorySource(regular(DAY, 3_600_000 // 2500, FOUR))
    with reader_of(source) as reader:
        for hour, questions in zip(hours, (list(FOUR), ["a|b", "c|d"], ["a|b", "c|d"]), strict=True):
            before = len(source.asked)
            assert samples_of(reader.read(hour)).keys() == {
                key for key in held_by(source) if hour.start_ms <= key[1] < hour.end_ms
            }
            assert asked(source, before) == questions


@pytest.mark.parametrize("error", [too_many, rejected])
def test_what_is_refused_together_is_asked_for_one_by_one(error: Callable[[], SourceError]) -> None:
    """One bad metric costs the others nothing, and is named; ten ranges later they are asked for together again."""
    source = MemorySource(
        regular(DAY, 60_000, FOUR), lambda q: error() if "a" in q.metric.split("|") else None, in_pieces=True
    )
    questions = []
    with reader_of(source) as reader:
        for i in range(12):
            hour = TimeRange(START + i * 3_600_000, START + (i + 1) * 3_600_000)
            before = len(source.asked)
            packed = reader.read(hour)
            assert packed.incomplete == (Refused("a", *_bounds(hour)),)
            assert packed.samples == 3 * 8 * 60
            questions.append([metric for metric in asked(source, before) if metric != "a"])
    # Beside a metric that is known to be hopeless, b has nothing to do with a.
    assert questions == [["a|b", "b", "c|d"], *[["b", "c|d"]] * 9, *[["b|c", "d"]] * 2]


@pytest.mark.parametrize("error", [SourceUnavailable("cut short"), ConfigError("HTTP 403: a gateway's page")])
def test_what_fails_together_is_asked_for_one_by_one(error: IngestorError) -> None:
    """Nothing says which metric it was, and the next ranges do not try it again."""
    source = MemorySource(
        regular(DAY, 60_000, FOUR), lambda question: error if "|" in question.metric else None, in_pieces=True
    )
    packed = read(source, HOUR, TimeRange(HOUR.end_ms, HOUR.end_ms + HOUR.length_ms))
    assert sum(one.samples for one in packed) == 2 * 4 * 8 * 60
    assert asked(source) == sorted([*FOUR * 2, "a|b", "c|d"])


def test_a_metric_that_was_too_large_once_is_asked_for_with_others_again() -> None:
    """A server that was slow for a minute is not asked metric by metric for ever."""
    ranges = [TimeRange(START + i * 15_000, START + (i + 1) * 15_000) for i in range(40)]

    def refuse(question: Question) -> SourceError | None:
        is_slow = question.time_range == ranges[1] and "a" in question.metric.split("|")
        return TooManySamples("the query takes too long") if is_slow else None

    source = MemorySource(regular(HOUR, 1000, FOUR), refuse, in_pieces=True)
    packed = read(source, *ranges)
    assert [one.samples for one in packed] == [4 * 8 * 15] * 40
    assert [question.metric for question in source.asked if question.time_range == ranges[-1]] == ["a|b", "c|d"]


def test_the_time_before_a_job_counts_as_what_is_asked_for() -> None:
    """Another job of the same reader has shown how much there is: five minutes are twenty times a range of 15 s."""
    source = MemorySource(regular(HOUR, 10, FOUR))
    first, later = (TimeRange(at_ms, at_ms + 15_000) for at_ms in (START + 600_000, START + 1_200_000))
    with reader_of(source) as reader:
        reader.read(first)
        assert reader.read(later).samples == 4 * 8 * 1500
        assert "|" in source.asked[-1].metric
        before = len(source.asked)
        reader.read(first, lookback=True)
    assert not any("|" in name for name in asked(source, before))


def test_a_metric_with_native_histograms_is_found_and_goes_alone(caplog: pytest.LogCaptureFixture) -> None:
    """It is named once; what is read of it are its floats."""
    source = MemorySource(regular(DAY, 60_000, FOUR), in_pieces=True, histograms=("b",))
    ranges = [TimeRange(START + i * 3_600_000, START + (i + 1) * 3_600_000) for i in range(14)]
    packed = read(source, *ranges)
    assert [one.samples for one in packed] == [4 * 8 * 60] * 14
    assert [record.metric for record in caplog.records if "histograms" in record.message] == ["b"]  # type: ignore[attr-defined]
    assert asked(source)[-1] == "d"
    assert "a|c" in asked(source)


def test_too_much_at_once_is_asked_for_one_by_one() -> None:
    """Several answers of half of what may be in memory are the most that come together."""
    source = MemorySource(regular(HOUR, 60_000, FOUR), in_pieces=True)
    with reader_of(source, most_samples=1919) as reader, pytest.raises(TooManySamples, match="more than 1,919 samples"):
        reader.read(HOUR)
    assert "a|b" in asked(source)
    assert "a" in asked(source)
