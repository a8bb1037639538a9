"""Two minutes of live polling while poller and Prometheus are killed: every sample is in Kafka exactly once."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import chunks
import click
import exporter
import pandas as pd
import pytest
import scraped
from commands import PATIENCE_S, end, ingestor, view_of, worker, write_files

from ingestor.core.time_range import TimeRange, floor_ms
from ingestor.core.topics import Topics
from ingestor.kafka import connect, ensure_topics
from ingestor.local.kafka import LocalKafka
from ingestor.local.processes import Child
from ingestor.local.prometheus import LocalPrometheus
from ingestor.positions import Position, read_positions

LASTS_S = 120.0
WINDOW_MS = 2_000
TOPICS = Topics("kills")
SELECTOR = '{pod!=""}'


class Outage(NamedTuple):
    """A process is killed, and started again."""

    who: str
    from_s: float
    until_s: float


def outages(seed: int) -> list[Outage]:
    """Return two of each process; they may overlap."""
    generator = random.Random(seed)
    found = []
    for who in ("poller", "prometheus"):
        for earliest_s in (10.0, 65.0):
            from_s = earliest_s + generator.random() * 40
            # Long enough for a scrape to be missed.
            found.append(Outage(who, from_s, from_s + 1.2 + generator.random() * 5))
    return sorted(found, key=lambda outage: outage.from_s)


@dataclass
class Poller:
    """`ingestor run`, started again when it ends by itself, as a supervisor would."""

    child: Child
    wanted: bool = False

    def start(self) -> None:
        self.wanted = True
        self.child.start()

    def kill(self) -> None:
        self.look_after()
        self.wanted = False
        self.child.kill()

    def look_after(self) -> None:
        """See that it waits for Prometheus, also where it is started while there is none."""
        assert not self.wanted or self.child.poll() is None, self.child.log_tail()


@pytest.fixture
def scraping(tmp_path: Path) -> Iterator[LocalPrometheus]:
    """A Prometheus that scrapes a real exporter every second."""
    # Counted from the first scrape: on a slow machine the poller begins much later.
    with scraped.scraping(tmp_path, comes_after_s=LASTS_S * 0.6, goes_after_s=LASTS_S * 2 / 3) as server:
        yield server


def test_every_sample_is_published_once(kafka: LocalKafka, scraping: LocalPrometheus, tmp_path: Path) -> None:
    """Poller and Prometheus are killed twice: nothing is missing, doubled or wrong, in chunks, records and files."""
    seed = int(os.environ.get("LIVE_KILLS_SEED") or 1)
    planned = outages(seed)
    click.echo("\n  ".join([f"LIVE_KILLS_SEED={seed}", *map(str, planned)]))
    where = ["--bootstrap-servers", kafka.bootstrap_servers, "--topic-prefix", TOPICS.prefix]
    command = ingestor("run", "--settle", scraped.SETTLE, "--poll-interval", "1s", "--url", scraping.url, *where)
    poller = Poller(Child(command, log_path=tmp_path / "poller.log"))
    view = view_of(TOPICS.prefix, "2s", "mean")
    ensure_topics(connect(kafka.cluster), TOPICS, None)
    with ExitStack() as stack:
        child = stack.enter_context(worker(kafka, view, tmp_path / "worker.log"))
        stack.callback(poller.child.stop)
        poller.start()
        # From then on it waits for a Prometheus that is away.
        wait_for_position(kafka, 0, poller)
        disturb(poller, scraping, planned)
        position = wait_for_position(kafka, scraped.now_ms(scraping), poller)
        end(poller.child)
        published = chunks.read(kafka.cluster, TOPICS)
        covered = chunks.assert_adjoining(published, "live")
        last_window_ms = floor_ms(covered.end_ms, WINDOW_MS)
        windowed = scraped.windowed(kafka, view, child)
    write_files(kafka, view, tmp_path / "data")
    assert covered.start_ms == position.start_ms
    assert covered.length_ms > 0.9 * LASTS_S * 1000
    held = scraped.samples(scraping, covered)
    found = chunks.samples(published)[chunks.ORACLE_COLUMNS]
    click.echo(f"{covered.length_ms / 1000:.0f} s, {len(found):,} samples in Kafka, {len(held):,} in Prometheus,")
    click.echo(f"  {sum(map(len, published))} messages")
    assert_equal(found, held)
    assert_right_scenario(held)
    whole = TimeRange(-(-covered.start_ms // WINDOW_MS) * WINDOW_MS, last_window_ms)
    inside = held[held["timestamp"].between(whole.start_ms, whole.end_ms - 1)]
    scraped.assert_windows(windowed, tmp_path / "data", inside, whole)


def disturb(poller: Poller, prometheus: LocalPrometheus, planned: list[Outage]) -> None:
    """Let time pass; kill and start as planned."""
    starts: dict[str, Callable[[], object]] = {"poller": poller.start, "prometheus": prometheus.start}
    kills: dict[str, Callable[[], object]] = {"poller": poller.kill, "prometheus": prometheus.kill}
    steps = [(outage.from_s, kills[outage.who]) for outage in planned]
    steps += [(outage.until_s, starts[outage.who]) for outage in planned]
    steps += [(LASTS_S, poller.look_after)]
    began_s = time.monotonic()
    for at_s, act in sorted(steps, key=lambda step: step[0]):
        while (left_s := began_s + at_s - time.monotonic()) > 0:
            poller.look_after()
            time.sleep(min(left_s, 0.5))
        act()


def wait_for_position(kafka: LocalKafka, wanted_ms: int, poller: Poller) -> Position:
    """Wait until the poller has read up to *wanted_ms*; return where it is."""
    deadline = time.monotonic() + PATIENCE_S
    while (position := read_positions(kafka.cluster, TOPICS).get("live")) is None or position.position_ms < wanted_ms:
        poller.look_after()
        assert time.monotonic() < deadline, poller.child.log_tail()
        time.sleep(0.5)
    return position


def assert_equal(found: pd.DataFrame, held: pd.DataFrame) -> None:
    """Compare sample by sample, to the last bit."""
    names = ["namespace", "pod", "metric", "series", "timestamp"]
    in_kafka, in_prometheus = (
        Counter({key: len(values) for key, values in frame.groupby(names).groups.items()}) for frame in (found, held)
    )
    doubled = [key for key, count in in_kafka.items() if count > 1]
    missing = sorted(in_prometheus.keys() - in_kafka.keys(), key=lambda key: key[-1])
    extra = sorted(in_kafka.keys() - in_prometheus.keys(), key=lambda key: key[-1])
    both = found.merge(held, on=names)
    wrong = both[(both["value_x"] != both["value_y"]) & ~(both["value_x"].isna() & both["value_y"].isna())]
    click.echo(f"missing {len(missing)}, doubled {len(doubled)}, wrong {len(wrong)}, extra {len(extra)}")
    assert not missing, [missing[0], missing[-1]]
    assert not doubled, [doubled[0], doubled[-1]]
    assert not extra, [extra[0], extra[-1]]
    assert not len(wrong), wrong.head()
    assert len(found) == len(held) == len(both)


def assert_right_scenario(held: pd.DataFrame) -> None:
    """See that what was meant to happen did."""
    seen = held.groupby("pod")["timestamp"].agg(["min", "max"])
    assert len(seen) == len(exporter.LASTING) + 3, "the exporter itself is a pod too"
    assert seen["min"][exporter.COMES] > seen["min"].min()
    assert seen["max"][exporter.GOES] < seen["max"].max()
    assert held["value"].isna().any()
    scrapes = held[(held["metric"] == "up") & (held["value"] == 1)]["timestamp"].sort_values()
    assert (scrapes.diff() > 1_100).sum() >= 2, "Prometheus was away twice"
