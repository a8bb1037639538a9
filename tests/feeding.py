"""A job of a made-up cluster, published as a poller would, a transaction a range; some are aborted first."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import builders
import numpy as np
import pandas as pd
from confluent_kafka import Producer

from ingestor.core import wire
from ingestor.core.chunk import Header
from ingestor.core.time_range import TimeRange
from ingestor.core.topics import Topics
from ingestor.kafka import Cluster, client_config, connect, ensure_topics

START_MS = 1_795_435_200_000
INTERVAL_MS = 5_000
METRICS = ("container_memory_rss", "queue_depth")
SERVICES, PODS_OF_EACH = 12, 2


def samples(length_ms: int, seed: int) -> pd.DataFrame:
    """Return the samples of `oracle.windows`: 24 pods of 12 services, which lie in all partitions."""
    generator = np.random.default_rng(seed)
    stamps = np.arange(START_MS, START_MS + length_ms, INTERVAL_MS)
    frames = []
    for number in range(SERVICES * PODS_OF_EACH):
        pod = f"app{number // PODS_OF_EACH}-{number % PODS_OF_EACH}"
        for metric in METRICS:
            values = generator.normal(size=len(stamps)) * 10.0 ** generator.integers(-9, 12)
            at = stamps + int(generator.integers(INTERVAL_MS))
            frames.append(
                pd.DataFrame(
                    {"namespace": "shop", "pod": pod, "metric": metric, "series": "", "timestamp": at, "value": values}
                )
            )
    return pd.concat(frames, ignore_index=True)


@dataclass
class Feed:
    """Publishes the ranges of a job, on the way or after its end."""

    cluster: Cluster
    topics: Topics
    frame: pd.DataFrame
    ranges: Sequence[TimeRange]
    every_s: float
    aborted_share: float = 0.0
    seed: int = 0
    published: int = 0
    """Ranges so far."""
    aborted: int = 0

    def __post_init__(self) -> None:
        ensure_topics(connect(self.cluster), self.topics, builders.PARTITIONS)
        streams = builders.messages(self.frame, list(self.ranges))
        assert all(any(value for _, value in stream) for stream in streams), "a partition has no series"
        self._transactions = list(zip(*map(_by_range, streams), strict=True))
        settings = {"transactional.id": f"{self.topics.prefix}.feed", "linger.ms": 2}
        self._producer = Producer({**client_config(self.cluster), **settings})
        self._producer.init_transactions(30)
        self._generator = random.Random(self.seed)

    def run(self, stop: threading.Event) -> None:
        """Publish range after range at a steady pace, until all are out or *stop* is set; the job ends with the last.

        What is aborted has another range's samples: a worker that reads it ends, for the chunk is malformed.
        """
        due_s = time.monotonic()
        for number, messages in enumerate(self._transactions):
            if self._generator.random() < self.aborted_share:
                self._send([_spoilt(*pair) for pair in zip(messages, self._transactions[number - 1], strict=True)])
                self._producer.abort_transaction(30)
                self.aborted += 1
            self._send(messages)
            self._producer.commit_transaction(30)
            self.published += 1
            due_s += self.every_s
            if stop.wait(max(0.0, due_s - time.monotonic())):
                return

    def end(self) -> int:
        """End the job behind what is published of it; return where that is (ms)."""
        end_ms = self.ranges[self.published - 1].end_ms
        if self.published < len(self.ranges):
            whole = TimeRange(START_MS, end_ms)
            sequences = [sum(map(len, stream)) for stream in zip(*self._transactions[: self.published], strict=True)]
            self._send([[(wire.headers("end", Header("job", whole, number, "test")), b"")] for number in sequences])
            self._producer.commit_transaction(30)
        return end_ms

    def _send(self, messages: Sequence[Sequence[tuple]]) -> None:
        self._producer.begin_transaction()
        for partition, mine in enumerate(messages):
            for headers, value in mine:
                self._producer.produce(self.topics.range_chunks, value, None, partition, headers=list(headers))
        self._producer.flush(30)


def ranges(length_ms: int, range_ms: int) -> list[TimeRange]:
    """Return the adjoining ranges from `START_MS` on."""
    end_ms = START_MS + length_ms
    return [TimeRange(start_ms, start_ms + range_ms) for start_ms in range(START_MS, end_ms, range_ms)]


def _spoilt(stream: list[tuple], other: list[tuple]) -> list[tuple]:
    return [(headers, value and wrong) for (headers, value), (_, wrong) in zip(stream, other, strict=False)]


def _by_range(stream: list[tuple]) -> list[list[tuple]]:
    """Cut a partition's stream behind its markers; the job's end goes with the last range."""
    cut: list[list[tuple]] = [[]]
    for message in stream:
        kind = dict(message[0])["kind"]
        if kind == b"end":
            cut[-2].append(message)
            continue
        cut[-1].append(message)
        if kind == b"marker":
            cut.append([])
    return cut[:-1]
