"""The loop of ``stream-app files``: committed records from Kafka into files, exactly once.

Partitions are assigned by hand and nothing is committed to Kafka: where to read on
is part of the files' own checkpoint.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from ingestor.core.durations import ChunkSize
from ingestor.core.errors import ConfigError, MalformedMessage, SinkError
from ingestor.core.topics import Topics
from ingestor.kafka import (
    Cluster,
    assigned_consumer,
    connect,
    failure,
    find_topics,
    is_end,
    is_missing,
    is_refusal,
    reason,
    wait_for_leaders,
)
from stream_app.records import Record, decode_record
from stream_app.sinks.base import Offsets, View
from stream_app.sinks.checkpoint import Identity, Storage
from stream_app.sinks.csv_files import FORMAT, CsvSink

log = logging.getLogger(__name__)

GROUPINGS = ("pod", "service")

_BATCH_MESSAGES = 5_000
_POLL_S = 0.25
"""How soon a stop is noticed."""
_REQUEST_S = 10.0
_TOPIC_LOOK_S = 1.0
_REMIND_S = 30.0
_LATEST_MS = 253_402_300_799_999
"""The end of the year 9999: nothing later has an ISO 8601 timestamp."""

_NO_RESET = KafkaError._AUTO_OFFSET_RESET  # noqa: SLF001 - the library has no public name for it


@dataclass(frozen=True, slots=True)
class FilesSettings:
    """What ``stream-app files`` is asked to do."""

    cluster: Cluster
    topics: Topics
    storage: Path
    group_by: tuple[str, ...] = ("pod",)
    """``pod``, ``service`` or both: the sink topics that are read."""

    chunk_size: str | None = None
    """Take records of this chunk size only; None: there is only one."""

    method: str | None = None
    """Take records of this method only; None: there is only one."""

    until_idle: bool = False
    """Return when all that is committed has been read and nothing came for *idle_s*; else only on *stop*."""

    idle_s: float = 5.0
    """A worker commits about once a second; five leave room for a pause of the garbage collector or a broker."""

    commit_s: float = 1.0
    """Files are at most so much behind what has been read."""

    commit_rows: int = 50_000
    """Commit earlier when so many rows are held in memory: about 100 MB at 20 metrics a row."""


@dataclass(frozen=True, slots=True)
class FilesProgress:
    """How far the files are; counts are of this run."""

    rows: int = 0
    """Records of the view that were written, a revised row once a record."""
    files: int = 0
    """CSV files in the storage."""
    malformed: int = 0
    """Messages that are no record, skipped."""
    other_views: int = 0
    """Records of views that were not asked for, skipped."""
    behind: int = 0
    """Offsets between what has been read and the end of the topics, as last heard from the broker."""


def run_files(
    settings: FilesSettings,
    stop: threading.Event,
    on_progress: Callable[[FilesProgress], None] = lambda _: None,
) -> FilesProgress:
    """Write files until *stop* is set or, with ``until_idle``, all is written; return the last progress.

    Args:
        settings: what to read and where to write.
        stop: looked at a few times a second; what has been read by then is committed.
        on_progress: called after every commit.

    Raises:
        ConfigError: the storage cannot be written, is in use, or holds other data; Kafka
            does not answer; a setting is wrong.
        SinkError: the disk is full, a file was changed by something else, retention has
            deleted records that were not read, or records of a second view appear.
    """
    wanted = _checked(settings)
    storage = Storage(settings.storage)
    try:
        admin = connect(settings.cluster)
        names = {settings.topics.sink(grouping): grouping for grouping in settings.group_by}
        found = _wait_for_topics(admin, list(names), stop)
        if found is None:
            return FilesProgress()
        ids, partitions = found
        wait_for_leaders(admin, ids)
        cluster = admin.describe_cluster(request_timeout=_REQUEST_S).result().cluster_id
        storage.open(Identity(cluster, ids, {"format": FORMAT, "group_by": ",".join(sorted(settings.group_by))}))
        sink = CsvSink(storage, settings.group_by)
        views = _ViewFilter(*wanted, sink.view, settings.storage)
        consumer = assigned_consumer(
            settings.cluster,
            settings.topics.prefix,
            **{
                "auto.offset.reset": "error",
                "enable.auto.offset.store": False,
                "enable.partition.eof": True,
                "queued.max.messages.kbytes": 32_768,
                # By default a full queue is looked at again after a second, long after it has been emptied.
                "fetch.queue.backoff.ms": 20,
                "error_cb": _hear,
            },
        )
        try:
            loop = _Loop(settings, names, sink, views, admin, consumer, on_progress)
            loop.assign(partitions)
            return loop.run(stop)
        finally:
            consumer.close()
    except KafkaException as error:
        if isinstance(refused := failure(error, "records cannot be read"), ConfigError):
            raise refused from error
        raise SinkError(f"Kafka refuses to be read ({reason(error)}): look at the broker, and start again") from error
    finally:
        storage.close()


class _Loop:
    """Read, decode, write, commit."""

    def __init__(
        self,
        settings: FilesSettings,
        grouping_by_topic: Mapping[str, str],
        sink: CsvSink,
        views: _ViewFilter,
        admin: AdminClient,
        consumer: Consumer,
        on_progress: Callable[[FilesProgress], None],
    ) -> None:
        self._settings = settings
        self._of_services = {topic: grouping == "service" for topic, grouping in grouping_by_topic.items()}
        self._sink, self._views = sink, views
        self._admin, self._consumer = admin, consumer
        self._on_progress = on_progress
        self._offsets: Offsets = {topic: dict(sink.offsets.get(topic, {})) for topic in grouping_by_topic}
        self._partitions: list[TopicPartition] = []
        self._progress = FilesProgress(files=sink.file_count)
        self._malformed = 0
        self._uncommitted_rows = 0
        self._moved = False

    def assign(self, partitions: Mapping[str, Sequence[int]]) -> None:
        """Begin where the files end, or at what Kafka still has.

        Raises:
            SinkError: retention has deleted records that were not read.
        """
        self._partitions = [TopicPartition(topic, p) for topic in partitions for p in partitions[topic]]
        for (topic, partition), earliest in self._bounds(OffsetSpec.earliest()).items():  # type: ignore[no-untyped-call]
            if earliest > (at := self._offsets[topic].get(partition, earliest)):
                raise self._deleted(topic, partition, f"offsets {at} to {earliest - 1}")
        self._consumer.assign(
            [
                TopicPartition(tp.topic, tp.partition, self._offsets[tp.topic].get(tp.partition, OFFSET_BEGINNING))
                for tp in self._partitions
            ]
        )

    def run(self, stop: threading.Event) -> FilesProgress:
        committed_at = moved_at = time.monotonic()
        while not stop.is_set():
            messages = self._consumer.consume(_BATCH_MESSAGES, _POLL_S)
            if messages and self._take(messages):
                moved_at = time.monotonic()
            now = time.monotonic()
            if self._uncommitted_rows >= self._settings.commit_rows or now - committed_at >= self._settings.commit_s:
                self._commit()
                committed_at = time.monotonic()
            if self._settings.until_idle and now - moved_at >= self._settings.idle_s:
                if self._reached_end():
                    break
                moved_at = now
        self._commit()
        return self._progress

    def _take(self, messages: list[Any]) -> bool:
        """Give records to the sink; return whether the position moved."""
        # Messages are Any: the library's types let topic and offset be None, which only messages to be sent have.
        records: list[tuple[int, Record]] = []
        of_services, offsets, accepts = self._of_services, self._offsets, self._views.accepts
        moved = False
        for message in messages:
            if error := message.error():
                moved |= self._take_event(message, error)
                continue
            topic, partition, offset = message.topic(), message.partition(), message.offset()
            try:
                record = _record(message.value(), of_service=of_services[topic])
                if accepts(record):
                    records.append((offset, record))
            except MalformedMessage as problem:
                where = {"topic": topic, "partition": partition, "offset": offset}
                log.error("message skipped", extra={**where, "error": str(problem)})  # noqa: TRY400 - no defect of ours
                self._malformed += 1
            offsets[topic][partition] = offset + 1
            moved = True
        self._sink.write(records)
        self._uncommitted_rows += len(records)
        self._moved |= moved
        return moved

    def _take_event(self, message: Any, error: KafkaError) -> bool:
        topic, partition, code = message.topic(), message.partition(), error.code()
        if is_end(error):
            # Past the markers of transactions, which are offsets without a message.
            ended_at = message.offset()
            moved = ended_at > self._offsets[topic].get(partition, -1)
            if moved:
                self._offsets[topic][partition] = ended_at
            return bool(moved)
        if code in (_NO_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            raise self._deleted(topic, partition, f"what follows offset {self._offsets[topic].get(partition, 0)}")
        if is_missing(error):
            raise SinkError(f"topic {topic} is gone: start again with another --storage when it is back")
        if isinstance(refused := failure(error, f"{topic or 'Kafka'} cannot be read"), ConfigError):
            raise refused
        if error.fatal():
            raise SinkError(f"Kafka cannot be read any more ({reason(error)}): start again")
        log.warning("kafka client", extra={"topic": topic, "partition": partition, "error": reason(error)})
        return False

    def _commit(self) -> None:
        if not self._moved:
            return
        self._sink.commit(self._offsets, self._views.view)
        self._progress = replace(
            self._progress,
            rows=self._progress.rows + self._uncommitted_rows,
            files=self._sink.file_count,
            malformed=self._malformed,
            other_views=self._views.skipped,
            behind=self._behind(),
        )
        self._uncommitted_rows, self._moved = 0, False
        self._on_progress(self._progress)

    def _behind(self) -> int:
        behind = 0
        for tp in self._partitions:
            high = self._consumer.get_watermark_offsets(tp, cached=True)[1]
            at = self._offsets[tp.topic].get(tp.partition)
            behind += max(0, high - at) if at is not None else 0
        return behind

    def _reached_end(self) -> bool:
        """Tell whether all that is committed as of now has been read."""
        try:
            ends = self._bounds(OffsetSpec.latest())  # type: ignore[no-untyped-call]
        except KafkaException as error:
            log.warning("the ends of the topics are unknown", extra={"error": reason(error)})
            return False
        return all(self._offsets[topic].get(partition, 0) >= end for (topic, partition), end in ends.items())

    def _bounds(self, spec: OffsetSpec) -> dict[tuple[str, int], int]:
        futures = self._admin.list_offsets(
            {TopicPartition(tp.topic, tp.partition): spec for tp in self._partitions},
            isolation_level=IsolationLevel.READ_COMMITTED,
            request_timeout=_REQUEST_S,
        )
        return {(tp.topic, tp.partition): future.result().offset for tp, future in futures.items()}

    def _deleted(self, topic: str, partition: int, what: str) -> SinkError:
        return SinkError(
            f"{topic} [{partition}] has lost {what} before they were written to {self._settings.storage}: "
            "make the topic's retention longer, and choose another --storage to write what Kafka still has"
        )


def _hear(error: KafkaError) -> None:
    """Take what the library tells aside from messages; what is raised here comes out of the next read.

    Raises:
        ConfigError: user or password are not accepted any more.
    """
    if is_refusal(error):
        raise ConfigError(
            f"Kafka does not let us in any more ({reason(error)}): look at --kafka-user and --kafka-password-file"
        )
    log.warning("kafka client", extra={"error": reason(error)})


class _ViewFilter:
    """Lets records of one view through: the one that was chosen, or the only one."""

    def __init__(self, chunk_size: str | None, method: str | None, view: View | None, storage: Path) -> None:
        self._chosen = chunk_size, method
        self.view = view
        self.skipped = 0
        if view and not self._is_chosen(view.chunk_size, view.method):
            asked = View(chunk_size or view.chunk_size, method or view.method)
            raise ConfigError(f"{storage} holds records of {view}, not of {asked}: choose another --storage")

    def accepts(self, record: Record) -> bool:
        """Tell whether *record* is of the view.

        Raises:
            SinkError: it is of a second one, and none was chosen.
        """
        view = self.view
        if view and record.chunk_size == view.chunk_size and record.method == view.method:
            return True
        if not self._is_chosen(record.chunk_size, record.method):
            if not self.skipped:
                log.info(
                    "records of other views are left out", extra={"view": str(View(record.chunk_size, record.method))}
                )
            self.skipped += 1
            return False
        other = View(record.chunk_size, record.method)
        if view is None:
            self.view = other
            return True
        raise SinkError(
            f"the topic has records of two views ({view}; {other}): choose one with --chunk-size and --method, "
            "and another --storage for the other"
        )

    def _is_chosen(self, chunk_size: str, method: str) -> bool:
        return self._chosen[0] in (None, chunk_size) and self._chosen[1] in (None, method)


def _record(value: bytes | None, *, of_service: bool) -> Record:
    """Read a record that a file can hold.

    Raises:
        MalformedMessage: it is none.
    """
    record = decode_record(value)
    pod: Any = record.pod
    if (pod is not None) if of_service else (type(pod) is not str):
        raise MalformedMessage(f"a record's pod is {pod!r} in a topic of {'services' if of_service else 'pods'}")
    if not 0 <= record.window_start_ms <= _LATEST_MS:
        raise MalformedMessage(f"a record's window_start is {record.window_start_ms}, outside the years 1970 to 9999")
    return record


def _checked(settings: FilesSettings) -> tuple[str | None, str | None]:
    """Return the chosen chunk size, as records spell it, and method."""
    if not settings.group_by or set(settings.group_by) - set(GROUPINGS):
        raise ConfigError(f"--group-by is {','.join(settings.group_by)!r}: write pod, service or both")
    try:
        return settings.chunk_size and str(ChunkSize.parse(settings.chunk_size)), settings.method
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _wait_for_topics(
    admin: AdminClient, names: list[str], stop: threading.Event
) -> tuple[dict[str, str], dict[str, list[int]]] | None:
    """Return ids and partitions of topics, once all of them exist, or None when stopped before."""
    remind_at = time.monotonic()
    while not stop.is_set():
        found = find_topics(admin, names)
        missing = [name for name in names if name not in found]
        if not missing:
            return {name: found[name].id for name in names}, {name: list(found[name].partitions) for name in names}
        if time.monotonic() >= remind_at:
            log.warning("waiting for topics: a worker makes them", extra={"topics": missing})
            remind_at = time.monotonic() + _REMIND_S
        stop.wait(_TOPIC_LOOK_S)
    return None
