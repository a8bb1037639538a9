"""One poller of a command at a time: the others wait for their turn, as members of one consumer group."""

from __future__ import annotations

import logging
import threading
from typing import Self

from confluent_kafka import Consumer, TopicPartition

from ingestor.core.errors import PublishError
from ingestor.core.topics import Topics
from ingestor.kafka import MEMBER_SETTINGS, Cluster, client_config, reason

log = logging.getLogger(__name__)

_SESSION_MS = 10_000
"""A poller that was killed is noticed after so long; one that ends in order, at once."""

_HEARTBEAT_MS = 500
"""Members learn with their heartbeats that one has come or gone, and whoever comes or goes waits for them."""

_LEAVE_S = 1.0
"""The group's coordinator answers nobody while it waits for all members: leaving then takes 5 seconds and more."""

_POLL_S = 0.2


class Standby:
    """A place in the queue of a command's pollers.

    All of them are members of a group that has one partition to give, and the group keeps it
    with who has it. That is only a matter of turns: that never two publish at once, Kafka's
    transactions see to.

    Args:
        cluster: where the group is.
        topics: whose positions the pollers write.
        command: what they are pollers of.
        waits: whether this one waits for its turn; one that takes over goes before all that wait.
    """

    def __init__(self, cluster: Cluster, topics: Topics, command: str, *, waits: bool) -> None:
        self._command = command
        self._topic = topics.positions
        self._mine, self._joined, self._left = threading.Event(), threading.Event(), threading.Event()
        self._consumer = Consumer(
            {
                **client_config(cluster),
                **MEMBER_SETTINGS,
                "group.id": f"{topics.prefix}.poller.{command}",
                # What is free goes to the first member by id, which begins with this: without it one that
                # waits would get the turn of the one that was taken over from, and fence the successor.
                "client.id": "podstream-2-waits" if waits else "podstream-1-takes-over",
                # The eager strategies would give the partition to another whenever one comes.
                "partition.assignment.strategy": "cooperative-sticky",
                "session.timeout.ms": _SESSION_MS,
                "heartbeat.interval.ms": _HEARTBEAT_MS,
                "enable.auto.commit": False,
            }
        )
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._stay, name="standby", daemon=True)

    def __enter__(self) -> Self:
        self._consumer.subscribe([self._topic], on_assign=self._on_assign, on_revoke=self._on_revoke)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        # What lasts longer goes on in its thread. One that is cut off by the process' end is taken for killed.
        self._thread.join(_LEAVE_S)

    def wait_for_turn(self, stop: threading.Event) -> bool:
        """Wait until no other poller of the command is before this one; False where *stop* came first."""
        is_told = False
        while not self._mine.wait(_POLL_S):
            if stop.is_set():
                return False
            if self._failure is not None:
                raise PublishError(f"waiting for a turn failed: {self._failure}") from self._failure
            if self._joined.is_set() and not is_told:
                log.info("another poller runs; waiting for its end", extra={"job": self._command})
                is_told = True
        return True

    def _stay(self) -> None:
        """Remain a member, then leave: the heartbeats need a caller who is alive."""
        try:
            self._stay_until_left()
        except Exception as error:
            # Whoever waits is told.
            self._failure = error
            log.exception("the queue of pollers is left", extra={"job": self._command})
        self._consumer.close()

    def _stay_until_left(self) -> None:
        last = ""
        while not self._left.is_set():
            message = self._consumer.poll(_POLL_S)
            # Nothing is fetched: what comes is an error, of which the library sees to the next attempt.
            error = None if message is None else message.error()
            if error is not None and (text := reason(error)) != last:
                log.warning("no word from the queue of pollers", extra={"job": self._command, "error": text})
                last = text

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        consumer.incremental_assign(partitions)
        if partitions:
            # Only the turn matters, not what the topic holds.
            consumer.pause(partitions)
            self._mine.set()
        self._joined.set()

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        consumer.incremental_unassign(partitions)
        if partitions:
            self._mine.clear()
