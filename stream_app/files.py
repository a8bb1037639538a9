"""``stream-app files``: records from the sink topics into one file a service, exactly once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingestor.core.durations import ChunkSize
from ingestor.core.errors import ConfigError, MalformedMessage, SinkError
from ingestor.core.topics import Topics
from ingestor.kafka import Cluster
from stream_app.records import Record, decode_record
from stream_app.sink_loop import LoopSettings, run_loop
from stream_app.sinks.base import Sink, View
from stream_app.sinks.checkpoint import Storage
from stream_app.sinks.formats import SINKS

log = logging.getLogger(__name__)

GROUPINGS = ("pod", "service")

_LATEST_MS = 253_402_300_799_999
"""The end of the year 9999: nothing later has an ISO 8601 timestamp."""


@dataclass(frozen=True, slots=True)
class FilesSettings:
    """What ``stream-app files`` is asked to do."""

    cluster: Cluster
    topics: Topics
    storage: Path
    file_format: str = "csv"
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
    """Files in the storage."""
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
    grouping_of = {settings.topics.sink(grouping): grouping for grouping in settings.group_by}
    loop = LoopSettings(
        settings.cluster,
        settings.topics.prefix,
        tuple(grouping_of),
        settings.storage,
        settings.until_idle,
        settings.idle_s,
        settings.commit_s,
        settings.commit_rows,
    )
    options = {"format": settings.file_format, "group_by": ",".join(sorted(settings.group_by))}
    files: _Files | None = None
    progress = FilesProgress()

    def open_files(storage: Storage) -> _Files:
        nonlocal files
        sink = SINKS[settings.file_format](storage, settings.group_by)
        views = _ViewFilter(*wanted, sink.view, settings.storage)
        files = _Files(sink, views, {topic: grouping == "service" for topic, grouping in grouping_of.items()})
        return files

    def on_commit(behind: int) -> None:
        nonlocal progress
        if files is not None:
            progress = files.progress(behind)
            on_progress(progress)

    run_loop(loop, options, open_files, stop, on_commit)
    return progress


class _Files:
    """Records of one view, for a sink: the loop's target."""

    def __init__(self, sink: Sink, views: _ViewFilter, of_services: Mapping[str, bool]) -> None:
        self._sink, self._views, self._of_services = sink, views, of_services
        self._held = self._rows = self._malformed = 0

    @property
    def offsets(self) -> Mapping[str, Mapping[int, int]]:
        return self._sink.offsets

    def take(self, messages: Sequence[Any]) -> int:
        records: list[tuple[int, Record]] = []
        of_services, accepts = self._of_services, self._views.accepts
        for message in messages:
            topic, offset = message.topic(), message.offset()
            try:
                record = _record(message.value(), of_service=of_services[topic])
                if accepts(record):
                    records.append((offset, record))
            except MalformedMessage as problem:
                where = {"topic": topic, "partition": message.partition(), "offset": offset}
                log.error("message skipped", extra={**where, "error": str(problem)})  # noqa: TRY400 - no defect of ours
                self._malformed += 1
        self._sink.write(records)
        self._held += len(records)
        return self._held

    def commit(self, offsets: Mapping[str, Mapping[int, int]]) -> None:
        self._sink.commit(offsets, self._views.view)
        self._rows += self._held
        self._held = 0

    def progress(self, behind: int) -> FilesProgress:
        return FilesProgress(self._rows, self._sink.file_count, self._malformed, self._views.skipped, behind)


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
