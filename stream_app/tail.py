"""The loop of ``stream-app tail``: committed records as they come, shown and forgotten.

Partitions are assigned by hand and nothing is committed to Kafka: looking leaves no trace.
"""

from __future__ import annotations

import io
import logging
import os
import select
import threading
import time
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from ingestor.core.errors import ConfigError, MalformedMessage, PublishError
from ingestor.core.topics import Topics
from ingestor.kafka import (
    Cluster,
    FoundTopic,
    connect,
    failure,
    find_topics,
    is_end,
    is_missing,
    reason,
    wait_for_leaders,
)
from stream_app.reading import (
    Ear,
    Place,
    committed_consumer,
    is_deleted,
    places_of,
    stable_offsets,
    starts,
    wait_for_topics,
)
from stream_app.records import decode_record
from stream_app.tail_display import Lines
from stream_app.tail_filter import RecordFilter, Wanted

log = logging.getLogger(__name__)

_BATCH_MESSAGES = 2_000
_POLL_S = 0.1
"""How late a record may be shown, a stop noticed, and the end of a reader: all for ten looks a second."""
_STALL_S = 30.0
"""A broker that gives nothing for so long, though there is something, is away."""


@dataclass(frozen=True, slots=True)
class TailSettings:
    """What ``stream-app tail`` is asked to do."""

    cluster: Cluster
    topics: Topics
    group_by: tuple[str, ...] = ("pod",)
    """``pod``, ``service`` or both: the sink topics that are read."""

    wanted: Wanted = field(default_factory=Wanted)
    """Its *from_ms* also says where reading begins; it is for ``start`` = "time" only."""

    start: str = "latest"
    """``latest``: what is committed from now on; ``earliest``: all that Kafka has; ``time``: *wanted.from_ms*."""

    lines: int | None = None
    """Return after so many records."""

    follow: bool = True
    """Wait for more; False: return at what is the end now."""


def run_tail(settings: TailSettings, stop: threading.Event, lines: Lines, out: BinaryIO) -> bool:
    """Write a line a record until *stop* is set, or nobody reads *out* any more, or all that was asked for is written.

    Args:
        settings: what to read.
        stop: looked at a few times a second.
        lines: how a record is written.
        out: written and flushed with each batch of records.

    Returns:
        False where *stop* came first.

    Raises:
        ConfigError: Kafka does not answer, or does not let us in; a topic is missing and nothing is waited for.
        PublishError: Kafka cannot be read any more.

    Records of one pod or service are in order, those of several are as they arrive. A message that is
    no record is logged and skipped, unless its key alone says that it is not wanted.
    """
    try:
        admin = connect(settings.cluster)
        found, waited = _find(admin, list(_of_services(settings)), stop, follow=settings.follow)
        if found is None:
            return False
        wait_for_leaders(admin, found)
        places = places_of(found)
        # What was written while nobody had seen the topic has come since we began.
        at = starts(admin, places, "earliest" if waited else settings.start, settings.wanted.from_ms)
        ends = None if settings.follow else stable_offsets(admin, places)
        ear = Ear()
        consumer = _consumer(settings, ear)
        try:
            return _Loop(settings, admin, found, ear, consumer, at, ends, lines, out).run(stop)
        finally:
            consumer.close()
    except KafkaException as error:
        raise failure(error, "records cannot be read") from error


class _Loop:
    """Read, choose, write."""

    def __init__(
        self,
        settings: TailSettings,
        admin: AdminClient,
        topics: dict[str, FoundTopic],
        ear: Ear,
        consumer: Consumer,
        at: dict[Place, int],
        ends: dict[Place, int] | None,
        lines: Lines,
        out: BinaryIO,
    ) -> None:
        self._filter = RecordFilter(settings.wanted)
        self._of_services = _of_services(settings)
        self._admin, self._topics = admin, topics
        self._ear, self._consumer = ear, consumer
        self._at, self._ends = at, ends
        self._open = {place for place in at if ends is None or at[place] < ends[place]}
        self._left = settings.lines
        self._lines, self._out = lines, out
        self._must_assign = True

    def run(self, stop: threading.Event) -> bool:
        moved_at = time.monotonic()
        while self._open and self._left != 0:
            if stop.is_set():
                return False
            if _is_closed(self._out):
                return True
            if self._must_assign:
                # Not amid a batch: what is behind in it would come twice.
                self._assign()
            messages = self._consumer.consume(_BATCH_MESSAGES, _POLL_S)
            if name := self._ear.missing(self._admin, self._topics):
                raise PublishError(f"topic {name} is gone or was made anew: start again")
            if messages:
                moved_at = time.monotonic()
                if not _write(self._out, b"".join(self._take(messages))):
                    return True
            elif self._ends is not None and time.monotonic() - moved_at > _STALL_S:
                raise PublishError("Kafka gives no more records, though it has some: is a broker away? start again")
        return True

    def _assign(self) -> None:
        self._must_assign = False
        self._consumer.assign(
            [TopicPartition(topic, partition, offset) for (topic, partition), offset in self._at.items()]
        )

    def _take(self, messages: list[Any]) -> list[bytes]:
        """Return the lines of the records that are wanted."""
        # Messages are Any: the library's types let topic and offset be None, which only messages to be sent have.
        written: list[bytes] = []
        of_services, at, ends, may_be_wanted = self._of_services, self._at, self._ends, self._filter.may_be_wanted
        for message in messages:
            if error := message.error():
                self._take_event(message, error)
                continue
            topic, partition, offset = message.topic(), message.partition(), message.offset()
            place = topic, partition
            at[place] = offset + 1
            if ends is not None:
                if offset + 1 >= ends[place]:
                    self._open.discard(place)
                if offset >= ends[place]:
                    continue
            if may_be_wanted(message.key(), of_service=of_services[topic]) and (line := self._line(message)):
                written.append(line)
                if self._left is not None:
                    self._left -= 1
                    if not self._left:
                        break
        return written

    def _line(self, message: Any) -> bytes | None:
        value = message.value()
        try:
            record = self._filter.wanted(decode_record(value))
        except MalformedMessage as problem:
            where = {"topic": message.topic(), "partition": message.partition(), "offset": message.offset()}
            log.error("message skipped", extra={**where, "error": str(problem)})  # noqa: TRY400 - no defect of ours
            return None
        return None if record is None else self._lines.of(record, value)

    def _take_event(self, message: Any, error: KafkaError) -> None:
        topic, partition = place = message.topic(), message.partition()
        if is_end(error):
            # Past the markers of transactions, which are offsets without a message.
            self._at[place] = max(self._at[place], message.offset())
            if self._ends is not None and self._at[place] >= self._ends[place]:
                self._open.discard(place)
        elif is_deleted(error):
            log.warning("records were deleted before they were read", extra={"topic": topic, "partition": partition})
            self._at[place] = OFFSET_BEGINNING
            self._must_assign = True
        elif is_missing(error):
            self._ear.heard_of_missing = True
        elif isinstance(refused := failure(error, f"{topic or 'Kafka'} cannot be read"), ConfigError) or error.fatal():
            raise refused
        else:
            log.warning("kafka client", extra={"topic": topic, "partition": partition, "error": reason(error)})


def _of_services(settings: TailSettings) -> dict[str, bool]:
    """Return the topics that are read, and whether they hold services' records."""
    return {settings.topics.sink(grouping): grouping == "service" for grouping in settings.group_by}


def _find(
    admin: AdminClient, names: list[str], stop: threading.Event, *, follow: bool
) -> tuple[dict[str, FoundTopic] | None, bool]:
    """Return the topics, or None when stopped before there are all of them; and whether they were waited for.

    Raises:
        ConfigError: one is missing, and nothing is to be waited for.
    """
    if not follow and (missing := sorted(set(names) - set(find_topics(admin, names)))):
        raise ConfigError(
            f"topic {missing[0]} does not exist: start a worker (stream-app worker), or give its --topic-prefix"
        )
    return wait_for_topics(admin, names, "a worker", stop)


def _consumer(settings: TailSettings, ear: Ear) -> Consumer:
    # An end is told only with the broker's next answer.
    more = {} if settings.follow else {"fetch.wait.max.ms": 10}
    return committed_consumer(settings.cluster, settings.topics.prefix, ear, **more)


def _write(out: BinaryIO, data: bytes) -> bool:
    """Write and flush; return False where nobody reads it any more."""
    if not data:
        return True
    try:
        out.write(data)
        out.flush()
    except BrokenPipeError:
        # What is still in the buffer must not fail once more at the process's end.
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, out.fileno())
        os.close(devnull)
        return False
    return True


def _is_closed(out: BinaryIO) -> bool:
    """Tell whether the reader of a pipe is gone, without writing to it."""
    try:
        poll = select.poll()
        poll.register(out.fileno(), 0)
    except io.UnsupportedOperation:
        return False
    return any(event & (select.POLLERR | select.POLLHUP | select.POLLNVAL) for _, event in poll.poll(0))
