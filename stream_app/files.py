"""``stream-app files``: records from the sink topics into one file a service, exactly once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ingestor.core.durations import ChunkSize
from ingestor.core.errors import ConfigError, SinkError
from ingestor.core.topics import Topics
from ingestor.kafka import Cluster
from stream_app.records import Records, decode_records
from stream_app.sink_loop import LoopSettings, Start, run_loop
from stream_app.sinks.base import Sink, View
from stream_app.sinks.checkpoint import Storage
from stream_app.sinks.csv_style import CsvStyle
from stream_app.sinks.formats import PACES, SINKS, check_looks

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

    style: CsvStyle = field(default_factory=CsvStyle)
    """How CSV is written."""

    drop: frozenset[str] = frozenset()
    """With *until_idle*, of CSV: leave out ``empty`` or ``zero`` columns at the end, and never go on behind it."""

    start: Start | None = None
    """Where a new storage begins; None: at what Kafka still has."""

    until_idle: bool = False
    """Return when all that is committed has been read and nothing came for *idle_s*; else only on *stop*."""

    idle_s: float = 5.0
    """A worker commits about once a second; five leave room for a pause of the garbage collector or a broker."""

    commit_s: float | None = None
    """Commit so often; None: as the format has it."""

    commit_rows: int | None = None
    """Commit earlier when so many rows are held in memory; None: as the format has it."""

    complete_s: float = 60.0
    """Rows behind a file's end are in it so much later at most, while more and more come; else within seconds."""


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
    messages: int = 0
    """All that were read."""
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
    commit_s, commit_rows = PACES[settings.file_format]
    of_services = {settings.topics.sink(grouping): grouping == "service" for grouping in settings.group_by}
    loop = LoopSettings(
        cluster=settings.cluster,
        prefix=settings.topics.prefix,
        topics=tuple(of_services),
        storage=settings.storage,
        start=settings.start,
        until_idle=settings.until_idle,
        idle_s=settings.idle_s,
        commit_s=commit_s if settings.commit_s is None else settings.commit_s,
        commit_rows=settings.commit_rows or commit_rows,
        complete_s=settings.complete_s,
    )
    options = {
        "format": settings.file_format,
        "group_by": ",".join(sorted(settings.group_by)),
        **settings.style.options(),
    }
    opened: list[_Files] = []
    progress = FilesProgress()

    def open_files(storage: Storage, from_ms: int | None) -> _Files:
        sink = SINKS[settings.file_format](storage, settings.group_by, settings.style, settings.drop)
        views = _ViewFilter(*wanted, sink.view, settings.storage)
        files = _Files(sink, views, of_services, from_ms)
        opened.append(files)
        return files

    def on_commit(behind: int) -> None:
        nonlocal progress
        progress = opened[0].progress(behind)
        on_progress(progress)

    run_loop(loop, options, open_files, stop, on_commit)
    return opened[0].progress(progress.behind) if opened else progress


class _Files:
    """Records of one view, for a sink: the loop's target."""

    def __init__(self, sink: Sink, views: _ViewFilter, of_services: Mapping[str, bool], from_ms: int | None) -> None:
        self._sink, self._views, self._of_services = sink, views, of_services
        self._from_ms = from_ms
        self._held = self._rows = self._malformed = self._messages = 0

    @property
    def offsets(self) -> Mapping[str, Mapping[int, int]]:
        return self._sink.offsets

    def take(self, messages: Sequence[Any]) -> int:
        self._messages += len(messages)
        for of_service in {self._of_services[message.topic()] for message in messages}:
            mine = [message for message in messages if self._of_services[message.topic()] is of_service]
            records, faults = read_rows(mine, of_service=of_service)
            for place, fault in faults:
                where = {name: getattr(mine[place], name)() for name in ("topic", "partition", "offset")}
                log.error("message skipped", extra={**where, "error": fault})
            self._malformed += len(faults)
            if self._from_ms is not None:
                records = records.take(np.flatnonzero(records.window_start_ms >= self._from_ms))
            records = self._views.chosen(records)
            self._sink.write(records)
            self._held += len(records)
        return self._held

    def commit(self, offsets: Mapping[str, Mapping[int, int]]) -> None:
        self._sink.commit(offsets, self._views.view)
        self._rows += self._held
        self._held = 0

    @property
    def is_behind(self) -> bool:
        return self._sink.is_behind

    def complete(self) -> None:
        self._sink.complete()

    def finish(self) -> None:
        self._sink.finish()

    def progress(self, behind: int) -> FilesProgress:
        skipped = self._views.skipped
        return FilesProgress(self._rows, self._sink.file_count, self._malformed, skipped, self._messages, behind)


class _ViewFilter:
    """Lets records of one view through: the one that was chosen, or the only one."""

    def __init__(self, chunk_size: str | None, method: str | None, view: View | None, storage: Path) -> None:
        self._chosen = chunk_size, method
        self.view = view
        self.skipped = 0
        if view and not self._is_chosen(view.chunk_size, view.method):
            asked = View(chunk_size or view.chunk_size, method or view.method)
            raise ConfigError(f"{storage} holds records of {view}, not of {asked}: choose another --storage")

    def chosen(self, records: Records) -> Records:
        """Return the records of the view.

        Raises:
            SinkError: some are of a second one, and none was chosen.
        """
        if not len(records):
            return records
        numbers, first_rows = np.unique(records.origin, return_index=True)
        accepted = np.zeros(len(records.origins), bool)
        for number in numbers[np.argsort(first_rows)].tolist():
            chunk_size, method, _ = records.origins[number]
            accepted[number] = self._accepts(View(chunk_size, method))
        rows = np.flatnonzero(accepted[records.origin])
        self.skipped += len(records) - len(rows)
        return records if len(rows) == len(records) else records.take(rows)

    def _accepts(self, view: View) -> bool:
        if view == self.view:
            return True
        if not self._is_chosen(view.chunk_size, view.method):
            if not self.skipped:
                log.info("records of other views are left out", extra={"view": str(view)})
            return False
        if self.view is None:
            self.view = view
            return True
        raise SinkError(
            f"the topic has records of two views ({self.view}; {view}): choose one with --chunk-size and --method, "
            "and another --storage for the other"
        )

    def _is_chosen(self, chunk_size: str, method: str) -> bool:
        return self._chosen[0] in (None, chunk_size) and self._chosen[1] in (None, method)


def read_rows(messages: Sequence[Any], *, of_service: bool) -> tuple[Records, list[tuple[int, str]]]:
    """Read the records that a file can hold.

    Returns:
        The records; and for each message that is none, its place in *messages* and what is wrong.
    """
    values, offsets = [message.value() for message in messages], [message.offset() for message in messages]
    records, malformed = decode_records(values, offsets)
    faults = [(place, str(error)) for place, error in malformed]
    fits = np.array([(pod is None) is of_service for _, pod, _ in records.whos], bool)[records.who]
    in_time = (records.window_start_ms >= 0) & (records.window_start_ms <= _LATEST_MS)
    if not (fits & in_time).all():
        places = np.delete(np.arange(len(messages)), [place for place, _ in malformed])
        for row in np.flatnonzero(~(fits & in_time)).tolist():
            record = records.record(row)
            kind = "services" if of_service else "pods"
            fault = (
                f"a record's window_start is {record.window_start_ms}, outside the years 1970 to 9999"
                if fits[row]
                else f"a record's pod is {record.pod!r} in a topic of {kind}"
            )
            faults.append((int(places[row]), fault))
        records = records.take(np.flatnonzero(fits & in_time))
    return records, sorted(faults)


def _checked(settings: FilesSettings) -> tuple[str | None, str | None]:
    """Return the chosen chunk size, as records spell it, and method."""
    if not settings.group_by or set(settings.group_by) - set(GROUPINGS):
        raise ConfigError(f"--group-by is {','.join(settings.group_by)!r}: write pod, service or both")
    check_looks(settings.file_format, settings.style, settings.drop)
    if settings.drop and not settings.until_idle:
        flags = " and ".join(f"--drop-{which}-columns" for which in sorted(settings.drop))
        raise ConfigError(f"{flags} is for files that end: give --until-idle too, or leave it out")
    try:
        return settings.chunk_size and str(ChunkSize.parse(settings.chunk_size)), settings.method
    except ValueError as error:
        raise ConfigError(str(error)) from error
