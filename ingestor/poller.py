"""The loop of one command: jobs begun or gone on with, ranges read ahead and published in order."""

from __future__ import annotations

import gc
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from concurrent.futures import TimeoutError as NotReadyError
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import tenacity
from confluent_kafka.admin import AdminClient

from ingestor import jobs, schedule
from ingestor.catalogue import Meaning
from ingestor.core.durations import ChunkSize, parse_time
from ingestor.core.errors import (
    ConfigError,
    Fenced,
    IngestorError,
    PublishError,
    QueryRejected,
    SourceUnavailable,
    TooManySamples,
)
from ingestor.core.time_range import TimeRange, floor_ms, iso
from ingestor.core.topics import Topics
from ingestor.kafka import Cluster, connect, ensure_topics, partition_counts
from ingestor.lane import Bounds, Lane
from ingestor.owners import Owners
from ingestor.packing import PackedRange
from ingestor.placements import Placements
from ingestor.positions import LIVE_JOB, Position, Written, job_name, known_positions, read_positions
from ingestor.presets import PRESETS
from ingestor.publisher import Publisher, replaced
from ingestor.reader import RangeReader, Selection, metric_names, whole_names
from ingestor.rehearsal import rehearse
from ingestor.relabel import Rules
from ingestor.selector import Labels, Selector
from ingestor.sources.base import Source
from ingestor.sources.retrying import RetryingSource, log_retry
from ingestor.sources.steady import SteadyClock
from ingestor.splitting import Splits
from ingestor.standby import Standby
from ingestor.telemetry import Telemetry
from ingestor.urls import without_credentials

log = logging.getLogger(__name__)

_HOUR_MS = 3_600_000
_BACKFILL_PATIENCE_S = 600.0
"""A backfill gives up when the backend has not answered a request for so long; a live poller never does."""

_PUBLISH_ATTEMPTS = 10
"""A backfill gives up after so many failures of Kafka; a live poller never does."""

_CLAIMS, _CLAIM_ATTEMPTS = "claims", 20

_LOOK_EVERY_S = 0.5
_TELL_EVERY_S = 10.0
"""Errors that last are written to the job's position so often, for `status`."""

_RATE_OVER_S = 60.0


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
    """As typed: part of a backfill's name, but for credentials in it."""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    preset: str = "kubernetes"
    rules: Rules = field(default_factory=Rules)
    """Relabeling, after the preset."""
    splits: Splits = field(default_factory=lambda: Splits({}))
    service_label: str = ""
    everything: bool = False
    """Read series without a pod too."""
    expressions: Mapping[str, str] = field(default_factory=dict)
    """The metrics that the backend computes, by name."""
    again: bool = False
    """Read what other jobs have read already once more."""
    recheck_ms: int | None = None
    """Read each live range once more after so long; None: never."""
    partitions: int | None = None
    settle_ms: int = 30_000
    """Stay so far behind the backend's now; two 15 s scrapes have then landed."""
    poll_interval_ms: int = 15_000
    align: ChunkSize | None = None
    """What relative times are floored to; None: the hour."""
    max_samples_per_second: float | None = None
    concurrency: int = 4
    range_samples: int = schedule.TARGET_SAMPLES
    max_in_flight_samples: int = 5_000_000
    waits_for_its_turn: bool = False
    """What to do where another poller of the same jobs runs: wait until it ends, or take over."""

    @property
    def command(self) -> str:
        """The name of the job, or of the first of its parts."""
        return LIVE_JOB if self.end is None else job_name(self.arguments)

    @property
    def target_samples(self) -> int:
        """What a range aims at; under a speed limit about ten seconds' worth, so that progress is seen."""
        wanted = min(self.range_samples, self.max_in_flight_samples)
        if self.max_samples_per_second is None:
            return wanted
        return max(1, min(wanted, round(10 * self.max_samples_per_second)))

    @property
    def selection(self) -> Selection:
        """Which series are read, and what their labels mean."""
        preset = PRESETS[self.preset]

        def rewrite(labels: Labels) -> Labels | None:
            rewritten = self.rules.apply(preset.rewrite(labels))
            return rewritten if rewritten and "__name__" in rewritten else None

        return Selection(
            readings=preset.readings(self.selector),
            meaning=Meaning(rewrite, self.splits.column, self.service_label, self.everything),
            wanted=whole_names(self.include, self.exclude),
            computed=frozenset(self.expressions),
        )

    @property
    def arguments(self) -> dict[str, Any]:
        """What makes a backfill the same backfill."""
        return {
            "url": without_credentials(self.url),
            "start": self.start,
            "end": self.end,
            "align": str(self.align) if self.align else None,
            **self.selected,
        }

    @property
    def selected(self) -> dict[str, Any]:
        """What decides which series are read, and as what."""
        return {
            "match": str(self.selector),
            "include": list(self.include),
            "exclude": list(self.exclude),
            "preset": self.preset,
            "all": self.everything,
            "relabel": self.rules.text,
            "service_label": self.service_label,
            "split_by": {metric: list(labels) for metric, labels in sorted(self.splits.labels_of.items())},
            "expressions": dict(sorted(self.expressions.items())),
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
    """One command, from a source to Kafka.

    Args:
        settings: what to read.
        source: where from.
        on_progress: called after every published range.
        stop: set it to end soon; what was published stays, what is being read is read again next time.
        telemetry: is told what happens.
        backend_clock: what the backend's clock has said before.
    """

    settings: PollerSettings
    source: Source
    on_progress: Callable[[Progress], None] = lambda _: None
    stop: threading.Event = field(default_factory=threading.Event)
    telemetry: Telemetry = field(default_factory=lambda: Telemetry(""))
    backend_clock: SteadyClock = field(default_factory=SteadyClock)
    _last: list[Position] = field(default_factory=list, init=False)
    _written: Written = field(default_factory=Written, init=False)
    _trouble: IngestorError | None = field(default=None, init=False)
    _tell: Callable[[], None] | None = field(default=None, init=False)
    _thread: int = field(default=0, init=False)
    _failures: int = field(default=0, init=False)
    _clock: tuple[int, float] | None = field(default=None, init=False)
    """The backend's, and when it said so by ours; None: it is to be asked."""
    _told_at_s: float = field(default=0.0, init=False)
    _published: deque[tuple[float, int]] = field(default_factory=deque, init=False)

    def run(self) -> list[Position]:
        """Publish until the end of the command's jobs (or *stop*); return where they stand.

        There are none where other jobs claim all of the time.

        Raises:
            ConfigError: nothing can be read as asked; nothing was published.
            IngestorError: gave up; the same command goes on from the last published range.
        """
        is_live = self.settings.end is None
        patience_s = None if is_live else _BACKFILL_PATIENCE_S
        self.source = RetryingSource(
            self.source, self.stop, patience_s, self._on_source_error, self.telemetry, self.backend_clock
        )
        self._thread = threading.get_ident()
        # While we connect: that is mostly waiting.
        pool = ThreadPoolExecutor(1, "rehearsal")
        rehearsal = pool.submit(rehearse)
        pool.shutdown(wait=False)
        admin = connect(self.settings.cluster)
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(self._passing_errors()),
            # Failures since the last range that was published: years lie between some of them.
            wait=lambda _: min(0.5 * 2.0 ** min(self._failures, 10), 30.0) * random.uniform(0.5, 1.0),  # noqa: S311
            stop=lambda _: self.stop.is_set() or (not is_live and self._failures + 1 >= _PUBLISH_ATTEMPTS),
            sleep=tenacity.sleep_using_event(self.stop),
            before_sleep=self._before_trying_again,
            reraise=True,
        )
        try:
            return retrying(self._run_once, admin, rehearsal)
        except (PublishError, SourceUnavailable) as error:
            self.telemetry.failed(error)
            if not self._last or not self.stop.is_set():
                raise
            return self._last

    def _passing_errors(self) -> tuple[type[Exception], ...]:
        """Return what is tried again as a whole: for good while live, for a backfill only what Kafka refuses."""
        if self.settings.end is not None:
            return (PublishError,)
        return PublishError, SourceUnavailable, TooManySamples, QueryRejected

    def _before_trying_again(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        self._failures += 1
        if isinstance(error, PublishError):
            self.telemetry.retried("kafka")
        if isinstance(error, IngestorError):
            self._on_trouble(error)
        log_retry(state)

    def _on_source_error(self, error: IngestorError) -> None:
        self.telemetry.retried("backend")
        self._on_trouble(error)

    def _on_trouble(self, error: IngestorError) -> None:
        self.telemetry.failed(error)
        self._trouble = error
        # Questions are asked from other threads too; only this one may write.
        if self._tell is not None and threading.get_ident() == self._thread:
            self._tell()

    def goes_on(self) -> bool:
        """Tell whether this is a live job that has begun: it may wait for its backend."""
        settings = self.settings
        return settings.end is None and settings.command in known_positions(settings.cluster, settings.topics)

    def plan(self) -> str:
        """Return in words what the first run of this command would read; nothing is published.

        Raises:
            ConfigError: nothing can be read as asked.
        """
        start_ms, end_ms = self._bounds()
        until_ms = end_ms or self._settled_ms()
        metrics = metric_names(self.settings.selection, self.source, TimeRange(start_ms, max(until_ms, start_ms + 1)))
        return (
            f"job {self.settings.command}: {len(metrics)} metrics of {self.settings.selector} from {iso(start_ms)} "
            f"to {iso(until_ms)}{'' if end_ms else ', then live'}"
        )

    def _run_once(self, admin: AdminClient, rehearsal: Future[PackedRange]) -> list[Position]:
        settings = self.settings
        # What cannot be read as asked is refused before anything is made.
        bounds = None if settings.topics.positions in partition_counts(admin) else self._bounds()
        partitions = ensure_topics(admin, settings.topics, settings.partitions)
        with ExitStack() as stack:
            waits = settings.waits_for_its_turn
            standby = stack.enter_context(Standby(settings.cluster, settings.topics, settings.command, waits=waits))
            if waits:
                self.telemetry.standing_by()
                if not standby.wait_for_turn(self.stop):
                    return self._last
            while not rehearsal.done():
                # Without a cache of compiled code this takes a while.
                if self.stop.is_set():
                    return self._last
                wait([rehearsal], _LOOK_EVERY_S)
            rehearsal.result()
            if not gc.get_freeze_count():
                # What has been loaded stays: the garbage collector need not look at it again and again. Once:
                # an attempt that has failed leaves cycles behind, which would stay too.
                gc.freeze()
            if not waits:
                self._raise_if_replaced()
            publisher = stack.enter_context(
                Publisher(settings.cluster, settings.topics, settings.command, self._written)
            )
            self.telemetry.activated()
            self._last = self._begun(partitions, bounds)
            self._written.may_stand(*self._last)
            unfinished = [position for position in self._last if not position.ended]
            if not unfinished:
                return self._last
            placements = stack.enter_context(Placements(settings.cluster, settings.topics, Owners(self.source)))
            reader = stack.enter_context(self._reader(placements, partitions))
            work = _Work(publisher, placements, reader)
            for position in unfinished:
                if not self.stop.is_set():
                    self._publish_job(work, position)
            return self._last

    def _raise_if_replaced(self) -> None:
        """See that no other poller has gone on with a job since this one had it.

        Who was frozen or cut off in a commit hears of a time-out, not of its successor, and would fence it.

        Raises:
            Fenced: one has.
        """
        settings = self.settings
        if self._last and any(
            map(self._written.is_anothers, read_positions(settings.cluster, settings.topics).values())
        ):
            raise replaced(settings.command)

    def _reader(self, placements: Placements, partitions: int) -> RangeReader:
        settings = self.settings
        return RangeReader(
            settings.selection,
            self.source,
            placements,
            partitions,
            self.stop,
            concurrency=settings.concurrency,
            most_samples=settings.max_in_flight_samples,
            samples_per_second=settings.max_samples_per_second,
            telemetry=self.telemetry,
        )

    def _begun(self, partitions: int, bounds: tuple[int, int | None] | None) -> list[Position]:
        """Return the command's jobs: those that it has begun, else new ones, which are stored at once.

        Args:
            partitions: of the range-chunk topic.
            bounds: the command's times, where they are resolved already.
        """
        settings = self.settings
        if mine := self._mine(read_positions(settings.cluster, settings.topics).values(), partitions):
            return mine
        start_ms, end_ms = bounds or self._bounds()
        for _ in range(_CLAIM_ATTEMPTS):
            try:
                return self._claimed(start_ms, end_ms, partitions)
            except Fenced:
                log.info("another command begins at this moment; looking again")
        raise PublishError("other commands begin again and again: start this one later")

    def _mine(self, stored: Collection[Position], partitions: int) -> list[Position]:
        """Return the jobs that the command has begun and is to go on with."""
        settings = self.settings
        mine = [p for p in jobs.parts_of(settings.command, stored) if not jobs.is_recheck(p.job)]
        mine = [p for p in mine if not p.ended] if settings.again else [p for p in mine if not p.revision]
        for position in mine:
            self._check_old(position, partitions)
        return mine

    def _claimed(self, start_ms: int, end_ms: int | None, partitions: int) -> list[Position]:
        """Begin jobs for the time that no other job claims.

        Raises:
            Fenced: another command began in between; nothing was stored.
        """
        settings = self.settings
        # One transactional id for all commands: of two that look at the same time, one is fenced.
        with Publisher(settings.cluster, settings.topics, _CLAIMS, self._written) as claims:
            stored = read_positions(settings.cluster, settings.topics).values()
            # Another poller of this command may have begun them while we asked the backend what there is.
            if mine := self._mine(stored, partitions):
                return mine
            new = self._new_jobs(self._stretches(start_ms, end_ms, stored), partitions)
            claims.store(new)
        for position in new:
            end = iso(position.end_ms) if position.end_ms else "for good"
            log.info("job begins", extra={"job": position.job, "start": iso(position.start_ms), "end": end})
        return new

    def _new_jobs(self, stretches: list[jobs.Stretch], partitions: int) -> list[Position]:
        return [
            Position(
                stretch.job,
                stretch.start_ms,
                stretch.end_ms,
                stretch.start_ms,
                (0,) * partitions,
                arguments=self.settings.arguments,
                revision=stretch.revision,
            )
            for stretch in stretches
        ]

    def _stretches(self, start_ms: int, end_ms: int | None, stored: Collection[Position]) -> list[jobs.Stretch]:
        settings = self.settings
        if settings.again and end_ms is not None:
            return [jobs.again(settings.command, TimeRange(start_ms, end_ms), stored)]
        stretches = jobs.uncovered(settings.command, start_ms, end_ms, stored)
        clipped = not stretches or (stretches[0].start_ms, stretches[-1].end_ms) != (start_ms, end_ms)
        if clipped or len(stretches) > 1:
            others = jobs.claiming(start_ms, end_ms, stored)
            claims = [f"{p.job} (read up to {iso(p.position_ms)})" for p in others]
            log.warning(
                "a part of this time is other jobs'; only the rest is read (--again reads it once more, "
                "ingestor cancel frees what a job has not read)",
                extra={"jobs": ", ".join(claims), "stretches": len(stretches)},
            )
            if any({**p.arguments, **settings.selected} != p.arguments for p in others):
                log.warning("they have read another selection: one --topic-prefix is for one selection of series")
        return stretches

    def _check_old(self, position: Position, partitions: int) -> None:
        """See that a job can go on as it began."""
        settings = self.settings
        if position.partitions != partitions:
            raise ConfigError(
                f"the job {position.job} was begun with {position.partitions} partitions, "
                f"{settings.topics.range_chunks} has {partitions}: a pod must never change its partition; "
                "choose another --topic-prefix"
            )
        if position.ended and position.job == LIVE_JOB:
            raise ConfigError(
                f"the job {LIVE_JOB} was cancelled at {iso(position.position_ms)} and does not begin again: read on "
                "with ingestor backfill, or poll under another --topic-prefix"
            )
        if position.ended:
            log.info("job has ended already", extra={"job": position.job, "end": iso(position.position_ms)})
            return
        if changed := [name for name, value in settings.arguments.items() if position.arguments.get(name) != value]:
            log.warning("job goes on with another selection than it began with", extra={"changed": changed})
        log.info("job goes on", extra={"job": position.job, "from": iso(position.position_ms)})

    def _bounds(self) -> tuple[int, int | None]:
        """Resolve the command's times, once; they are stored before the first range.

        Raises:
            ConfigError: there is nothing to be read.
        """
        settings = self.settings
        clock_ms = self._now_ms()
        now_ms = clock_ms - settings.settle_ms
        start_ms = self._resolve("--start", settings.start, now_ms)
        end_ms = None if settings.end is None else self._resolve("--end", settings.end, now_ms)
        if end_ms is not None and end_ms > now_ms:
            raise ConfigError(
                f"--end {settings.end} is after the backend's now less --settle ({iso(now_ms)}): give --end now"
            )
        if end_ms is not None and end_ms <= start_ms:
            raise ConfigError(
                f"--end {settings.end} ({iso(end_ms)}) is not after --start {settings.start} ({iso(start_ms)})"
            )
        if start_ms > now_ms:
            raise ConfigError(f"--start {settings.start} is after the backend's now ({iso(now_ms)}): give --start now")
        if end_ms is not None and not metric_names(settings.selection, self.source, TimeRange(start_ms, end_ms)):
            raise ConfigError(
                f"no metric matches {settings.selector} between {iso(start_ms)} and {iso(end_ms)}: "
                "look at --match, --include and --exclude, and at what Prometheus holds for that time"
            )
        return start_ms, end_ms

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

    def _now_ms(self) -> int:
        return self._ask_clock()[0]

    def _ask_clock(self) -> tuple[int, float]:
        """Return the backend's clock, and when it said so by ours."""
        now_ms = self.source.now_ms()
        self._clock = now_ms, time.monotonic()
        self.telemetry.backend_clock(now_ms)
        return self._clock

    def _settled_ms(self) -> int:
        """Return what is settled by the backend's clock, which is asked after each wait, and once a poll interval."""
        now_ms, _ = self._clock or self._ask_clock()
        return floor_ms(now_ms - self.settings.settle_ms, 1000)

    def _forget_old_clock(self, main: Lane) -> None:
        """Have the clock asked again: a recheck with a lot to do never waits, and live ranges come due meanwhile.

        Not while one is being read: where the backend is away, it would be published only when that is back.
        """
        is_old = self._clock and time.monotonic() - self._clock[1] >= self.settings.poll_interval_ms / 1000
        if is_old and not main.in_flight:
            self._clock = None

    def _publish_job(self, work: _Work, position: Position) -> None:
        """Publish a job, and beside a live one its recheck, until its end or *stop*."""
        # Half at first: whoever waits for the first range has the sooner something to do.
        length_ms = schedule.first_length_ms(self._series_near(position), self.settings.target_samples // 2)
        if position.end_ms is not None:
            end_ms = position.end_ms
            main = self._lane(work, position, lambda: end_ms, length_ms)
            lanes = [main]
        else:
            main = self._lane(work, position, self._settled_ms, length_ms)
            lanes = [main, *self._recheck_lane(work, main)]
        self._tell = lambda: self._tell_trouble(work, main)
        try:
            while not main.position.ended and not self.stop.is_set():
                self._forget_old_clock(main)
                ready = [lane for lane in lanes if lane.fill()]
                if not ready:
                    self.telemetry.position_confirmed(main.position.position_ms)
                    self.stop.wait(self._until_due_s(main))
                    self._clock = None
                    continue
                self._publish_next(work, ready[0], main)
        finally:
            self._tell = None
            for lane in lanes:
                lane.abandon()

    def _lane(self, work: _Work, position: Position, until_ms: Callable[[], int], length_ms: int) -> Lane:
        settings = self.settings
        self._written.may_stand(position)
        interval_ms = settings.poll_interval_ms if position.end_ms is None else 0
        bounds = Bounds(settings.target_samples, settings.max_in_flight_samples, interval_ms)
        return Lane(position, work.reader, bounds, until_ms, length_ms)

    def _recheck_lane(self, work: _Work, live: Lane) -> list[Lane]:
        """Return the lane that reads live ranges once more, and end one that is not wanted any longer."""
        settings, recheck_ms = self.settings, self.settings.recheck_ms
        stored = read_positions(settings.cluster, settings.topics).values()
        known = [p for p in jobs.parts_of(settings.command, stored) if jobs.is_recheck(p.job)]
        going_on = next((p for p in known if not p.ended), None)
        if recheck_ms is None:
            if going_on is not None:
                self._written.may_stand(going_on)
                work.publisher.cancel(going_on)
                log.info("recheck is given up: --recheck is not there any longer", extra={"job": going_on.job})
            return []
        if going_on is None:
            # What was older when it was read first is settled.
            start_ms = max(live.position.position_ms, self._settled_ms() - recheck_ms)
            going_on = Position(
                jobs.recheck_name(settings.command, len(known)),
                start_ms,
                None,
                start_ms,
                (0,) * live.position.partitions,
                arguments=settings.arguments,
                revision=1,
            )
            work.publisher.store([going_on])
        live.rechecked_by = going_on

        def until_ms() -> int:
            return min(self._settled_ms() - recheck_ms, live.position.position_ms)

        lane = self._lane(work, going_on, until_ms, live.length_ms)
        # Its messages name it themselves: so a worker knows it for what it is.
        lane.rechecked_by = going_on
        return [lane]

    def _publish_next(self, work: _Work, lane: Lane, main: Lane) -> None:
        """Publish the lane's oldest range, once it is read."""
        began = time.monotonic()
        while True:
            try:
                lane.oldest().exception(_LOOK_EVERY_S)
                break
            except NotReadyError:
                if self.stop.is_set():
                    return
                self._tell_trouble(work, lane)
        try:
            packed = lane.take()
        except SourceUnavailable:
            if self.stop.is_set():
                return
            raise
        if packed is None or self.stop.is_set():
            # A range that was being read when the stop came may be cut short.
            return
        if lane.position.end_ms is not None:
            # While this one is published; what is due of a live job was read with the last one.
            lane.fill()
        if packed.left_out:
            # For `status`; the log has all of them.
            self._trouble = PublishError(str(packed.left_out[0]))
        placed = work.placements.unwritten()
        position = replace(lane.position, samples_per_s=self._rate(packed.samples))
        committing = time.monotonic()
        lane.position = work.publisher.publish(
            packed, self._with_trouble(position), placed, lane.recheck_of(packed.time_range)
        )
        work.placements.written(placed)
        self._failures = 0
        seconds = time.monotonic() - committing
        self.telemetry.range_published(
            packed.time_range,
            samples=packed.samples,
            series=packed.series,
            size_bytes=packed.size_bytes,
            seconds=seconds,
        )
        if lane is main:
            self._last = [lane.position if p.job == lane.position.job else p for p in self._last]
        self._report(packed, lane.position, time.monotonic() - began)

    def _tell_trouble(self, work: _Work, lane: Lane) -> None:
        """Write an error that lasts to the job's position, where `status` finds it."""
        if self._trouble is None or time.monotonic() < self._told_at_s + _TELL_EVERY_S:
            return
        lane.position = self._with_trouble(lane.position)
        work.publisher.store([lane.position])

    def _with_trouble(self, position: Position) -> Position:
        """Return the position with the last error, if there is a new one."""
        error, self._trouble = self._trouble, None
        if error is None:
            return position
        self._told_at_s = time.monotonic()
        return replace(position, last_error=str(error), last_error_ms=int(time.time() * 1000))

    def _rate(self, samples: int) -> float:
        """Return how many samples a second were published in the last minute."""
        now_s = time.monotonic()
        self._published.append((now_s, samples))
        while self._published[0][0] < now_s - _RATE_OVER_S:
            self._published.popleft()
        began_s = self._published[0][0]
        if len(self._published) < 2:
            return 0.0
        # What came first took time before the stretch that is measured.
        return sum(n for _, n in list(self._published)[1:]) / max(now_s - began_s, 0.001)

    def _series_near(self, position: Position) -> int:
        """Count series where the job's next range may lie: at its beginning and at its end."""
        now_ms = self._now_ms()
        instants = {position.position_ms, min(position.end_ms or now_ms, now_ms)}
        readings = self.settings.selection.readings
        try:
            return max(sum(self.source.count_series(r.selector, at_ms) for r in readings) for at_ms in instants)
        except (QueryRejected, TooManySamples):
            # They cannot be counted at once: begin with the shortest range, the next ones adapt.
            return self.settings.target_samples

    def _until_due_s(self, lane: Lane) -> float:
        """Return how long to wait; the backend's clock decides, ours only carries it on.

        No longer than from poll to poll: a clock that was set back may be set right again.
        """
        now_ms, asked_at_s = self._clock or self._ask_clock()
        settled_ms = now_ms + (time.monotonic() - asked_at_s) * 1000 - self.settings.settle_ms
        left_ms = lane.position.position_ms + lane.least_due_ms - settled_ms
        return max(min(left_ms, self.settings.poll_interval_ms), 100) / 1000

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


@dataclass(frozen=True, slots=True)
class _Work:
    """What one attempt works with."""

    publisher: Publisher
    placements: Placements
    reader: RangeReader
