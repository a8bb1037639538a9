"""The live part: a Prometheus that scrapes, a poller and a worker beside it, and how long their results take."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import click
import cluster
import numpy as np
import orjson
import requests
from check import WrongError, is_close
from confluent_kafka import Consumer, TopicPartition
from pipeline import HERE, Place, python, topics_made, wait_for_line
from processes import cpu_s, usage

from ingestor.core.topics import Topics
from ingestor.kafka import assigned_consumer
from ingestor.local.processes import Child, free_port
from ingestor.local.prometheus import LocalPrometheus

SETTLE_S, POLL_S = 30, 15
INTERVAL_S = 15
_TARGETS = 10
_NAMES = count()
_TIMEOUT_S = 400.0


@dataclass(frozen=True, slots=True)
class Live:
    """What a live pipeline took."""

    series: int
    minutes: int
    core: float
    """Of one core, poller and worker together, on average."""
    late_s: float
    """The latest record, seen by a reader, behind its window's end."""
    peak_bytes: int
    """Poller and worker together."""

    @property
    def overhead_s(self) -> float:
        """What is not waited for on purpose."""
        return self.late_s - SETTLE_S - POLL_S


@dataclass(slots=True)
class _Records:
    """Reads the pods' topic, and when each window was whole."""

    consumer: Consumer
    pods: int
    seen: dict[int, dict[str, dict[str, float]]]
    late_s: dict[int, float]

    def wait_for(self, windows: int, *watched: Child) -> list[int]:
        """Return the first windows of which all pods' whole records have come."""
        deadline = time.monotonic() + _TIMEOUT_S
        while len(whole := sorted(w for w, pods in self.seen.items() if len(pods) == self.pods)) < windows:
            for child in watched:
                if child.poll() is not None:
                    raise click.ClickException(child.log_tail())
            if time.monotonic() > deadline:
                raise click.ClickException(f"{len(whole)} of {windows} windows are whole")
            self._read()
        return whole

    def _read(self) -> None:
        messages = self.consumer.consume(1000, 0.1)
        now_s = time.time()
        for message in messages:
            if message.error() is not None:
                continue
            record = orjson.loads(message.value())
            if record["partial"]:
                continue
            window = record["window_start"]
            if record["pod"] in self.seen.setdefault(window, {}):
                raise WrongError(f"{record['pod']} at {window} came twice")
            self.seen[window][record["pod"]] = record["metrics"]
            self.late_s[window] = max(self.late_s.get(window, 0.0), now_s - record["window_end"] / 1000)


def measure_live(place: Place, series: int, minutes: int) -> Live:
    """Let a pipeline run for some minutes from its first whole window on, and check its results.

    Raises:
        WrongError: a cell is not what Prometheus' own samples give.
    """
    pods = series // (cluster.SERIES // cluster.PODS)
    topics = Topics(f"bench-live-{next(_NAMES)}")
    folder = place.folder / topics.prefix
    folder.mkdir()
    with ExitStack() as stack:
        prometheus = stack.enter_context(_scraping(folder, pods))
        stack.enter_context(topics_made(place.kafka, topics))
        where = ["--bootstrap-servers", place.kafka.bootstrap_servers, "--topic-prefix", topics.prefix]
        view = ["--chunk-size", "1m", "--method", "mean", "--slot", "0", "--web-listen-address", "none"]
        worker = stack.enter_context(python(["-m", "stream_app", "worker", *where, *view], folder / "worker.log"))
        wait_for_line(worker, "worker is ready")
        times = ["--settle", f"{SETTLE_S}s", "--poll-interval", f"{POLL_S}s"]
        poller = stack.enter_context(
            python(["-m", "ingestor", "run", "--url", prometheus.url, *where, *times], folder / "poller.log")
        )
        records = _Records(stack.enter_context(_reader(place, topics)), pods, {}, {})
        first = records.wait_for(1, worker, poller)[0]
        before, began = cpu_s(poller.pid) + cpu_s(worker.pid), time.monotonic()
        windows = records.wait_for(1 + minutes, worker, poller)[1:]
        after, took_s = cpu_s(poller.pid) + cpu_s(worker.pid), time.monotonic() - began
        peak = usage(poller.pid).peak_bytes + usage(worker.pid).peak_bytes
        if windows != [first + (1 + n) * cluster.MINUTE_MS for n in range(minutes)]:
            raise WrongError(f"windows are missing: {[first, *windows]}")
        _check(prometheus, {window: records.seen[window] for window in windows})
    return Live(series, minutes, (after - before) / took_s, max(records.late_s[w] for w in windows), peak)


@contextmanager
def _scraping(folder: Path, pods: int) -> Iterator[LocalPrometheus]:
    port = free_port()
    scrape = {
        "job_name": "live",
        "scrape_interval": f"{INTERVAL_S}s",
        "scrape_timeout": f"{INTERVAL_S}s",
        "honor_labels": True,
    }
    jobs: list[dict[str, Any]] = [
        {
            **scrape,
            "job_name": f"live-{target}",
            "metrics_path": f"/{target}",
            "static_configs": [{"targets": [f"127.0.0.1:{port}"]}],
        }
        for target in range(_TARGETS)
    ]
    command = [sys.executable, HERE / "exporter.py", str(port), str(pods), str(_TARGETS)]
    server = LocalPrometheus(folder / "prometheus", config={"scrape_configs": jobs})
    with Child(command, log_path=folder / "exporter.log"), server:
        yield server


@contextmanager
def _reader(place: Place, topics: Topics) -> Iterator[Consumer]:
    consumer = assigned_consumer(place.kafka.cluster, topics.prefix)
    partitions = consumer.list_topics(topics.pods).topics[topics.pods].partitions
    consumer.assign([TopicPartition(topics.pods, number, 0) for number in partitions])
    try:
        yield consumer
    finally:
        consumer.close()


def _check(prometheus: LocalPrometheus, windows: dict[int, dict[str, dict[str, float]]]) -> None:
    """Compare windows with what the query API gives of each."""
    for start_ms, pods in windows.items():
        for metric in cluster.METRICS:
            # Closed on the left as on the right in Prometheus 2: a millisecond less.
            when = {"query": f"{metric}[59999ms]", "time": (start_ms + 59_999) / 1000}
            answer = requests.get(f"{prometheus.url}/api/v1/query", when, timeout=60)
            sums: dict[str, list[float]] = {}
            for series in orjson.loads(answer.content)["data"]["result"]:
                sums.setdefault(series["metric"]["pod"], []).extend(float(value) for _, value in series["values"])
            wanted = np.array([np.mean(np.array(sums[pod], np.longdouble)) for pod in pods], float)
            got = np.array([metrics[metric] for metrics in pods.values()])
            if len(sums) != len(pods) or not is_close(got, wanted).all():
                raise WrongError(f"{metric} in the window {start_ms} is not what Prometheus' samples give")
