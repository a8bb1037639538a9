"""What the metrics of both programs share: how they are described, counted and written for a Prometheus."""

from __future__ import annotations

import platform
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

import prometheus_client
from prometheus_client.core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

OTHER = "_other"

_PLAIN_TEXT = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Described:
    """A metric as its documentation has it."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    meaning: str


class Exposed:
    """Metrics on a registry of their own, with those of the process (``process_…``) beside them, on Linux."""

    def __init__(self) -> None:
        self.registry = prometheus_client.CollectorRegistry()
        prometheus_client.ProcessCollector(registry=self.registry)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics as text, and its content type.

        Args:
            accept: the header of who asks; OpenMetrics where it is named there, else Prometheus' text format.
        """
        kinds = {kind.partition(";")[0].strip().lower() for kind in accept.split(",")}
        metrics = _WithoutCreated(self.registry)
        # Not the library's own choice by Accept: it repeats to the client whatever version that made up.
        if "application/openmetrics-text" in kinds:
            text: bytes = openmetrics.generate_latest(metrics)  # type: ignore[no-untyped-call]
            return text, openmetrics.CONTENT_TYPE_LATEST
        return prometheus_client.generate_latest(metrics), _PLAIN_TEXT


class Few:
    """Keeps a label's values few: the first so many names as they are, all further ones together."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._names: set[str] = set()
        self._lock = threading.Lock()

    def name(self, name: str) -> str:
        """Return *name*, or `OTHER`; from any thread."""
        with self._lock:
            if len(self._names) < self._most:
                self._names.add(name)
            return name if name in self._names else OTHER


def counter(metric: Described, registry: prometheus_client.CollectorRegistry) -> prometheus_client.Counter:
    """Return a counter as described."""
    return prometheus_client.Counter(metric.name, metric.meaning, metric.labels, registry=registry)


def gauge(metric: Described, registry: prometheus_client.CollectorRegistry) -> prometheus_client.Gauge:
    """Return a gauge as described."""
    return prometheus_client.Gauge(metric.name, metric.meaning, metric.labels, registry=registry)


def histogram(
    metric: Described, registry: prometheus_client.CollectorRegistry, buckets: Sequence[float]
) -> prometheus_client.Histogram:
    """Return a histogram as described; *buckets* are upper bounds."""
    return prometheus_client.Histogram(metric.name, metric.meaning, metric.labels, registry=registry, buckets=buckets)


def build_info(metric: Described, registry: prometheus_client.CollectorRegistry) -> None:
    """Tell the program's version and Python's."""
    gauge(metric, registry).labels(_version(), platform.python_version()).set(1)


class _WithoutCreated(Collector):
    """A registry without the ``…_created`` samples that the library adds, which double what a scrape stores."""

    def __init__(self, registry: Collector) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


def _version() -> str:
    try:
        return metadata.version("podstream")
    except metadata.PackageNotFoundError:
        return "unknown"
