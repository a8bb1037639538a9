"""The benchmark's cluster, made from a seed: what Prometheus is given, and what must come out at the other end.

200 pods of 40 services with 20 metrics in 5,000 series, a sample every 15 s, 6 hours: 7.2 million samples.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ingestor.local.cache import cache_folder, filled_once
from ingestor.local.prometheus import create_blocks

Matrix = npt.NDArray[np.float64]

START_MS = 1_795_392_000_000
MINUTE_MS, INTERVAL_MS = 60_000, 15_000
MINUTES = 360
"""Of a block: a longer history is made, and checked, block by block."""
SERVICES, PODS_OF_EACH = 40, 5
PODS = SERVICES * PODS_OF_EACH

_EDITION = 1
"""Another one where what is made changes: the old history is then not taken from the cache."""
_SUFFIX_LETTERS = list("bcdfghjklmnpqrstvwxz2456789")
_GAUGES = (
    *("container_file_descriptors", "container_memory_cache", "container_memory_rss"),
    *("container_memory_working_set_bytes", "container_processes", "container_sockets", "container_threads"),
    *("jvm_heap_used_bytes", "kube_pod_status_ready", "queue_depth"),
)
_COUNTERS = (
    *("container_cpu_system_seconds_total", "container_cpu_usage_seconds_total", "container_cpu_user_seconds_total"),
    *("container_fs_reads_total", "container_fs_writes_total", "container_network_receive_bytes_total"),
    *("container_network_transmit_bytes_total", "gc_pause_seconds_total", "http_request_errors_total"),
    "http_requests_total",
)
METRICS = tuple(sorted(_GAUGES + _COUNTERS))
_SPLIT = {
    "container_network_receive_bytes_total": ("interface", ("eth0", "lo")),
    "container_network_transmit_bytes_total": ("interface", ("eth0", "lo")),
    "http_requests_total": ("code", ("200", "301", "404", "500")),
}
SERIES = PODS * (len(METRICS) + 2 * 1 + 3)


@dataclass(frozen=True, slots=True)
class Length:
    """How much of it there is."""

    minutes: int

    @classmethod
    def of_scale(cls, scale: float) -> Length:
        """Return the length that is *scale* times 6 hours, in whole minutes."""
        return cls(max(1, round(MINUTES * scale)))

    @property
    def end_ms(self) -> int:
        return START_MS + self.minutes * MINUTE_MS

    @property
    def samples(self) -> int:
        return SERIES * self.minutes * (MINUTE_MS // INTERVAL_MS)

    @property
    def records(self) -> int:
        """What one-minute windows of all pods make."""
        return PODS * self.minutes

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Yield each block's number and minutes."""
        for number, first in enumerate(range(0, self.minutes, MINUTES)):
            yield number, min(MINUTES, self.minutes - first)


@dataclass(frozen=True, slots=True)
class Series:
    """All samples of one metric in one block."""

    metric: str
    labels: list[str]
    """Of the series beside namespace, pod and so on, as text in braces; "" where there is one series a pod."""
    timestamps_ms: npt.NDArray[np.int64]
    """Shape (pods, samples): a pod's series are scraped together."""
    values: Matrix
    """Shape (pods, series of each, samples)."""


def pods() -> list[str]:
    """Return the names of all pods, those of one service together."""
    generator = np.random.default_rng(7)

    def suffix(length: int) -> str:
        return "".join(generator.choice(_SUFFIX_LETTERS, length))

    return [
        f"svc-{service:02d}-{replica_set}-{suffix(5)}"
        for service in range(SERVICES)
        for replica_set in (suffix(10),)
        for _ in range(PODS_OF_EACH)
    ]


def block(number: int, minutes: int) -> Iterator[Series]:
    """Yield the metrics of a block's first minutes; each minute has four samples of each series."""
    phases_ms = np.random.default_rng(11).integers(0, INTERVAL_MS, PODS)
    first_ms = START_MS + number * MINUTES * MINUTE_MS
    grid_ms = first_ms + np.arange(minutes * (MINUTE_MS // INTERVAL_MS)) * INTERVAL_MS
    timestamps_ms = grid_ms[np.newaxis] + phases_ms[:, np.newaxis]
    for index, metric in enumerate(METRICS):
        name, own = _SPLIT.get(metric, ("", ("",)))
        labels = [f'{name}="{value}"' if value else "" for value in own]
        generator = np.random.default_rng([number, index])
        shape = (PODS, len(own), MINUTES * (MINUTE_MS // INTERVAL_MS))
        # Counters go on where the block before may have been at most.
        values = _values(metric, generator, shape)[:, :, : len(grid_ms)] + (
            number * 1e9 if metric in _COUNTERS else 0.0
        )
        yield Series(metric, labels, timestamps_ms, values)


def _values(metric: str, generator: np.random.Generator, shape: tuple[int, int, int]) -> Matrix:
    if metric in _COUNTERS and "seconds" in metric:
        return np.cumsum(generator.gamma(2.0, 3.0, shape), axis=-1)
    if metric in _COUNTERS:
        return np.cumsum(generator.integers(0, 20_000 if "bytes" in metric else 50, shape), axis=-1).astype(float)
    if "bytes" in metric or "memory" in metric:
        pages = generator.integers(1, 1000, (*shape[:2], 1)) + np.cumsum(generator.integers(-40, 41, shape), axis=-1)
        return pages.clip(0) * 4096.0
    return generator.integers(0, 60, shape).astype(float)


def expected(number: int, minutes: int, method: str) -> Matrix:
    """Return every cell of a block, shape (pods, minutes, metrics): numpy on the samples, and none of our code."""
    reduce: Callable[..., Matrix] = {"mean": _mean, "median": np.median}[method]
    cells = np.empty((PODS, minutes, len(METRICS)))
    for index, series in enumerate(block(number, minutes)):
        by_minute = series.values.reshape(PODS, len(series.labels), minutes, -1).transpose(0, 2, 1, 3)
        cells[:, :, index] = reduce(by_minute.reshape(PODS, minutes, -1), axis=-1)
    return cells


def _mean(values: Matrix, axis: int) -> Matrix:
    return values.astype(np.longdouble).mean(axis=axis).astype(float)


def data_folder(length: Length) -> Path:
    """Return Prometheus' data with the history; made once, then out of the cache."""

    def fill(folder: Path) -> None:
        for number, minutes in length.blocks():
            text = folder.with_name(f"block-{number}.om")
            _write_openmetrics(number, minutes, text)
            create_blocks(text, folder)
            text.unlink()

    return filled_once(_cached(length), fill)


def is_made(length: Length) -> bool:
    """Tell whether the history is in the cache."""
    return _cached(length).is_dir()


def _cached(length: Length) -> Path:
    return cache_folder() / f"benchmark-{_EDITION}-{length.minutes}m"


def lend(data: Path, to: Path) -> None:
    """Give a server the blocks of the cache: hard links, so that what it writes is its own."""
    for path in data.glob("**/*"):
        target = to / path.relative_to(data)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, target)
            except OSError:
                # Another file system.
                target.write_bytes(path.read_bytes())


def _write_openmetrics(number: int, minutes: int, path: Path) -> None:
    names = pods()
    targets = [
        f'container="app",instance="10.0.{i // PODS_OF_EACH}.{i % PODS_OF_EACH}:9100",job="kubelet",'
        f'namespace="prod",node="node-{i % 7}",pod="{name}"'
        for i, name in enumerate(names)
    ]
    stamps: list[list[str]] = []
    with path.open("w") as file:
        for series in block(number, minutes):
            stamps = stamps or [[f"{t / 1000:.3f}\n" for t in row] for row in series.timestamps_ms.tolist()]
            is_counter = series.metric in _COUNTERS
            family, kind = (series.metric.removesuffix("_total"), "counter") if is_counter else (series.metric, "gauge")
            file.write(f"# TYPE {family} {kind}\n")
            for target, times, of_pod in zip(targets, stamps, series.values, strict=True):
                for own, values in zip(series.labels, of_pod, strict=True):
                    head = f"{series.metric}{{{','.join(filter(None, (target, own)))}}} "
                    file.write("".join([f"{head}{v!r} {t}" for v, t in zip(values.tolist(), times, strict=True)]))
        file.write("# EOF\n")
