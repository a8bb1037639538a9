"""What happens to emissions that are gathered while a transaction is under way: each record is there once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import builders
import feeding
import holding_worker
import narrow_worker
import pandas as pd
import verdict
from commands import PATIENCE_S, view_of, wait_for_line, wait_until_windowed, worker

from ingestor.kafka import committed_offsets
from ingestor.local.kafka import LocalKafka
from ingestor.local.processes import Child
from stream_app.view import View

LENGTH_MS, RANGE_MS = 40 * 60_000, 120_000
REBALANCING = "because it is rebalancing"


def fed(kafka: LocalKafka, view: View) -> pd.DataFrame:
    """Publish a job of many windows in all partitions; return its samples."""
    held = feeding.samples(LENGTH_MS, 1)
    feeding.Feed(kafka.cluster, view.topics, held, feeding.ranges(LENGTH_MS, RANGE_MS), 0.0).run(threading.Event())
    return held


@contextmanager
def holding(kafka: LocalKafka, view: View, log: Path) -> Iterator[Child]:
    """Run a worker up to where it has gathered emissions of several partitions, and writes none."""
    arguments = [kafka.bootstrap_servers, view.topics.prefix, "0"]
    with Child([sys.executable, holding_worker.__file__, *arguments], log_path=log) as child:
        wait_for_line(child, holding_worker.GATHERED)
        yield child


def test_killed_between_gathering_and_commit(kafka: LocalKafka, tmp_path: Path) -> None:
    """What was gathered is emitted again by the next holder of the slot, from the last commit on."""
    view = view_of("gathered-kill", "1m", "mean")
    held = fed(kafka, view)
    with holding(kafka, view, tmp_path / "first.log") as first:
        first.kill()
    with worker(kafka, view, tmp_path / "second.log") as second:
        wait_until_windowed(kafka, view, second)
    verdict.assert_right(kafka, view, held, tmp_path / "data")


def test_revoked_between_gathering_and_commit(kafka: LocalKafka, tmp_path: Path) -> None:
    """A worker that joins waits for the transaction under way; both go on from what is committed."""
    view = view_of("gathered-revoke", "1m", "mean")
    held = fed(kafka, view)
    with (
        holding(kafka, view, tmp_path / "first.log") as first,
        worker(kafka, view, tmp_path / "second.log", 1) as second,
    ):
        wait_for_line(first, REBALANCING)
        os.kill(first.pid, signal.SIGUSR1)
        wait_until_windowed(kafka, view, first, second)
    verdict.assert_right(kafka, view, held, tmp_path / "data")


def test_stopped_between_gathering_and_commit(kafka: LocalKafka, tmp_path: Path) -> None:
    """A worker that is told to stop commits what it has emitted: the next one replays no more than it must."""
    view = view_of("gathered-stop", "1m", "mean")
    held = fed(kafka, view)
    with holding(kafka, view, tmp_path / "first.log") as first:
        before = first.log_path.read_text().count("windows emitted")
        os.kill(first.pid, signal.SIGTERM)
        os.kill(first.pid, signal.SIGUSR1)
        assert first.wait(PATIENCE_S) == 0, first.log_tail()
        assert first.log_path.read_text().count("windows emitted") >= before + 2
    assert committed_offsets(kafka.cluster, view.group_id, view.topics.range_chunks, builders.PARTITIONS) is not None
    with worker(kafka, view, tmp_path / "second.log") as second:
        wait_until_windowed(kafka, view, second)
    verdict.assert_right(kafka, view, held, tmp_path / "data")


def test_queue_full(kafka: LocalKafka, tmp_path: Path) -> None:
    """A worker whose client's queue is full says so and ends; of that transaction nothing is read, and the next holder
    of the slot emits all of it.
    """
    view = view_of("queue-full", "1m", "mean")
    held = fed(kafka, view)
    for messages in (2, 20):
        log = tmp_path / f"{messages}.log"
        arguments = [kafka.bootstrap_servers, view.topics.prefix, "0", str(messages)]
        with Child([sys.executable, narrow_worker.__file__, *arguments], log_path=log) as narrow:
            assert narrow.wait(120) == 1
        assert "error: records were not committed: Message failed: Local: Queue full" in log.read_text()
    with worker(kafka, view, tmp_path / "wide.log") as wide:
        wait_until_windowed(kafka, view, wide)
    verdict.assert_right(kafka, view, held, tmp_path / "data")
