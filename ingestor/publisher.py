"""Range chunks, markers and the new position, in one Kafka transaction a range."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

from confluent_kafka import KafkaError, KafkaException, Producer

from ingestor.core import wire
from ingestor.core.chunk import Header, Refused
from ingestor.core.errors import Fenced, PublishError
from ingestor.core.time_range import TimeRange
from ingestor.core.topics import Topics, message_key
from ingestor.kafka import Cluster, client_config, failure, hand_over
from ingestor.packing import PackedRange
from ingestor.positions import Position, Written
from ingestor.workloads import Pod

_TIMEOUT_S = 30.0
_TRANSACTION_TIMEOUT_MS = 30_000
"""An open transaction holds every reader back; one begins only when its range is encoded."""

MAX_MESSAGE_BYTES = 1_000_000

_REPLACED = {"_FENCED", "INVALID_PRODUCER_EPOCH", "PRODUCER_FENCED"}


class Publisher:
    """The writing side of one command, whose jobs come one after the other.

    Args:
        cluster: where to write.
        topics: where to write.
        command: names the transactional id: a second poller of the command's jobs fences this one.
        written: is told of each position.
    """

    def __init__(self, cluster: Cluster, topics: Topics, command: str, written: Written | None = None) -> None:
        self._topics = topics
        self._written = written or Written()
        self._command = command
        self._producer = Producer(
            {
                **client_config(cluster),
                "transactional.id": f"{topics.prefix}.poller.{command}",
                "transaction.timeout.ms": _TRANSACTION_TIMEOUT_MS,
                "linger.ms": 5,
                "message.max.bytes": MAX_MESSAGE_BYTES,
                "queue.buffering.max.kbytes": 1_048_576,
                # A message a new pod: all pods of a large cluster are new once.
                "queue.buffering.max.messages": 1_000_000,
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

    def publish(
        self, packed: PackedRange, position: Position, placed: Mapping[Pod, str] | None = None, recheck: str = ""
    ) -> Position:
        """Write one range, and with the last one the job's end; return the new position.

        Args:
            packed: the range.
            position: of its job, before it.
            placed: the services of pods that were seen for the first time.
            recheck: the job that will read the range once more.

        Raises:
            Fenced: another poller of this job has taken over.
            PublishError: the range was not committed; start again from the stored position.
        """
        streams = [_chunks(packed, partition) for partition in range(len(packed.partitions))]
        chunks = [len(messages) for messages in streams]
        moved = _stamped(position.moved(packed.time_range, packed.samples, chunks, packed.incomplete))

        def write() -> None:
            for partition, messages in enumerate(streams):
                markers = [("marker", packed.time_range, packed.source, b"")]
                if moved.ended:
                    whole_job = TimeRange(position.start_ms, packed.time_range.end_ms)
                    markers.append(("end", whole_job, packed.source, b""))
                numbered = enumerate(messages + markers, position.sequences[partition])
                for sequence, (kind, time_range, source, value) in numbered:
                    header = Header(position.job, time_range, sequence, source, position.revision, recheck)
                    self._send(partition, kind, header, value, packed.incomplete if kind == "marker" else ())
            for pod, service in (placed or {}).items():
                self._produce(self._topics.workloads, service.encode(), message_key(*pod), 0)

        self._in_transaction(write, [moved], advice=": where the way to it is slow give a smaller --range-samples")
        return moved

    def store(self, positions: Iterable[Position]) -> None:
        """Write positions alone: of jobs that begin, or that have something to say.

        Raises:
            Fenced: another poller of this job has taken over.
            PublishError: nothing was written.
        """
        self._in_transaction(lambda: None, [_stamped(position) for position in positions])

    def cancel(self, position: Position) -> Position:
        """End a job that will never go on where it stands; return its last position.

        Raises:
            Fenced: another poller of this job has taken over.
            PublishError: nothing was written.
        """
        ended = _stamped(position.cancelled())

        def write() -> None:
            # A job that never began has no time: its end is all that there is of it.
            whole_job = TimeRange(position.start_ms, max(position.position_ms, position.start_ms + 1))
            for partition, sequence in enumerate(position.sequences):
                header = Header(position.job, whole_job, sequence, "cancel", position.revision)
                self._send(partition, "end", header, b"", ())

        self._in_transaction(write, [ended])
        return ended

    def _send(self, partition: int, kind: str, header: Header, value: bytes, incomplete: Sequence[Refused]) -> None:
        headers = wire.headers(kind, header, incomplete)
        self._produce(self._topics.range_chunks, value, None, partition, headers=list(headers))

    def _produce(self, topic: str, value: bytes, key: bytes | None, partition: int, **more: Any) -> None:
        hand_over(self._producer, topic, value, key, partition, timeout_s=_TIMEOUT_S, **more)

    def _in_transaction(self, write: Callable[[], None], positions: Sequence[Position], advice: str = "") -> None:
        """Commit what *write* sends, and the positions behind it."""
        try:
            self._producer.begin_transaction()
            write()
            self._written.may_stand(*positions)
            for position in positions:
                self._produce(self._topics.positions, position.to_json(), position.job.encode(), 0)
            self._producer.commit_transaction(_TIMEOUT_S)
        except (KafkaException, BufferError) as error:
            cause = error.args[0] if isinstance(error, KafkaException) else None
            if cause is not None and cause.name() in _REPLACED:
                raise replaced(self._command) from error
            if cause is not None and cause.code() == KafkaError._TIMED_OUT:  # noqa: SLF001 - no public name
                raise PublishError(
                    f"nothing was committed: Kafka has not taken it within {_TIMEOUT_S:.0f} s ({cause.str()}){advice}"
                ) from error
            if cause is not None:
                raise failure(cause, "a range was not committed") from error
            raise PublishError(f"a range was not committed: {error}") from error
        for position in positions:
            self._written.stands(position)


def replaced(command: str) -> Fenced:
    """Return what to raise where another poller of *command* goes on with its jobs."""
    return Fenced(
        f"another poller of {command} has taken over, or cancelled it, or this one stood still for more than "
        f"{_TRANSACTION_TIMEOUT_MS // 1000} s: run one poller a job (--on-conflict wait stands by), and start it "
        "again if it is this one"
    )


def _chunks(packed: PackedRange, partition: int) -> list[tuple[str, TimeRange, str, bytes]]:
    """Return kind, range, source and value of a partition's chunks, in the order that they are read in."""
    parts = [("lookback", packed.lookback), ("chunk", packed)]
    return [
        (kind, part.time_range, part.source, value)
        for kind, part in parts
        if part is not None
        for value in part.partitions[partition]
    ]


def _stamped(position: Position) -> Position:
    return replace(position, updated_ms=int(time.time() * 1000))
