"""Records on a sink topic of a test's own, written in transactions as the stream app does."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from typing import Any

import orjson
from commands import PATIENCE_S
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

from ingestor.core.topics import Topics, message_key, partition_of
from ingestor.kafka import client_config, high_watermarks, list_offsets, when_settled
from ingestor.local.kafka import LocalKafka

NOON_MS = 1_795_435_200_000
MINUTE_MS = 60_000
PARTITIONS = 4


def record(minute: int, pod: str | None = "cart-0", service: str = "cart", **changed: Any) -> bytes:
    """Return a record of one minute after noon."""
    fields = {
        "namespace": "shop",
        **({} if pod is None else {"pod": pod}),
        "service": service,
        "window_start": NOON_MS + minute * MINUTE_MS,
        "window_end": NOON_MS + (minute + 1) * MINUTE_MS,
        "chunk_size": "1m",
        "method": "mean",
        "job": "live",
        "revision": 0,
        "partial": False,
        "version": 1,
        "samples": 4,
        "metrics": {"cpu": minute / 7, "memory": float(minute)},
    }
    return orjson.dumps(fields | changed)


class PodTopic:
    """The sink topics of one prefix."""

    def __init__(self, kafka: LocalKafka, partitions: int = PARTITIONS) -> None:
        self.kafka = kafka
        self.names = Topics(f"consumer-{uuid.uuid4().hex[:8]}")
        self.partitions = partitions
        # Its futures end with it.
        self.admin = AdminClient(client_config(kafka.cluster))
        self._producer = Producer({**client_config(kafka.cluster), "transactional.id": uuid.uuid4().hex})
        self._producer.init_transactions(30)
        self._plain = Producer(client_config(kafka.cluster))

    @property
    def where(self) -> dict[str, str]:
        """What a `PodConsumer` is told."""
        return {"bootstrap_servers": self.kafka.bootstrap_servers, "topic_prefix": self.names.prefix}

    def make(self) -> None:
        # Records are written at times of their own, which may be long ago.
        kept = {"retention.ms": "-1"}
        new = [NewTopic(name, self.partitions, 1, config=kept) for name in (self.names.pods, self.names.services)]
        for future in self.admin.create_topics(new).values():
            future.result()

    def delete(self) -> None:
        for future in self.admin.delete_topics([self.names.pods, self.names.services]).values():
            future.exception()

    def partition(self, service: str = "cart", namespace: str = "shop") -> int:
        return partition_of(message_key(namespace, service), self.partitions)

    def send(self, *values: bytes, commit: bool = True) -> None:
        """Write records in one transaction."""
        self._producer.begin_transaction()
        for value in values:
            self._produce(self._producer, value, *self._place(value))
        self._end(commit=commit)

    def send_at(self, written_ms: int, *values: bytes) -> None:
        """Write records as if it were then: without a transaction, whose end would have today's time."""
        for value in values:
            self._produce(self._plain, value, *self._place(value), written_ms)
        self._plain.flush(30)

    def send_bytes(self, values: Iterable[bytes | None], key: bytes = b"shop/cart-0", partition: int = 0) -> None:
        """Write what is no record."""
        self._producer.begin_transaction()
        for value in values:
            self._produce(self._producer, value, self.names.pods, key, partition)
        self._end(commit=True)

    def _place(self, value: bytes) -> tuple[str, bytes, int]:
        said = orjson.loads(value)
        namespace, pod, service = said["namespace"], said.get("pod"), said["service"]
        topic = self.names.services if pod is None else self.names.pods
        return topic, message_key(namespace, service if pod is None else pod), self.partition(service, namespace)

    def _produce(
        self, producer: Producer, value: bytes | None, topic: str, key: bytes, partition: int, written_ms: int = 0
    ) -> None:
        while True:
            try:
                producer.produce(topic, value, key, partition, timestamp=written_ms)
            except BufferError:
                producer.poll(0.1)
            else:
                return

    def _end(self, *, commit: bool) -> None:
        self._producer.flush(30)
        (self._producer.commit_transaction if commit else self._producer.abort_transaction)(30)
        wait_until_ended(self.admin, self.names, self.partitions)


def wait_until_ended(admin: AdminClient, names: Topics, partitions: int) -> None:
    """Wait until no transaction is open on the sink topics: its end is answered before it stands in the partitions."""
    places = [(topic, partition) for topic in (names.pods, names.services) for partition in range(partitions)]
    written = when_settled(lambda: high_watermarks(admin, places))
    deadline = time.monotonic() + PATIENCE_S
    while True:
        stable = when_settled(lambda: list_offsets(admin, places, OffsetSpec.latest()))
        # The end itself takes an offset.
        if all(stable[place] >= written[place] for place in places):
            return
        assert time.monotonic() < deadline
        time.sleep(0.01)
