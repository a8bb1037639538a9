"""One poller of a command at a time: the others wait for their turn, as members of one consumer group."""

from __future__ import annotations

import logging
import threading
from typing import Self

from confluent_kafka import Consumer, TopicPartition

from ingestor.core.topics import Topics
from ingestor.kafka import Cluster, client_config

log = logging.getLogger(__name__)

_SESSION_MS = 10_000
"""A poller that was killed is noticed after so long; one that ends in order, at once."""

_POLL_S = 0.2
_JOIN_S = 5.0


class Standby:
    """A place in the queue of a command's pollers.

    All of them are members of a group that has one partition to give, and the group keeps it
    with who has it. That is only a matter of turns: that never two publish at once, Kafka's
    transactions see to.

    Args:
        cluster: where the group is.
        topics: whose positions the pollers write.
        command: what they are pollers of.
    """

    def __init__(self, cluster: Cluster, topics: Topics, command: str) -> None:
        self._command = command
        self._topic = topics.positions
        self._mine, self._left = threading.Event(), threading.Event()
        self._consumer = Consumer(
            {
                **client_config(cluster),
                "group.id": f"{topics.prefix}.poller.{command}",
                # The eager strategies would give the partition to another whenever one comes.
                "partition.assignment.strategy": "cooperative-sticky",
                "session.timeout.ms": _SESSION_MS,
                "enable.auto.commit": False,
            }
        )
        self._thread = threading.Thread(target=self._stay, name="standby", daemon=True)

    def __enter__(self) -> Self:
        self._consumer.subscribe([self._topic], on_assign=self._on_assign, on_revoke=self._on_revoke)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join()
        self._consumer.close()

    def wait_for_turn(self, stop: threading.Event) -> bool:
        """Wait until no other poller of the command is before this one; False where *stop* came first."""
        # Joining takes a moment even where there is no other.
        if not self._mine.wait(_JOIN_S):
            log.info("another poller runs; waiting for its end", extra={"job": self._command})
        while not self._mine.wait(_POLL_S):
            if stop.is_set():
                return False
        return True

    def _stay(self) -> None:
        """Remain a member: the heartbeats need a caller who is alive."""
        while not self._left.is_set():
            self._consumer.poll(_POLL_S)

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        consumer.incremental_assign(partitions)
        if partitions:
            # Only the turn matters, not what the topic holds.
            consumer.pause(partitions)
            self._mine.set()

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        consumer.incremental_unassign(partitions)
        if partitions:
            self._mine.clear()
