"""The loop of every command that writes a storage from topics: committed messages into files, exactly once.

Partitions are assigned by hand and nothing is committed to Kafka: where to read on
is part of the storage's own checkpoint. What messages mean is the target's business.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import orjson
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from ingestor.core.errors import ConfigError, SinkError
from ingestor.kafka import (
    Cluster,
    FoundTopic,
    connect,
    failure,
    high_watermarks,
    is_end,
    is_missing,
    reason,
    wait_for_leaders,
)
from stream_app.reading import (
    Ear,
    committed_consumer,
    earliest_offsets,
    is_deleted,
    places_of,
    start_of,
    starts,
    wait_for_topics,
)
from stream_app.sinks.base import Offsets
from stream_app.sinks.checkpoint import OWN_FOLDER, Identity, Storage

log = logging.getLogger(__name__)

_POLL_S = 0.25
"""How soon a stop is noticed."""
_REQUEST_S = 10.0
_REMIND_S = 30.0
_BEGINNING = f"{OWN_FOLDER}/beginning.json"
"""Where a storage began, unless at the earliest."""
_CALM_S = 2.0
"""Nothing has come for so long: a good moment to complete files."""
_COMMITTING_SHARE = 4
"""After a commit comes a pause of so many times its length: what is held then makes the next one worth more."""
_COMPLETING_SHARE = 10
"""Completing files takes at most one part in so many of the time."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where a storage begins: ``--from``."""

    typed: str
    """As it was typed: the same command again means the same, though ``10m`` is another time by then."""
    kind: str
    """``earliest``, ``latest`` or ``time``."""
    from_ms: int | None
    """What is of earlier windows is left out."""

    @classmethod
    def parse(cls, text: str, now_ms: int) -> Start:
        """Read ``--from``.

        Raises:
            ValueError: it is no start.
        """
        return cls(text, *start_of(text, now_ms))


EARLIEST = Start("earliest", "earliest", None)


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """What is read, where it is written, and how often."""

    cluster: Cluster
    prefix: str
    """What the topics' names begin with: we have rights to that."""
    topics: tuple[str, ...]
    storage: Path

    start: Start | None = None
    """Where a new storage begins; None: at the earliest, or where an old one did."""

    until_idle: bool = False
    """Return when all that is committed has been read and nothing came for *idle_s*; else only on *stop*."""

    idle_s: float = 5.0
    """A worker commits about once a second; five leave room for a pause of the garbage collector or a broker."""

    commit_s: float = 1.0
    """Files are at most so much behind what has been read."""

    commit_rows: int = 50_000
    """Commit earlier when the target holds so many."""

    complete_s: float = 60.0
    """Files show what was read at most so late, or later where bringing that about takes a tenth of the time."""

    batch_messages: int = 5_000
    """Take at most so many at once."""

    messages: str = "records"
    """What the messages are called."""

    maker: str = "a worker"
    """Who makes the topics."""


class Target(Protocol):
    """What messages become: they are decoded, held, and made durable with the position that they were read to.

    One that has raised is of no more use.
    """

    @property
    def offsets(self) -> Mapping[str, Mapping[int, int]]:
        """Where to read on, as of the last commit; a partition that was never read is absent."""

    def take(self, messages: Sequence[Any]) -> int:
        """Take messages, none of them an error, those of a partition in order.

        Returns:
            How many rows are now held for the next commit.
        """

    def commit(self, offsets: Mapping[str, Mapping[int, int]]) -> None:
        """Make all that is held, and where to read on, durable together.

        Raises:
            SinkError: this cannot be done.
        """

    @property
    def is_behind(self) -> bool:
        """Whether files do not show yet all that the last commit holds."""

    def complete(self) -> None:
        """Bring the files to what the last commit holds; nothing is held.

        Raises:
            SinkError: this cannot be done.
        """

    def finish(self) -> None:
        """Do `complete`, and what is done once, where nothing more is to come.

        Raises:
            SinkError: this cannot be done.
        """


def run_loop(
    settings: LoopSettings,
    options: Mapping[str, str],
    open_target: Callable[[Storage, int | None], Target],
    stop: threading.Event,
    on_commit: Callable[[int], None],
) -> None:
    """Write until *stop* is set or, with ``until_idle``, all is written.

    Args:
        settings: what to read and where to write.
        options: what decides how files look; a storage is bound to them.
        open_target: makes the target of the storage, which is open and is closed here; what is of
            windows before the second argument, a time in ms, is to be left out.
        stop: looked at a few times a second; what has been read by then is committed.
        on_commit: called after every commit with the offsets between what has been read and the
            topics' ends, as last heard from the broker.

    Raises:
        ConfigError: the storage cannot be written, is in use, or holds other data; Kafka
            does not answer, or does not let us in.
        SinkError: the disk is full, a file was changed by something else, retention has
            deleted messages that were not read, or a topic is gone.
    """
    storage = Storage(settings.storage)
    try:
        admin = connect(settings.cluster)
        topics, waited = wait_for_topics(admin, settings.topics, settings.maker, stop)
        if topics is None:
            return
        wait_for_leaders(admin, topics)
        cluster = admin.describe_cluster(request_timeout=_REQUEST_S).result().cluster_id
        storage.open(Identity(cluster, {name: topic.id for name, topic in topics.items()}, dict(options)))
        start, is_new = _begin(storage, settings.start)
        target, ear = open_target(storage, start.from_ms), Ear()
        consumer = committed_consumer(settings.cluster, settings.prefix, ear)
        try:
            loop = _Loop(settings, topics, target, admin, consumer, ear, on_commit)
            if is_new:
                loop.begin(start, waited=waited)
            loop.assign()
            loop.run(stop)
        finally:
            consumer.close()
    except KafkaException as error:
        if isinstance(refused := failure(error, f"{settings.messages} cannot be read"), ConfigError):
            raise refused from error
        raise SinkError(f"Kafka refuses to be read ({reason(error)}): look at the broker, and start again") from error
    finally:
        storage.close()


def _begin(storage: Storage, asked: Start | None) -> tuple[Start, bool]:
    """Return where the storage begins, and whether it does so now.

    Raises:
        ConfigError: it began elsewhere.
    """
    state = storage.files.get(_BEGINNING)
    if state is None and not storage.offsets:
        start = asked or EARLIEST
        if start != EARLIEST:
            note = [start.typed, start.kind, start.from_ms]
            storage.replace(_BEGINNING, [orjson.dumps(note)], note)
        return start, True
    start = Start(*state.note) if state else EARLIEST
    if asked and asked.typed != start.typed:
        raise ConfigError(
            f"{storage.folder} began with --from {start.typed}, and goes on from there: "
            f"leave --from {asked.typed} out, or choose another --storage"
        )
    return start, False


class _Loop:
    """Read, hand on, commit."""

    def __init__(
        self,
        settings: LoopSettings,
        topics: Mapping[str, FoundTopic],
        target: Target,
        admin: AdminClient,
        consumer: Consumer,
        ear: Ear,
        on_commit: Callable[[int], None],
    ) -> None:
        self._settings, self._topics = settings, topics
        self._target, self._on_commit = target, on_commit
        self._admin, self._consumer, self._ear = admin, consumer, ear
        self._places = places_of(topics)
        self._offsets: Offsets = {topic: dict(target.offsets.get(topic, {})) for topic in topics}
        self._held = 0
        self._moved = False
        self._told_at = time.monotonic()
        self._completed_at, self._completing_s = time.monotonic(), 0.0

    def begin(self, start: Start, *, waited: bool) -> None:
        """Remember where a new storage begins before anything is read: a second start must not begin later.

        Args:
            start: what was asked for.
            waited: the topics came later than we: then all that they have has come since.
        """
        if start == EARLIEST:
            return
        kind = EARLIEST.kind if waited else start.kind
        for (topic, partition), offset in starts(self._admin, self._places, kind, start.from_ms).items():
            self._offsets[topic][partition] = offset
        self._moved = True
        self._commit()

    def assign(self) -> None:
        """Begin where the files end, or at what Kafka still has.

        Raises:
            SinkError: retention has deleted messages that were not read.
        """
        for (topic, partition), earliest in earliest_offsets(self._admin, self._places).items():
            if earliest > (at := self._offsets[topic].get(partition, earliest)):
                raise self._deleted(topic, partition, f"offsets {at} to {earliest - 1}")
        self._consumer.assign(
            [
                TopicPartition(topic, partition, self._offsets[topic].get(partition, OFFSET_BEGINNING))
                for topic, partition in self._places
            ]
        )

    def run(self, stop: threading.Event) -> None:
        settings = self._settings
        committed_at = moved_at = time.monotonic()
        pause_s = settings.commit_s
        while not stop.is_set():
            messages = self._consumer.consume(settings.batch_messages, _POLL_S)
            if name := self._ear.missing(self._admin, self._topics):
                raise _gone(name)
            if messages and self._take(messages):
                moved_at = self._told_at = time.monotonic()
            now = time.monotonic()
            if self._held >= settings.commit_rows or now - committed_at >= pause_s:
                self._commit()
                pause_s = max(settings.commit_s, _COMMITTING_SHARE * (time.monotonic() - now))
                self._complete_in_time(is_calm=now - moved_at >= _CALM_S)
                committed_at = time.monotonic()
            if settings.until_idle and now - moved_at >= settings.idle_s:
                if self._reached_end():
                    self._commit()
                    self._target.finish()
                    return
                moved_at = now
        self._commit()
        self._target.complete()

    def _complete_in_time(self, *, is_calm: bool) -> None:
        """Complete files now and then: when nothing comes, or nothing was completed for long."""
        if not self._target.is_behind:
            self._completed_at = time.monotonic()
            return
        since_s = time.monotonic() - self._completed_at
        if since_s < self._completing_s * _COMPLETING_SHARE or not (is_calm or since_s >= self._settings.complete_s):
            return
        began = time.monotonic()
        self._target.complete()
        self._completed_at = time.monotonic()
        self._completing_s = self._completed_at - began

    def _take(self, messages: list[Any]) -> bool:
        """Hand messages on; return whether the position moved."""
        # Messages are Any: the library's types let topic and offset be None, which only messages to be sent have.
        offsets, moved = self._offsets, False
        taken = []
        for message in messages:
            if error := message.error():
                moved |= self._take_event(message, error)
                continue
            taken.append(message)
            offsets[message.topic()][message.partition()] = message.offset() + 1
        if taken:
            self._held, moved = self._target.take(taken), True
        self._moved |= moved
        return moved

    def _take_event(self, message: Any, error: KafkaError) -> bool:
        topic, partition = message.topic(), message.partition()
        if is_end(error):
            # Past the markers of transactions, which are offsets without a message.
            ended_at = message.offset()
            moved = ended_at > self._offsets[topic].get(partition, -1)
            if moved:
                self._offsets[topic][partition] = ended_at
            return bool(moved)
        if is_deleted(error):
            raise self._deleted(topic, partition, f"what follows offset {self._offsets[topic].get(partition, 0)}")
        if is_missing(error):
            raise _gone(topic)
        if isinstance(refused := failure(error, f"{topic or 'Kafka'} cannot be read"), ConfigError):
            raise refused
        if error.fatal():
            raise SinkError(f"Kafka cannot be read any more ({reason(error)}): start again")
        log.warning("kafka client", extra={"topic": topic, "partition": partition, "error": reason(error)})
        return False

    def _commit(self) -> None:
        if not self._moved:
            return
        self._target.commit(self._offsets)
        self._held, self._moved = 0, False
        self._on_commit(self._behind())

    def _behind(self) -> int:
        behind = 0
        for topic, partition in self._places:
            high = self._consumer.get_watermark_offsets(TopicPartition(topic, partition), cached=True)[1]
            at = self._offsets[topic].get(partition)
            behind += max(0, high - at) if at is not None else 0
        return behind

    def _reached_end(self) -> bool:
        """Tell whether all that is committed as of now has been read."""
        try:
            ends = high_watermarks(self._admin, self._places)
        except KafkaException as error:
            log.warning("the ends of the topics are unknown", extra={"error": reason(error)})
            return False
        unread = {place: end for place, end in ends.items() if self._offsets[place[0]].get(place[1], 0) < end}
        now = time.monotonic()
        if unread and now - self._told_at >= _REMIND_S:
            self._told_at = now
            log.warning(
                "waiting for what cannot be read yet: is a transaction open (kafka-transactions.sh find-hanging)?",
                extra={"partitions": [f"{topic} [{partition}]" for topic, partition in unread]},
            )
        return not unread

    def _deleted(self, topic: str, partition: int, what: str) -> SinkError:
        return SinkError(
            f"{topic} [{partition}] has lost {what} before they were written to {self._settings.storage}: "
            "make the topic's retention longer, and choose another --storage to write what Kafka still has"
        )


def _gone(topic: str) -> SinkError:
    return SinkError(f"topic {topic} is gone or was made anew: start again with another --storage when it is back")
