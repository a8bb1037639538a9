"""Where a partition's reading begins, so that the first window that is delivered has its history."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from ingestor.core.errors import MalformedMessage, PublishError
from ingestor.kafka import Cluster, consumer_to_end, failure, is_end
from stream_app.consumer.commits import Beginning
from stream_app.reading import earliest_offsets, stable_offsets, starts
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
    """Behind all that could be read."""


def bounds(admin: AdminClient, topic: str, partitions: Collection[int]) -> Bounds:
    """Return where the partitions begin and end now.

    Raises:
        KafkaException: the broker does not answer.
    """
    places = [(topic, number) for number in partitions]
    first, ends = earliest_offsets(admin, places), stable_offsets(admin, places)
    return Bounds({number: first[topic, number] for number in partitions}, {n: ends[topic, n] for n in partitions})


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
        since = {n: _since(admin, topic, n, start.from_ms - lookback_ms) for n in bounds.ends}
        return {n: Beginning(since[n], since[n], start.from_ms, end) for n, end in bounds.ends.items()}
    found = {}
    for number, end in bounds.ends.items():
        at = end
        if lookback_ms:
            newest_ms = _newest_end_ms(cluster, topic, number, bounds.first[number], end, accepts)
            if newest_ms is not None:
                at = min(end, _since(admin, topic, number, newest_ms - lookback_ms))
        found[number] = Beginning(at, end)
    return found


def _since(admin: AdminClient, topic: str, number: int, time_ms: int) -> int:
    (offset,) = starts(admin, [(topic, number)], "time", max(time_ms, 0)).values()
    return offset


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
