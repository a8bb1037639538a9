"""Slots: a worker that is started again takes its old partitions at once, and a slot has one holder."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import builders
import feeding
import patient_worker
import pytest
import verdict
from commands import PATIENCE_S, end, view_of, wait_for_line, wait_until_windowed, worker

from ingestor.core.time_range import TimeRange
from ingestor.core.topics import Topics
from ingestor.kafka import connect, ensure_topics
from ingestor.local.kafka import LocalKafka
from ingestor.local.processes import Child
from ingestor.packing import PackedRange
from ingestor.positions import Position
from ingestor.publisher import Publisher
from stream_app.view import View

LENGTH_MS, RANGE_MS, EVERY_S = 8 * 3_600_000, 60_000, 0.5
"""Enough for four minutes of steps; each test ends the job when it is through."""
REBALANCING = "because it is rebalancing"


@contextmanager
def fed(kafka: LocalKafka, view: View) -> Iterator[Callable[[], None]]:
    """Feed a job at a steady pace; yield what ends it, waits, and compares all records."""
    held, ranges = feeding.samples(LENGTH_MS, 1), feeding.ranges(LENGTH_MS, RANGE_MS)
    feed, stop = feeding.Feed(kafka.cluster, view.topics, held, ranges, EVERY_S), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(feed.run, stop)

        def finish() -> None:
            stop.set()
            running.result()
            published = held[held["timestamp"] < feed.end()]
            wait_until_windowed(kafka, view)
            verdict.assert_right(kafka, view, published)

        try:
            yield finish
        finally:
            stop.set()


def log(child: Child) -> str:
    return child.log_path.read_text() if child.log_path.exists() else ""


def wait_for_emissions(*children: Child) -> None:
    """Wait until each has emitted some more windows."""
    deadline = time.monotonic() + PATIENCE_S
    wanted = {child: log(child).count("windows emitted") + 3 for child in children}
    while any(log(child).count("windows emitted") < count for child, count in wanted.items()):
        assert time.monotonic() < deadline, "\n".join(child.log_tail() for child in children)
        assert all(child.poll() is None for child in children), "\n".join(child.log_tail() for child in children)
        time.sleep(0.05)


def test_a_restarted_worker_takes_its_old_partitions(kafka: LocalKafka, tmp_path: Path) -> None:
    """After SIGKILL and after SIGTERM it goes on without a rebalance; where it stays away, the others take over."""
    view = view_of("slots", "1m", "mean")
    program = [sys.executable, patient_worker.__file__, kafka.bootstrap_servers, view.topics.prefix]
    first, second = (Child([*program, str(slot)], log_path=tmp_path / f"{slot}.log") for slot in range(2))
    third = worker(kafka, view, tmp_path / "2.log", 2)
    with ExitStack() as stack:
        finish = stack.enter_context(fed(kafka, view))
        for child in (first, second):
            stack.enter_context(child)
        wait_for_emissions(first, second)
        # The first to come leads the group.
        restart(second, Child.kill, first)
        restart(first, Child.kill, second)
        restart(second, end, first)
        seen = len(log(first))
        stack.enter_context(third)
        wait_for_emissions(third)
        assert REBALANCING in log(first)[seen:], "a rebalance would have been seen"
        third.kill()
        finish()
        assert third.poll() is not None


def restart(child: Child, stop: Callable[[Child], object], other: Child) -> None:
    """Restart a worker, which is back within its session time-out: the other must not notice."""
    seen = len(log(other))
    stop(child)
    child.start()
    wait_for_emissions(child, other)
    assert REBALANCING not in log(other)[seen:]


@pytest.mark.parametrize("first_is", ["idle", "frozen"])
def test_a_slot_has_one_holder(kafka: LocalKafka, tmp_path: Path, first_is: str) -> None:
    """Of two workers with one slot the first ends with a clear line; nothing is doubled, and the second works on."""
    view = view_of(f"slot-{first_is}", "1m", "mean")
    first, second = (worker(kafka, view, tmp_path / f"{name}.log", 7) for name in ("first", "second"))
    with ExitStack() as stack:
        ensure_topics(connect(kafka.cluster), view.topics, builders.PARTITIONS)
        if first_is != "idle":
            finish = stack.enter_context(fed(kafka, view))
        stack.enter_context(first)
        wait_for_line(first, "worker is ready")
        if first_is != "idle":
            wait_for_emissions(first)
        if first_is == "frozen":
            os.kill(first.pid, signal.SIGSTOP)
        stack.enter_context(second)
        wait_for_line(second, "worker is ready")
        if first_is == "frozen":
            wait_for_emissions(second)
            os.kill(first.pid, signal.SIGCONT)
        assert first.wait(PATIENCE_S) == 1
        assert "error: this worker (slot 7) was replaced" in log(first)
        if first_is == "idle":
            finish = stack.enter_context(fed(kafka, view))
        wait_for_emissions(second)
        finish()
        assert second.poll() is None, second.log_tail()


@pytest.mark.parametrize("slots", [(0, 1), (None, None)])
def test_an_idle_standby_takes_over(kafka: LocalKafka, tmp_path: Path, slots: tuple[int | None, int | None]) -> None:
    """A worker too many has no partition, and goes on where the one that had it died for good."""
    topics = Topics(f"standby-{slots[0]}")
    view = view_of(topics.prefix, "1m", "mean")
    ensure_topics(connect(kafka.cluster), topics, 1)
    children = [worker(kafka, view, tmp_path / f"{number}.log", slot) for number, slot in enumerate(slots)]
    with ExitStack() as stack:
        for child in children:
            stack.enter_context(child)
            wait_for_line(child, "worker is ready")
        publish_job(kafka, topics, "one")
        wait_until_windowed(kafka, view, *children)
        # Who has the partition is the group's choice: killed is the one that a job's end has shown to have it.
        holder = held_by(children)
        children[holder].kill()
        publish_job(kafka, topics, "two")
        wait_until_windowed(kafka, view, children[1 - holder])


def publish_job(kafka: LocalKafka, topics: Topics, job: str) -> None:
    """Publish a job of one range, without samples."""
    with Publisher(kafka.cluster, topics, job) as publisher:
        publisher.publish(PackedRange(TimeRange(0, 60_000), "test", 0, 0, [[]]), Position(job, 0, 60_000, 0, (0,)))


def held_by(children: list[Child]) -> int:
    """Return which child has committed."""
    counts = [log(child).count("windows emitted") for child in children]
    assert sorted(counts) == [0, 1], "one has the partition, and the other none"
    return counts.index(1)
