"""Range chunks, markers and the new position, in one Kafka transaction a range."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from confluent_kafka import KafkaException, Producer

from ingestor.core import wire
from ingestor.core.errors import Fenced, PublishError
from ingestor.core.time_range import TimeRange
from ingestor.core.topics import Topics
from ingestor.kafka import Cluster, client_config, failure
from ingestor.packing import PackedRange
from ingestor.positions import Position

_TIMEOUT_S = 30.0
_TRANSACTION_TIMEOUT_MS = 30_000
"""An open transaction holds every reader back; one begins only when its range is encoded."""

MAX_MESSAGE_BYTES = 1_000_000

_REPLACED = {"_FENCED", "INVALID_PRODUCER_EPOCH", "PRODUCER_FENCED"}


class Publisher:
    """The writing side of one job.

    Args:
        cluster: where to write.
        topics: where to write.
        job: names the transactional id: a second poller of the job fences this one.
    """

    def __init__(self, cluster: Cluster, topics: Topics, job: str) -> None:
        self._topics = topics
        self._job = job
        self._producer = Producer(
            {
                **client_config(cluster),
                "transactional.id": f"{topics.prefix}.poller.{job}",
                "transaction.timeout.ms": _TRANSACTION_TIMEOUT_MS,
                "linger.ms": 5,
                "message.max.bytes": MAX_MESSAGE_BYTES,
                "queue.buffering.max.kbytes": 1_048_576,
            }
        )

    def __enter__(self) -> Self:
        """End what a crashed predecessor left open, and fence it if it still runs.

        Read the position after this, not before: the predecessor may have moved it.

        Raises:
            PublishError: Kafka gives no transactions.
            ConfigError: this user may not have them.
        """
        try:
            self._producer.init_transactions(_TIMEOUT_S)
        except KafkaException as error:
            raise failure(error, "Kafka gives no transactions") from error
        return self

    def __exit__(self, *_: object) -> None:
        # Every publish has ended its transaction, or has failed: nothing waits that anyone still wants sent.
        self._producer.purge()

    def publish(self, packed: PackedRange, position: Position) -> Position:
        """Write one range, and with the last one the job's end; return the new position.

        Raises:
            Fenced: another poller of this job has taken over.
            PublishError: the range was not committed; start again from the stored position.
        """
        moved = position.moved(packed.time_range, packed.samples, [len(chunks) for chunks in packed.partitions])

        def write() -> None:
            for partition, chunks in enumerate(packed.partitions):
                messages = [("chunk", packed.time_range, value) for value in chunks]
                messages.append(("marker", packed.time_range, b""))
                if moved.ended:
                    messages.append(("end", TimeRange(position.start_ms, packed.time_range.end_ms), b""))
                for sequence, (kind, time_range, value) in enumerate(messages, position.sequences[partition]):
                    headers = wire.headers(kind, position.job, time_range, sequence, packed.source)
                    self._producer.produce(self._topics.range_chunks, value, None, partition, headers=dict(headers))
            self._producer.produce(self._topics.positions, moved.to_json(), position.job.encode(), 0)

        self._in_transaction(write)
        return moved

    def cancel(self, position: Position) -> Position:
        """End a job that will never go on where it stands; return its last position.

        Raises:
            Fenced: another poller of this job has taken over.
            PublishError: nothing was written.
        """
        ended = position.cancelled()

        def write() -> None:
            whole_job = TimeRange(position.start_ms, position.position_ms)
            for partition, sequence in enumerate(position.sequences):
                headers = wire.headers("end", position.job, whole_job, sequence, "cancel")
                self._producer.produce(self._topics.range_chunks, b"", None, partition, headers=dict(headers))
            self._producer.produce(self._topics.positions, ended.to_json(), position.job.encode(), 0)

        self._in_transaction(write)
        return ended

    def _in_transaction(self, write: Callable[[], None]) -> None:
        try:
            self._producer.begin_transaction()
            write()
            self._producer.commit_transaction(_TIMEOUT_S)
        except (KafkaException, BufferError) as error:
            cause = error.args[0] if isinstance(error, KafkaException) else None
            if cause is not None and cause.name() in _REPLACED:
                raise Fenced(
                    f"another poller of the job {self._job} has taken over, or this one stood still for more than "
                    f"{_TRANSACTION_TIMEOUT_MS // 1000} s: run one poller a job, and start it again if it is this one"
                ) from error
            if cause is not None:
                raise failure(cause, "a range was not committed") from error
            raise PublishError(f"a range was not committed: {error}") from error
