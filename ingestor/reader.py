"""Whole ranges: all metrics, several requests at once, cut smaller where the backend refuses."""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

from ingestor.catalogue import Catalogue, Meaning
from ingestor.core.chunk import LOOKBACK_MS, Refused
from ingestor.core.errors import IngestorError, QueryRejected, SourceUnavailable, TooManySamples, TooManySeries
from ingestor.core.time_range import TimeRange
from ingestor.packing import FetchedSeries, PackedRange, only_lasts, pack
from ingestor.presets import Reading
from ingestor.schedule import SHORTEST_MS
from ingestor.selector import Matcher, Selector, halves_by_series
from ingestor.sources.base import SeriesBlock, Source, lasts, parted
from ingestor.sources.remote_read import RemoteReadUnsupported
from ingestor.telemetry import Telemetry
from ingestor.throttle import Throttle
from ingestor.workloads import Pod

log = logging.getLogger(__name__)

_TYPES_EVERY_S, _NO_TYPES_S = 600.0, 30.0
RANGES_AT_ONCE = 2
"""While one is packed, the next one's requests are under way."""

_ANY_LENGTH_MS = 2**62
_LONGER_AFTER, _LONGER_AFTER_AT_MOST = 4, 512
"""Twice the length is tried after so many parts that went well; each time that it is refused, after twice as many."""

_ASKED_AGAIN = 3
"""What takes too long and cannot be halved is asked for again so often, for a server may only be busy; the more of
the metric is lost already, the less."""

_HOPE_EVERY = 10
"""A metric that is refused altogether is halved in one of so many ranges; in the others it is asked for as a whole,
and then for a bit, to see whether it can be had again."""

_A_BIT = 64
"""A part in so many."""

_TOGETHER_NAMES = 100
"""Metrics in one question at most: VictoriaMetrics takes queries of 16 kB."""

_TOGETHER_SAMPLES = 50_000
"""About so many samples of several metrics in one answer that does not come piece by piece: of a sample a series,
17 MB of JSON."""

_ALONE_FOR = 10
"""Where a question for several metrics failed, each has its own in so many ranges."""


class Placing(Protocol):
    """Decides which service a pod belongs to."""

    def place(self, pods: Mapping[Pod, str], time_range: TimeRange) -> dict[Pod, str]:
        """Return the service of each pod.

        Args:
            pods: with what the service label of each says; empty: nothing.
            time_range: when they were seen.
        """


@dataclass(frozen=True, slots=True)
class Selection:
    """Which series are read, and what is made of their labels."""

    readings: tuple[Reading, ...]
    """What any of them finds is read; no series is found by two."""
    meaning: Meaning
    wanted: Callable[[str], bool] = lambda _: True
    """Whether a metric is read."""
    computed: Collection[str] = ()
    """Metrics that the backend computes; the readings do not apply to them."""


class RangeReader:
    """Reads ranges of one selection into packed messages.

    Args:
        selection: what to read.
        source: where from; it waits by itself while the backend cannot be reached.
        placing: gives pods their services.
        partitions: of the range-chunk topic.
        stop: when set, reading ends soon, with `SourceUnavailable`.
        concurrency: requests at once.
        most_samples: of one range, in memory.
        samples_per_second: a speed limit; None: none.
        telemetry: is told what happens.
    """

    def __init__(
        self,
        selection: Selection,
        source: Source,
        placing: Placing,
        partitions: int,
        stop: threading.Event,
        *,
        concurrency: int,
        most_samples: int,
        samples_per_second: float | None,
        telemetry: Telemetry,
    ) -> None:
        self._selection, self._source, self._placing = selection, source, placing
        self._partitions, self._stop, self._most_samples = partitions, stop, most_samples
        self._concurrency = concurrency
        self._most_at_once = max(most_samples // concurrency, 1)
        self._telemetry = telemetry
        self._types = source.metric_types()
        self._types_at_s = time.monotonic()
        self._catalogue = Catalogue(partitions, selection.meaning, self._types)
        # The catalogue belongs to one range at a time.
        self._lock = threading.Lock()
        self._throttle = Throttle(samples_per_second, stop)
        self._metrics: dict[tuple[str, int], _Metric] = {}
        self._without_pod = 0
        self._closed = threading.Event()
        self._requests = ThreadPoolExecutor(concurrency, "request")
        self._ranges = ThreadPoolExecutor(RANGES_AT_ONCE, "range")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        for pool in (self._ranges, self._requests):
            pool.shutdown(wait=False, cancel_futures=True)

    @property
    def is_stopped(self) -> bool:
        """Whether what is being read comes to nothing."""
        return self._stop.is_set() or self._closed.is_set()

    def start(self, time_range: TimeRange, *, lookback: bool = False) -> Future[PackedRange]:
        """Begin to read a range; with *lookback* as the first one of its job."""
        return self._ranges.submit(self.read, time_range, lookback=lookback)

    def read(self, time_range: TimeRange, *, lookback: bool = False) -> PackedRange:
        """Fetch and pack one range.

        Args:
            time_range: which.
            lookback: read of each series the last sample in the `LOOKBACK_MS` before it too.

        Raises:
            TooManySamples: it holds more than may be in memory at once: ask for a shorter one.
            SourceError: the backend cannot give it.
        """
        catalogue = self._current_catalogue()
        whole, before = _Fetched(), _Fetched()
        refused: list[Refused] = []
        samples = 0
        earlier = _lookback_of(time_range) if lookback else None
        seen = replace(time_range, start_ms=earlier.start_ms) if earlier else time_range
        questions = metric_names(self._selection, self._source, seen)
        answers = deque(
            self._requests.submit(self._read_together, *asked, time_range, earlier)
            for asked in self._portions(questions, seen)
        )
        try:
            while answers:
                answer, last = answers.popleft().result()
                samples += answer.samples
                if samples > self._most_samples and time_range.length_ms > SHORTEST_MS:
                    raise TooManySamples(f"more than {self._most_samples:,} samples in {time_range}")
                refused += answer.refused
                with self._lock:
                    whole.add(answer.blocks, catalogue)
                    before.add(last.blocks, catalogue)
        finally:
            for waiting in answers:
                waiting.cancel()
        with self._lock:
            catalogue.place(self._placing.place(catalogue.unplaced(), seen))
            self._note_without_pod(catalogue)
            packed = self._packed(time_range, whole, catalogue)
            if earlier is not None:
                before.series = only_lasts(before.series, catalogue)
                packed = replace(packed, lookback=self._packed(earlier, before, catalogue))
        refused += self._left_out(packed)
        return replace(packed, incomplete=tuple(_joined(refused)))

    def _packed(self, time_range: TimeRange, fetched: _Fetched, catalogue: Catalogue) -> PackedRange:
        source = "+".join(sorted(fetched.ways)) or self._source.name
        return pack(time_range, source, fetched.series, catalogue, self._partitions)

    def _left_out(self, packed: PackedRange) -> list[Refused]:
        """Tell what fits into no message, and return what to say of it."""
        before = packed.lookback
        for one in (*packed.left_out, *(before.left_out if before else ())):
            log.error("a series fits into no message; its samples are missing", extra={"error": str(one)})
        refused = [*packed.incomplete, *_told_of_first_ms(before.incomplete if before else (), packed.time_range)]
        for metric in {one.metric for one in refused}:
            self._telemetry.incomplete(metric)
        return refused

    def _current_catalogue(self) -> Catalogue:
        # A server that has just started knows no types before its first scrapes.
        if time.monotonic() > self._types_at_s + (_TYPES_EVERY_S if self._types else _NO_TYPES_S):
            # What has vanished from the metadata, with its last target, keeps its type.
            self._types, self._types_at_s = {**self._types, **self._source.metric_types()}, time.monotonic()
            self._catalogue.learn_types(self._types)
        if self._catalogue.is_large:
            # Ranges that are being read keep the old one.
            self._catalogue = Catalogue(self._partitions, self._selection.meaning, self._types)
        return self._catalogue

    def _portions(
        self, questions: Mapping[str, Sequence[Selector]], time_range: TimeRange
    ) -> Iterator[tuple[list[str], Sequence[Selector]]]:
        """Yield the metrics that are asked for by one question, with the selectors that they share."""
        streams = self._source.streams(time_range)
        most_names = min(-(-len(questions) // self._concurrency), _TOGETHER_NAMES) if streams else _TOGETHER_NAMES
        alike: dict[tuple[Selector, ...], list[str]] = {}
        for name, selectors in questions.items():
            # Each once, whatever the others say: it is counted.
            alone = [metric.goes_alone(time_range.length_ms) for metric in self._known(name, selectors)]
            if any(alone) or name in self._selection.computed:
                yield [name], selectors
            else:
                alike.setdefault(tuple(selectors), []).append(name)
        for shared, names in alike.items():
            portion: list[str] = []
            samples = 0.0
            for name in names:
                about = 0.0 if streams else sum(m.per_ms for m in self._known(name, shared)) * time_range.length_ms
                samples += about
                if portion and (len(portion) == most_names or samples > _TOGETHER_SAMPLES):
                    yield portion, shared
                    portion, samples = [], about
                portion.append(name)
            yield portion, shared

    def _known(self, name: str, selectors: Sequence[Selector]) -> list[_Metric]:
        """Return what is known of a metric, by each of the selectors that find it."""
        return [self._metrics.setdefault((name, number), _Metric(name)) for number in range(len(selectors))]

    def _read_together(
        self, names: Sequence[str], selectors: Sequence[Selector], time_range: TimeRange, earlier: TimeRange | None
    ) -> tuple[_Answer, _Answer]:
        """Return what `_read_metric` does of all these metrics: by one question, if the backend can answer that."""
        if len(names) > 1:
            try:
                return self._ask_together(names, selectors, time_range, earlier)
            except IngestorError as error:
                for metric in (metric for name in names for metric in self._known(name, selectors)):
                    metric.alone_for = _ALONE_FOR
                log.info("asking for metrics one by one", extra={"metrics": len(names), "error": str(error)})
        whole, before = _Answer(), _Answer()
        for name in names:
            answer, last = self._read_metric(name, selectors, time_range, earlier)
            whole.join(answer)
            before.join(last)
        return whole, before

    def _ask_together(
        self, names: Sequence[str], selectors: Sequence[Selector], time_range: TimeRange, earlier: TimeRange | None
    ) -> tuple[_Answer, _Answer]:
        whole, before = _Answer(), _Answer(only_lasts=True)
        seen = replace(time_range, start_ms=earlier.start_ms) if earlier else time_range
        for number, selector in enumerate(selectors):
            self._raise_if_stopped()
            # Answers may differ a lot in size; four halves of a range are as much as four metrics could be.
            block = self._source.fetch_together(selector, names, seen, self._most_samples // 2)
            if block.histograms:
                raise QueryRejected("which metric has the native histograms?")
            if earlier is not None:
                early, block = parted(block, time_range.start_ms)
                before.add(early)
            whole.add(block)
            for name in names:
                self._known(name, selectors)[number].per_ms = block.samples / len(names) / time_range.length_ms
        self._throttle.spend(whole.samples + before.samples)
        self._telemetry.samples_read(time_range, whole.samples)
        return whole, before

    def _read_metric(
        self, name: str, selectors: Sequence[Selector], time_range: TimeRange, earlier: TimeRange | None
    ) -> tuple[_Answer, _Answer]:
        """Return a metric's samples in a range, and each series' last one in the *earlier* time."""
        whole, before = _Answer(), _Answer()
        for metric, selector in zip(self._known(name, selectors), selectors, strict=True):
            answer = _Answer(in_one_piece=metric.is_hopeless)
            self._read_part(metric, selector, time_range, answer)
            metric.note(answer, time_range)
            whole.join(answer)
            if earlier is not None:
                # The range comes first: how much it holds tells how much of the time before fits into memory.
                longest_ms = self._most_at_once * time_range.length_ms // max(answer.samples, 1)
                last = _Answer(in_one_piece=metric.is_hopeless, only_lasts=True, longest_ms=longest_ms)
                # A copy: it knows what the range has taught, and what is refused before a job teaches nothing of it.
                self._read_part(replace(metric), selector, earlier, last)
                before.join(last)
        whole.refused += _told_of_first_ms(before.refused, time_range)
        whole.refused = _joined(whole.refused)
        self._throttle.spend(whole.samples + before.samples)
        self._telemetry.samples_read(time_range, whole.samples)
        if whole.refused:
            self._telemetry.incomplete(name)
        if whole.histograms and not metric.has_histograms:
            metric.has_histograms = True
            log.warning("native histograms are not supported; their samples are left out", extra={"metric": name})
        return whole, before

    def _read_part(self, metric: _Metric, selector: Selector, time_range: TimeRange, answer: _Answer) -> None:
        """Add the samples of a part of a metric; where the backend refuses so many, of its halves."""
        longest_ms = max(min(metric.longest_ms, answer.longest_ms), answer.shortest_ms)
        if time_range.length_ms > longest_ms and not answer.in_one_piece:
            for half in time_range.halves():
                self._read_part(metric, selector, half, answer)
            return
        error = self._ask(metric, selector, time_range, answer)
        if error is None:
            metric.went_well(time_range.length_ms)
            return
        parts = self._halves(metric, selector, time_range, answer, error)
        for narrower, shorter in parts:
            self._read_part(metric, narrower, shorter, answer)
        if not parts:
            self._insist(metric, selector, time_range, answer, error)

    def _ask(
        self, metric: _Metric, selector: Selector, time_range: TimeRange, answer: _Answer
    ) -> TooManySamples | QueryRejected | None:
        """Add what the backend gives; return why, where it refuses."""
        self._raise_if_stopped()
        try:
            answer.add(self._source.fetch(selector, metric.name, time_range))
        except RemoteReadUnsupported:
            raise
        except (TooManySamples, QueryRejected) as error:
            return error
        return None

    def _raise_if_stopped(self) -> None:
        if self.is_stopped:
            raise SourceUnavailable("stopped while reading")

    def _halves(
        self, metric: _Metric, selector: Selector, time_range: TimeRange, answer: _Answer, error: Exception
    ) -> list[tuple[Selector, TimeRange]]:
        """Return the halves of what was refused, by time or by series; nothing where it is not to be halved."""
        if answer.in_one_piece and not self._gives_a_bit(metric, selector, time_range):
            return []
        answer.in_one_piece = False
        told = _told(metric, selector, time_range, error)
        is_long = time_range.length_ms > answer.shortest_ms
        # Halving the series costs a question more, which lists them: so only where the error asks for it, or time ends.
        if (isinstance(error, TooManySeries) or not is_long) and (
            halves := self._series_halves(metric, selector, time_range, answer)
        ):
            log.info("query was refused; halving its selector", extra=told)
            self._telemetry.split("selector")
            return [(half, time_range) for half in halves]
        if not is_long:
            return []
        log.info("query was refused; halving its range", extra=told)
        self._telemetry.split("range")
        if isinstance(error, TooManySamples):
            metric.was_refused(time_range.length_ms)
        return [(selector, half) for half in time_range.halves()]

    def _gives_a_bit(self, metric: _Metric, selector: Selector, time_range: TimeRange) -> bool:
        bit_ms = max(time_range.length_ms // _A_BIT, SHORTEST_MS)
        if bit_ms >= time_range.length_ms:
            return False
        bit = TimeRange(time_range.start_ms, time_range.start_ms + bit_ms)
        return self._ask(metric, selector, bit, _Answer()) is None

    def _insist(
        self, metric: _Metric, selector: Selector, time_range: TimeRange, answer: _Answer, error: Exception
    ) -> None:
        """Ask again for what cannot be halved, a few times, before it is refused for good."""
        for attempt in range(answer.asked_again):
            self._stop.wait(2.0**attempt)
            if self._ask(metric, selector, time_range, answer) is None:
                return
        answer.refused.append(Refused(metric.name, time_range.start_ms, time_range.end_ms))
        told = _told(metric, selector, time_range, error)
        log.error("the backend refuses samples for good; they are missing", extra=told)

    def _series_halves(
        self, metric: _Metric, selector: Selector, time_range: TimeRange, answer: _Answer
    ) -> tuple[Selector, Selector] | None:
        whole = Selector((*selector.matchers, Matcher("__name__", "=", metric.name)))
        try:
            label_sets = self._source.label_sets([str(whole)], time_range)
        except (TooManySamples, QueryRejected):
            return None
        if len(label_sets) <= answer.fewest_series:
            return None
        return halves_by_series(selector, label_sets)

    def _note_without_pod(self, catalogue: Catalogue) -> None:
        if catalogue.without_pod > self._without_pod:
            self._without_pod = catalogue.without_pod
            log.warning("series without a pod label are left out", extra={"series": self._without_pod})


@dataclass(slots=True)
class _Fetched:
    """What all of a range's questions brought, and in which ways."""

    series: list[FetchedSeries] = field(default_factory=list)
    ways: set[str] = field(default_factory=set)

    def add(self, blocks: list[SeriesBlock], catalogue: Catalogue) -> None:
        self.ways.update(block.source for block in blocks)
        self.series += [
            FetchedSeries(catalogue.ids(b.label_sets), b.offsets, b.timestamps_ms, b.values) for b in blocks
        ]


@dataclass(slots=True)
class _Answer:
    """One metric's samples in one range, and what is missing of them."""

    in_one_piece: bool = False
    """It is thought hopeless: what is refused is not halved."""
    only_lasts: bool = False
    """Of each block only the last sample of each series is kept."""
    longest_ms: int = _ANY_LENGTH_MS
    """Nothing longer is asked for."""
    blocks: list[SeriesBlock] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    samples: int = 0
    """All that were read, also where only the last ones are kept."""

    def add(self, block: SeriesBlock) -> None:
        """Take in what the backend gave."""
        self.samples += block.samples
        self.blocks.append(lasts(block) if self.only_lasts else block)

    def join(self, other: _Answer) -> None:
        """Take in what another way of asking has found."""
        self.samples += other.samples
        self.blocks += other.blocks
        self.refused += other.refused

    @property
    def histograms(self) -> int:
        return sum(block.histograms for block in self.blocks)

    @property
    def shortest_ms(self) -> int:
        """What is not halved any more: a second, and twice as much for each stretch that was refused for good.

        A single bad second is then found, and a bad day costs some dozen questions, not a hundred thousand.
        """
        return SHORTEST_MS << min(len(set(self.refused)), 30)

    @property
    def fewest_series(self) -> int:
        return 1 << min(len(self.refused), 30)

    @property
    def asked_again(self) -> int:
        return 0 if self.in_one_piece else max(_ASKED_AGAIN - len(self.refused), 0)


@dataclass(slots=True)
class _Metric:
    """What the questions so far have taught about one metric."""

    name: str
    longest_ms: int = _ANY_LENGTH_MS
    """Nothing longer is asked for; by and by it grows again."""
    has_histograms: bool = False
    alone_for: int = 0
    """In so many ranges no other metric is asked for with it."""
    per_ms: float = math.inf
    """Samples in the last range, about; none of it has been seen yet."""
    _known_ms: int = _ANY_LENGTH_MS
    """So much went well, as far as is known; what is longer is a try."""
    _longer_after: int = _LONGER_AFTER
    _went_well: int = 0
    _lost_ranges: int = 0

    @property
    def is_hopeless(self) -> bool:
        """Nothing at all came of the last range, and it is not time to try everything once more."""
        return self._lost_ranges % _HOPE_EVERY > 0

    def was_refused(self, length_ms: int) -> None:
        """Note that so much was too much."""
        self._went_well = 0
        if length_ms > self._known_ms:
            self.longest_ms = self._known_ms
            self._longer_after = min(2 * self._longer_after, _LONGER_AFTER_AT_MOST)
        else:
            # As a half is at most: it ends with a whole second.
            self.longest_ms = self._known_ms = -(-length_ms // 2000) * 1000
            self._longer_after = _LONGER_AFTER

    def went_well(self, length_ms: int) -> None:
        """Note that so much was not too much."""
        if length_ms > self._known_ms:
            self._known_ms, self.longest_ms = length_ms, max(self.longest_ms, length_ms)
            self._longer_after, self._went_well = _LONGER_AFTER, 0
        elif 2 * length_ms > self.longest_ms:
            self._went_well += 1
            if self._went_well >= self._longer_after:
                self.longest_ms, self._went_well = 2 * self.longest_ms, 0

    def goes_alone(self, length_ms: int) -> bool:
        """Tell once a range, of that length, whether there is a reason not to ask for other metrics with it."""
        self.alone_for = max(self.alone_for - 1, 0)
        is_limited = self.longest_ms < length_ms or self._lost_ranges > 0
        return is_limited or self.has_histograms or self.alone_for > 0

    def note(self, answer: _Answer, time_range: TimeRange) -> None:
        """Note what came of a range."""
        self.per_ms = answer.samples / time_range.length_ms
        self._lost_ranges = self._lost_ranges + 1 if answer.refused and not answer.samples else 0


def _told(metric: _Metric, selector: Selector, time_range: TimeRange, error: Exception) -> dict[str, object]:
    return {
        "metric": metric.name,
        "start": time_range.start_ms,
        "end": time_range.end_ms,
        "selector": str(selector),
        "error": str(error),
    }


def _lookback_of(first: TimeRange) -> TimeRange | None:
    """Return the time before a job's first range that a series' last sample may lie in; None where time begins."""
    if first.start_ms <= 0:
        return None
    return TimeRange(max(first.start_ms - LOOKBACK_MS, 0), first.start_ms)


def _told_of_first_ms(before: Iterable[Refused], time_range: TimeRange) -> list[Refused]:
    """Return what to say of what is missing in the time before a job's first range.

    It is missing in the first window; no job has published the time before.
    """
    return [Refused(name, time_range.start_ms, time_range.start_ms + 1) for name in {one.metric for one in before}]


def _joined(refused: list[Refused]) -> list[Refused]:
    """Join what adjoins or overlaps."""
    joined: list[Refused] = []
    for part in sorted(refused):
        if joined and joined[-1].metric == part.metric and joined[-1].end_ms >= part.start_ms:
            joined[-1] = joined[-1]._replace(end_ms=max(joined[-1].end_ms, part.end_ms))
        else:
            joined.append(part)
    return joined


def whole_names(include: tuple[str, ...], exclude: tuple[str, ...]) -> Callable[[str], bool]:
    """Return the test of ``--include`` and ``--exclude``; both match whole names."""
    included, excluded = ([re.compile(p) for p in patterns] for patterns in (include, exclude))

    def wanted(name: str) -> bool:
        matches = not included or any(p.fullmatch(name) for p in included)
        return matches and not any(p.fullmatch(name) for p in excluded)

    return wanted


def metric_names(selection: Selection, source: Source, time_range: TimeRange) -> dict[str, list[Selector]]:
    """Return the metrics that are read in a range, each with what finds its series; a name too many is possible."""
    found: dict[str, list[Selector]] = {}
    for number, reading in enumerate(selection.readings):
        for name in _names(reading.selector, source, time_range):
            is_computed = name in selection.computed
            if (number == 0) if is_computed else selection.wanted(name):
                found.setdefault(name, []).append(reading.for_metric(name))
    return dict(sorted(found.items()))


def _names(selector: Selector, source: Source, time_range: TimeRange) -> Iterable[str]:
    try:
        return source.metric_names(selector, time_range)
    except TooManySamples:
        if time_range.length_ms <= SHORTEST_MS:
            raise
        return {name for half in time_range.halves() for name in _names(selector, source, half)}
