"""Fills the board from Kafka, in a thread of its own: what comes from now on, and what was before, the newest first.

Committed records only, of partitions assigned by hand, and nothing is committed: looking leaves no trace.
The worker's own work shares the interpreter's lock with this thread, so it takes a little at a time and rests
longer than it has worked.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from ingestor.core.errors import ConfigError, IngestorError, PublishError
from ingestor.kafka import Cluster, FoundTopic, connect, failure, find_topics, is_end, is_missing, reason
from stream_app.dashboard.board import MOST_LETTERS, Board, Taken, decoded
from stream_app.reading import Ear, Place, committed_consumer, earliest_offsets, places_of, stable_offsets, starts

log = logging.getLogger(__name__)

_BATCH_MESSAGES = 500
"""Some 5 ms of work."""
_REST = 3
"""So many times as long as it has worked: the worker's own work loses a quarter of a core at most."""
_POLL_S = 0.2
_RETRY_S = 5.0
_LOOK_S = 5.0
"""How often a topic that is missing is looked for."""
_TIDY_S = 10.0

_FIRST_BLOCK, _LARGEST_BLOCK = 500, 20_000
_FRUITLESS = 50_000
"""So many messages of a partition in a row that are too old, or of other views: what is before them is too."""

_VERDICTS = 5_000
"""Of a partition, at first."""


class Reader:
    """Reads for as long as it is wanted.

    Args:
        cluster: where to read.
        board: what is filled.
        is_wanted: asked a few times a second.
    """

    def __init__(self, cluster: Cluster, board: Board, is_wanted: Callable[[], bool]) -> None:
        self._cluster, self._board, self._is_wanted = cluster, board, is_wanted
        topics = board.view.topics
        self._records = topics.sink("pod" if "pod" in board.view.group_by else "service")
        self._positions, self._letters = topics.positions, topics.dead_letters
        self._verdicts = f"{topics.prefix}.anomalies"
        self._topics = self._records, self._positions, self._letters, self._verdicts

    def run(self) -> None:
        """Read until it is not wanted any more; what fails is told on the board, logged, and tried again."""
        while self._is_wanted():
            problem = ""
            try:
                self._read()
            except IngestorError as error:
                problem = str(error)
                log.warning("the dashboard cannot read", extra={"error": problem})
            except Exception as error:
                problem = f"a defect: {error!r}"
                log.exception("the dashboard's reading failed")
            with self._board.lock:
                reading = self._board.reading
                reading.problem, reading.is_live = problem, False
                self._board.version += 1
            until = time.monotonic() + _RETRY_S
            while problem and self._is_wanted() and time.monotonic() < until:
                time.sleep(_POLL_S)

    def _read(self) -> None:
        try:
            admin = connect(self._cluster)
            found = find_topics(admin, self._topics)
            if self._records not in found:
                raise ConfigError(f"topic {self._records} is gone: start the worker again, it makes it")
            with self._board.lock:
                self._board.clear()
                self._board.has_anomaly_topic = self._verdicts in found
            ear = _Ear()
            prefix = self._board.view.topics.prefix
            live = _consumer(self._cluster, prefix, ear)
            ends = stable_offsets(admin, places_of(found))
            past = _Past(_consumer(self._cluster, prefix, ear), admin, self._board, self._records, ends)
            try:
                live.assign([TopicPartition(*place, self._start(place[0], end)) for place, end in ends.items()])
                self._loop(admin, found, ear, live, past)
            finally:
                live.close()
                past.close()
        except KafkaException as error:
            raise failure(error, "Kafka cannot be read") from error

    def _loop(self, admin: AdminClient, found: dict[str, FoundTopic], ear: _Ear, live: Consumer, past: _Past) -> None:
        board = self._board
        looked_at = tidied_at = time.monotonic()
        with board.lock:
            board.reading.problem, board.reading.is_live = "", True
            board.records.count(time.monotonic(), 0)
        while self._is_wanted():
            messages = live.consume(_BATCH_MESSAGES, _POLL_S if past.is_done else 0.0)
            began = time.thread_time()
            self._take(messages, ear)
            past.step()
            self._tell(ear)
            now = time.monotonic()
            if now - tidied_at > _TIDY_S:
                tidied_at = now
                with board.lock:
                    board.pods.tidy()
            if gone := ear.missing(admin, found):
                raise PublishError(f"topic {gone} is gone, or was made anew")
            if len(found) < len(self._topics) and now - looked_at > _LOOK_S:
                looked_at = now
                self._look_again(admin, found, live)
            time.sleep(_REST * (time.thread_time() - began))

    def _take(self, messages: list[Any], ear: _Ear) -> None:
        """Put messages on the board, those of each topic together."""
        taken: dict[str, list[Taken]] = {}
        for message in messages:
            if error := message.error():
                self._take_event(error, ear)
            else:
                ear.hears_nobody = False
                taken.setdefault(message.topic(), []).append(_taken(message, headers=message.topic() == self._letters))
        if not taken:
            return
        board = self._board
        records = taken.get(self._records, [])
        content = decoded(records)
        with board.lock:
            for topic, batch in taken.items():
                if topic == self._records:
                    board.records.count(time.monotonic(), int(board.take_records(records, content).sum()))
                elif topic == self._positions:
                    board.take_positions(batch)
                elif topic == self._letters:
                    board.take_letters(batch)
                else:
                    board.take_verdicts(batch)

    def _take_event(self, error: KafkaError, ear: _Ear) -> None:
        if is_missing(error):
            ear.heard_of_missing = True
        elif not is_end(error):
            raised = failure(error, "Kafka cannot be read")
            if isinstance(raised, ConfigError) or error.fatal():
                raise raised
            log.warning("kafka client", extra={"error": reason(error)})

    def _tell(self, ear: _Ear) -> None:
        """Say so where no broker answers, for as long as that is."""
        reading = self._board.reading
        problem = "no Kafka broker answers: what is shown is old" if ear.hears_nobody else ""
        if problem != reading.problem:
            with self._board.lock:
                reading.problem = problem
                self._board.version += 1

    def _look_again(self, admin: AdminClient, found: dict[str, FoundTopic], live: Consumer) -> None:
        """Take in topics that have come."""
        new = find_topics(admin, [topic for topic in self._topics if topic not in found])
        found |= new
        if new:
            live.incremental_assign([TopicPartition(*place, 0) for place in places_of(new)])
        with self._board.lock:
            self._board.has_anomaly_topic = self._verdicts in found

    def _start(self, topic: str, end: int) -> int:
        """Return where reading of a partition begins: of records at the end, of what there is little of before it."""
        back = {self._records: 0, self._letters: MOST_LETTERS, self._verdicts: _VERDICTS}.get(topic, end)
        return max(end - back, 0)


class _Past:
    """What was on the topic before, read backwards in blocks: what is newest is seen first."""

    def __init__(
        self, consumer: Consumer, admin: AdminClient, board: Board, topic: str, ends: dict[Place, int]
    ) -> None:
        self._consumer, self._admin, self._board, self._topic = consumer, admin, board, topic
        self._ends = {place: end for place, end in ends.items() if place[0] == topic}
        firsts = earliest_offsets(admin, self._ends)
        self._parts = {place[1]: _Part(firsts[place], end) for place, end in self._ends.items() if firsts[place] < end}
        self._block = _FIRST_BLOCK
        self._open: set[int] = set()
        self.is_done = False
        self._tell()

    def step(self) -> None:
        """Read a little."""
        if self.is_done:
            return
        if not self._open:
            self._begin_block()
            return
        messages = self._of_block(self._consumer.consume(_BATCH_MESSAGES, 0.05))
        if not messages:
            return
        content = decoded(messages)
        with self._board.lock:
            kept = self._board.take_records(messages, content)
            self._board.reading.done += len(messages)
        for message, is_kept in zip(messages, kept.tolist(), strict=True):
            part = self._parts[message.partition]
            part.fruitless = 0 if is_kept else part.fruitless + 1

    def _of_block(self, messages: list[Any]) -> list[Taken]:
        """Return those messages that are of the block; what is read ahead belongs to another one, or is live."""
        taken = []
        for message in messages:
            partition, offset = message.partition(), message.offset()
            if error := message.error():
                if not is_end(error):
                    raise failure(error, f"{self._topic} cannot be read")
                self._end_block(partition)
            elif partition in self._open:
                part = self._parts[partition]
                if offset < part.to:
                    taken.append(_taken(message))
                if offset >= part.to - 1:
                    self._end_block(partition)
        return taken

    def close(self) -> None:
        self._consumer.close()

    def _begin_block(self) -> None:
        # Before the first block it is not known which windows are the newest; later ones may show that fewer fit in.
        if self._block > _FIRST_BLOCK:
            self._bound()
        parts = {at: part for at, part in self._parts.items() if part.at > part.first and part.fruitless < _FRUITLESS}
        for part in parts.values():
            part.to, part.at = part.at, max(part.first, part.at - self._block)
        self._open = set(parts)
        self._block = min(2 * self._block, _LARGEST_BLOCK)
        if parts:
            self._consumer.assign([TopicPartition(self._topic, at, part.at) for at, part in parts.items()])
            return
        self.is_done = True
        self._consumer.unassign()
        with self._board.lock:
            self._board.reading.done = self._board.reading.wanted
            self._board.version += 1

    def _end_block(self, partition: int) -> None:
        if partition in self._open:
            self._open.discard(partition)
            self._consumer.incremental_unassign([TopicPartition(self._topic, partition)])

    def _bound(self) -> None:
        """Leave out what was written before any window of interest began: records are written after that."""
        with self._board.lock:
            from_ms = self._board.pods.from_ms
        if from_ms < 0:
            return
        firsts = starts(self._admin, self._ends, "time", from_ms)
        for at, part in self._parts.items():
            part.first = max(part.first, firsts[self._topic, at])
        self._tell()

    def _tell(self) -> None:
        with self._board.lock:
            self._board.reading.wanted = sum(
                self._ends[self._topic, at] - part.first for at, part in self._parts.items()
            )
            self._board.reading.done = min(self._board.reading.done, self._board.reading.wanted)


@dataclass(slots=True)
class _Part:
    """A partition, and how far back it is read."""

    first: int
    """Where there is an end."""
    at: int
    """Where the block begins that is read; before one is, the end of all."""
    to: int = 0
    """Behind the block's last message."""
    fruitless: int = 0
    """Messages in a row of which nothing was kept."""


class _Ear(Ear):
    """Also hears that there is nobody."""

    hears_nobody = False

    def hear(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001 - the library has no public name for it
            self.hears_nobody = True
        super().hear(error)


def _consumer(cluster: Cluster, prefix: str, ear: Ear) -> Consumer:
    # What is deleted already is left out; and this is not all that the process has to keep in memory.
    settings = {"auto.offset.reset": "earliest", "queued.max.messages.kbytes": 8_192}
    return committed_consumer(cluster, prefix, ear, **settings)


def _taken(message: Any, *, headers: bool = False) -> Taken:
    return Taken(
        message.partition(),
        message.offset(),
        message.timestamp()[1],
        message.key(),
        message.value(),
        (message.headers() or ()) if headers else (),
    )
