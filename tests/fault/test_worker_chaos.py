"""One minute of faults on three workers of four partitions: every record is there once, and right."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import click
import feeding
import verdict
from commands import view_of, wait_until_windowed, worker
from supervised import Supervised

from ingestor.local.kafka import LocalKafka
from stream_app.view import View

LASTS_S = 60.0
RANGE_MS, EVERY_S = 20_000, 0.1
LENGTH_MS = round(LASTS_S / EVERY_S) * RANGE_MS
ABORTED_SHARE = 0.13
STEADY = ("0", "1", "2")
JOINERS = ("3", "none")
"""A fourth worker with a slot and a fifth without: more workers than partitions."""


class Fault(NamedTuple):
    """What happens to which worker."""

    at_s: float
    what: str
    who: str


def faults(seed: int) -> list[Fault]:
    """Return kills, ends and freezes of the three, and two that join and leave again, one of them killed."""
    generator = random.Random(seed)
    kinds = generator.sample(["kill", "end", "freeze"], 12, counts=[5, 4, 3])
    each_s = (LASTS_S - 4) / len(kinds)
    found = [
        Fault(4 + (number + generator.random()) * each_s, what, generator.choice(STEADY))
        for number, what in enumerate(kinds)
    ]
    for who, leaves in zip(JOINERS, generator.sample(["leave", "vanish"], 2), strict=True):
        joins_s = generator.uniform(4, LASTS_S / 2)
        found += [Fault(joins_s, "join", who), Fault(generator.uniform(joins_s + 8, LASTS_S), leaves, who)]
    return sorted(found)


def test_every_record_is_there_once(kafka: LocalKafka, tmp_path: Path) -> None:
    """Through kill -9, SIGTERM, freezes, joins and ends: no record is missing, doubled, wrong or too many."""
    seed = int(os.environ.get("WORKER_CHAOS_SEED") or 1)
    planned = faults(seed)
    click.echo(f"\nWORKER_CHAOS_SEED={seed}")
    click.echo("  " + ", ".join(f"{fault.at_s:.1f} {fault.what} {fault.who}" for fault in planned))
    view = view_of(f"chaos-{seed}", "1m", "mean", "pod", "service")
    held = feeding.samples(LENGTH_MS, seed)
    ranges = feeding.ranges(LENGTH_MS, RANGE_MS)
    feed = feeding.Feed(kafka.cluster, view.topics, held, ranges, EVERY_S, ABORTED_SHARE, seed)
    stop = threading.Event()
    workers = {
        name: Supervised(worker(kafka, view, tmp_path / f"worker-{name}.log", int(name) if name != "none" else None))
        for name in (*STEADY, *JOINERS)
    }
    with ThreadPoolExecutor(1, "feed") as pool:
        try:
            for name in STEADY:
                workers[name].join()
            fed = pool.submit(feed.run, stop)
            disturb(workers, planned)
            while not fed.done():
                look_after(workers)
            fed.result()
            wait_for_the_end(kafka, view, workers)
        finally:
            stop.set()
            for one in workers.values():
                one.kill()
    ends = {name: dict(one.ends) for name, one in workers.items() if one.ends}
    click.echo(f"  {feed.published} ranges, {feed.aborted} aborted first; workers ended with {ends}")
    assert feed.published == len(ranges)
    assert feed.aborted > 0.05 * len(ranges)
    assert sum(one.ends[-signal.SIGKILL] for one in workers.values()) == sum(f.what == "kill" for f in planned)
    verdict.assert_right(kafka, view, held, tmp_path / "data")


def disturb(workers: dict[str, Supervised], planned: list[Fault]) -> None:
    """Let time pass, with the faults in it, each of which hits; who ends is started again."""
    began_s = time.monotonic()
    for fault in planned:
        one = workers[fault.who]
        # Who was killed or frozen before is back by then.
        while time.monotonic() < began_s + fault.at_s or not (one.is_up or fault.what == "join"):
            look_after(workers)
        assert getattr(one, fault.what)(), f"nobody felt {fault}"


def look_after(workers: dict[str, Supervised]) -> None:
    time.sleep(0.05)
    for one in workers.values():
        one.look_after()


def wait_for_the_end(kafka: LocalKafka, view: View, workers: dict[str, Supervised]) -> None:
    """Wait until all that was fed is windowed; frozen workers go on, ended ones are started meanwhile."""
    with ThreadPoolExecutor(1, "wait") as pool:
        done = pool.submit(wait_until_windowed, kafka, view)
        while not done.done():
            look_after(workers)
        try:
            done.result()
        except TimeoutError as error:
            raise TimeoutError("\n".join(one.child.log_tail(8) for one in workers.values())) from error
