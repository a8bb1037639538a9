"""``stream-app raw-files``: the samples of the range-chunk topic into folders by metric and day, each sample once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingestor.core import wire
from ingestor.core.chunk import RangeChunk
from ingestor.core.errors import ConfigError, MalformedMessage
from ingestor.core.topics import Topics
from ingestor.kafka import Cluster
from stream_app.files import FilesProgress
from stream_app.raw_samples import LAYOUT, metric_days
from stream_app.sink_loop import LoopSettings, Start, run_loop
from stream_app.sinks.checkpoint import Storage
from stream_app.sinks.part_csv import CsvParts
from stream_app.sinks.part_parquet import ParquetParts
from stream_app.sinks.part_store import TIDYING_ROWS, PartFormat, PartStore
from stream_app.sinks.paths import hive
from stream_app.tail_filter import any_of

log = logging.getLogger(__name__)

FORMATS: dict[str, Callable[[], PartFormat]] = {
    "parquet": lambda: ParquetParts(LAYOUT),
    "csv": lambda: CsvParts(LAYOUT),
}
"""``--format`` -> how parts are written."""

_SERIES_WEIGHT = 16
"""The labels of a row of a chunk take as much memory as so many samples."""


@dataclass(frozen=True, slots=True)
class RawFilesSettings:
    """What ``stream-app raw-files`` is asked to do."""

    cluster: Cluster
    topics: Topics
    storage: Path
    file_format: str = "parquet"
    metrics: tuple[str, ...] = ()
    """Shell patterns; empty: all metrics."""

    start: Start | None = None
    """Where a new storage begins; None: at what Kafka still has."""

    until_idle: bool = False
    """Return when all that is committed has been read and nothing came for *idle_s*; else only on *stop*."""

    idle_s: float = 5.0
    """A poller publishes about each 15 s, a backfill several times a second."""

    commit_s: float = 20.0
    """Files are at most so much behind what has been read; each commit makes new ones."""

    commit_samples: int = 4_000_000
    """Commit earlier when so many are held in memory: 64 MB, and some times as much while they are written."""


def run_raw_files(
    settings: RawFilesSettings,
    stop: threading.Event,
    on_progress: Callable[[FilesProgress], None] = lambda _: None,
) -> FilesProgress:
    """Write samples until *stop* is set or, with ``until_idle``, all is written; return the last progress.

    Args:
        settings: what to read and where to write.
        stop: looked at a few times a second; what has been read by then is committed.
        on_progress: called after every commit; its rows are samples.

    Raises:
        ConfigError: the storage cannot be written, is in use, or holds other data; Kafka
            does not answer; a setting is wrong.
        SinkError: the disk is full, a file was changed by something else, or retention has
            deleted chunks that were not read.
        NewerVersion: a newer podstream has written the topic.
    """
    if settings.file_format not in FORMATS:
        raise ConfigError(f"--format is {settings.file_format!r}: write {' or '.join(FORMATS)}")
    loop = LoopSettings(
        settings.cluster,
        settings.topics.prefix,
        (settings.topics.range_chunks,),
        settings.storage,
        settings.start,
        settings.until_idle,
        settings.idle_s,
        settings.commit_s,
        settings.commit_samples,
        # Up to 900 kB each.
        batch_messages=32,
        messages="chunks",
        maker="a poller",
    )
    options = {"content": "samples", "format": settings.file_format, "metrics": " ".join(sorted(settings.metrics))}
    target: _Samples | None = None
    progress = FilesProgress()

    def open_target(storage: Storage, from_ms: int | None) -> _Samples:
        nonlocal target, progress
        target = _Samples(storage, FORMATS[settings.file_format](), settings.metrics, from_ms or 0)
        progress = target.progress(0)
        return target

    def on_commit(behind: int) -> None:
        nonlocal progress
        if target is not None:
            progress = target.progress(behind)
            on_progress(progress)

    run_loop(loop, options, open_target, stop, on_commit)
    return progress


class _Samples:
    """Chunks for a store of parts: the loop's target."""

    def __init__(self, storage: Storage, part_format: PartFormat, metrics: Sequence[str], from_ms: int) -> None:
        self._storage, self._store = storage, PartStore(storage, part_format)
        self._wanted = any_of(metrics)
        self._from_ms = from_ms
        self._chunks: list[RangeChunk] = []
        self._held = self._written = self._malformed = self._messages = 0

    @property
    def offsets(self) -> Mapping[str, Mapping[int, int]]:
        return self._storage.offsets

    @property
    def is_behind(self) -> bool:
        return self._store.is_behind

    def take(self, messages: Sequence[Any]) -> int:
        self._messages += len(messages)
        for message in messages:
            headers = message.headers()
            if dict(headers or ()).get("kind") in (b"marker", b"end"):
                continue
            try:
                chunk = wire.decode(headers, message.value())
            except MalformedMessage as problem:
                where = {name: getattr(message, name)() for name in ("topic", "partition", "offset")}
                log.error("message skipped", extra={**where, "error": str(problem)})  # noqa: TRY400 - no defect of ours
                self._malformed += 1
                continue
            # What was before a job belongs to another, or to none.
            if isinstance(chunk, RangeChunk) and not chunk.is_lookback:
                self._chunks.append(chunk)
                self._held += chunk.series.samples + _SERIES_WEIGHT * len(chunk.series)
        return self._held

    def commit(self, offsets: Mapping[str, Mapping[int, int]]) -> None:
        for one in metric_days(self._chunks, self._wanted, self._from_ms):
            self._store.add((hive("metric", one.metric), hive("date", one.date)), one.rows)
            self._written += len(one.rows)
        self._chunks.clear()
        self._held = 0
        self._store.plan()
        self._storage.commit(offsets, None)

    def complete(self) -> None:
        while self._store.is_behind:
            self._store.plan(TIDYING_ROWS)
            self._storage.commit(self.offsets, None)

    def finish(self) -> None:
        while not self._store.is_tidy:
            self._store.plan(TIDYING_ROWS)
            self._storage.commit(self.offsets, None)

    def progress(self, behind: int) -> FilesProgress:
        return FilesProgress(self._written, self._store.part_count, self._malformed, 0, self._messages, behind)
