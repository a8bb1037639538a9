"""A worker's own metrics: what it has taken in and given out, what it holds, and how far it is behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ingestor.core.chunk import Marker, RangeChunk
from ingestor.exposition import Described, Exposed, build_info, counter, histogram
from stream_app.dead_letters import REASONS
from stream_app.pipeline import Emission, Unreadable
from stream_app.standing import Standing

KINDS = ("chunk", "marker", "unreadable")

_SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""From a marker that closes nothing to what a transaction may take."""

DELAY_BUCKETS = (1, 2.5, 5, 10, 20, 30, 45, 60, 90, 120, 300, 600, 1800, 3600, 21600, 86400, 604800, 2592000)
"""Live windows come after the poller's settle and poll interval; a backfill's are as late as they are old."""

RECORDS = Described("podstream_worker_records_total", "counter", ("topic",), "Records committed to the sink topics.")
DEAD_LETTERS = Described(
    "podstream_worker_dead_letters_total",
    "counter",
    ("reason",),
    "Dead letters: messages set aside because of their headers or value, and records cut because of their size.",
)
WINDOWS_CLOSED = Described(
    "podstream_worker_windows_closed_total",
    "counter",
    (),
    "Windows closed and committed, each partition's for themselves.",
)
EMISSION_DELAY = Described(
    "podstream_worker_emission_delay_seconds",
    "histogram",
    (),
    "How long after its end a window's records were committed; of a backfill, how old they are.",
)
MESSAGES = Described(
    "podstream_worker_messages_total", "counter", ("kind",), "Messages taken in, those replayed after a restart too."
)
SAMPLES = Described(
    "podstream_worker_samples_total", "counter", (), "Samples taken in, those replayed after a restart too."
)
MESSAGE_SECONDS = Described(
    "podstream_worker_message_duration_seconds",
    "histogram",
    ("kind",),
    "How long a chunk took to be decoded and aggregated, or a marker to close windows.",
)
COMMIT_SECONDS = Described(
    "podstream_worker_commit_duration_seconds", "histogram", (), "How long Kafka took to commit a transaction."
)
PARTITIONS = Described("podstream_worker_partitions", "gauge", (), "Partitions assigned to this worker.")
WINDOWS_OPEN = Described(
    "podstream_worker_open_windows", "gauge", (), "Windows that hold something and are not closed yet."
)
CELLS = Described(
    "podstream_worker_open_cells", "gauge", (), "Values of pods, metrics and windows that are being aggregated."
)
VALUES = Described(
    "podstream_worker_held_values", "gauge", (), "Samples' values that open windows keep, as the median needs them."
)
REPLAY = Described(
    "podstream_worker_replay_messages",
    "gauge",
    (),
    "Messages left until the worker is ready: to the partitions' ends as they were when they were assigned.",
)
LAG = Described(
    "podstream_worker_lag_messages",
    "gauge",
    ("partition",),
    "Messages committed to the chunk topic and not yet handled; the ends of transactions count too.",
)
POSITION = Described(
    "podstream_worker_position_timestamp_seconds",
    "gauge",
    ("partition",),
    "Event time of the newest range of any job that was taken in.",
)
ERRORS = Described("podstream_worker_errors_total", "counter", ("class",), "Errors, those that passed too.")
BUILD = Described("podstream_worker_build_info", "gauge", ("version", "python"), "The program's version; always 1.")

METRICS = (
    *(RECORDS, DEAD_LETTERS, WINDOWS_CLOSED, EMISSION_DELAY, MESSAGES, SAMPLES, MESSAGE_SECONDS, COMMIT_SECONDS),
    *(PARTITIONS, WINDOWS_OPEN, CELLS, VALUES, REPLAY, LAG, POSITION, ERRORS, BUILD),
)
"""All of them; those of the process itself (``process_…``) come beside them, on Linux."""


class Holding(Protocol):
    """What tells how much it holds: a pipeline."""

    @property
    def open_windows(self) -> int: ...
    @property
    def open_cells(self) -> int: ...
    @property
    def held_values(self) -> int: ...


class Telemetry(Exposed):
    """The metrics of one worker.

    Call its methods from one thread, once a message or a transaction.

    Args:
        standing: where the worker stands.
        monotonic: a clock in seconds that never steps.
        unix_s: the wall clock, to tell how late windows are.
    """

    def __init__(
        self,
        standing: Standing,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        unix_s: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        self.standing = standing
        self.clock = monotonic
        """What *began* is read from."""
        self._unix_s = unix_s
        registry = self.registry
        self._records = counter(RECORDS, registry)
        self._dead_letters = counter(DEAD_LETTERS, registry)
        self._windows_closed = counter(WINDOWS_CLOSED, registry)
        self._messages = counter(MESSAGES, registry)
        self._samples = counter(SAMPLES, registry)
        self._message_seconds = histogram(MESSAGE_SECONDS, registry, _SECONDS_BUCKETS)
        self._commit_seconds = histogram(COMMIT_SECONDS, registry, _SECONDS_BUCKETS)
        self._errors = counter(ERRORS, registry)
        self._delays = _Delays()
        self._holdings = _Holdings(standing)
        registry.register(self._delays)
        registry.register(self._holdings)
        build_info(BUILD, registry)
        # A counter that is not there before its first event has no rate for it.
        for reason in REASONS:
            self._dead_letters.labels(reason)
        for kind in KINDS:
            self._messages.labels(kind)
            self._message_seconds.labels(kind)

    def assigned(self, partitions: Iterable[int]) -> None:
        """Note what this worker has from now on."""
        self.standing.assigned(set(partitions))

    def revoked(self) -> None:
        """Note that the group shares its partitions out anew."""
        self.standing.revoked()
        self._holdings.forget()

    def taken_in(
        self, partition: int, message: RangeChunk | Marker | Unreadable, took_s: float, holding: Holding
    ) -> None:
        """Count a message that took so long to be decoded and fed to its pipeline."""
        kind = {RangeChunk: "chunk", Marker: "marker"}.get(type(message), "unreadable")
        self._messages.labels(kind).inc()
        self._message_seconds.labels(kind).observe(took_s)
        if isinstance(message, RangeChunk):
            self._samples.inc(message.series.samples)
        self._holdings.take(partition, holding, message.header.time_range.end_ms if message.header else 0)
        self.standing.went_on()

    def committed(self, emissions: Sequence[Emission], began: float) -> None:
        """Count what the transaction has brought that *began* then and is committed now."""
        self._commit_seconds.observe(self.clock() - began)
        for emission in emissions:
            for batch in emission.records:
                self._records.labels(batch.topic).inc(len(batch))
            for letter in emission.letters:
                self._dead_letters.labels(letter.reason).inc()
        ends_ms = [end_ms for emission in emissions for end_ms in emission.window_ends_ms]
        self._windows_closed.inc(len(ends_ms))
        self._delays.observe(ends_ms, self._unix_s())
        self.standing.went_on()

    def handled(self, partition: int, offset: int) -> None:
        """Note that all that a message brings is committed."""
        self.standing.handled(partition, offset)

    def failed(self, error: BaseException) -> None:
        """Count an error by its class; its text is for the log."""
        self._errors.labels(type(error).__name__).inc()


class _Delays(Collector):
    """A histogram that takes all windows of an emission at once: a job's end closes thousands."""

    def __init__(self) -> None:
        self._counts = np.zeros(len(DELAY_BUCKETS) + 1, np.int64)
        self._sum_s = 0.0

    def observe(self, ends_ms: Sequence[int], now_s: float) -> None:
        # A job may end before the window that it cuts.
        delays_s = np.maximum(now_s - np.asarray(ends_ms, np.float64) / 1000, 0.0)
        places = np.searchsorted(DELAY_BUCKETS, delays_s)
        self._counts = self._counts + np.bincount(places, minlength=len(self._counts))
        self._sum_s += float(delays_s.sum())

    def collect(self) -> Iterable[Metric]:
        bounds = [*(str(float(bound)) for bound in DELAY_BUCKETS), "+Inf"]
        buckets = list(zip(bounds, np.cumsum(self._counts).tolist(), strict=True))
        return [HistogramMetricFamily(EMISSION_DELAY.name, EMISSION_DELAY.meaning, buckets, self._sum_s)]


class _Holdings(Collector):
    """What the partitions hold, and where they stand when asked."""

    def __init__(self, standing: Standing) -> None:
        self._standing = standing
        self._held: dict[int, Holding] = {}
        self._newest_ms: dict[int, int] = {}

    def take(self, partition: int, holding: Holding, range_end_ms: int) -> None:
        # Counted when asked: that goes over all that it holds.
        self._held[partition] = holding
        self._newest_ms[partition] = max(range_end_ms, self._newest_ms.get(partition, range_end_ms))

    def forget(self) -> None:
        self._held, self._newest_ms = {}, {}

    def collect(self) -> Iterable[Metric]:
        held = list(self._held.values())
        yield _family(PARTITIONS, len(self._standing.partitions))
        yield _family(WINDOWS_OPEN, sum(holding.open_windows for holding in held))
        yield _family(CELLS, sum(holding.open_cells for holding in held))
        yield _family(VALUES, sum(holding.held_values for holding in held))
        yield _family(REPLAY, self._standing.replay_left())
        yield _by_partition(LAG, self._standing.lag())
        yield _by_partition(POSITION, {partition: ms / 1000 for partition, ms in self._newest_ms.items()})


def _family(metric: Described, value: float | None) -> GaugeMetricFamily:
    # Without a sample while unknown: zero would say that all is read.
    return GaugeMetricFamily(metric.name, metric.meaning, value)


def _by_partition(metric: Described, values: Mapping[int, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(metric.name, metric.meaning, labels=metric.labels)
    for partition, value in sorted(values.items()):
        family.add_metric((str(partition),), value)
    return family
