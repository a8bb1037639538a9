"""The product's commands as users type them, run on the session's real servers."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import history

from ingestor.core.durations import ChunkSize
from ingestor.core.time_range import iso
from ingestor.core.topics import Topics
from ingestor.kafka import Cluster, committed_offsets, connect, ensure_topics, has_unread
from ingestor.local.processes import Child
from ingestor.local.prometheus import LocalPrometheus
from ingestor.options import cluster_arguments
from stream_app.methods import GroupBy, Method
from stream_app.view import View

PATIENCE_S = 240.0
"""Only what hangs takes so long: no test is to fail because the machine has much else to do."""

WHEN = ["--start", iso(history.START_MS), "--end", iso(history.END_MS)]


class Broker(Protocol):
    """A local Kafka, or one user's way into it."""

    @property
    def cluster(self) -> Cluster: ...


def ingestor(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "ingestor", *arguments]


def stream_app(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "stream_app", *arguments]


def run(command: list[str], code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and check its exit code."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == code, done.stderr
    return done


def backfill(prometheus: LocalPrometheus, kafka: Broker, prefix: str, *more: str) -> list[str]:
    return ingestor(
        "backfill", "--url", prometheus.url, *WHEN, "--preset", "none", "--topic-prefix", prefix,
        *cluster_arguments(kafka.cluster), *more,
    )  # fmt: skip


def worker(kafka: Broker, view: View, log: Path, slot: int | None = 0) -> Child:
    """Return a worker of *view* that holds a slot, or none; it is not started."""
    where = ["--topic-prefix", view.topics.prefix, *cluster_arguments(kafka.cluster)]
    flags = [] if slot is None else ["--slot", str(slot)]
    command = stream_app("worker", *flags, "--web-listen-address", "none", *where, *view_flags(view))
    return Child(command, log_path=log)


def write_files(kafka: Broker, view: View, storage: Path) -> None:
    """Write all records of *view* that are committed by now."""
    where = ["--topic-prefix", view.topics.prefix, *cluster_arguments(kafka.cluster)]
    run(stream_app("files", "--storage", str(storage), "--until-idle", "--idle", "1ms", *where, *view_flags(view)))


def wait_until_windowed(kafka: Broker, view: View, *watched: Child, timeout_s: float = PATIENCE_S) -> None:
    """Wait until the view's workers have committed everything that is on the chunk topic."""
    topic = view.topics.range_chunks
    partitions = ensure_topics(connect(kafka.cluster), view.topics, None)
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for child in watched:
            assert child.poll() is None, child.log_tail()
        offsets = committed_offsets(kafka.cluster, view.group_id, topic, partitions)
        if offsets is not None and not has_unread(kafka.cluster, topic, offsets):
            return
        time.sleep(0.2)
    raise TimeoutError("\n".join([f"{view.group_id} is not done", *(child.log_tail() for child in watched)]))


def wait_until(holds: Callable[[], bool], child: Child | None = None, timeout_s: float = PATIENCE_S) -> None:
    """Wait for a condition, while *child*, if given, runs."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert child is None or child.poll() is None, child.log_tail()
        assert time.monotonic() < deadline, child.log_tail() if child else "it does not come"
        time.sleep(0.05)


def wait_for_line(child: Child, text: str, times: int = 1) -> None:
    """Wait until a running child has logged *text*, in all its lives together so many times."""
    deadline = time.monotonic() + PATIENCE_S
    while child.log_path.read_text().count(text) < times:
        assert child.poll() is None, child.log_tail()
        assert time.monotonic() < deadline, child.log_tail()
        time.sleep(0.1)


def end(child: Child) -> None:
    """Have a child end in order; it must have said or done something, or it may not listen to SIGTERM yet."""
    assert child.stop(PATIENCE_S) == 0, child.log_tail()


def view_of(prefix: str, chunk_size: str, method: Method, *group_by: GroupBy) -> View:
    return View(ChunkSize.parse(chunk_size), method, group_by=group_by or ("pod",), topics=Topics(prefix))


def view_flags(view: View) -> list[str]:
    flags = ["--chunk-size", str(view.chunk_size), "--method", view.method]
    return flags + [part for group_by in view.group_by for part in ("--group-by", group_by)]
