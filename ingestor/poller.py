"""The loop of one job: range due -> fetch -> pack -> publish, with the next range fetched meanwhile."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Self

import tenacity
from confluent_kafka.admin import AdminClient

from ingestor import presets, schedule
from ingestor.catalogue import Catalogue
from ingestor.core.durations import ChunkSize, parse_time
from ingestor.core.errors import ConfigError, PublishError, SourceUnavailable, TooManySamples
from ingestor.core.time_range import TimeRange, floor_ms, iso
from ingestor.core.topics import Topics
from ingestor.kafka import Cluster, connect, ensure_topics, partition_counts
from ingestor.packing import FetchedSeries, PackedRange, pack
from ingestor.positions import LIVE_JOB, Position, job_name, read_positions
from ingestor.publisher import Publisher
from ingestor.selector import Selector
from ingestor.sources.base import SeriesBlock, Source
from ingestor.sources.retrying import RetryingSource, log_retry
from ingestor.throttle import Throttle
from ingestor.urls import without_credentials
from ingestor.workloads import service_of

log = logging.getLogger(__name__)

_HOUR_MS = 3_600_000
_SHORTEST_SPLIT_MS = 1_000
_BACKFILL_PATIENCE_S = 600.0
"""A backfill gives up when the backend has not answered a request for so long; a live poller never does."""

_SELECTION = ("url", "match", "include", "exclude", "preset")

_PUBLISH_ATTEMPTS = 10
"""A backfill gives up after so many failures of Kafka; a live poller never does."""


@dataclass(frozen=True, slots=True)
class PollerSettings:
    """What to read, from where, and how gently."""

    cluster: Cluster
    topics: Topics
    selector: Selector
    start: str
    end: str | None
    """None: no end, poll on for good."""
    url: str = ""
    """As typed: part of a backfill's name."""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    preset: str = "kubernetes"
    partitions: int | None = None
    settle_ms: int = 30_000
    """Stay so far behind the backend's now; two 15 s scrapes have then landed."""
    poll_interval_ms: int = 15_000
    align: ChunkSize | None = None
    """What relative times are floored to; None: the hour."""
    max_samples_per_second: float | None = None
    concurrency: int = 4
    range_samples: int = schedule.TARGET_SAMPLES

    @property
    def job(self) -> str:
        if self.end is None:
            return LIVE_JOB
        return job_name(self.arguments)

    @property
    def target_samples(self) -> int:
        """What a range aims at; under a speed limit about ten seconds' worth, so that progress is seen."""
        if self.max_samples_per_second is None:
            return self.range_samples
        return max(1, min(self.range_samples, round(10 * self.max_samples_per_second)))

    @property
    def arguments(self) -> dict[str, Any]:
        """What makes a backfill the same backfill."""
        return {
            "url": without_credentials(self.url),
            "start": self.start,
            "end": self.end,
            "match": str(self.selector),
            "include": list(self.include),
            "exclude": list(self.exclude),
            "preset": self.preset,
            "align": str(self.align) if self.align else None,
        }


@dataclass(frozen=True, slots=True)
class Progress:
    """One published range, and how far the job is."""

    job: str
    time_range: TimeRange
    job_range: TimeRange | None
    samples: int
    series: int
    size_bytes: int
    total_samples: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return {
            "event": "range",
            "job": self.job,
            "start": iso(self.time_range.start_ms),
            "end": iso(self.time_range.end_ms),
            "start_ms": self.time_range.start_ms,
            "end_ms": self.time_range.end_ms,
            "job_start_ms": self.job_range and self.job_range.start_ms,
            "job_end_ms": self.job_range and self.job_range.end_ms,
            "samples": self.samples,
            "series": self.series,
            "bytes": self.size_bytes,
            "total_samples": self.total_samples,
            "seconds": round(self.seconds, 3),
        }


@dataclass(slots=True)
class Poller:
    """One job from a source to Kafka.

    Args:
        settings: what to read.
        source: where from.
        on_progress: called after every published range.
        stop: set it to end soon; what was published stays, what is being read is read again next time.
    """

    settings: PollerSettings
    source: Source
    on_progress: Callable[[Progress], None] = lambda _: None
    stop: threading.Event = field(default_factory=threading.Event)
    _last: Position | None = field(default=None, init=False)

    def run(self) -> Position:
        """Publish until the job's end (or *stop*); return where it stands.

        Raises:
            ConfigError: nothing can be read as asked; nothing was published.
            IngestorError: gave up; the same command goes on from the last published range.
        """
        patience_s = None if self.settings.end is None else _BACKFILL_PATIENCE_S
        self.source = RetryingSource(self.source, self.stop, patience_s)
        admin = connect(self.settings.cluster)
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(self._passing_errors()),
            wait=tenacity.wait_exponential_jitter(initial=0.5, max=30.0),
            stop=tenacity.stop_when_event_set(self.stop)
            | (tenacity.stop_never if self.settings.end is None else tenacity.stop_after_attempt(_PUBLISH_ATTEMPTS)),
            sleep=tenacity.sleep_using_event(self.stop),
            before_sleep=log_retry,
            reraise=True,
        )
        try:
            return retrying(self._run_once, admin)
        except (PublishError, SourceUnavailable):
            if self._last is None or not self.stop.is_set():
                raise
            return self._last

    def _passing_errors(self) -> tuple[type[Exception], ...]:
        """Return what is tried again as a whole: for good while live, for a backfill only what Kafka refuses."""
        return (PublishError,) if self.settings.end is not None else (PublishError, SourceUnavailable, TooManySamples)

    def plan(self) -> str:
        """Return in words what the first run of this command would read; nothing is published.

        Raises:
            ConfigError: nothing can be read as asked.
        """
        position = self._first_position(partitions=1)
        end_ms = position.end_ms or floor_ms(self.source.now_ms() - self.settings.settle_ms, 1000)
        metrics = self._metrics(TimeRange(position.start_ms, max(end_ms, position.start_ms + 1)))
        return (
            f"job {position.job}: {len(metrics)} metrics of {self.settings.selector} from {iso(position.start_ms)} "
            f"to {iso(end_ms)}{'' if position.end_ms else ', then live'}"
        )

    def _run_once(self, admin: AdminClient) -> Position:
        settings = self.settings
        if settings.topics.positions not in partition_counts(admin):
            # What cannot be read as asked is refused before anything is made.
            self._first_position(partitions=1)
        ensured = ensure_topics(admin, settings.topics, settings.partitions)
        with Publisher(settings.cluster, settings.topics, settings.job) as publisher:
            return self._go_on(publisher, ensured)

    def _go_on(self, publisher: Publisher, ensured: int) -> Position:
        settings = self.settings
        stored = read_positions(settings.cluster, settings.topics).get(settings.job)
        position = stored or self._first_position(ensured)
        if position.partitions != ensured:
            raise ConfigError(
                f"the job {position.job} was begun with {position.partitions} partitions, "
                f"{settings.topics.range_chunks} has {ensured}: a pod must never change its partition; "
                "choose another --topic-prefix"
            )
        if position.ended:
            log.info("job has ended already", extra={"job": position.job, "end": iso(position.position_ms)})
            return position
        if stored is not None:
            self._last = stored
            changed = [name for name in _SELECTION if stored.arguments.get(name) != settings.arguments[name]]
            if changed:
                log.warning("job goes on with another selection than it began with", extra={"changed": changed})
            log.info("job goes on", extra={"job": position.job, "from": iso(position.position_ms)})
        with RangeReader(settings, self.source, ensured, self.stop) as reader:
            return self._publish_ranges(publisher, reader, position)

    def _first_position(self, partitions: int) -> Position:
        """Resolve the job's bounds, once; they are stored with the first range."""
        settings = self.settings
        clock_ms = self.source.now_ms()
        now_ms = clock_ms - settings.settle_ms
        start_ms = self._resolve("--start", settings.start, now_ms)
        end_ms = None if settings.end is None else self._resolve("--end", settings.end, now_ms)
        if end_ms is not None and end_ms > clock_ms:
            raise ConfigError(f"--end {settings.end} is after the backend's now ({iso(clock_ms)}): give --end now")
        if end_ms is not None and end_ms <= start_ms:
            raise ConfigError(
                f"--end {settings.end} ({iso(end_ms)}) is not after --start {settings.start} ({iso(start_ms)})"
            )
        if start_ms > now_ms:
            raise ConfigError(f"--start {settings.start} is after the backend's now ({iso(now_ms)}): give --start now")
        if end_ms is not None and not self._metrics(TimeRange(start_ms, end_ms)):
            raise ConfigError(
                f"no metric matches {settings.selector} between {iso(start_ms)} and {iso(end_ms)}: "
                "look at --match, --include and --exclude, and at what Prometheus holds for that time"
            )
        return Position(settings.job, start_ms, end_ms, start_ms, (0,) * partitions, arguments=settings.arguments)

    def _metrics(self, time_range: TimeRange) -> list[str]:
        return wanted_metrics(self.settings, self.source.metric_names(self.settings.selector, time_range))

    def _resolve(self, flag: str, text: str, now_ms: int) -> int:
        try:
            point = parse_time(text, now_ms)
        except ValueError as error:
            raise ConfigError(f"{flag}: {error}") from error
        if not point.relative:
            return point.time_ms
        if self.settings.align is not None:
            return self.settings.align.floor_ms(point.time_ms)
        # "now" itself is wanted as it is: flooring it to the hour would hold back up to an hour.
        return floor_ms(point.time_ms, 1000 if text == "now" else _HOUR_MS)

    def _publish_ranges(self, publisher: Publisher, reader: RangeReader, position: Position) -> Position:
        length_ms = schedule.first_length_ms(self._series_near(position), self.settings.target_samples)
        reading: Future[PackedRange] | None = None
        due = self._due(position.position_ms, position, length_ms)
        while not position.ended:
            if due is None:
                if self.stop.wait(self._until_due_s(position)):
                    break
                due = self._due(position.position_ms, position, length_ms)
                continue
            began = time.monotonic()
            try:
                packed = (reading or reader.start(due)).result()
            except SourceUnavailable:
                if self.stop.is_set():
                    break
                raise
            if self.stop.is_set():
                # A range that was being read when the stop came may be cut short.
                break
            length_ms = schedule.next_length_ms(
                length_ms, packed.time_range, packed.samples, self.settings.target_samples
            )
            due = self._due(packed.time_range.end_ms, position, length_ms)
            reading = None if due is None else reader.start(due)
            position = self._last = publisher.publish(packed, position)
            self._report(packed, position, time.monotonic() - began)
        return position

    def _series_near(self, position: Position) -> int:
        """Count series where the job's next range may lie: at its beginning and at its end."""
        now_ms = self.source.now_ms()
        instants = {position.position_ms, min(position.end_ms or now_ms, now_ms)}
        try:
            return max(self.source.count_series(self.settings.selector, at_ms) for at_ms in instants)
        except TooManySamples:
            # Too many to be counted at once: begin with the shortest range, the next ones adapt.
            return self.settings.target_samples

    def _due(self, from_ms: int, position: Position, length_ms: int) -> TimeRange | None:
        if position.end_ms is not None:
            return schedule.due(from_ms, position.end_ms, length_ms)
        settled_ms = floor_ms(self.source.now_ms() - self.settings.settle_ms, 1000)
        if settled_ms - from_ms < self.settings.poll_interval_ms:
            return None
        return schedule.due(from_ms, settled_ms, length_ms)

    def _until_due_s(self, position: Position) -> float:
        """Return how long to wait; the backend's clock decides, ours only paces."""
        settled_ms = self.source.now_ms() - self.settings.settle_ms
        return max(position.position_ms + self.settings.poll_interval_ms - settled_ms, 100) / 1000

    def _report(self, packed: PackedRange, position: Position, seconds: float) -> None:
        job_range = None if position.end_ms is None else TimeRange(position.start_ms, position.end_ms)
        self.on_progress(
            Progress(
                position.job,
                packed.time_range,
                job_range,
                packed.samples,
                packed.series,
                packed.size_bytes,
                position.samples,
                seconds,
            )
        )


class RangeReader:
    """Reads whole ranges: all metrics, several requests at once, halved where the backend refuses."""

    def __init__(self, settings: PollerSettings, source: Source, partitions: int, stop: threading.Event) -> None:
        self._settings = settings
        self._source = source
        self._partitions = partitions
        self._stop = stop
        self._preset = presets.PRESETS[settings.preset]
        self._catalogue = Catalogue(
            partitions, self._preset.rewrite, lambda labels: service_of(labels["pod"]), source.metric_types()
        )
        self._throttle = Throttle(settings.max_samples_per_second, stop)
        self._longest_ms: dict[str, int] = {}
        self._with_histograms: set[str] = set()
        self._without_pod = 0
        self._requests = ThreadPoolExecutor(settings.concurrency, "request")
        self._ranges = ThreadPoolExecutor(1, "range")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self._ranges, self._requests):
            pool.shutdown(wait=False, cancel_futures=True)

    def start(self, time_range: TimeRange) -> Future[PackedRange]:
        """Begin to read a range; ranges are read one after the other."""
        return self._ranges.submit(self.read, time_range)

    def read(self, time_range: TimeRange) -> PackedRange:
        """Fetch and pack one range.

        Raises:
            SourceError: the backend cannot give it.
        """
        self._catalogue.forget_if_large()
        metrics = wanted_metrics(self._settings, self._source.metric_names(self._settings.selector, time_range))
        fetched: list[FetchedSeries] = []
        ways: set[str] = set()
        for blocks in self._requests.map(lambda metric: list(self._fetch(metric, time_range)), metrics):
            ways.update(block.source for block in blocks)
            fetched += [
                FetchedSeries(self._catalogue.ids(block.label_sets), block.offsets, block.timestamps_ms, block.values)
                for block in blocks
            ]
        if self._catalogue.without_pod > self._without_pod:
            self._without_pod = self._catalogue.without_pod
            log.warning("series without a pod label are left out", extra={"series": self._without_pod})
        source = "+".join(sorted(ways)) or self._source.name
        return pack(time_range, source, fetched, self._catalogue, self._partitions)

    def _fetch(self, metric: str, time_range: TimeRange) -> Iterator[SeriesBlock]:
        """Yield the metric's samples; where the backend refuses so many, of one half after the other."""
        selector = self._settings.selector.with_matchers(*self._preset.matchers(metric))
        if self._stop.is_set():
            raise SourceUnavailable("stopped while reading")
        if time_range.length_ms <= self._longest_ms.get(metric, time_range.length_ms):
            try:
                block = self._source.fetch(selector, metric, time_range)
            except TooManySamples as error:
                if time_range.length_ms <= _SHORTEST_SPLIT_MS:
                    raise
                log.info("query was too large; halving its range", extra={"metric": metric, "error": str(error)})
                # The next ranges do not ask again for what was refused now.
                self._longest_ms[metric] = time_range.length_ms // 2
            else:
                self._note_histograms(metric, block)
                self._throttle.spend(block.samples)
                yield block
                return
        for half in time_range.halves():
            yield from self._fetch(metric, half)

    def _note_histograms(self, metric: str, block: SeriesBlock) -> None:
        if block.histograms and metric not in self._with_histograms:
            self._with_histograms.add(metric)
            log.warning("native histograms are not supported; their samples are left out", extra={"metric": metric})


def wanted_metrics(settings: PollerSettings, names: list[str]) -> list[str]:
    """Return the metrics that ``--include`` and ``--exclude`` leave; both match whole names."""
    include, exclude = ([re.compile(p) for p in patterns] for patterns in (settings.include, settings.exclude))
    return [
        name
        for name in names
        if (not include or any(p.fullmatch(name) for p in include)) and not any(p.fullmatch(name) for p in exclude)
    ]
