"""A poller's own metrics: what it has done, where it stands, and what goes wrong, for a Prometheus to scrape."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ingestor.core.errors import ConfigError, QueryRejected, SourceUnavailable, TooManySamples
from ingestor.core.time_range import TimeRange
from ingestor.exposition import Described, Exposed, Few, build_info, counter, gauge, histogram

RequestKind = Literal["samples", "names", "label_sets", "count", "metadata", "clock"]
"""What is asked for: samples, metrics' names, series' labels, a count of series, types, the time."""

Outcome = Literal["ok", "too_large", "unavailable", "rejected", "failed"]
"""How a request ended; failed: in a way that no backend should make possible."""

SPLITS = ("range", "selector")
RETRIES = ("backend", "kafka")

MOST_INCOMPLETE_NAMES = 100
"""So many metrics have a series of their own; the rest are counted together."""

_SECONDS_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""From a question that costs nothing to the longest that a query may run by default."""

RANGES = Described("podstream_poller_ranges_total", "counter", (), "Ranges published.")
SAMPLES = Described("podstream_poller_samples_total", "counter", (), "Samples published.")
PUBLISHED_BYTES = Described(
    "podstream_poller_published_bytes_total", "counter", (), "Bytes of the range chunks published."
)
SERIES = Described("podstream_poller_series", "gauge", (), "Series in the last range published.")
PUBLISH_SECONDS = Described(
    "podstream_poller_publish_duration_seconds", "histogram", (), "How long Kafka took to commit a range."
)
REQUEST_SECONDS = Described(
    "podstream_poller_request_duration_seconds",
    "histogram",
    ("kind", "outcome"),
    "How long requests to the backend took.",
)
SPLIT = Described(
    "podstream_poller_splits_total", "counter", ("of",), "Queries that were halved because they were too large."
)
RETRIED = Described(
    "podstream_poller_retries_total", "counter", ("of",), "Attempts that were made again after a passing error."
)
INCOMPLETE = Described(
    "podstream_poller_incomplete_ranges_total",
    "counter",
    ("metric",),
    "Ranges published without all of a metric: the backend refuses it however little is asked for, or its labels "
    "fit into no message.",
)
POSITION = Described(
    "podstream_poller_position_timestamp_seconds", "gauge", (), "Event time up to which all is published."
)
LAG = Described("podstream_poller_lag_seconds", "gauge", (), "How far the position is behind the backend's clock.")
IN_FLIGHT = Described("podstream_poller_in_flight_samples", "gauge", (), "Samples read and not yet published.")
ACTIVE = Described(
    "podstream_poller_active", "gauge", (), "1 where this process polls its job, 0 where it starts or stands by."
)
ERRORS = Described("podstream_poller_errors_total", "counter", ("class",), "Errors, those that passed too.")
LAST_ERROR = Described(
    "podstream_poller_last_error_timestamp_seconds", "gauge", (), "When the last error came; 0: none yet."
)
BUILD = Described("podstream_poller_build_info", "gauge", ("version", "python"), "The program's version; always 1.")
JOB = Described("podstream_poller_job_info", "gauge", ("poller_job",), "The name of the poller's job; always 1.")

METRICS = (
    *(RANGES, SAMPLES, PUBLISHED_BYTES, SERIES, PUBLISH_SECONDS, REQUEST_SECONDS, SPLIT, RETRIED),
    *(INCOMPLETE, POSITION, LAG, IN_FLIGHT, ACTIVE, ERRORS, LAST_ERROR, BUILD, JOB),
)
"""All of them; those of the process itself (``process_…``) come beside them, on Linux."""


class Telemetry(Exposed):
    """The metrics of one poller.

    All methods may be called from any thread; each costs microseconds, so call them once a
    request or a range, never once a sample or a series.

    Args:
        job: the poller's job.
        monotonic: a clock in seconds that never steps.
        unix_s: the wall clock, for errors only.
    """

    def __init__(
        self, job: str, *, monotonic: Callable[[], float] = time.monotonic, unix_s: Callable[[], float] = time.time
    ) -> None:
        self._job, self._monotonic, self._unix_s = job, monotonic, unix_s
        self._lock = threading.Lock()
        self._unpublished: dict[int, int] = {}
        self._incomplete_names = Few(MOST_INCOMPLETE_NAMES)
        self._standby = False
        self._confirmed_at: float | None = None

        super().__init__()
        registry = self.registry
        self._ranges = counter(RANGES, registry)
        self._samples = counter(SAMPLES, registry)
        self._published_bytes = counter(PUBLISHED_BYTES, registry)
        self._series = gauge(SERIES, registry)
        self._publish_seconds = histogram(PUBLISH_SECONDS, registry, _SECONDS_BUCKETS)
        self._request_seconds = histogram(REQUEST_SECONDS, registry, _SECONDS_BUCKETS)
        self._splits = counter(SPLIT, registry)
        self._retries = counter(RETRIED, registry)
        self._incomplete = counter(INCOMPLETE, registry)
        self._in_flight = gauge(IN_FLIGHT, registry)
        self._active = gauge(ACTIVE, registry)
        self._errors = counter(ERRORS, registry)
        self._last_error = gauge(LAST_ERROR, registry)
        self._standing = _Standing(monotonic)
        registry.register(self._standing)
        build_info(BUILD, registry)
        gauge(JOB, registry).labels(job).set(1)
        # A counter that is not there before its first event has no rate for it.
        for of in SPLITS:
            self._splits.labels(of)
        for of in RETRIES:
            self._retries.labels(of)

    def activated(self) -> None:
        """Note that this process polls the job from now on; what an attempt before had read is read anew."""
        with self._lock:
            self._standby = False
            self._unpublished.clear()
            self._in_flight.set(0)
        self._active.set(1)

    def standing_by(self) -> None:
        """Note that another process polls the job."""
        with self._lock:
            self._standby = True
            self._confirmed_at = None
            self._unpublished.clear()
            self._in_flight.set(0)
        self._active.set(0)

    @contextmanager
    def request(self, kind: RequestKind) -> Iterator[None]:
        """Measure one request to the backend; what the block raises is its outcome."""
        began = self._monotonic()
        outcome: Outcome = "ok"
        try:
            yield
        except BaseException as error:
            outcome = outcome_of(error)
            raise
        finally:
            self._request_seconds.labels(kind, outcome).observe(self._monotonic() - began)

    def backend_clock(self, now_ms: int) -> None:
        """Take over the backend's clock, Unix milliseconds, as it has just answered."""
        self._standing.backend_clock(now_ms)

    def samples_read(self, time_range: TimeRange, samples: int) -> None:
        """Count samples as in flight until a range is published that *time_range* begins in (or before)."""
        with self._lock:
            self._unpublished[time_range.start_ms] = self._unpublished.get(time_range.start_ms, 0) + samples
            self._in_flight.inc(samples)

    def range_published(
        self, time_range: TimeRange, *, samples: int, series: int, size_bytes: int, seconds: float
    ) -> None:
        """Count a range that Kafka has committed; the job's position is its end.

        Args:
            time_range: what was published.
            samples: in its chunks.
            series: that have samples in it.
            size_bytes: of its chunks.
            seconds: from the transaction's begin to its commit.
        """
        self._ranges.inc()
        self._samples.inc(samples)
        self._published_bytes.inc(size_bytes)
        self._series.set(series)
        self._publish_seconds.observe(seconds)
        with self._lock:
            for start_ms in [start_ms for start_ms in self._unpublished if start_ms < time_range.end_ms]:
                del self._unpublished[start_ms]
            self._in_flight.set(sum(self._unpublished.values()))
        self.position_confirmed(time_range.end_ms)

    def position_confirmed(self, position_ms: int) -> None:
        """Note where the job stands, Unix milliseconds: as it was read at the start, or because nothing is due."""
        self._standing.position_ms = position_ms
        self._confirmed_at = self._monotonic()

    def split(self, of: Literal["range", "selector"]) -> None:
        """Count a query that is asked again in halves."""
        self._splits.labels(of).inc()

    def retried(self, of: Literal["backend", "kafka"]) -> None:
        """Count another attempt."""
        self._retries.labels(of).inc()

    def incomplete(self, metric: str) -> None:
        """Count a range that lacks (a part of) *metric* for good."""
        self._incomplete.labels(self._incomplete_names.name(metric)).inc()

    def failed(self, error: BaseException) -> None:
        """Count an error by its class; its text is for the log."""
        self._errors.labels(type(error).__name__).inc()
        self._last_error.set(self._unix_s())

    def not_ready(self, within_s: float) -> str | None:
        """Return why the poller is not ready: nothing was published or confirmed within so many seconds.

        Returns:
            A line of text; None where it is ready.
        """
        if self._standby:
            return f"standing by: another process polls the job {self._job}"
        confirmed_at = self._confirmed_at
        if confirmed_at is None:
            return f"starting: nothing of the job {self._job} is published or confirmed yet"
        age_s = self._monotonic() - confirmed_at
        if age_s > within_s:
            return f"nothing was published or confirmed for {age_s:.0f} s; ready means within {within_s:g} s"
        return None


def outcome_of(error: BaseException) -> Outcome:
    """Return what an error means as a request's outcome."""
    outcomes: dict[type[Exception], Outcome] = {
        TooManySamples: "too_large",
        SourceUnavailable: "unavailable",
        QueryRejected: "rejected",
        ConfigError: "rejected",
    }
    return next((outcome for kind, outcome in outcomes.items() if isinstance(error, kind)), "failed")


class _Standing(Collector):
    """Position and lag, computed when asked for, so that the lag grows while the backend is away too."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._ahead_s: float | None = None
        self.position_ms: int | None = None

    def backend_clock(self, now_ms: int) -> None:
        self._ahead_s = now_ms / 1000 - self._monotonic()

    def collect(self) -> Iterable[Metric]:
        position, lag = (GaugeMetricFamily(metric.name, metric.meaning) for metric in (POSITION, LAG))
        position_ms, ahead_s = self.position_ms, self._ahead_s
        # Without a sample while unknown: zero would be fifty years of lag, and an alert.
        if position_ms is not None:
            position.add_metric((), position_ms / 1000)
            if ahead_s is not None:
                lag.add_metric((), self._monotonic() + ahead_s - position_ms / 1000)
        return position, lag
