"""A running pipeline whose dashboard is looked at, and how that is read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import builders
import records
from commands import ingestor, run, stream_app, view_flags, wait_for_line, wait_until_windowed
from confluent_kafka import Producer

from ingestor.core.time_range import iso
from ingestor.kafka import client_config, connect, ensure_topics
from ingestor.local.kafka import LocalKafka
from ingestor.local.processes import Child
from ingestor.local.prometheus import LocalPrometheus
from ingestor.options import cluster_arguments
from stream_app.records import Record
from stream_app.view import View


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A worker with its pages, and who may read a Prometheus for it."""

    kafka: LocalKafka
    view: View
    url: str
    worker: Child

    def poll(self, prometheus: LocalPrometheus, start_ms: int, end_ms: int) -> None:
        """Have a poller read a stretch, and its windows written."""
        when = ["--start", iso(start_ms), "--end", iso(end_ms), "--preset", "none"]
        where = ["--topic-prefix", self.view.topics.prefix, *cluster_arguments(self.kafka.cluster)]
        run(ingestor("backfill", "--url", prometheus.url, *when, *where))
        wait_until_windowed(self.kafka, self.view, self.worker)

    def produce(self, topic: str, *messages: dict) -> None:
        """Write messages by hand."""
        producer = Producer(client_config(self.kafka.cluster))
        for message in messages:
            producer.produce(topic, **message)
        assert producer.flush(30) == 0

    def records(self) -> list[Record]:
        """Return what stands on the sink topic."""
        return records.read(self.kafka.cluster, self.view.topics.pods, builders.PARTITIONS)

    def newest(self) -> dict[tuple[str, str], Record]:
        """Return each pod's newest record."""
        return {(r.namespace, r.pod or ""): r for r in sorted(self.records(), key=lambda r: r.window_start_ms)}


@contextmanager
def worker_with_pages(kafka: LocalKafka, view: View, folder: Path) -> Iterator[Pipeline]:
    """Run a worker of a view, and its dashboard."""
    ensure_topics(connect(kafka.cluster), view.topics, builders.PARTITIONS)
    where = ["--topic-prefix", view.topics.prefix, *cluster_arguments(kafka.cluster)]
    command = stream_app("worker", "--slot", "0", "--web-listen-address", "127.0.0.1:0", *where, *view_flags(view))
    with Child(command, log_path=folder / "worker.log") as worker:
        wait_for_line(worker, "worker is ready")
        found = re.search(r"web=(http://\S+)", worker.log_path.read_text())
        assert found, worker.log_tail()
        yield Pipeline(kafka, view, found[1], worker)


def as_number(text: str | None) -> float | None:
    """Read a value as the page has it in its attributes."""
    if not text:
        return None
    return {"NaN": math.nan, "+Inf": math.inf, "-Inf": -math.inf}.get(text) or float(text)


def same(a: float | None, b: float | None) -> bool:
    return a == b or (a is not None and b is not None and math.isnan(a) and math.isnan(b))
