"""A small exporter, run as a program: ``python exporter.py PORT COMES_AFTER_S GOES_AFTER_S``.

It speaks of many pods, as kube-state-metrics does. So many seconds after the first scrape one pod comes, another goes.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

COMES, GOES = "web-7d9f8b6c5-8vx7t", "web-7d9f8b6c5-k8v2d"
LASTING = [
    *[("shop", f"cart-5c689d88bb-{first}{second}w9z") for first in "bcdfgh" for second in "24"],
    *[("data", f"postgres-{ordinal}") for ordinal in range(8)],
    *[("tools", f"agent-{letter}2k4x") for letter in "bcdfghjk"],
    ("tools", "lonely"),
]


class Pods(Collector):
    """Makes new values at each scrape."""

    def __init__(self, comes_after_s: float, goes_after_s: float) -> None:
        self._comes_after_s, self._goes_after_s = comes_after_s, goes_after_s
        self._began_s: float | None = None
        self._random = random.Random(1)
        self._totals: dict[tuple[str, str, str], float] = {}

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily("app_requests", "Requests served.", labels=["namespace", "pod", "code"])
        queue = GaugeMetricFamily("app_queue_depth", "Requests that wait.", labels=["namespace", "pod"])
        ratio = GaugeMetricFamily("app_hit_ratio", "NaN while nothing was asked.", labels=["namespace", "pod"])
        for namespace, pod in self._pods():
            for code in ("200", "500"):
                key = namespace, pod, code
                self._totals[key] = self._totals.get(key, 0.0) + self._random.random() * 1e3
                requests.add_metric(key, self._totals[key])
            queue.add_metric((namespace, pod), float(self._random.randrange(40)))
            idle = pod == "lonely" and self._random.random() < 0.2
            ratio.add_metric((namespace, pod), float("nan") if idle else self._random.random())
        return iter((requests, queue, ratio))

    def _pods(self) -> list[tuple[str, str]]:
        now_s = time.monotonic()
        self._began_s = now_s if self._began_s is None else self._began_s
        age_s = now_s - self._began_s
        coming = [("shop", COMES)] if age_s >= self._comes_after_s else []
        going = [("shop", GOES)] if age_s < self._goes_after_s else []
        return LASTING + coming + going


if __name__ == "__main__":
    registry = CollectorRegistry()
    registry.register(Pods(float(sys.argv[2]), float(sys.argv[3])))
    start_http_server(int(sys.argv[1]), "127.0.0.1", registry)
    threading.Event().wait()
