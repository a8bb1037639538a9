"""Where a partition's reading begins, so that the first window that is delivered has its history."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from confluent_kafka import IsolationLevel, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from ingestor.core.errors import MalformedMessage, PublishError
from ingestor.kafka import CONNECT_TIMEOUT_S, Cluster, consumer_to_end, failure, is_end
from stream_app.consumer.commits import Beginning
from stream_app.records import Record, decode_record

_FIRST_LOOK = 256
"""Offsets at a partition's end that are looked through for its newest window."""

_BATCH_MESSAGES = 2_000
_LOOK_S = 30.0


@dataclass(frozen=True, slots=True)
class Start:
    """What a partition without a commit is read from."""

    kind: str
    """``earliest``, ``latest``, or ``time``: windows that start at *from_ms* or later."""
    from_ms: int = 0


@dataclass(frozen=True, slots=True)
class Bounds:
    """A topic as it was when it was opened, by partition."""

    first: dict[int, int]
    """The oldest message that retention has left."""
    ends: dict[int, int]
    """Behind all that was committed."""


def bounds(admin: AdminClient, topic: str, partitions: Collection[int]) -> Bounds:
    """Return where the partitions begin and end now.

    Raises:
        KafkaException: the broker does not answer.
    """
    latest, earliest = OffsetSpec.latest(), OffsetSpec.earliest()  # type: ignore[no-untyped-call]
    return Bounds(
        _offsets(admin, topic, dict.fromkeys(partitions, earliest)),
        _offsets(admin, topic, dict.fromkeys(partitions, latest)),
    )


def beginnings(
    admin: AdminClient,
    cluster: Cluster,
    topic: str,
    bounds: Bounds,
    start: Start,
    lookback_ms: int,
    accepts: Callable[[Record], bool],
) -> dict[int, Beginning]:
    """Return where to begin, by partition.

    Records are written after their windows have ended, so all windows that start at a time
    or later were written at that time or later, by whichever job: Kafka's timestamps, the
    times of writing, say how far back to go. A lookback from the latest is counted from the
    newest window that a partition has, not from now: a pipeline that has stood still, or is
    busy with last week, has its history all the same. (A backfill that is under way beside
    live data is looked back at as far as live data is.)

    Raises:
        KafkaException: the broker does not answer.
        PublishError: a partition's end cannot be read.
    """
    if start.kind == "earliest":
        return {number: Beginning(first, first) for number, first in bounds.first.items()}
    if start.kind == "time":
        at = _since(admin, topic, bounds, dict.fromkeys(bounds.ends, start.from_ms - lookback_ms))
        return {n: Beginning(at[n], at[n], start.from_ms, end) for n, end in bounds.ends.items()}
    at = dict(bounds.ends)
    if lookback_ms:
        newest = {
            number: end_ms
            for number, end in bounds.ends.items()
            if (end_ms := _newest_end_ms(cluster, topic, number, bounds.first[number], end, accepts)) is not None
        }
        at |= _since(admin, topic, bounds, {number: end_ms - lookback_ms for number, end_ms in newest.items()})
    return {number: Beginning(at[number], end) for number, end in bounds.ends.items()}


def _since(admin: AdminClient, topic: str, bounds: Bounds, times_ms: dict[int, int]) -> dict[int, int]:
    specs = {number: OffsetSpec.for_timestamp(max(time_ms, 0)) for number, time_ms in times_ms.items()}
    # Where nothing is written since then, the answer is -1.
    return {n: at if at >= 0 else bounds.ends[n] for n, at in _offsets(admin, topic, specs).items()}


def _offsets(admin: AdminClient, topic: str, specs: dict[int, Any]) -> dict[int, int]:
    if not specs:
        return {}
    futures = admin.list_offsets(
        {TopicPartition(topic, number): spec for number, spec in specs.items()},
        isolation_level=IsolationLevel.READ_COMMITTED,
        request_timeout=CONNECT_TIMEOUT_S,
    )
    return {at.partition: int(future.result().offset) for at, future in futures.items()}


def _newest_end_ms(
    cluster: Cluster, topic: str, partition: int, first: int, end: int, accepts: Callable[[Record], bool]
) -> int | None:
    """Return the end of the newest window among a partition's last records, or None where there are none."""
    consumer = consumer_to_end(cluster, topic)
    try:
        look, at = _FIRST_LOOK, end
        while at > first:
            # The ends of transactions, and what was aborted, take offsets too.
            at, until = max(first, at - look), at
            found = [
                record.window_end_ms for record in _records(consumer, topic, partition, at, until) if accepts(record)
            ]
            if found:
                return max(found)
            look *= 8
    finally:
        consumer.close()
    return None


def _records(consumer: Any, topic: str, partition: int, first: int, end: int) -> list[Record]:
    consumer.assign([TopicPartition(topic, partition, first)])
    records: list[Record] = []
    deadline = time.monotonic() + _LOOK_S
    while time.monotonic() < deadline:
        for message in consumer.consume(_BATCH_MESSAGES, 0.1):
            if error := message.error():
                if not is_end(error):
                    raise failure(error, f"{topic} cannot be read")
                return records
            if message.offset() >= end:
                return records
            with contextlib.suppress(MalformedMessage):
                records.append(decode_record(message.value()))
            deadline = time.monotonic() + _LOOK_S
    raise PublishError(f"the end of {topic} [{partition}] cannot be read: is a broker away? start again")
