"""All of it in one command: broker, poller, worker and files, from a stretch of time to finished files."""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import orjson
from confluent_kafka import KafkaException

from ingestor.command_line import Presence
from ingestor.core.errors import ConfigError, IngestorError
from ingestor.core.topics import Topics
from ingestor.interrupts import EXIT_INTERRUPTED
from ingestor.kafka import FOREVER_MS, Cluster, committed_offsets, connect, ensure_topics, has_unread, reason
from ingestor.local.processes import PIPE, Child
from ingestor.options import cluster_arguments
from stream_app.dataset_display import Display, display
from stream_app.files import FilesProgress, FilesSettings, run_files
from stream_app.methods import MAX_HELD_VALUES
from stream_app.sinks.csv_style import CsvStyle
from stream_app.sinks.formats import SINKS, check_looks
from stream_app.view import View

log = logging.getLogger(__name__)

_STATE = ".dataset"
_LOOK_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class DatasetSettings:
    """What to make; the poller's share is passed on as its command line has it."""

    view: View
    storage: Path
    cluster: Cluster | None
    """None: a local broker, for as long as it runs."""
    poller_arguments: list[str]
    poller_secrets: dict[str, str] = field(default_factory=dict, repr=False)
    """More of its settings, as environment variables: a list of processes shows flags."""
    partitions: int | None = None
    max_held_values: int = MAX_HELD_VALUES
    overwrite: bool = False
    file_format: str = "csv"
    style: CsvStyle = field(default_factory=CsvStyle)
    drop: frozenset[str] = frozenset()
    """Which columns are left out at the end, ``empty`` or ``zero`` ones."""

    def looks(self) -> list[str]:
        """Return what is asked of files, where it is not the default."""
        others = [*self.style.options().items(), *(("drop", which) for which in sorted(self.drop))]
        named = [f"{name}={value}" for name, value in others]
        return named if self.file_format == "csv" else [f"format={self.file_format}", *named]


def run_dataset(settings: DatasetSettings, stop: threading.Event, presence: Presence) -> bool:
    """Make the files; return whether they are finished (else *stop* was set, and the next run goes on).

    Raises:
        ConfigError: what was asked for cannot be made; nothing was written.
        IngestorError: a part failed; the same command goes on from there.
    """
    check_looks(settings.file_format, settings.style, settings.drop)
    began = time.monotonic()
    plan = _dry_run(settings)
    if plan is None or stop.is_set():
        return False
    state = _State.open(settings)
    with display(presence) as shown, ExitStack() as stack:
        shown.plan(plan)
        cluster = settings.cluster or stack.enter_context(_local_broker(state, shown))
        view = replace(settings.view, topics=Topics(state.prefix))
        admin = connect(cluster)
        partitions = ensure_topics(admin, view.topics, settings.partitions, retention_ms=FOREVER_MS)
        parts = _Parts(settings, state, view, cluster, partitions, shown)
        if not parts.run(stop):
            return False
        state.finish()
        if settings.cluster:
            parts.delete_topics(admin)
        shown.finish(parts.rows, parts.files, settings.storage, time.monotonic() - began)
    state.delete_broker()
    return True


def _dry_run(settings: DatasetSettings) -> str | None:
    """Let the poller look at the backend before anything is started or written.

    Returns:
        What it will read; None where it was interrupted.
    """
    looked = subprocess.run(
        [sys.executable, "-m", "ingestor", "backfill", "--dry-run", *settings.poller_arguments],
        env=_environment(**settings.poller_secrets),
        capture_output=True,
        text=True,
        check=False,
    )
    if looked.returncode == EXIT_INTERRUPTED:
        return None
    if looked.returncode:
        raise _of_child(looked.returncode, looked.stderr)
    return looked.stdout.strip()


def _environment(**more: str) -> dict[str, str]:
    """Return ours without settings: what a child gets, this command's own flags say."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("INGESTOR_", "STREAM_APP_"))}
    return inherited | more


def _of_child(code: int, output: str) -> IngestorError:
    """Return a child's failure as our own, with its last error: one line, or a line for each fault."""
    lines = output.strip().splitlines() or ["it ended without a word"]
    first = next((at for at in reversed(range(len(lines))) if lines[at].lower().startswith("error:")), len(lines) - 1)
    text = "\n".join(lines[first:])
    message = text.partition(":")[2].strip() if text.lower().startswith("error:") else text
    return ConfigError(message) if code == ConfigError.exit_code else IngestorError(message)


@contextmanager
def _local_broker(state: _State, shown: Display) -> Iterator[Cluster]:
    from ingestor.local.kafka import LocalKafka  # noqa: PLC0415 - only who needs it has its dependencies

    shown.step("starting a local Kafka (the first time its jars are fetched)")
    with LocalKafka(state.folder / "kafka") as broker:
        yield broker.cluster


@dataclass(slots=True)
class _State:
    """What a later run must know, in a hidden folder of the storage."""

    folder: Path
    prefix: str

    @classmethod
    def open(cls, settings: DatasetSettings) -> _State:
        """Begin, or go on where an earlier run of the same command stopped.

        Raises:
            ConfigError: the storage cannot be written, or holds something else.
        """
        storage, folder = settings.storage, settings.storage / _STATE
        arguments = [
            *settings.poller_arguments,
            settings.view.identity,
            settings.cluster.bootstrap_servers if settings.cluster else "",
            *settings.looks(),
        ]
        try:
            storage.mkdir(parents=True, exist_ok=True)
            earlier = json.loads(path.read_text()) if (path := folder / "state.json").exists() else None
            if earlier is not None and earlier["arguments"] == arguments and not earlier["finished"]:
                return cls(folder, earlier["prefix"])
            if earlier is not None and not settings.overwrite:
                what = (
                    "holds a finished dataset"
                    if earlier["finished"]
                    else "holds an unfinished dataset of another command"
                )
                raise ConfigError(f"{storage} {what}: give --overwrite, or another --storage")
            if earlier is not None:
                _delete(storage)
            elif any(storage.iterdir()):
                raise ConfigError(f"{storage} is not empty: give another --storage")
            prefix = "metrics" if settings.cluster is None else f"metrics-dataset-{secrets.token_hex(4)}"
            folder.mkdir()
            _replace(path, {"arguments": arguments, "prefix": prefix, "finished": False})
            return cls(folder, prefix)
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{storage} cannot be used: {error}: give another --storage") from error

    def finish(self) -> None:
        """Remember that the files are whole."""
        path = self.folder / "state.json"
        _replace(path, {**json.loads(path.read_text()), "finished": True})
        shutil.rmtree(self.folder.parent / ".stream-app", ignore_errors=True)

    def delete_broker(self) -> None:
        """Delete the data of the local broker, which only an unfinished dataset needs."""
        shutil.rmtree(self.folder / "kafka", ignore_errors=True)


def _replace(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    aside = path.with_suffix(".new")
    aside.write_text(json.dumps(content))
    aside.replace(path)


def _delete(storage: Path) -> None:
    """Delete an earlier dataset: its state, and its files (in folders below the namespace, where names are long)."""
    for folder in (storage / _STATE, storage / ".stream-app"):
        shutil.rmtree(folder, ignore_errors=True)
    files = [path for suffix in SINKS for path in storage.glob(f"*/**/*.{suffix}")]
    for path in files:
        path.unlink()
    folders = {folder for path in files for folder in path.parents if storage in folder.parents}
    for folder in sorted(folders, reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()


class _Parts:
    """Poller and worker as child processes, the file sink in a thread."""

    def __init__(
        self,
        settings: DatasetSettings,
        state: _State,
        view: View,
        cluster: Cluster,
        partitions: int,
        shown: Display,
    ) -> None:
        self._settings, self._state, self._view = settings, state, view
        self._kafka = [*cluster_arguments(cluster), "--topic-prefix", view.topics.prefix]
        self._cluster, self._partitions, self._shown = cluster, partitions, shown
        self._files = FilesSettings(
            cluster,
            view.topics,
            settings.storage,
            settings.file_format,
            view.group_by,
            style=settings.style,
            idle_s=0.0,
        )
        self.rows = self.files = 0
        self._rows_before = 0
        (state.folder / "logs").mkdir(exist_ok=True)

    def run(self, stop: threading.Event) -> bool:
        """Return whether all was written; False where *stop* was set."""
        files_stop = threading.Event()
        with ThreadPoolExecutor(1, "files") as pool, self._worker() as worker, self._poller() as poller:
            files = pool.submit(run_files, self._files, files_stop, self._on_written)
            try:
                finished = self._publish(poller, worker, files, stop) and self._window(worker, files, stop)
            finally:
                files_stop.set()
        self._rows_before = files.result().rows
        if finished:
            # What is committed by now is all there will be: read up to there.
            last = replace(self._files, until_idle=True, drop=self._settings.drop)
            self.files = run_files(last, stop, self._on_written).files
        return finished and not stop.is_set()

    def delete_topics(self, admin: Any) -> None:
        """Delete the topics that were made for this dataset alone."""
        topics = self._view.topics
        for name, future in admin.delete_topics([*topics.partitioned, *topics.compacted]).items():
            try:
                future.result()
            except KafkaException as error:
                # The files are whole: a topic that stays is untidy, not a failure.
                log.warning("topic is left over", extra={"topic": name, "error": reason(error)})

    def _poller(self) -> Child:
        arguments = ["backfill", "--json", *self._kafka, *self._settings.poller_arguments]
        return self._child("poller", ["-m", "ingestor", *arguments], self._settings.poller_secrets, stdout=PIPE)

    def _worker(self) -> Child:
        held = ["--max-held-values", str(self._settings.max_held_values)]
        arguments = ["--slot", "0", "--web-listen-address", "none", *held, *self._kafka, *self._view.arguments()]
        return self._child("worker", ["-m", "stream_app", "worker", *arguments], {})

    def _child(self, name: str, arguments: list[str], environment: dict[str, str], stdout: int | None = None) -> Child:
        log_path = self._state.folder / "logs" / f"{name}.log"
        log_path.unlink(missing_ok=True)
        return Child([sys.executable, *arguments], log_path=log_path, stdout=stdout, env=_environment(**environment))

    def _publish(self, poller: Child, worker: Child, files: Future[FilesProgress], stop: threading.Event) -> bool:
        """Show the poller's progress until its job has ended."""
        pool = ThreadPoolExecutor(1, "events")
        events = pool.submit(self._show_events, poller.stdout)
        pool.shutdown(wait=False)
        while (code := poller.poll()) is None:
            self._check(worker, files)
            if events.done():
                # Who read our output may have gone.
                events.result()
            if stop.wait(_LOOK_EVERY_S):
                return False
        events.result()
        if code:
            raise _of_child(code, poller.log_tail())
        return True

    def _show_events(self, lines: IO[bytes]) -> None:
        for line in lines:
            self._shown.published(orjson.loads(line))

    def _window(self, worker: Child, files: Future[FilesProgress], stop: threading.Event) -> bool:
        """Wait until every partition's commit stands behind the job's end: then all records are committed too."""
        self._shown.step("closing the last windows")
        topic = self._view.topics.range_chunks
        while not stop.wait(_LOOK_EVERY_S):
            self._check(worker, files)
            offsets = committed_offsets(self._cluster, self._view.group_id, topic, self._partitions)
            if offsets is not None and not has_unread(self._cluster, topic, offsets):
                self._shown.step("writing the last rows")
                return True
        return False

    def _check(self, worker: Child, files: Future[FilesProgress]) -> None:
        if (code := worker.poll()) is not None:
            raise _of_child(code, worker.log_tail())
        if files.done():
            files.result()

    def _on_written(self, progress: FilesProgress) -> None:
        if self._rows_before + progress.rows > self.rows:
            self.rows, self.files = self._rows_before + progress.rows, progress.files
            self._shown.written(replace(progress, rows=self.rows))
