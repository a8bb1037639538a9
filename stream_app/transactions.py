"""Records and the input offset that they stand for, in one Kafka transaction."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from ingestor.core.errors import Fenced, PublishError
from ingestor.kafka import (
    MAX_MESSAGE_BYTES,
    Cluster,
    client_config,
    failure,
    stored_commits,
    when_settled,
)
from stream_app.encoding import MAX_RECORD_BYTES
from stream_app.pipeline import Emission

_TIMEOUT_S = 30.0
_TRANSACTION_TIMEOUT_MS = 30_000
"""A transaction has 20,000 messages at most; after a crash without --slot, readers wait for this long."""

_QUEUE_MESSAGES = 1_000_000

_LOOK_S = 3.0

_TAKEN_BYTES = 1_000_000
"""A topic takes so much by default (1,048,588), with the record's key."""

_STALE_MEMBER = {"ILLEGAL_GENERATION", "UNKNOWN_MEMBER_ID", "REBALANCE_IN_PROGRESS"}
_REPLACED = {
    "_FENCED",
    "INVALID_PRODUCER_EPOCH",
    "PRODUCER_FENCED",
    "INVALID_PRODUCER_ID_MAPPING",
    "FENCED_INSTANCE_ID",
}


class Superseded(Exception):
    """The group has moved on; nothing was written."""


@dataclass(frozen=True, slots=True)
class Commit:
    """Where a partition's reading goes on."""

    offset: int
    metadata: str
    """Empty: this view has never committed, or the commit is gone."""
    first: int
    """The oldest message that retention has left."""


def instance_id(slot: int | None) -> str | None:
    """Return what names a slot within its group; None for a worker without one."""
    return None if slot is None else f"slot-{slot}"


class Transactions:
    """One worker's writing side. Calls block: keep them off the event loop.

    Args:
        cluster: where records are written.
        input_topic: what offsets are committed for.
        group_id: the consumer group.
        slot: names this worker among those of the view. The same slot again fences
            the earlier holder at once; without one, a killed worker's open
            transaction must time out before its partitions go on.
        queue_messages: how many of a transaction may wait for the brokers.
    """

    def __init__(
        self,
        cluster: Cluster,
        input_topic: str,
        group_id: str,
        slot: int | None,
        *,
        queue_messages: int = _QUEUE_MESSAGES,
    ) -> None:
        self._cluster = cluster
        self._input_topic = input_topic
        self._group_id = group_id
        self._slot = slot
        self._producer = Producer(
            {
                **client_config(cluster),
                "transactional.id": f"{group_id}.{instance_id(slot) or uuid.uuid4().hex}",
                "transaction.timeout.ms": _TRANSACTION_TIMEOUT_MS,
                "linger.ms": 5,
                "compression.type": "lz4",
                "queue.buffering.max.messages": queue_messages,
                "queue.buffering.max.kbytes": 1_048_576,
                # The broker has a bound for each topic.
                "message.max.bytes": MAX_RECORD_BYTES + 50_000,
            }
        )
        # It never subscribes. Its committed() waits for offsets of open transactions; aiokafka's does not.
        self._offsets = Consumer({**client_config(cluster), "group.id": group_id, "isolation.level": "read_committed"})

    def start(self) -> None:
        """Fence whoever held the slot before, and end its transaction."""
        try:
            self._producer.init_transactions(_TIMEOUT_S)
        except KafkaException as error:
            raise failure(error, "Kafka gives no transactions") from error

    def committed(self, partitions: Iterable[int]) -> dict[int, Commit]:
        """Return the partitions' last commits, and the log's start of those that have none."""
        places = [TopicPartition(self._input_topic, partition) for partition in partitions]
        commits = {}
        try:
            for stored in when_settled(lambda: stored_commits(self._offsets, places, _TIMEOUT_S)):
                first, _ = self._offsets.get_watermark_offsets(
                    TopicPartition(self._input_topic, stored.partition), _TIMEOUT_S
                )
                is_there = stored.offset >= 0
                commits[stored.partition] = (
                    Commit(stored.offset, stored.metadata or "", first) if is_there else Commit(first, "", first)
                )
        except KafkaException as error:
            raise failure(error, "the committed offset cannot be read") from error
        return commits

    def write(self, emissions: Sequence[tuple[int, Emission]], group_metadata: bytes) -> None:
        """Write emissions' records, and commit each partition's last offset: all or nothing.

        Args:
            emissions: with their partitions; of one partition in their order.
            group_metadata: of the assignment that their messages came in.

        Raises:
            Superseded: this worker lost the partitions; nothing was written.
            Fenced: another worker has the slot.
            PublishError: anything else; crash, for a retry of the offsets can hang in the library.
        """
        producer = self._producer
        try:
            producer.begin_transaction()
            for partition, emission in emissions:
                self._produce(partition, emission)
            last = dict(emissions)
            commits = [TopicPartition(self._input_topic, p, one.offset, one.metadata) for p, one in last.items()]
            producer.send_offsets_to_transaction(commits, group_metadata, _TIMEOUT_S)
            producer.commit_transaction(_TIMEOUT_S)
        except (KafkaException, BufferError) as error:
            self._give_up(error, emissions)

    def _produce(self, partition: int, emission: Emission) -> None:
        for batch in emission.records:
            # A call a batch, which takes no headers.
            messages = [{"key": key, "value": value} for key, value in zip(batch.keys, batch.values, strict=True)]
            if self._producer.produce_batch(batch.topic, messages, partition) < len(messages):
                # What single ones fail with is not raised.
                raise KafkaException(next(message["_error"] for message in messages if "_error" in message))
        for letter in emission.letters:
            self._producer.produce(letter.topic, letter.value, letter.key, partition, headers=list(letter.headers))

    def refuse_other_holder(self, member_id: str) -> None:
        """Look whether another worker has the slot; where the group's coordinator does not tell, do nothing.

        Args:
            member_id: what the group last called this worker.

        Raises:
            Fenced: another worker has it.
        """
        if (mine := instance_id(self._slot)) is None:
            return
        admin = AdminClient(client_config(self._cluster))
        groups = admin.describe_consumer_groups([self._group_id], request_timeout=_LOOK_S)
        try:
            members = groups[self._group_id].result().members
        except KafkaException:
            return
        if any(other.group_instance_id == mine and other.member_id != member_id for other in members):
            raise self._fenced()

    def _give_up(self, error: KafkaException | BufferError, emissions: Sequence[tuple[int, Emission]]) -> None:
        cause = error.args[0] if isinstance(error, KafkaException) else None
        if cause is None:
            raise PublishError(f"records were not committed: {error}") from error
        if cause.txn_requires_abort():
            try:
                self._producer.abort_transaction(_TIMEOUT_S)
            except KafkaException as abort_error:
                self._refuse_replaced(abort_error.args[0], error)
                raise failure(abort_error, "a transaction cannot be ended") from error
            if cause.name() in _STALE_MEMBER:
                raise Superseded from error
        self._refuse_replaced(cause, error)
        what = f"records were not committed{_refused_for_size(emissions)}"
        if cause.code() == KafkaError._TIMED_OUT:  # noqa: SLF001 - the library has no public name for it
            raise PublishError(
                f"{what}: Kafka has not answered for {_TIMEOUT_S:.0f} s, or this worker stood still: start it again, "
                "it goes on from its commit"
            ) from error
        raise failure(cause, what) from error

    def _refuse_replaced(self, cause: KafkaError, error: Exception) -> None:
        if cause.name() in _REPLACED:
            raise self._fenced() from error

    def _fenced(self) -> Fenced:
        slot = "no slot" if self._slot is None else f"slot {self._slot}"
        return Fenced(
            f"this worker ({slot}) was replaced, or stood still for more than {_TRANSACTION_TIMEOUT_MS // 1000} s: "
            "start it again, and give each worker of a view its own --slot"
        )


def _refused_for_size(emissions: Sequence[tuple[int, Emission]]) -> str:
    """Return what to do where a topic may have refused the largest record; empty where each takes it.

    The library tells of that refusal only if nothing else went wrong after it.
    """
    sizes = [
        (len(value), key, batch.topic)
        for _, emission in emissions
        for batch in emission.records
        for key, value in zip(batch.keys, batch.values, strict=True)
    ]
    size_bytes, key, topic = max(sizes, default=(0, b"", ""))
    if size_bytes <= _TAKEN_BYTES:
        return ""
    return (
        f" ({topic} may not take that of {key.decode()} with {size_bytes:,} bytes: give the topic "
        f"max.message.bytes={MAX_MESSAGE_BYTES})"
    )
