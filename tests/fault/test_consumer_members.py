"""Members of a group that are slow, come and go, or are killed: every window is processed, hardly any twice."""

from __future__ import annotations

import itertools
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

import consuming as consuming_program
import pytest
from commands import PATIENCE_S, wait_until
from pod_topic import MINUTE_MS, NOON_MS, PodTopic, record

from ingestor.local.kafka import LocalKafka
from stream_app.consumer import PodConsumer

SERVICES = [f"s{number}" for number in range(8)]
LOOKBACK = 10
SESSION_S = 6.0

Key = tuple[str, int]


@pytest.fixture
def topic(kafka: LocalKafka) -> Iterator[PodTopic]:
    """Sink topics of this test alone, with services in every partition."""
    made = PodTopic(kafka)
    made.make()
    assert {made.partition(service) for service in SERVICES} == set(range(made.partitions))
    yield made
    made.delete()


def send(topic: PodTopic, minutes: range) -> set[Key]:
    """Write a window a minute of every service's two pods, in several transactions."""
    for first in range(minutes.start, minutes.stop, 10):
        inside = range(first, min(first + 10, minutes.stop))
        topic.send(*(record(m, f"{s}-{n}", s) for m in inside for s in SERVICES for n in range(2)))
    return {(f"shop/{s}-{n}", m) for m in minutes for s in SERVICES for n in range(2)}


class Member(threading.Thread):
    """A service with a slow model, as a thread."""

    def __init__(self, topic: PodTopic, seconds: float) -> None:
        super().__init__()
        self._topic, self._seconds = topic, seconds
        self.processed: list[tuple[Key, int]] = []
        """Windows, and the lengths of their histories."""
        self.leaves = threading.Event()
        self.stands_still = threading.Event()
        self.moved: list[set[int]] = []
        """Partitions that were ours, each time that they were looked at and had changed."""

    def run(self) -> None:
        group = f"{self._topic.names.prefix}.models"
        where = self._topic.where
        with PodConsumer(
            **where, group=group, start="earliest", lookback=f"{LOOKBACK}m", session_timeout_s=SESSION_S, commit_s=0.5
        ) as pods:
            for window in pods:
                ours = set(pods._opened().partitions)
                if not self.moved or self.moved[-1] != ours:
                    self.moved.append(ours)
                if self.stands_still.is_set():
                    # Longer than a session: what keeps the membership is not this loop.
                    self.stands_still.clear()
                    time.sleep(SESSION_S + 2)
                time.sleep(self._seconds)
                frame = window.frame()
                self.processed.append(((window.id, round(float(frame["memory"].iloc[-1]))), len(frame)))
                if self.leaves.is_set():
                    return


def wait_for(members: list[Member], count: int, others: Collection[Key] = ()) -> None:
    """Wait until some members, and others before them, have processed so many windows."""
    deadline = time.monotonic() + PATIENCE_S
    while len({*others, *(key for member in members for key, _ in member.processed)}) < count:
        assert all(member.is_alive() for member in members), "a member has died"
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Feed(threading.Thread):
    """Writes window after window until it is told to stop."""

    def __init__(self, topic: PodTopic) -> None:
        super().__init__()
        self._topic = topic
        self._stops = threading.Event()
        self.written: set[Key] = set()

    def run(self) -> None:
        for first in itertools.count(0, 4):
            self.written |= send(self._topic, range(first, first + 4))
            if self._stops.wait(0.15):
                return

    def stop(self) -> None:
        self._stops.set()
        self.join()


def test_slow_models_and_rebalances(topic: PodTopic) -> None:
    """Members with a slow model join and leave: every window is processed, with its history, and what comes twice
    was in a member's hands when a partition moved.
    """
    first, second, third = members = [Member(topic, 0.002) for _ in range(3)]
    feed = Feed(topic)
    feed.start()
    try:
        first.start()
        wait_for([first], 50)
        second.start()
        wait_for([second], 1)
        # A model that takes longer than a session loses nothing by it: its partitions stay.
        moves = len(second.moved)
        second.stands_still.set()
        wait_until(lambda: not second.stands_still.is_set())
        wait_for([second], len(second.processed) + 1)
        assert len(second.moved) == moves
        third.start()
        wait_for([third], 50)
        first.leaves.set()
        first.join(PATIENCE_S)
        feed.stop()
        wait_for([second, third], len(feed.written), {key for key, _ in first.processed})
    finally:
        feed.stop()
        for member in members:
            member.leaves.set()
        last = max(minute for _, minute in feed.written) + 1
        send(topic, range(last, last + 1))
    for member in members:
        member.join(PATIENCE_S)
        assert not member.is_alive()

    found = [one for member in members for one in member.processed if one[0][1] < last]
    counts = Counter(key for key, _ in found)
    assert set(counts) == feed.written
    assert all(length == min(key[1] + 1, LOOKBACK) for key, length in found)
    # Each time that a member lost partitions it had one window in its hands, and so had the one that left.
    lost = sum(bool(before - after) for member in members for before, after in itertools.pairwise(member.moved))
    assert lost <= 6, "members came or went three times"
    assert sum(counts.values()) - len(counts) <= lost + 1, counts.most_common(10)
    assert all(member.processed for member in members)


def consuming(topic: PodTopic, log: Path, *more: str) -> list[str]:
    program, kafka = consuming_program.__file__, topic.kafka
    return [sys.executable, program, kafka.bootstrap_servers, topic.names.prefix, str(log), *more]


def key_of(line: str) -> Key:
    """Return the window, whose own row is its history's last one: memory counts minutes."""
    name, start_ms, _, memory = line.split()
    minute = (int(start_ms) - NOON_MS) // MINUTE_MS
    assert int(memory) == minute
    return name, minute


@pytest.mark.parametrize("by", ["itself", "by hand"])
def test_killed_in_a_loop(topic: PodTopic, tmp_path: Path, by: str) -> None:
    """Killed with SIGKILL again and again: every window is processed, with its history; what was committed never is
    again.
    """
    expected = send(topic, range(60))
    log = tmp_path / "processed"
    command = consuming(topic, log, "--name", "model-0", "--until-now", *(["--by-hand"] if by == "by hand" else []))
    generator = random.Random(1)
    lives = 8
    for _ in range(lives - 1):
        # Not by the clock: together they cannot process all, however fast they are.
        ended = subprocess.run([*command, "--dies-after", str(generator.randrange(5, 110))], check=False)
        assert ended.returncode == -signal.SIGKILL
    subprocess.run(command, check=True)

    seen: Counter[Key] = Counter()
    since: set[Key] = set()
    safe: set[Key] = set()
    for line in log.read_text().splitlines():
        if line == "begin":
            # What the life before had not committed may come again, after commits of this one.
            since = set()
            continue
        if line in ("committed", "end"):
            safe, since = safe | since, set()
            continue
        key = key_of(line)
        assert key not in safe, f"{key} was processed and committed before"
        assert int(line.split()[2]) == min(key[1] + 1, LOOKBACK)
        seen[key] += 1
        since.add(key)
    assert set(seen) == expected
    if by == "by hand":
        assert sum(seen.values()) - len(seen) <= (lives - 1) * consuming_program.COMMIT_EVERY


def test_a_member_that_dies_is_replaced(topic: PodTopic, tmp_path: Path) -> None:
    """Without a name of its own, its partitions go to the others once its session has ended, with their histories."""
    expected = send(topic, range(30))
    log = tmp_path / "processed"
    dying = subprocess.Popen(consuming(topic, log, "--session-s", str(SESSION_S)))
    wait_until(lambda: log.exists() and log.read_text().count("\n") >= 50)
    dying.send_signal(signal.SIGKILL)
    dying.wait()
    survivor = Member(topic, 0.0)
    survivor.start()
    gone = set(map(key_of, log.read_text().splitlines()[1:]))
    wait_for([survivor], len(expected), gone)
    survivor.leaves.set()
    send(topic, range(30, 31))
    survivor.join(PATIENCE_S)
    found = dict(one for one in survivor.processed if one[0][1] < 30)
    assert found.keys() | gone == expected
    assert all(length == min(key[1] + 1, LOOKBACK) for key, length in found.items())
