"""Clocks that jump an hour forward and two back: no window shows it, nothing hangs, nothing is lost.

Ours: what is stepped is what Python's ``time.time`` says in each of our processes (and with it logs, and the times in
positions), nothing else. That of the library that talks to Kafka is not, nor what ``datetime`` and the system itself go
by: libfaketime 0.9.10 was tried, and does neither Python's sleep (EINVAL) nor librdkafka's waits as the kernel does.
The backend's: what it answers when it is asked for the time.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import chunks
import click
import history
import orjson
import pandas as pd
import pytest
import scraped
import verdict
from commands import (
    PATIENCE_S,
    backfill,
    end,
    ingestor,
    stream_app,
    view_flags,
    view_of,
    wait_for_line,
    wait_until,
    wait_until_windowed,
    worker,
    write_files,
)
from misbehaving import Answer, Asked, Given, MisbehavingProxy, reply

from ingestor.core.time_range import TimeRange, floor_ms
from ingestor.core.topics import Topics
from ingestor.local.kafka import LocalKafka
from ingestor.local.processes import Child
from ingestor.local.prometheus import LocalPrometheus
from ingestor.positions import known_positions

STEPPED = """
import time

now, now_ns = time.time, time.time_ns


def ahead_s():
    with open({path!r}) as file:
        return int(file.read())


time.time = lambda: now() + ahead_s()
time.time_ns = lambda: now_ns() + ahead_s() * 10**9
"""
"""Python reads it before all else, as sitecustomize."""

HOUR_S = 3_600
STAMPED = re.compile(r"\d{4}-\d\d-\d\dT")
STEPS_S = (HOUR_S, -HOUR_S, 0)


class Clock:
    """What ``time.time`` says in processes; time that only passes is the machine's, as where a clock is set."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "ahead"
        self.set(0)
        (folder / "sitecustomize.py").write_text(STEPPED.format(path=str(self._file)))
        self._environment = os.environ | {"PYTHONPATH": str(folder)}

    def set(self, ahead_s: int) -> None:
        """Have it go so much ahead of the machine's."""
        new = self._file.with_suffix(".new")
        new.write_text(str(ahead_s))
        new.replace(self._file)

    @contextmanager
    def under(self, commands: Mapping[str, list[str]], folder: Path) -> Iterator[dict[str, Child]]:
        """Run processes by this clock."""
        with ExitStack() as stack:
            yield {
                name: stack.enter_context(Child(command, log_path=folder / f"{name}.log", env=self._environment))
                for name, command in commands.items()
            }


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path)


@pytest.fixture
def scraping(tmp_path: Path) -> Iterator[LocalPrometheus]:
    with scraped.scraping(tmp_path, comes_after_s=6, goes_after_s=10) as server:
        yield server


def test_live(kafka: LocalKafka, scraping: LocalPrometheus, clock: Clock, tmp_path: Path) -> None:
    """Poller, worker and file sink go on through each step of ours; windows are those that Prometheus' samples make."""
    view, storage = view_of("steps-live", "2s", "mean"), tmp_path / "data"
    where = ["--topic-prefix", view.topics.prefix, "--bootstrap-servers", kafka.bootstrap_servers]
    commands = {
        "poller": ingestor("run", "--settle", scraped.SETTLE, "--poll-interval", "1s", "--url", scraping.url, *where),
        "worker": worker(kafka, view, tmp_path / "worker.log").args,
        "files": stream_app("files", "--storage", str(storage), *where, *view_flags(view)),
    }
    with clock.under(commands, tmp_path) as children:
        wait_for_rows(storage, 0, children)
        for ahead_s in STEPS_S:
            clock.set(ahead_s)
            # What Prometheus scrapes from now on has come through all of it.
            wait_for_rows(storage, scraped.now_ms(scraping), children)
        end(children["poller"])
        assert_stepped(children["poller"], children["worker"])
        covered = chunks.assert_adjoining(chunks.read(kafka.cluster, view.topics), "live")
        last_ms = floor_ms(covered.end_ms, scraped.WINDOW_MS)
        found = scraped.windowed(kafka, view, children["worker"])
        end(children["files"])
    write_files(kafka, view, storage)
    whole = TimeRange(-(-covered.start_ms // scraped.WINDOW_MS) * scraped.WINDOW_MS, last_ms)
    held = scraped.samples(scraping, whole)
    scraped.assert_windows(found, storage, held, whole)


def test_history(
    kafka: LocalKafka, prometheus: LocalPrometheus, samples: pd.DataFrame, clock: Clock, tmp_path: Path
) -> None:
    """A backfill that each step of ours meets half-way gives the oracle's records and files."""
    view, storage = view_of("steps-past", "1m", "mean", "pod"), tmp_path / "data"
    where = ["--topic-prefix", view.topics.prefix, "--bootstrap-servers", kafka.bootstrap_servers]
    slow = ["--range-samples", "1000", "--max-samples-per-second", "1500"]
    commands = {
        "poller": backfill(prometheus, kafka, view.topics.prefix, *slow),
        "worker": worker(kafka, view, tmp_path / "worker.log").args,
        "files": stream_app("files", "--storage", str(storage), *where, *view_flags(view)),
    }
    with clock.under(commands, tmp_path) as children:
        for number, ahead_s in enumerate(STEPS_S):
            wait_for_line(children["poller"], "range published", 2 + 4 * number)
            clock.set(ahead_s)
        assert children["poller"].wait(PATIENCE_S) == 0, children["poller"].log_tail()
        assert_stepped(children["poller"])
        wait_until_windowed(kafka, view, children["worker"])
        end(children["files"])
    verdict.assert_right(kafka, view, samples, storage, history.TIME)


def test_the_backend(kafka: LocalKafka, scraping: LocalPrometheus, tmp_path: Path) -> None:
    """A backend that says for some polls that it is an hour later leads neither a live job nor its recheck ahead: both
    go on meanwhile, and every sample is published once by each.
    """
    topics, ahead_s = Topics("steps-backend"), 0

    def stepped(asked: Asked, given: Given) -> Answer | None:
        if asked.kind != "clock" or not ahead_s:
            return None
        answer = orjson.loads(given.body)
        at_s, text = answer["data"]["result"]
        answer["data"]["result"] = [at_s + ahead_s, str(float(text) + ahead_s)]
        return reply(200, orjson.dumps(answer))

    where = ["--topic-prefix", topics.prefix, "--bootstrap-servers", kafka.bootstrap_servers]
    flags = ["--settle", scraped.SETTLE, "--poll-interval", "1s", "--recheck", "3s"]
    with MisbehavingProxy(scraping.url) as proxy:
        proxy.behaviour = stepped
        command = ingestor("run", *flags, "--url", proxy.url, *where)
        with Child(command, log_path=tmp_path / "poller.log") as poller:
            wait_until_read(poller, kafka, topics, scraped.now_ms(scraping))
            ahead_s = HOUR_S
            wait_until_read(poller, kafka, topics, scraped.now_ms(scraping))
            assert proxy.spoilt
            ahead_s = 0
            wait_until_read(poller, kafka, topics, scraped.now_ms(scraping))
            end(poller)
    streams = chunks.read(kafka.cluster, topics)
    published = chunks.samples(streams)
    for job in ("live", "live.recheck"):
        covered = chunks.assert_adjoining(streams, job)
        assert covered.end_ms < scraped.now_ms(scraping)
        found, held = published[published["job"] == job], scraped.samples(scraping, covered)
        click.echo(f"  {job}: {len(found):,} samples of {covered.length_ms / 1000:.0f} s")
        in_order = [
            samples[chunks.ORACLE_COLUMNS].sort_values(chunks.ORACLE_COLUMNS, ignore_index=True)
            for samples in (found, held)
        ]
        pd.testing.assert_frame_equal(*in_order, check_exact=True)
    assert poller.log_path.read_text().count("jumped ahead") == 1


def wait_until_read(poller: Child, kafka: LocalKafka, topics: Topics, to_ms: int) -> None:
    """Wait until a live job and its recheck have published what is before a time."""

    def is_read() -> bool:
        positions = known_positions(kafka.cluster, topics)
        return all(job in positions and positions[job].position_ms >= to_ms for job in ("live", "live.recheck"))

    wait_until(is_read, poller)


def assert_stepped(*children: Child) -> None:
    """See in the times of their logs that their clocks were two hours apart."""
    for child in children:
        lines = child.log_path.read_text().splitlines()
        times = sorted(datetime.fromisoformat(line.split()[0]) for line in lines if STAMPED.match(line))
        assert times[-1] - times[0] > timedelta(seconds=2 * HOUR_S - 60), child.log_tail(100)


def wait_for_rows(storage: Path, from_ms: int, children: Mapping[str, Child]) -> None:
    """Wait until a file has a window that begins then or later."""
    deadline = time.monotonic() + PATIENCE_S
    while newest_ms(storage) < from_ms:
        for child in children.values():
            assert child.poll() is None, child.log_tail()
        assert time.monotonic() < deadline, "\n".join(child.log_tail() for child in children.values())
        time.sleep(0.2)


def newest_ms(storage: Path) -> float:
    """Return the newest window's start in files that are being written: their last lines may be torn."""
    lines = [line for path in storage.glob("*/*.csv") for line in path.read_text().rpartition("\n")[0].splitlines()[1:]]
    return max((1000 * datetime.fromisoformat(line.partition(",")[0]).timestamp() for line in lines), default=-1.0)
