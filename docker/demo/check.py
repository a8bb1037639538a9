"""Compares what came out of the pipeline with what Prometheus itself answers."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import orjson
import requests
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition
from tables import Table

from ingestor.core.durations import ChunkSize
from ingestor.core.time_range import iso
from ingestor.core.topics import Topics
from ingestor.kafka import Cluster, connect, consumer_to_end, is_end, partition_counts
from stream_app.records import decode_record

_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Cell:
    """One number in a file, and where it is."""

    path: str
    namespace: str
    pod: str
    metric: str
    start_ms: int
    text: str


@dataclass(frozen=True, slots=True)
class Difference:
    """A cell that is not what Prometheus' samples make."""

    cell: Cell
    expected: float

    def __str__(self) -> str:
        cell = self.cell
        return (
            f"{cell.path}: {cell.metric} of {cell.pod} at {iso(cell.start_ms)} is {cell.text}, "
            f"Prometheus' samples make {self.expected!r}"
        )


@dataclass(frozen=True, slots=True)
class Published:
    """What went through Kafka."""

    samples: int
    records: int
    history_samples: int
    history_s: float
    """From the first message with samples of the history to the last record of them."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What an ML service said of pods' windows."""

    last_ms: int = 0
    """Start of the latest window."""
    ill: frozenset[tuple[str, int]] = frozenset()
    """Who was found ill, and the starts of the windows in which."""
    times: int = 0
    """How often one fell ill."""

    def pods(self, until_ms: int) -> frozenset[str]:
        """Return who was found ill in windows that start before *until_ms*."""
        return frozenset(pod for pod, start_ms in self.ill if start_ms < until_ms)


class DoubledError(Exception):
    """Something that must be there once is there twice."""


class Prometheus:
    """The answers of the server under test's source."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session = requests.Session()
        # A proxy from the environment does not know our loopback.
        self._session.trust_env = False

    def mean(self, cell: Cell, size_ms: int) -> float:
        """Return the mean of all samples of a cell's metric and pod in its window; NaN without any."""
        name, _, own = cell.metric.partition("{")
        matchers = ",".join([f'namespace="{cell.namespace}"', f'pod="{cell.pod}"', *filter(None, [own.rstrip("}")])])
        end_ms = cell.start_ms + size_ms
        # Asked for with a millisecond to spare, trimmed here: versions differ in which ends of a range they include.
        result = self._query(f"{name}{{{matchers}}}[{size_ms}ms]", end_ms - 1)
        values = [
            float(value)
            for series in result
            for stamp_s, value in series["values"]
            if cell.start_ms <= round(stamp_s * 1000) < end_ms
        ]
        return math.fsum(values) / len(values) if values else math.nan

    def samples(self, start_ms: int, end_ms: int) -> int:
        """Return how many samples of pods lie in [start_ms, end_ms)."""
        # No sample is as old as the start: it does not matter whether the server includes it.
        length_ms, count = end_ms - start_ms, 0
        # One metric at a time: counting drops the names, and then series of two metrics look like one.
        for name in self._get("label/__name__/values", {"match[]": '{pod!=""}'}):
            for result in self._query(f'sum(count_over_time({name}{{pod!=""}}[{length_ms}ms]))', end_ms - 1):
                count += int(result["value"][1])
        return count

    def _query(self, query: str, time_ms: int) -> Any:
        return self._get("query", {"query": query, "time": f"{time_ms // 1000}.{time_ms % 1000:03d}"})["result"]

    def _get(self, path: str, parameters: dict[str, str]) -> Any:
        answer = self._session.get(f"{self._url}/api/v1/{path}", params=parameters, timeout=_TIMEOUT_S)
        answer.raise_for_status()
        return answer.json()["data"]


def random_cells(tables: Mapping[str, Table], before_ms: int, count: int, seed: int) -> list[Cell]:
    """Return *count* cells at random, of windows that start before a time.

    Args:
        tables: by file, ``namespace/service.csv``.
        before_ms: the time.
        count: fewer come where the files have fewer rows.
        seed: the same one chooses the same cells of the same files.
    """
    dice = random.Random(seed)  # noqa: S311 - not a secret
    places = [
        (path, start_ms, row)
        for path, table in tables.items()
        for start_ms, row in zip(table.starts_ms(), table.rows, strict=True)
        if start_ms < before_ms
    ]
    cells = []
    for path, start_ms, row in dice.sample(places, min(count, len(places))):
        column = dice.choice([i for i, text in enumerate(row) if i >= 2 and text])
        metric = tables[path].columns[column]
        cells.append(Cell(path, path.split("/")[0], row[1], metric, start_ms, row[column]))
    return cells


def differences(cells: list[Cell], prometheus: Prometheus, chunk_size: ChunkSize) -> list[Difference]:
    """Return the cells that are not the mean of Prometheus' own samples."""
    found = []
    for cell in cells:
        edges = chunk_size.edges_ms(cell.start_ms, cell.start_ms + 1)
        expected = prometheus.mean(cell, int(edges[1] - edges[0]))
        # Two correct ways to add the same numbers may differ in the last bit.
        if not math.isclose(float(cell.text), expected, rel_tol=4e-16, abs_tol=0):
            found.append(Difference(cell, expected))
    return found


def records_until(cluster: Cluster, end_ms: int, history_end_ms: int) -> Published:
    """Return what the pod records in Kafka stand for, of windows that end at or before *end_ms*.

    Args:
        cluster: where they are.
        end_ms: end of the last window that counts.
        history_end_ms: end of the last window that counts for the speed; later ones waited for time to pass.

    Raises:
        DoubledError: a pod has two records of one window.
    """
    topics = Topics()
    samples, seen, history_samples, first_ms, last_ms = 0, set(), 0, 2**62, 0
    for message in _committed_messages(cluster, (topics.range_chunks, topics.pods)):
        # Kafka's own timestamps are the times of writing.
        written_ms = message.timestamp()[1]
        if message.topic() == topics.range_chunks:
            first_ms = min(first_ms, written_ms)
            continue
        record = decode_record(message.value())
        if record.window_end_ms > end_ms:
            continue
        identity = record.namespace, record.pod, record.window_start_ms
        if identity in seen:
            raise DoubledError(f"{record.namespace}/{record.pod} has two records of {iso(record.window_start_ms)}")
        seen.add(identity)
        samples += record.samples
        if record.window_end_ms <= history_end_ms:
            history_samples += record.samples
            last_ms = max(last_ms, written_ms)
    return Published(samples, len(seen), history_samples, max(last_ms - first_ms, 1) / 1000)


def judged(cluster: Cluster) -> Judged:
    """Return what the ML service has published by now."""
    topic = f"{Topics().prefix}.anomalies"
    verdicts: dict[tuple[str, int], bool] = {}
    if topic in partition_counts(connect(cluster)):
        for message in _committed_messages(cluster, (topic,)):
            score = orjson.loads(message.value() or b"")
            # After a crash some come twice: the later one counts.
            verdicts[score["pod"], score["window_start"]] = score["anomalous"]
    in_order = sorted(verdicts.items())
    ill = frozenset(window for window, is_ill in in_order if is_ill)
    begins = sum(is_ill and not was_ill for (_, was_ill), (_, is_ill) in pairwise([(("", 0), False), *in_order]))
    return Judged(max((start_ms for _, start_ms in verdicts), default=0), ill, begins)


def _committed_messages(cluster: Cluster, topics: Iterable[str]) -> Iterator[Message]:
    """Yield what is in all partitions of *topics* now: with one consumer, for each takes a while to come and go."""
    counts = partition_counts(connect(cluster))
    open_partitions = {(topic, partition) for topic in topics for partition in range(counts[topic])}
    consumer = consumer_to_end(cluster, Topics().prefix)
    try:
        consumer.assign([TopicPartition(topic, partition, 0) for topic, partition in open_partitions])
        while open_partitions:
            message = consumer.poll(_TIMEOUT_S)
            if message is None:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT))  # noqa: SLF001 - there is no public name
            if message.error() is None:
                yield message
            elif is_end(message.error()):
                open_partitions.discard((message.topic(), message.partition()))
            else:
                raise KafkaException(message.error())
    finally:
        consumer.close()
