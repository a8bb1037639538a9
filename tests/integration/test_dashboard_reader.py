"""What the dashboard reads from a real Kafka is what stands there: what was before, and what comes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

import numpy as np
import orjson
import pytest
from commands import PATIENCE_S
from confluent_kafka import Producer
from confluent_kafka.admin import NewTopic

from ingestor.core.durations import ChunkSize
from ingestor.core.topics import Topics, message_key
from ingestor.kafka import client_config, connect, ensure_topics
from ingestor.local.kafka import LocalKafka
from stream_app.dashboard.board import Board
from stream_app.dashboard.reader import Reader
from stream_app.dashboard.store import MOST_WINDOWS, columns, spelled
from stream_app.view import View

MINUTE_MS = 60_000
PARTITIONS = 3
PODS = 30


def minutes_ago(count: int) -> int:
    """Return when a window starts; what is written is never older than its window."""
    return (time.time_ns() // 1_000_000 // MINUTE_MS - count) * MINUTE_MS


def record(pod: int, start_ms: int, value: float) -> bytes:
    who = {"namespace": "shop", "pod": f"web-{pod}", "service": f"web{pod % 7}"}
    when = {"window_start": start_ms, "window_end": start_ms + MINUTE_MS, "chunk_size": "1m"}
    how = {"method": "mean", "job": "live", "revision": 0, "partial": False, "version": 1, "samples": 4}
    return orjson.dumps(who | when | how | {"metrics": {"value": value, "window": float(start_ms)}})


@contextmanager
def transaction(kafka: LocalKafka, name: str, *, commit: bool = True) -> Iterator[Producer]:
    producer = Producer({**client_config(kafka.cluster), "transactional.id": name, "linger.ms": 20})
    producer.init_transactions(30)
    producer.begin_transaction()
    yield producer
    if commit:
        producer.commit_transaction(30)
    else:
        producer.flush(30)
        producer.abort_transaction(30)


def write(kafka: LocalKafka, topic: str, starts_ms: list[int], *, commit: bool = True) -> None:
    """Write a record a pod and window, of which the value tells pod and window; what is aborted has another."""
    with transaction(kafka, topic, commit=commit) as producer:
        for start_ms in starts_ms:
            for pod in range(PODS):
                value = pod + start_ms / MINUTE_MS if commit else -1.0
                producer.produce(
                    topic, record(pod, start_ms, value), message_key("shop", f"web-{pod}"), pod % PARTITIONS
                )


class Watched:
    """A board that is filled."""

    def __init__(self, kafka: LocalKafka, prefix: str) -> None:
        self.view = View(ChunkSize.parse("1m"), "mean", topics=Topics(prefix))
        ensure_topics(connect(kafka.cluster), self.view.topics, PARTITIONS)
        self.board = Board(self.view)
        self._wanted = threading.Event()
        self._wanted.set()
        self._reader = Reader(kafka.cluster, self.board, self._wanted.is_set)
        self._thread = threading.Thread(target=self._reader.run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._wanted.clear()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def wait_until(self, said: Callable[[Board], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with self.board.lock:
                if said(self.board):
                    return
            assert time.monotonic() < deadline, self.board.reading
            time.sleep(0.05)

    def is_read(self) -> bool:
        """Tell whether all that was before is read."""
        reading = self.board.reading
        return reading.is_live and reading.done >= reading.wanted

    def values(self, pod: int) -> dict[int, float | str | None]:
        """Return a pod's values by the windows' starts."""
        with self.board.lock:
            axis = self.board.pods.axis(MOST_WINDOWS)
            found = self.board.pods.pod("shop", f"web-{pod}")
            assert found is not None
            return dict(zip(axis.tolist(), spelled(columns(found, ["value"], axis)[0]), strict=True))


@pytest.fixture
def now_ms() -> int:
    return minutes_ago(1)


def expected(starts_ms: list[int], pod: int) -> dict[int, float]:
    return {start_ms: pod + start_ms / MINUTE_MS for start_ms in sorted(starts_ms)[-MOST_WINDOWS:]}


def test_what_was_before_and_what_comes(kafka: LocalKafka, now_ms: int) -> None:
    """Hours that were written before are read, the newest first, without what was aborted; then what comes, once."""
    with_past = Watched(kafka, "dash-past")
    topic = with_past.view.topics.pods
    starts_ms = [now_ms - back * MINUTE_MS for back in range(3 * MOST_WINDOWS, 1, -1)]
    third = len(starts_ms) // 3
    write(kafka, topic, starts_ms[:third])
    write(kafka, topic, starts_ms[third:], commit=False)
    write(kafka, topic, starts_ms[third:])
    with with_past as watched:
        watched.wait_until(lambda _: watched.is_read())
        for pod in range(PODS):
            assert watched.values(pod) == expected(starts_ms, pod)
        assert watched.board.newest_end_ms == dict.fromkeys(range(PARTITIONS), starts_ms[-1] + MINUTE_MS)
        write(kafka, topic, [now_ms], commit=False)
        write(kafka, topic, [now_ms - MINUTE_MS, now_ms])
        watched.wait_until(lambda board: board.pods.newest_ms == now_ms and len(set(board.newest_end_ms.values())) == 1)
        starts_ms += [now_ms - MINUTE_MS, now_ms]
        watched.wait_until(lambda board: board.newest_end_ms == dict.fromkeys(range(PARTITIONS), now_ms + MINUTE_MS))
        for pod in range(PODS):
            assert watched.values(pod) == expected(starts_ms, pod)


def test_a_history_that_was_written_just_now(kafka: LocalKafka) -> None:
    """Of a backfill that ends weeks ago the last two hours are shown, though all of it was written today."""
    with Watched(kafka, "dash-backfill") as watched:
        last_ms = minutes_ago(30 * 24 * 60)
        starts_ms = [last_ms - back * MINUTE_MS for back in range(2 * MOST_WINDOWS, -1, -1)]
        write(kafka, watched.view.topics.pods, starts_ms)
        watched.wait_until(lambda board: board.newest_end_ms == dict.fromkeys(range(PARTITIONS), last_ms + MINUTE_MS))
        for pod in range(PODS):
            assert watched.values(pod) == expected(starts_ms, pod)


def test_positions_letters_and_what_comes_later(kafka: LocalKafka, now_ms: int) -> None:
    """Positions are read from the beginning, of dead letters the last ones; anomalies once their topic comes."""
    with Watched(kafka, "dash-rest") as watched:
        topics = watched.view.topics
        position = {"job": "live", "start_ms": now_ms, "end_ms": None, "position_ms": now_ms + 1, "sequences": [1]}
        with transaction(kafka, "dash-rest") as producer:
            producer.produce(topics.positions, orjson.dumps(position), b"live", 0)
            producer.produce(topics.dead_letters, b"junk", b"k", 1, headers=[("dead-letter.error", b"why")])
        watched.wait_until(lambda board: board.jobs and board.letters)
        assert watched.board.jobs["live"]["position_ms"] == now_ms + 1
        assert watched.board.letters[0].error == "why"
        assert not watched.board.has_anomaly_topic
        anomalies = f"{topics.prefix}.anomalies"
        connect(kafka.cluster).create_topics([NewTopic(anomalies, 1, 1)])[anomalies].result()
        watched.wait_until(lambda board: board.has_anomaly_topic)


def test_a_topic_that_is_made_anew(kafka: LocalKafka, now_ms: int) -> None:
    """What stood on the old topic is forgotten: it is read anew, and the page says why for as long as it cannot be."""
    with Watched(kafka, "dash-anew") as watched:
        topic = watched.view.topics.pods
        write(kafka, topic, [now_ms - MINUTE_MS])
        watched.wait_until(lambda board: len(board.pods) == PODS)
        admin = connect(kafka.cluster)
        admin.delete_topics([topic])[topic].result()
        watched.wait_until(lambda board: topic in board.reading.problem)
        ensure_topics(admin, watched.view.topics, PARTITIONS)
        write(kafka, topic, [now_ms])
        watched.wait_until(lambda board: not board.reading.problem and board.newest_end_ms)
        watched.wait_until(lambda board: len(board.newest_end_ms) == PARTITIONS)
        assert np.isnan([watched.values(0).get(now_ms - MINUTE_MS) or np.nan]).all()
        assert watched.values(0)[now_ms] == now_ms / MINUTE_MS
