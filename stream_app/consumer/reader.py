"""The thread that reads: it keeps the group's promises however long the user's loop takes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from ingestor.core.errors import ConfigError, Fenced, PublishError
from ingestor.kafka import (
    MEMBER_SETTINGS,
    Cluster,
    FoundTopic,
    failure,
    high_watermarks,
    is_end,
    is_missing,
    is_refusal,
    reason,
    stored_commits,
    wait_for_leaders,
    when_settled,
)
from stream_app.consumer import commits, starts
from stream_app.consumer.commits import Beginning
from stream_app.consumer.mailbox import Block, Mailbox
from stream_app.consumer.partition import Partition, Policy
from stream_app.consumer.starts import Start
from stream_app.consumer.views import ViewChoice
from stream_app.reading import Ear, committed_consumer, is_deleted, wait_for_topics
from stream_app.records import Record

log = logging.getLogger(__name__)

_BATCH_MESSAGES = 2_000
_STAMPED_EVERY = 500
_POLL_S = 0.1
"""How late a window may come, and a stop be noticed."""
_PATIENCE_S = 1.0
"""A loop that takes nothing for so long is slow: pausing throws away what the library has fetched already."""
_REQUEST_S = 30.0

_FATAL = KafkaError._FATAL  # noqa: SLF001 - the library has no public name for it
_REPLACED = KafkaError(KafkaError.FENCED_INSTANCE_ID).str()
_BETWEEN_GENERATIONS = (
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.UNKNOWN_MEMBER_ID,
)
"""The group is about to move partitions: what was not committed is committed with the next generation, or not ours."""


@dataclass(frozen=True, slots=True)
class ReaderSettings:
    """What is read, and as whom."""

    cluster: Cluster
    topic: str
    start: Start
    finite: bool
    """Read to the ends as they are at the beginning."""
    policy: Policy
    group: str | None
    group_instance_id: str | None
    session_timeout_s: float
    commit_s: float


@dataclass(frozen=True, slots=True)
class _Opened:
    """The topic as it was at the opening."""

    topic: FoundTopic
    bounds: starts.Bounds


class Reader:
    """Reads in a thread of its own, in a group or by itself.

    All calls of the library's consumer are made in that thread: its rebalances and our
    commits cannot cross. Partitions are handed over as `Partition`s, which live for one
    assignment; what was read for one that was lost meanwhile is not taken.

    The assignor is cooperative-sticky: a member that joins takes over a few partitions, and
    the histories of all others stay where they are. (Eager ones take all partitions from all
    members each time.)
    """

    def __init__(
        self,
        settings: ReaderSettings,
        admin: AdminClient,
        found: FoundTopic | None,
        views: ViewChoice,
        accepts: Callable[[Record], bool],
        mailbox: Mailbox,
    ) -> None:
        self.partitions: dict[int, Partition] = {}
        """Those that are ours now."""
        self.lock = threading.Lock()
        """Held where a partition's state is changed, and where partitions come and go."""
        self.is_assigned = False
        """Whether we have been told what is ours."""
        self.pins = False
        """Whether commits wait until the user confirms."""
        self.ends: dict[int, int] = {}
        """Where a finite read ends."""
        self._settings, self._admin, self._views, self._accepts, self._mailbox = (
            settings,
            admin,
            views,
            accepts,
            mailbox,
        )
        self._opened: _Opened | None = None
        self._start = settings.start
        self._earlier: dict[int, Partition] = {}
        self._sent: dict[int, commits.Commit] = {}
        self._must_commit = False
        self._asked: list[_Asked] = []
        self._returned: set[int] = set()
        self._lost_now: set[int] = set()
        self._paused = False
        self._ear = Ear()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="PodConsumer", daemon=True)
        if found is not None:
            self._open(found)

    def begin(self) -> None:
        """Begin to read."""
        self._thread.start()

    def close(self) -> None:
        """Commit what is processed, leave the group, and end; after 30 s without waiting for Kafka any more."""
        self._closing.set()
        self._mailbox.close()
        if self._thread.ident is not None:
            self._thread.join(_REQUEST_S)
            if self._thread.is_alive():
                log.warning("Kafka does not answer: what was processed last may be delivered again")

    def commit(self) -> None:
        """Wait until all that is confirmed is committed.

        Raises:
            PublishError: Kafka does not take it, or does not answer.
        """
        asked = _Asked()
        self._asked.append(asked)
        if not asked.done.wait(_REQUEST_S):
            raise PublishError("Kafka does not answer: what was processed is not committed yet")
        if asked.error is not None:
            raise asked.error

    def is_at_end(self) -> bool:
        """Tell whether all that is ours is read to where a finite read ends."""
        with self.lock:
            return self.is_assigned and all(
                partition.position >= self.ends.get(number, 0) for number, partition in self.partitions.items()
            )

    # What follows runs in the thread.

    def _run(self) -> None:
        consumer: Consumer | None = None
        try:
            if self._opened is None and not self._wait_for_topic():
                return
            consumer = self._consumer()
            if self._settings.group is None:
                self._assign_all(consumer)
            else:
                consumer.subscribe(
                    [self._settings.topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost
                )
            self._loop(consumer)
        except KafkaException as error:
            self._mailbox.fail(self._failure(error))
        except BaseException as error:  # noqa: BLE001 - the loop raises it
            self._mailbox.fail(error)
        finally:
            for asked in self._asked:
                asked.end(PublishError("reading has ended: start again"))
            if consumer is not None:
                self._leave(consumer)

    def _loop(self, consumer: Consumer) -> None:
        commit_at = time.monotonic() + self._settings.commit_s
        while not self._closing.is_set():
            self._mind_the_room(consumer)
            self._lost_now, self._returned = set(), set()
            messages = consumer.consume(_BATCH_MESSAGES, _POLL_S)
            if self._returned:
                messages = of_this_assignment(messages, self._returned)
                for number in self._returned:
                    partition = self.partitions[number]
                    consumer.seek(TopicPartition(self._settings.topic, number, partition.position))
            if messages:
                self._hand_over(consumer, messages)
            if gone := self._ear.missing(self._admin, {self._settings.topic: self._found.topic}):
                raise PublishError(f"topic {gone} is gone or was made anew: start again")
            if self._asked:
                self._commit_as_asked(consumer)
            if self._settings.group is not None and (self._must_commit or time.monotonic() >= commit_at):
                self._must_commit = False
                self._commit(consumer, self.partitions, asynchronous=True)
                commit_at = time.monotonic() + self._settings.commit_s

    def _mind_the_room(self, consumer: Consumer) -> None:
        has_room = self._mailbox.wait_for_room(0.0 if self._paused else _PATIENCE_S)
        if has_room == self._paused:
            at = [TopicPartition(self._settings.topic, number) for number in self.partitions]
            if at:
                (consumer.resume if has_room else consumer.pause)(at)
            self._paused = not has_room

    def _hand_over(self, consumer: Consumer, messages: list[Any]) -> None:
        blocks: dict[int, Block] = {}
        for message in messages:
            if (error := message.error()) and not is_end(error):
                self._take_event(consumer, message, error)
                continue
            number = message.partition()
            block = blocks.get(number)
            if block is None:
                partition = self.partitions.get(number)
                if partition is None:
                    # Gone: it came in the same breath as the news that it is another member's.
                    continue
                block = blocks[number] = Block(partition)
            offset = message.offset()
            if error:
                # Past the ends of transactions, which are offsets without a message.
                block.position = max(block.position, offset)
                continue
            block.offsets.append(offset)
            block.keys.append(message.key())
            block.values.append(message.value())
            block.position = offset + 1
            if len(block.offsets) % _STAMPED_EVERY == 1:
                block.written_ms = message.timestamp()[1]
        for block in blocks.values():
            self._mailbox.put(block)

    def _take_event(self, consumer: Consumer, message: Any, error: KafkaError) -> None:
        topic, number = message.topic(), message.partition()
        if is_deleted(error):
            log.warning("records were deleted before they were read", extra={"topic": topic, "partition": number})
            if number in self.partitions:
                # The library stands still there, and takes no seek, until it is told anew where to read.
                consumer.incremental_unassign([TopicPartition(topic, number)])
                consumer.incremental_assign([TopicPartition(topic, number, OFFSET_BEGINNING)])
        elif is_missing(error):
            self._ear.heard_of_missing = True
        elif _is_final(error) or isinstance(self._failure(error), ConfigError):
            raise self._failure(error)
        else:
            log.warning("kafka client", extra={"topic": topic, "partition": number, "error": reason(error)})

    # Groups.

    def _assigned(self, consumer: Consumer, assigned: list[TopicPartition]) -> None:
        numbers = [at.partition for at in assigned]
        begins = self._resumed(consumer, numbers) if numbers else {}
        self._take_over(begins)
        consumer.incremental_assign(
            [TopicPartition(self._settings.topic, number, begin.offset) for number, begin in begins.items()]
        )
        self._returned |= set(numbers) & self._lost_now
        if self._paused and numbers:
            consumer.pause([TopicPartition(self._settings.topic, number) for number in numbers])
        # From now on nobody begins elsewhere, whatever happens to us.
        self._must_commit = True

    def _resumed(self, consumer: Consumer, numbers: list[int]) -> dict[int, Beginning]:
        """Return where the group goes on, or begins."""
        at = [TopicPartition(self._settings.topic, number) for number in numbers]
        stored = when_settled(lambda: stored_commits(consumer, at, _REQUEST_S))
        begins: dict[int, Beginning] = {}
        topic_id, group = self._found.topic.id, self._settings.group or ""
        for place in stored:
            if place.offset < 0:
                continue
            found = commits.decode(commits.Commit(place.offset, place.metadata or ""))
            if found is None:
                raise ConfigError(
                    f"the group {group} has commits of another program in {self._settings.topic}: give another group="
                )
            if found.topic_id != topic_id:
                log.warning("the topic was made anew since the group's commit", extra={"partition": place.partition})
                begins[place.partition] = Beginning(0)
                continue
            self._views.go_on(group, found.view)
            begins[place.partition] = found.beginning
        return begins | self._begun([number for number in numbers if number not in begins])

    def _begun(self, numbers: list[int]) -> dict[int, Beginning]:
        """Return where to begin without a commit; the latest is what it was at the opening."""
        bounds = self._found.bounds
        return starts.beginnings(
            self._admin,
            self._settings.cluster,
            self._settings.topic,
            starts.Bounds({n: bounds.first[n] for n in numbers}, {n: bounds.ends[n] for n in numbers}),
            self._start,
            self._settings.policy.lookback_ms,
            self._accepts,
        )

    def _take_over(self, begins: dict[int, Beginning]) -> None:
        with self.lock:
            for number, begin in begins.items():
                self.partitions[number] = Partition(
                    number, begin, self._settings.policy, self._earlier.pop(number, None)
                )
            self.is_assigned = True
        self._mailbox.notify()

    def _revoked(self, consumer: Consumer, revoked: list[TopicPartition]) -> None:
        numbers = [at.partition for at in revoked]
        with self.lock:
            found = self._to_commit(numbers, anew=True)
            # The loop goes on while Kafka takes the commit: what it did meanwhile would come again elsewhere.
            self._let_go(numbers)
        self._send(consumer, found, asynchronous=False)
        self._forget_sent(numbers)
        consumer.incremental_unassign(revoked)

    def _lost(self, consumer: Consumer, lost: list[TopicPartition]) -> None:
        numbers = [at.partition for at in lost]
        with self.lock:
            self._let_go(numbers)
        self._forget_sent(numbers)
        consumer.incremental_unassign(lost)

    def _let_go(self, numbers: list[int]) -> None:
        """Deliver no more of some partitions; the lock is held."""
        for number in numbers:
            partition = self.partitions.pop(number, None)
            if partition is not None:
                partition.let_go()
                self._earlier[number] = partition
            self._lost_now.add(number)

    # Commits.

    def _commit(self, consumer: Consumer, numbers: Collection[int], *, asynchronous: bool) -> PublishError | None:
        with self.lock:
            found = self._to_commit(numbers, anew=not asynchronous)
        return self._send(consumer, found, asynchronous=asynchronous)

    def _to_commit(self, numbers: Collection[int], *, anew: bool) -> dict[int, commits.Commit]:
        """Return what to commit; *anew*: with what was sent already, which may not be there yet. The lock is held."""
        found = {}
        for number in numbers:
            partition = self.partitions.get(number)
            if partition is None:
                continue
            resume = partition.pinned if self.pins else partition.resume_at()
            commit = commits.encode(self._found.topic.id, self._views.view, resume)
            if anew or commit != self._sent.get(number):
                found[number] = commit
        return found

    def _send(self, consumer: Consumer, found: dict[int, commits.Commit], *, asynchronous: bool) -> PublishError | None:
        if not found or self._settings.group is None:
            return None
        offsets = [
            TopicPartition(self._settings.topic, number, commit.offset, commit.metadata)
            for number, commit in found.items()
        ]
        self._sent |= found
        try:
            if asynchronous:
                consumer.commit(offsets=offsets, asynchronous=True)
                return None
            answer = consumer.commit(offsets=offsets, asynchronous=False) or []
            error = next((at.error for at in answer if at.error is not None), None)
        except KafkaException as problem:
            error = problem.args[0]
        if error is None:
            return None
        self._not_committed(error, list(found))
        return PublishError(f"what was processed is not committed ({reason(error)}): it may be delivered again")

    def _heard_of_commit(self, error: KafkaError | None, offsets: list[TopicPartition]) -> None:
        failed = error or next((at.error for at in offsets if at.error is not None), None)
        if failed is not None:
            self._not_committed(failed, [at.partition for at in offsets])

    def _not_committed(self, error: KafkaError, numbers: list[int]) -> None:
        if _is_final(error):
            raise self._failure(error)
        self._forget_sent(numbers)
        if error.code() in _BETWEEN_GENERATIONS:
            return
        log.warning("what was processed is not committed yet", extra={"error": reason(error), "partitions": numbers})

    def _forget_sent(self, numbers: Collection[int]) -> None:
        for number in numbers:
            self._sent.pop(number, None)

    def _commit_as_asked(self, consumer: Consumer) -> None:
        asked, self._asked = self._asked, []
        error = self._commit(consumer, self.partitions, asynchronous=False)
        for each in asked:
            each.end(error)

    def _leave(self, consumer: Consumer) -> None:
        try:
            # Partitions are revoked in it, which commits them.
            consumer.close()
        except Exception as error:  # noqa: BLE001 - there is nothing left to be done
            log.warning("the group could not be left in order", extra={"error": str(error)})

    # The edge.

    def _consumer(self) -> Consumer:
        settings = self._settings
        more: dict[str, Any] = {"error_cb": self._hear}
        if settings.finite:
            # An end is told only with the broker's next answer.
            more["fetch.wait.max.ms"] = 10
        if settings.group is not None:
            more |= {
                **MEMBER_SETTINGS,
                "group.id": settings.group,
                "partition.assignment.strategy": "cooperative-sticky",
                "session.timeout.ms": round(settings.session_timeout_s * 1000),
                "heartbeat.interval.ms": min(1_000, round(settings.session_timeout_s * 300)),
                "on_commit": self._heard_of_commit,
            }
            if settings.group_instance_id is not None:
                more["group.instance.id"] = settings.group_instance_id
        return committed_consumer(settings.cluster, settings.topic, self._ear, **more)

    def _assign_all(self, consumer: Consumer) -> None:
        begins = self._begun(list(self._found.topic.partitions))
        self._take_over(begins)
        consumer.assign(
            [TopicPartition(self._settings.topic, number, begin.offset) for number, begin in begins.items()]
        )

    @property
    def _found(self) -> _Opened:
        if self._opened is None:
            raise PublishError(f"{self._settings.topic} is not there yet")
        return self._opened

    def _open(self, topic: FoundTopic) -> None:
        self._opened = _Opened(topic, starts.bounds(self._admin, self._settings.topic, topic.partitions))
        if self._settings.finite:
            name = self._settings.topic
            ends = high_watermarks(self._admin, [(name, number) for number in topic.partitions])
            self.ends = {number: end for (_, number), end in ends.items()}

    def _wait_for_topic(self) -> bool:
        name = self._settings.topic
        found, _ = wait_for_topics(self._admin, [name], "a worker", self._closing)
        if found is None:
            return False
        wait_for_leaders(self._admin, found)
        if self._start.kind == "latest":
            # What was written while nobody had seen the topic has come since we began.
            self._start = Start("earliest")
        self._open(found[name])
        return True

    def _hear(self, error: KafkaError) -> None:
        """Take what the library says aside from messages; what is raised comes out of the next read.

        Raises:
            ConfigError: user or password are not accepted any more.
            Fenced: another process has our place in the group.
        """
        if _is_final(error):
            raise self._failure(error)
        self._ear.hear(error)

    def _failure(self, error: KafkaException | KafkaError) -> Exception:
        cause = error.args[0] if isinstance(error, KafkaException) and error.args else error
        if isinstance(cause, KafkaError):
            if is_refusal(cause):
                return ConfigError(
                    f"Kafka does not let us in any more ({reason(cause)}): look at kafka_user= and kafka_password_file="
                )
            if _REPLACED in reason(cause):
                return Fenced(
                    f"another process is {self._settings.group_instance_id} in the group {self._settings.group}: "
                    "give each its own group_instance_id="
                )
        return failure(error, f"{self._settings.topic} cannot be read")


def of_this_assignment(messages: list[Any], returned: Collection[int]) -> list[Any]:
    """Leave out what was read of partitions that were taken and given back meanwhile; they are read anew.

    The ends that it had reached too: what was read and not processed lies before them, and would be passed by.
    """
    return [m for m in messages if m.partition() not in returned or ((e := m.error()) and not _is_about_offsets(e))]


def _is_about_offsets(error: KafkaError) -> bool:
    return is_end(error) or is_deleted(error)


def _is_final(error: KafkaError) -> bool:
    """Tell whether the client is good for nothing any more; what the library tells of it may say so in words only."""
    return error.fatal() or error.code() == _FATAL or _REPLACED in reason(error)


class _Asked:
    """A commit that somebody waits for."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.error: PublishError | None = None

    def end(self, error: PublishError | None) -> None:
        self.error = error
        self.done.set()
