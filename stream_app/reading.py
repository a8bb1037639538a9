"""Committed messages of whole topics, partitions assigned by hand: what every reader without a group needs.

Nothing is committed to Kafka; who reads knows where to go on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from ingestor.core.durations import parse_time
from ingestor.core.errors import ConfigError
from ingestor.kafka import (
    Cluster,
    FoundTopic,
    assigned_consumer,
    find_topics,
    is_missing,
    is_refusal,
    list_offsets,
    reason,
)

log = logging.getLogger(__name__)

Place = tuple[str, int]
"""A topic, and the number of one of its partitions."""

_TOPIC_LOOK_S = 1.0
_REMIND_S = 30.0

_NO_RESET = KafkaError._AUTO_OFFSET_RESET  # noqa: SLF001 - the library has no public name for it


def start_of(text: str, now_ms: int) -> tuple[str, int | None]:
    """Read ``--from``: ``earliest``, ``latest``, or ``time`` and the time in ms.

    Raises:
        ValueError: none of these.
    """
    if text in ("earliest", "latest"):
        return text, None
    try:
        return "time", parse_time(text, now_ms).time_ms
    except ValueError as error:
        raise ValueError(f"{error}; or earliest or latest") from error


def wait_for_topics(
    admin: AdminClient, names: Collection[str], maker: str, stop: threading.Event
) -> tuple[dict[str, FoundTopic] | None, bool]:
    """Return the topics once there are all of them, or None when stopped before; and whether they were waited for."""
    remind_at, waited = time.monotonic(), False
    while not stop.is_set():
        found = find_topics(admin, names)
        missing = [name for name in names if name not in found]
        if not missing:
            return found, waited
        waited = True
        if time.monotonic() >= remind_at:
            log.warning("waiting for topics: %s makes them, with this --topic-prefix", maker, extra={"topics": missing})
            remind_at = time.monotonic() + _REMIND_S
        stop.wait(_TOPIC_LOOK_S)
    return None, waited


def places_of(topics: Mapping[str, FoundTopic]) -> list[Place]:
    return [(name, partition) for name, topic in topics.items() for partition in topic.partitions]


def starts(admin: AdminClient, places: Iterable[Place], start: str, from_ms: int | None) -> dict[Place, int]:
    """Return where reading begins, as `start_of` says it.

    What describes the time from *from_ms* on was all written after that time.

    Raises:
        KafkaException: the broker does not say.
    """
    if start == "earliest":
        return earliest_offsets(admin, places)
    places = list(places)
    latest = stable_offsets(admin, places)
    if from_ms is None:
        return latest
    at = list_offsets(admin, places, OffsetSpec.for_timestamp(from_ms))
    # Nothing is written since then: -1.
    return {place: at[place] if at[place] >= 0 else latest[place] for place in places}


def earliest_offsets(admin: AdminClient, places: Iterable[Place]) -> dict[Place, int]:
    """Return the first offsets that Kafka still has."""
    return list_offsets(admin, places, OffsetSpec.earliest())  # type: ignore[no-untyped-call]


def stable_offsets(admin: AdminClient, places: Iterable[Place]) -> dict[Place, int]:
    """Return the offsets behind all that can be read as of now: an open transaction hides what is behind it."""
    return list_offsets(admin, places, OffsetSpec.latest())  # type: ignore[no-untyped-call]


def committed_consumer(cluster: Cluster, prefix: str, ear: Ear, **more: Any) -> Consumer:
    """Return a consumer that tells each partition's end, and an error instead of going on where offsets are deleted."""
    return assigned_consumer(
        cluster,
        prefix,
        **{
            "auto.offset.reset": "error",
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "queued.max.messages.kbytes": 32_768,
            # By default a full queue is looked at again after a second, long after it has been emptied.
            "fetch.queue.backoff.ms": 20,
            # The topics were seen: one that is missing is not new but gone, which we find out by asking.
            "topic.metadata.propagation.max.ms": 2_000,
            "error_cb": ear.hear,
            **more,
        },
    )


def is_deleted(error: KafkaError) -> bool:
    """Tell whether Kafka has not, or not any more, the offset that was to be read."""
    return error.code() in (_NO_RESET, KafkaError.OFFSET_OUT_OF_RANGE)


class Ear:
    """Takes what the library says aside from messages; what it raises comes out of the next read."""

    def __init__(self) -> None:
        self.heard_of_missing = False
        self._told_at: float | None = None

    def hear(self, error: KafkaError) -> None:
        """Take an error.

        Raises:
            ConfigError: user or password are not accepted any more.
        """
        if is_refusal(error):
            raise ConfigError(
                f"Kafka does not let us in any more ({reason(error)}): look at --kafka-user and --kafka-password-file"
            )
        if is_missing(error):
            self.heard_of_missing = True
            return
        # A broker that is away is told of many times a second.
        if self._told_at is None or time.monotonic() - self._told_at > _REMIND_S:
            self._told_at = time.monotonic()
            log.warning("kafka client", extra={"error": reason(error)})

    def missing(self, admin: AdminClient, topics: Mapping[str, FoundTopic]) -> str | None:
        """Return the name of a topic that is gone or was made anew; what the library heard may be true no more."""
        if not self.heard_of_missing:
            return None
        try:
            now = find_topics(admin, list(topics))
        except KafkaException as error:
            log.warning("topics cannot be looked at", extra={"error": reason(error)})
            return None
        self.heard_of_missing = False
        return next((name for name, topic in topics.items() if name not in now or now[name].id != topic.id), None)
