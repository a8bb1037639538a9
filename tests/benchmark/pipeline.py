"""One run from Prometheus to records or files: the product's own commands, timed from outside.

The clock starts when the poller has stored its job's first position, which it does before it asks for a single
sample, and behind what loads only once: interpreters, imports, connections, the poller's compiled kernels and the
worker's group are there by then. It stops when the worker's log says that the last record is committed, or the file
sink that the files are whole. Each process' CPU seconds are those between the two; a poller's end with its last range.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import click
import cluster
import orjson
from check import check_files, check_records
from confluent_kafka import Consumer, TopicPartition
from processes import Usage, cpu_s, usage

from ingestor.core.time_range import iso
from ingestor.core.topics import Topics
from ingestor.kafka import FOREVER_MS, connect, consumer_to_end, ensure_topics
from ingestor.local.kafka import LocalKafka
from ingestor.local.processes import PIPE, Child
from ingestor.local.prometheus import LocalPrometheus
from ingestor.options import cluster_arguments

HERE = Path(__file__).parent
_TIMEOUT_S = 600.0
_LOOK_EVERY_S = 0.005
_PREFIXES = itertools.count()


@dataclass(frozen=True, slots=True)
class Place:
    """The servers, and a folder for what runs leave behind."""

    kafka: LocalKafka
    prometheus: LocalPrometheus
    folder: Path


@dataclass(frozen=True, slots=True)
class Spent:
    """What one process has spent on the work."""

    cpu_s: float
    peak_bytes: int
    start_cpu_s: float = 0.0
    """What it had spent before the work began."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run's figures."""

    wall_s: float
    processes: Mapping[str, Spent]
    """``poller``, ``worker``, ``files`` of ours, ``kafka`` and ``prometheus``."""
    topic_bytes: int
    """Segments of the chunk topic on the broker's disk."""

    @property
    def own_cpu_s(self) -> float:
        """Poller and worker together."""
        return self.processes["poller"].cpu_s + self.processes["worker"].cpu_s


def run_backfill(place: Place, length: cluster.Length, method: str = "mean", file_format: str | None = None) -> Run:
    """Run and check one backfill; its topics are deleted afterwards.

    Args:
        place: where.
        length: how much.
        method: of one-minute windows of pods.
        file_format: ``parquet`` or ``csv``; None: the records themselves are the end.

    Raises:
        WrongError: a cell is not that of the oracle.
    """
    with ExitStack() as stack:
        work = _Work(place, length, method, file_format)
        stack.enter_context(topics_made(place.kafka, work.topics))
        run = work.measured(stack)
        if file_format is None:
            check_records(place.kafka, work.topics, length, method)
        else:
            check_files(work.storage, file_format, length, method)
    return run


@dataclass(slots=True)
class _Work:
    place: Place
    length: cluster.Length
    method: str
    file_format: str | None
    topics: Topics = field(init=False)
    folder: Path = field(init=False)
    _before: dict[str, Usage] = field(default_factory=dict, init=False)
    _began_s: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.topics = Topics(f"bench-{os.getpid()}-{next(_PREFIXES)}")
        self.folder = self.place.folder / self.topics.prefix
        self.folder.mkdir()

    @property
    def storage(self) -> Path:
        return self.folder / "files"

    def measured(self, stack: ExitStack) -> Run:
        watch = stack.enter_context(_positions(self.place.kafka, self.topics))
        children = {"worker": stack.enter_context(self._worker())}
        wait_for_line(children["worker"], "worker is ready")
        if self.file_format is not None:
            children["files"] = stack.enter_context(self._files(self.file_format))
            _read_until(children["files"], b"ready")
        children["poller"] = stack.enter_context(self._poller())
        began = threading.Thread(target=self._begin, args=(watch, children), daemon=True)
        began.start()
        after = {"poller": self._published(children["poller"])}
        began.join()
        ended_s = self._windowed(children["worker"])
        after["worker"] = usage(children["worker"].pid)
        if (files := children.get("files")) is not None:
            os.kill(files.pid, signal.SIGTERM)
            _read_until(files, b"done")
            ended_s, after["files"] = time.time(), usage(files.pid)
        for name, server in self._servers().items():
            after[name] = usage(server)
        spent = {
            name: Spent(after[name].cpu_s - before.cpu_s, after[name].peak_bytes, before.cpu_s)
            for name, before in self._before.items()
        }
        return Run(ended_s - self._began_s, spent, self._topic_bytes())

    def _servers(self) -> dict[str, int]:
        return {"kafka": self.place.kafka.pid, "prometheus": self.place.prometheus.pid}

    def _begin(self, watch: Consumer, children: Mapping[str, Child]) -> None:
        """Note what has been used when the job's first position is in Kafka."""
        while (message := watch.poll(0.05)) is None or message.error() is not None:
            if children["poller"].poll() is not None:
                return
        pids = {name: child.pid for name, child in children.items()} | self._servers()
        self._before = {name: Usage(cpu_s(pid), 0) for name, pid in pids.items()}
        # When the poller has sent it, not when it has come here.
        self._began_s = message.timestamp()[1] / 1000

    def _published(self, poller: Child) -> Usage:
        """Wait for the job's last range; return what the poller has used then."""
        used, samples = Usage(0.0, 0), 0
        for line in poller.stdout:
            event = orjson.loads(line)
            if event["event"] != "range":
                break
            used, samples = usage(poller.pid), event["total_samples"]
        if poller.wait(_TIMEOUT_S) or samples != self.length.samples:
            raise click.ClickException(f"{samples:,} samples were published: {poller.log_tail()}")
        return used

    def _windowed(self, worker: Child) -> float:
        """Wait until all records are committed; return when the worker has logged that."""
        deadline, records = time.monotonic() + _TIMEOUT_S, 0
        with worker.log_path.open("rb") as log:
            while time.monotonic() < deadline:
                line = log.readline()
                if not line.endswith(b"\n"):
                    log.seek(-len(line), os.SEEK_CUR)
                    if worker.poll() is not None:
                        break
                    time.sleep(_LOOK_EVERY_S)
                elif b"windows emitted" in line:
                    event = orjson.loads(line)
                    records += event["records"]
                    if records >= self.length.records:
                        return datetime.fromisoformat(event["time"]).timestamp()
        raise click.ClickException(f"{records:,} of {self.length.records:,} records came: {worker.log_tail()}")

    def _topic_bytes(self) -> int:
        segments = self.place.kafka.folder.glob(f"data/{self.topics.range_chunks}-*/*.log")
        return sum(path.stat().st_size for path in segments)

    def _worker(self) -> Child:
        view = ["--chunk-size", "1m", "--method", self.method, "--group-by", "pod"]
        more = ["--slot", "0", "--web-listen-address", "none", "--log-format", "json"]
        return self._child("worker", ["-m", "stream_app", "worker", *self._where(), *view, *more])

    def _poller(self) -> Child:
        when = ["--start", iso(cluster.START_MS), "--end", iso(self.length.end_ms)]
        source = ["backfill", "--url", self.place.prometheus.url, *when, "--json"]
        return self._child("poller", ["-m", "ingestor", *source, *self._where()], stdout=PIPE)

    def _files(self, file_format: str) -> Child:
        what = [self.place.kafka.bootstrap_servers, self.topics.prefix, str(self.storage), file_format]
        return self._child("files", [str(HERE / "file_sink.py"), *what], stdout=PIPE)

    def _where(self) -> list[str]:
        return [*cluster_arguments(self.place.kafka.cluster), "--topic-prefix", self.topics.prefix]

    def _child(self, name: str, arguments: list[str], stdout: int | None = None) -> Child:
        return python(arguments, self.folder / f"{name}.log", stdout)


def python(arguments: list[str], log_path: Path, stdout: int | None = None, **environment: str) -> Child:
    """Return a program of ours, without settings that are meant for somebody's real pipeline."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("INGESTOR_", "STREAM_APP_"))}
    return Child([sys.executable, *arguments], log_path=log_path, stdout=stdout, env=clean | environment)


@contextmanager
def _positions(kafka: LocalKafka, topics: Topics) -> Iterator[Consumer]:
    consumer = consumer_to_end(kafka.cluster, topics.prefix)
    consumer.assign([TopicPartition(topics.positions, 0, 0)])
    # The partition's end: from here on only what comes new.
    while consumer.poll(1.0) is None:
        pass
    try:
        yield consumer
    finally:
        consumer.close()


@contextmanager
def topics_made(kafka: LocalKafka, topics: Topics) -> Iterator[None]:
    """Make a prefix's topics, and delete them in the end: the broker's memory is the next run's."""
    admin = connect(kafka.cluster)
    ensure_topics(admin, topics, None, retention_ms=FOREVER_MS)
    try:
        yield
    finally:
        for future in admin.delete_topics([*topics.partitioned, *topics.compacted]).values():
            future.result()


def wait_for_line(child: Child, text: str) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while text not in child.log_path.read_text():
        if child.poll() is not None or time.monotonic() > deadline:
            raise click.ClickException(f"no line {text!r} came: {child.log_tail()}")
        time.sleep(_LOOK_EVERY_S)


def _read_until(child: Child, word: bytes) -> None:
    for line in child.stdout:
        if line.strip() == word:
            return
    raise click.ClickException(f"{child.args[1]} ended without {word.decode()!r}: {child.log_tail()}")
