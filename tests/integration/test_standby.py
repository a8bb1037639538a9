"""Pollers of one job in a queue: one publishes, the others wait for its end, or take over."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import chunks
import click
import pytest
from commands import PATIENCE_S, end, ingestor

from ingestor import standby
from ingestor.core.topics import Topics
from ingestor.kafka import connect, ensure_topics
from ingestor.local.kafka import LocalKafka
from ingestor.local.processes import Child, free_port
from ingestor.local.prometheus import LocalPrometheus
from ingestor.standby import Standby

WAITS = "another poller runs; waiting"
SESSION_S = 10.0


class QueuedPoller(Child):
    """A live poller of everything that has a pod."""

    def __init__(self, on_conflict: str, url: str, kafka: LocalKafka, topics: Topics, log: Path) -> None:
        where = ["--url", url, "--topic-prefix", topics.prefix, "--bootstrap-servers", kafka.bootstrap_servers]
        flags = ["--on-conflict", on_conflict, "--settle", "2s", "--poll-interval", "1s", "--json"]
        super().__init__(ingestor("run", *where, *flags), log_path=log)

    @property
    def ranges(self) -> list[dict[str, Any]]:
        """What it has published so far."""
        lines = self.log_path.read_text().splitlines(keepends=True)
        told = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]
        return [event for event in told if event["event"] == "range"]

    def publishes(self, more: int = 1) -> float:
        """Wait until it has published so many more ranges; return how many seconds that took."""
        wanted = len(self.ranges) + more
        return self.wait_until(lambda: len(self.ranges) >= wanted)

    def waits(self) -> None:
        """Wait until it says that it waits, and see that it is left in peace."""
        self.wait_until(lambda: WAITS in self.log_path.read_text())
        assert not self.ranges

    def wait_until(self, condition: Callable[[], bool]) -> float:
        began_s = time.monotonic()
        while not condition():
            assert self.poll() is None, self.log_tail()
            assert time.monotonic() < began_s + PATIENCE_S, self.log_tail()
            time.sleep(0.05)
        return time.monotonic() - began_s


@pytest.fixture(scope="module")
def scraping(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPrometheus]:
    """A Prometheus that scrapes itself every second, as a pod."""
    port = free_port()
    target = {"targets": [f"127.0.0.1:{port}"], "labels": {"namespace": "monitoring", "pod": "prometheus-0"}}
    jobs = [{"job_name": "self", "static_configs": [target]}]
    config = {"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}
    with LocalPrometheus(tmp_path_factory.mktemp("scraping"), port=port, config=config) as server:
        yield server


MakePoller = Callable[..., QueuedPoller]


@pytest.fixture
def topics(request: pytest.FixtureRequest) -> Topics:
    return Topics("".join(c if c.isalnum() else "-" for c in request.node.name))


@pytest.fixture
def started(scraping: LocalPrometheus, kafka: LocalKafka, topics: Topics, tmp_path: Path) -> Iterator[MakePoller]:
    """Start pollers; they are ended with the test."""
    pollers: list[QueuedPoller] = []
    names = count()

    def start(on_conflict: str = "wait", broker: LocalKafka = kafka) -> QueuedPoller:
        poller = QueuedPoller(on_conflict, scraping.url, broker, topics, tmp_path / f"poller-{next(names)}.log")
        pollers.append(poller)
        poller.start()
        return poller

    yield start
    for poller in pollers:
        poller.stop()


def assert_one_after_the_other(kafka: LocalKafka, topics: Topics, *pollers: QueuedPoller) -> None:
    """What the pollers say that they have published adjoins, and is all that there is, once."""
    covered = chunks.assert_adjoining(chunks.read(kafka.cluster, topics), "live")
    ranges = [event for poller in pollers for event in poller.ranges]
    for earlier, later in pairwise(ranges):
        # A poller that is killed may not have said all.
        assert earlier["end_ms"] <= later["start_ms"]
    assert covered.start_ms == ranges[0]["start_ms"]
    assert covered.end_ms >= ranges[-1]["end_ms"]


def test_the_next_one_goes_on(kafka: LocalKafka, topics: Topics, started: MakePoller) -> None:
    """Whoever waits publishes nothing; it goes on where the first ends in order, and where it is killed."""
    first = started()
    click.echo(f"{first.publishes():.1f} s from the start to the first range")
    second = started()
    second.waits()
    first.publishes(3)
    assert not second.ranges
    end(first)
    after_end_s = second.publishes()
    third = started()
    third.waits()
    second.publishes(3)
    assert not third.ranges
    second.kill()
    after_kill_s = third.publishes()
    third.publishes(2)
    end(third)
    click.echo(f"next range {after_end_s:.1f} s after an end, {after_kill_s:.1f} s after a kill")
    assert_one_after_the_other(kafka, topics, first, second, third)


def test_who_ends_in_order_leaves_at_once(kafka: LocalKafka, topics: Topics, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one does not wait for the session to end, which here is longer than anybody waits."""
    ensure_topics(connect(kafka.cluster), topics, 1)
    monkeypatch.setattr(standby, "_SESSION_MS", round(1000 * PATIENCE_S) + 30_000)
    turn, gives_up = threading.Event(), threading.Event()

    def wait_for_turn() -> None:
        with Standby(kafka.cluster, topics, "live", waits=True) as second:
            if second.wait_for_turn(gives_up):
                turn.set()

    waiting = threading.Thread(target=wait_for_turn)
    with Standby(kafka.cluster, topics, "live", waits=True) as first:
        assert first.wait_for_turn(gives_up)
        waiting.start()
        groups = [f"{topics.prefix}.poller.live"]
        while len(connect(kafka.cluster).describe_consumer_groups(groups)[groups[0]].result().members) < 2:
            time.sleep(0.05)
        assert not turn.is_set()
    has_come = turn.wait(PATIENCE_S)
    gives_up.set()
    waiting.join()
    assert has_come


def test_three_in_a_queue(kafka: LocalKafka, topics: Topics, started: MakePoller) -> None:
    """Each has its turn once, and who has it keeps it while others come and go."""
    first = started()
    first.publishes()
    waiting = [started(), started()]
    for poller in waiting:
        poller.waits()
    end(first)
    deadline = time.monotonic() + PATIENCE_S
    while not any(poller.ranges for poller in waiting):
        assert time.monotonic() < deadline, "\n".join(poller.log_tail() for poller in waiting)
        time.sleep(0.05)
    second, third = sorted(waiting, key=lambda poller: not poller.ranges)
    comes_and_goes = started()
    comes_and_goes.waits()
    second.publishes(2)
    end(comes_and_goes)
    second.publishes(2)
    assert not third.ranges
    assert not comes_and_goes.ranges
    end(second)
    third.publishes(2)
    end(third)
    assert_one_after_the_other(kafka, topics, first, second, third)


def test_taking_over(kafka: LocalKafka, topics: Topics, started: MakePoller) -> None:
    """Whoever takes over ends the first one with a clear line, and is let be by those who wait."""
    first = started()
    first.publishes()
    waiting = [started() for _ in range(3)]
    for poller in waiting:
        poller.waits()
    second = started("take-over")
    second.publishes()
    assert first.wait(PATIENCE_S) == 1
    (last_words,) = [line for line in first.log_path.read_text().splitlines() if line.startswith("error:")]
    assert last_words.startswith("error: another poller of live has taken over")
    # Whoever gets the turn now that the first is gone would fence the second.
    second.publishes(5)
    assert not any(poller.ranges for poller in waiting)
    for poller in waiting[1:]:
        end(poller)
    end(second)
    waiting[0].publishes(2)
    end(waiting[0])
    assert_one_after_the_other(kafka, topics, first, second, waiting[0])


def test_stop_while_waiting(kafka: LocalKafka, topics: Topics, started: MakePoller) -> None:
    """A stop ends a poller in order that waits for its turn still, whether it has found its place yet or not."""
    first = started()
    first.publishes()
    patient = started()
    patient.waits()
    end(patient)
    assert not patient.ranges
    stop = threading.Event()
    stop.set()
    with Standby(kafka.cluster, topics, "live", waits=True) as newcomer:
        assert not newcomer.wait_for_turn(stop)
    first.publishes(2)


@pytest.mark.parametrize("away_s", [1.0, SESSION_S + 4])
def test_broker_away_while_waiting(away_s: float, topics: Topics, started: MakePoller, tmp_path: Path) -> None:
    """A broker that comes back, before the session's end or after it, finds one that publishes and one that waits."""
    with LocalKafka(tmp_path / "kafka") as broker:
        pollers = [started(broker=broker)]
        pollers[0].publishes()
        pollers.append(started(broker=broker))
        pollers[1].waits()
        broker.stop()
        time.sleep(away_s)
        before = [len(poller.ranges) for poller in pollers]
        broker.start()
        deadline = time.monotonic() + PATIENCE_S
        while not any(len(p.ranges) >= n + 3 for p, n in zip(pollers, before, strict=True)):
            assert all(p.poll() is None for p in pollers), "\n".join(p.log_tail() for p in pollers)
            assert time.monotonic() < deadline, "\n".join(p.log_tail() for p in pollers)
            time.sleep(0.1)
        # Where the session has ended, either of them may be the first to come back.
        first, second = sorted(pollers, key=lambda p: -p.ranges[-1]["end_ms"] if p.ranges else 0)
        quiet = len(second.ranges)
        first.publishes(2)
        assert len(second.ranges) == quiet
        end(first)
        second.publishes(2)
        third = started(broker=broker)
        third.waits()
        broker.stop()
        # Nobody answers when it leaves.
        end(third)
        broker.start()
        second.publishes()
        end(second)
        chunks.assert_adjoining(chunks.read(broker.cluster, topics), "live")
