"""Processes that stand still for longer than sessions and transactions last, and that nobody has replaced."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import click
import history
import pandas as pd
import pytest
import verdict
from commands import PATIENCE_S, backfill, run, view_of, wait_until_windowed, worker
from kafka_proxy import Api, KafkaProxy, Point
from proxied_kafka import ProxiedKafka
from supervised import Supervised

from ingestor.core.time_range import floor_ms, iso
from ingestor.kafka import connect, high_watermarks, partition_counts, stable_ends
from ingestor.local.processes import Child
from ingestor.local.prometheus import LocalPrometheus
from stream_app.view import View

HELD = {"open": "frozen-open.range-chunks", "writing": "frozen-writing.pods"}
"""Topics that are held back by who has stood still in a commit."""
MIDDLE = iso(floor_ms(history.START_MS + 3_600_000, 60_000))


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[ProxiedKafka]:
    with ProxiedKafka(tmp_path / "kafka") as started:
        yield started


@pytest.fixture
def net(broker: ProxiedKafka) -> Iterator[KafkaProxy]:
    with KafkaProxy(broker.proxied_port, broker.proxy_port) as proxy:
        yield proxy


def test_frozen_pollers_and_workers(
    broker: ProxiedKafka, net: KafkaProxy, prometheus: LocalPrometheus, samples: pd.DataFrame, tmp_path: Path
) -> None:
    """In a commit, behind one and at rest, until Kafka has ended transactions and sessions: a worker ends whose commit
    Kafka has given up, and each other goes on, or ends with 1 and says why; started again, it leaves every window there
    once.
    """
    views = {who: view_of(f"frozen-{who}", "1m", "mean") for who in ("open", "done", "writing", "resting")}

    def job(who: str, *more: str) -> list[str]:
        # Of options that are there twice the last one counts.
        return backfill(prometheus, broker.way_in, views[who].topics.prefix, "--range-samples", "1000", *more)

    run(job("writing"))
    run(job("resting", "--end", MIDDLE))
    frozen = {who: Supervised(Child(job(who), log_path=tmp_path / f"{who}.log")) for who in ("open", "done")}
    for who in ("writing", "resting"):
        frozen[who] = Supervised(worker(broker.way_in, views[who], tmp_path / f"{who}.log"))
    stops = {
        "open": net.stop_at(Point(Api.END_TXN, is_answered=False, nth=3, of=b"frozen-open.poller.backfill")),
        "done": net.stop_at(Point(Api.END_TXN, is_answered=True, nth=3, of=b"frozen-done.poller.backfill")),
        "writing": net.stop_at(Point(Api.END_TXN, is_answered=False, of=b"frozen-writing.view.")),
    }
    with ExitStack() as stack:
        # One behind the other: what is held back is so for 30 s only.
        for who in ("resting", "writing", "done", "open"):
            stack.callback(frozen[who].vanish)
            frozen[who].join()
            if who == "resting":
                wait_until_windowed(broker, views[who])
            else:
                assert stops[who].reached.wait(PATIENCE_S), frozen[who].child.log_tail()
            os.kill(frozen[who].child.pid, signal.SIGSTOP)
            assert who not in HELD or is_held_back(broker, HELD[who])
        while any(is_held_back(broker, topic) for topic in HELD.values()):
            time.sleep(0.2)
        for who, one in frozen.items():
            if who in stops:
                stops[who].go_on()
            os.kill(one.child.pid, signal.SIGCONT)
        run(job("resting", "--start", MIDDLE))
        for who in ("open", "done"):
            end(frozen[who])
            stack.enter_context(worker(broker, views[who], tmp_path / f"{who}-worker.log"))
        for who, view in views.items():
            wait(broker, view, frozen[who])
            # The second job of `resting` begins where windows do.
            verdict.assert_right(broker, view, samples, tmp_path / who, history.TIME)
            assert_told(frozen[who])
        assert frozen["writing"].ends[1] > 0


def end(poller: Supervised) -> None:
    """Let a job end; who ends with an error is started again."""
    while (code := poller.child.poll()) != 0:
        # It may end well at any moment, which is no end to be counted.
        if code is not None:
            poller.look_after()
        time.sleep(0.05)
    poller.wanted = False


def wait(broker: ProxiedKafka, view: View, frozen: Supervised) -> None:
    """Wait until all is windowed; a worker that has ended is started again."""
    for _ in range(round(PATIENCE_S)):
        frozen.look_after()
        try:
            wait_until_windowed(broker, view, timeout_s=1.0)
        except TimeoutError:
            continue
        return
    raise TimeoutError(frozen.child.log_tail())


def is_held_back(broker: ProxiedKafka, topic: str) -> bool:
    """Tell whether an open transaction holds readers of a topic back."""
    admin = connect(broker.cluster)
    stable = stable_ends(admin, topic, range(partition_counts(admin)[topic]))
    written = high_watermarks(admin, [(topic, partition) for partition in stable])
    return any(end < written[topic, partition] for partition, end in stable.items())


def assert_told(frozen: Supervised) -> None:
    """See that whoever has ended has said why."""
    errors = [line for line in frozen.log().splitlines() if line.startswith("error:")]
    click.echo("\n    ".join([f"  {frozen.child.log_path.stem} ended with {dict(frozen.ends)}", *errors]))
    assert frozen.ends.keys() <= {1}
    assert len(errors) == frozen.ends[1]
    assert all("stood still" in error for error in errors)
