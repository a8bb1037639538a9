"""The demo's little cluster: which pods run at a time, and what each would show if it were scraped then.

Everything here is a pure function of time. So history that is written at once and
live scrapes that come later lie on the same curves, and a test can ask for any moment.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

Labels = tuple[tuple[str, str], ...]

SECOND_MS = 1_000
MINUTE_MS = 60 * SECOND_MS
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS

TYPES = {
    "container_cpu_usage_seconds_total": "counter",
    "container_memory_working_set_bytes": "gauge",
    "http_requests_total": "counter",
    "queue_depth": "gauge",
    "db_commits_total": "counter",
    "db_connections": "gauge",
    "report_rows_total": "counter",
}
"""Every metric of the demo and its type, in the order in which it is shown."""

HELP = {
    "container_cpu_usage_seconds_total": "CPU time used by the container.",
    "container_memory_working_set_bytes": "Memory that the container cannot give back.",
    "http_requests_total": "Answered requests by status code.",
    "queue_depth": "Requests that wait for a worker.",
    "db_commits_total": "Committed transactions.",
    "db_connections": "Open client connections.",
    "report_rows_total": "Rows written to the report.",
}


class Sample(NamedTuple):
    """One series' value at the time that was asked for."""

    name: str
    labels: Labels
    value: float


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod with one process; the process's counters count from *started_ms*."""

    namespace: str
    service: str
    name: str
    started_ms: int


def samples_at(time_ms: int) -> Iterator[Sample]:
    """Yield what a scrape of all pods at *time_ms* shows; a series never twice."""
    for pod in pods_at(time_ms):
        labels = (("namespace", pod.namespace), ("pod", pod.name), ("container", pod.service))
        for name, more_labels, value in _CONTAINERS[pod.service](pod, time_ms):
            yield Sample(name, labels + more_labels, value)


def pods_at(time_ms: int) -> Iterator[Pod]:
    """Yield the pods that run at *time_ms*."""
    for replica in _REPLICAS:
        slot, age_ms = divmod(time_ms - replica.phase_ms, replica.every_ms)
        started_ms = time_ms - age_ms
        if age_ms < (replica.runs_ms or replica.every_ms):
            yield Pod(replica.namespace, replica.service, replica.pod_name(slot, started_ms), started_ms)


def is_sick(pod_name: str, time_ms: int) -> bool:
    """Tell whether a pod is ill at a time, which a model should find."""
    return pod_name == SICK_POD and time_ms % SICK_EVERY_MS < SICK_FOR_MS


def series_text(name: str, labels: Labels) -> str:
    """Write a series as the exposition formats do: ``name{label="value"}``."""
    # No label value here has a quote, a backslash or a line break: nothing to escape.
    pairs = ",".join(f'{key}="{value}"' for key, value in labels)
    return f"{name}{{{pairs}}}"


def value_text(value: float) -> str:
    """Write a value so that reading it gives the same double."""
    return str(int(value)) if value == int(value) else repr(value)


@dataclass(frozen=True, slots=True)
class _Replica:
    """One place of a workload, and when its process begins anew: at *phase_ms* and then every *every_ms*.

    The starts are periodic because a function of time has no memory of one start.
    """

    namespace: str
    service: str
    pod_name: Callable[[int, int], str]
    """From the number of the start and its time."""
    every_ms: int
    phase_ms: int
    runs_ms: int = 0
    """How long each process runs; 0: until the next starts."""


def _fixed(name: str) -> Callable[[int, int], str]:
    return lambda _slot, _started_ms: name


def _replaced(prefix: str) -> Callable[[int, int], str]:
    return lambda slot, _started_ms: f"{prefix}-{_suffix(prefix, slot)}"


def _scheduled(prefix: str) -> Callable[[int, int], str]:
    # A CronJob names its Jobs by the scheduled minute since the epoch.
    return lambda slot, started_ms: f"{prefix}-{started_ms // MINUTE_MS}-{_suffix(prefix, slot)}"


def _suffix(seed: str, slot: int) -> str:
    """Return five characters of the alphabet that Kubernetes names pods with."""
    alphabet = "bcdfghjklmnpqrstvwxz2456789"
    number = zlib.crc32(f"{seed}/{slot}".encode())
    return "".join(alphabet[number // len(alphabet) ** i % len(alphabet)] for i in range(5))


LEAKING_POD = "checkout-7c9f8b6d5-x2x4z"
"""Its memory grows until the container is killed and starts again: a counter reset in the same pod."""

_LEAK_LIFE_MS = 3 * HOUR_MS

SICK_POD = "cart-5d8c7b9f4-z9m2c"
"""Falls ill every 20 minutes, for three: requests pile up in its queue. Its sisters stay well."""

SICK_EVERY_MS, SICK_FOR_MS = 20 * MINUTE_MS, 3 * MINUTE_MS

# Any six hours hold a restart of the leaking pod, a cart pod that is replaced by another, and six reports.
_REPLICAS = (
    _Replica("shop", "checkout", _fixed(LEAKING_POD), _LEAK_LIFE_MS, 50 * MINUTE_MS),
    _Replica("shop", "checkout", _fixed("checkout-7c9f8b6d5-8vx7t"), 7 * DAY_MS, 9 * HOUR_MS),
    _Replica("shop", "checkout", _fixed("checkout-7c9f8b6d5-kq5bn"), 7 * DAY_MS, 9 * HOUR_MS + 40 * SECOND_MS),
    _Replica("shop", "cart", _fixed("cart-5d8c7b9f4-lw6rp"), 7 * DAY_MS, 33 * HOUR_MS),
    _Replica("shop", "cart", _fixed("cart-5d8c7b9f4-z9m2c"), 7 * DAY_MS, 33 * HOUR_MS + 25 * SECOND_MS),
    _Replica("shop", "cart", _replaced("cart-5d8c7b9f4"), 4 * HOUR_MS, 95 * MINUTE_MS),
    _Replica("backend", "orders-db", _fixed("orders-db-0"), 28 * DAY_MS, 58 * HOUR_MS),
    _Replica("backend", "orders-db", _fixed("orders-db-1"), 28 * DAY_MS, 58 * HOUR_MS + 3 * MINUTE_MS),
    _Replica("backend", "orders-db", _fixed("orders-db-2"), 28 * DAY_MS, 58 * HOUR_MS + 6 * MINUTE_MS),
    _Replica("backend", "stock-report", _scheduled("stock-report"), HOUR_MS, 0, runs_ms=12 * MINUTE_MS),
)

PROCESS_STARTS_EVERY_MS = {replica.service: replica.every_ms for replica in _REPLICAS if replica.runs_ms}
"""Of the services that do not run all the time: how often they start."""


# --- the curves ---

_DAY_WAVE = (0.45, DAY_MS, 0.375)
"""Share of the mean, period, and phase as a share of the period: the peak is at 15:00 UTC."""

_SHORT_WAVES = ((0.18, 47 * MINUTE_MS), (0.14, 11 * MINUTE_MS), (0.09, 130 * SECOND_MS), (0.06, 37 * SECOND_MS))
"""The periods have no common divisor worth noticing, so that the sum does not look like a sine."""


@dataclass(frozen=True, slots=True)
class _Load:
    """Work that arrives at a changing rate, never below zero: the waves' shares add up to less than one."""

    waves: tuple[tuple[float, int, float], ...]

    @classmethod
    def of(cls, pod: Pod) -> _Load:
        """Return a pod's load: all follow the day, each wavers in its own way."""
        own = ((share, period, _uniform(f"{pod.name}/{period}", 0)) for share, period in _SHORT_WAVES)
        return cls((_DAY_WAVE, *own))

    def at(self, time_ms: int) -> float:
        """Return the rate as a share of its mean: 1.0 on average."""
        return 1 + sum(share * -math.cos(_turn(time_ms, period, phase)) for share, period, phase in self.waves)

    def between(self, start_ms: int, end_ms: int) -> float:
        """Return the work that arrived in between, in mean seconds: the integral of ``at``."""
        return (end_ms - start_ms) / SECOND_MS + sum(
            share
            * period
            / (2 * math.pi * SECOND_MS)
            * (math.sin(_turn(start_ms, period, phase)) - math.sin(_turn(end_ms, period, phase)))
            for share, period, phase in self.waves
        )


def _turn(time_ms: int, period_ms: int, phase: float) -> float:
    # Reduced before it becomes a float: a sine of 1e9 turns has lost half of its digits.
    return 2 * math.pi * (time_ms % period_ms / period_ms - phase + 0.25)


def _uniform(seed: str, tick: int) -> float:
    """Return a number in [0, 1) that looks random and is the same on every machine."""
    # hash() is salted anew in every process; history and exporter are two.
    return zlib.crc32(f"{seed}/{tick}".encode()) / 2**32


def _noise(pod: Pod, metric: str, time_ms: int) -> float:
    """Return a number in [-1, 1) that changes every second."""
    return 2 * _uniform(f"{pod.name}/{metric}", time_ms // SECOND_MS) - 1


def _pages(size_bytes: float) -> float:
    return float(int(size_bytes) // 4096 * 4096)


# --- what each container shows ---

_Shown = Iterator[tuple[str, Labels, float]]


def _web_server(requests_per_s: float, cpu_s_per_request: float, memory_bytes: float) -> Callable[[Pod, int], _Shown]:
    def shown(pod: Pod, time_ms: int) -> _Shown:
        load = _Load.of(pod)
        now, work = load.at(time_ms), requests_per_s * load.between(pod.started_ms, time_ms)
        uptime_s = (time_ms - pod.started_ms) / SECOND_MS
        leak_bytes = 290e6 * uptime_s * SECOND_MS / _LEAK_LIFE_MS if pod.name == LEAKING_POD else 0.0
        memory = memory_bytes * (0.9 + 0.1 * now + 0.004 * _noise(pod, "memory", time_ms)) + leak_bytes
        yield "container_cpu_usage_seconds_total", (), round(0.02 * uptime_s + cpu_s_per_request * work, 3)
        yield "container_memory_working_set_bytes", (), _pages(memory)
        for code, share in (("200", 0.981), ("404", 0.016), ("500", 0.003)):
            yield "http_requests_total", (("code", code),), float(math.floor(share * work))
        waiting = 60 if is_sick(pod.name, time_ms) else 0
        # Mostly above zero: of a queue that is mostly empty, any three requests would be an anomaly.
        yield "queue_depth", (), float(max(0, waiting + round(3 + 2 * now**2 + 4 * _noise(pod, "queue", time_ms))))

    return shown


def _database(pod: Pod, time_ms: int) -> _Shown:
    load = _Load.of(pod)
    # The first of a StatefulSet is the primary here: it commits, the others follow.
    commits_per_s, connections = (64.0, 38) if pod.name.endswith("-0") else (21.0, 12)
    now, work = load.at(time_ms), commits_per_s * load.between(pod.started_ms, time_ms)
    uptime_s = (time_ms - pod.started_ms) / SECOND_MS
    memory = 1.9e9 + 60e6 * now + 2e6 * _noise(pod, "memory", time_ms)
    clients = connections * (0.6 + 0.4 * now) + 1.5 * _noise(pod, "connections", time_ms)
    yield "container_cpu_usage_seconds_total", (), round(0.05 * uptime_s + 0.0061 * work, 3)
    yield "container_memory_working_set_bytes", (), _pages(memory)
    yield "db_commits_total", (), float(math.floor(work))
    yield "db_connections", (), float(round(clients))


def _report(pod: Pod, time_ms: int) -> _Shown:
    load = _Load.of(pod)
    uptime_s = (time_ms - pod.started_ms) / SECOND_MS
    work = load.between(pod.started_ms, time_ms)
    memory = 48e6 + 120e6 * (1 - math.exp(-uptime_s / 150)) + 1.5e6 * _noise(pod, "memory", time_ms)
    yield "container_cpu_usage_seconds_total", (), round(0.1 * uptime_s + 0.72 * work, 3)
    yield "container_memory_working_set_bytes", (), _pages(memory)
    yield "report_rows_total", (), float(math.floor(410 * work))


_CONTAINERS: dict[str, Callable[[Pod, int], _Shown]] = {
    "checkout": _web_server(requests_per_s=42.0, cpu_s_per_request=0.0078, memory_bytes=212e6),
    "cart": _web_server(requests_per_s=88.0, cpu_s_per_request=0.0031, memory_bytes=136e6),
    "orders-db": _database,
    "stock-report": _report,
}
