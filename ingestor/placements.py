"""Which service each pod was given: decided at first sight, kept in a compacted topic, the same for all jobs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Mapping
from typing import Self

from confluent_kafka import Message, TopicPartition

from ingestor.core.errors import MalformedMessage, PublishError, QueryRejected, TooManySamples
from ingestor.core.time_range import TimeRange
from ingestor.core.topics import NO_NAMESPACE, Topics, message_key
from ingestor.kafka import Cluster, consumer_to_end, failure, is_end, read_to_end
from ingestor.owners import Owners
from ingestor.workloads import Pod, service_of

log = logging.getLogger(__name__)

_TIMEOUT_S = 10.0

_MAX_BYTES = 900_000
"""Of a pod's and its service's names together; longer ones are not kept, for a message has no room for them."""

_SHOWN = 200
"""Bytes of what cannot be read."""


class Placements:
    """The services of all pods that were ever seen.

    A new pod's service is, in this order: what the service label says, what the owner
    metrics say, what its name says.

    Args:
        cluster: where the topic is.
        topics: its name.
        owners: who looks owners up.
    """

    def __init__(self, cluster: Cluster, topics: Topics, owners: Owners) -> None:
        self._topic, self._owners = topics.workloads, owners
        self._services: dict[Pod, str] = {}
        self._unwritten: dict[Pod, str] = {}
        self._lock = threading.Lock()
        self._next_offset = 0
        self._malformed = 0
        for message in read_to_end(cluster, self._topic):
            self._take(message)
        self._tail = consumer_to_end(cluster, self._topic)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._tail.close()

    def place(self, pods: Mapping[Pod, str], time_range: TimeRange) -> dict[Pod, str]:
        """Return the service of each pod; *pods* has what the service label of each says (empty: nothing)."""
        with self._lock:
            new = self._new(pods)
        unlabelled = [pod for pod in new if not pods[pod]]
        # Not under the lock: a backend that is away would hold up what is ready to be written.
        owners = self._look_up(unlabelled, time_range) if unlabelled else {}
        with self._lock:
            for pod in self._new(pods):
                service = pods[pod] or owners.get(pod) or service_of(pod.name)
                self._services[pod] = service
                if len(message_key(*pod)) + len(service.encode()) <= _MAX_BYTES:
                    self._unwritten[pod] = service
            return {pod: self._services[pod] for pod in pods}

    def _new(self, pods: Collection[Pod]) -> list[Pod]:
        """Return the pods that have no service, here or in the topic: another job may have seen them first."""
        if any(pod not in self._services for pod in pods):
            self._catch_up()
        return [pod for pod in pods if pod not in self._services]

    def _look_up(self, pods: list[Pod], time_range: TimeRange) -> Mapping[tuple[str, str], str]:
        try:
            return self._owners.look_up(pods, time_range)
        except (QueryRejected, TooManySamples) as error:
            log.warning("owners are not told; services go by the pods' names", extra={"error": str(error)})
            return {}

    def unwritten(self) -> dict[Pod, str]:
        """Return what was decided here and is not in the topic yet: it goes with the next range."""
        with self._lock:
            return dict(self._unwritten)

    def written(self, placed: Mapping[Pod, str]) -> None:
        """Note that *placed* is committed."""
        with self._lock:
            for pod in placed:
                self._unwritten.pop(pod, None)

    def _catch_up(self) -> None:
        """Read what was committed since."""
        # Assigned anew each time: the end of a partition is told once an assignment.
        self._tail.assign([TopicPartition(self._topic, 0, self._next_offset)])
        try:
            while True:
                message = self._tail.poll(_TIMEOUT_S)
                error = None if message is None else message.error()
                if message is None or (error is not None and not is_end(error)):
                    what = f"{self._topic} cannot be read"
                    raise failure(error, what) if error else PublishError(f"{what}: the broker does not answer")
                if error is not None:
                    return
                self._take(message)
        finally:
            self._tail.unassign()

    def _take(self, message: Message) -> None:
        self._next_offset = (message.offset() or 0) + 1
        try:
            pod, service = decode(message.key(), message.value())
        except MalformedMessage as error:
            if not self._malformed:
                told = {"topic": self._topic, "offset": message.offset(), "error": str(error)}
                log.warning("what is no pod's service is left out; who else writes there?", extra=told)
            self._malformed += 1
            return
        if service is None:
            # What was decided here, and is on its way there, comes behind it.
            if pod not in self._unwritten:
                self._services.pop(pod, None)
        elif self._services.setdefault(pod, service) != service:
            # The first answer counts; compaction would keep the last, so the first is written once more.
            self._unwritten[pod] = self._services[pod]


def decode(key: bytes | None, value: bytes | None) -> tuple[Pod, str | None]:
    """Read a message of the topic: a pod, and its service; None: it is forgotten.

    Raises:
        MalformedMessage: it names no pod, or no service.
    """
    try:
        namespace, _, name = (key or b"").decode().partition("/")
        service = None if value is None else value.decode()
    except UnicodeDecodeError as error:
        raise MalformedMessage(f"not a pod's service: {error}") from error
    if not name or service == "":
        raise MalformedMessage(f"not a pod's service: key {(key or b'')[:_SHOWN]!r}, value {(value or b'')[:_SHOWN]!r}")
    return Pod("" if namespace == NO_NAMESPACE else namespace, name), service
