"""A poller that was frozen while another one took its job over writes nothing more, and says so."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import chunks
import history
import pandas as pd
import verdict
from commands import PATIENCE_S, backfill, run, view_of, wait_for_line, wait_until, wait_until_windowed, worker
from kafka_proxy import Api, KafkaProxy, Point
from proxied_kafka import ProxiedKafka

from ingestor.local.kafka import LocalKafka
from ingestor.local.processes import PIPE, Child
from ingestor.local.prometheus import LocalPrometheus


def test_a_frozen_poller_is_fenced(
    kafka: LocalKafka, prometheus: LocalPrometheus, samples: pd.DataFrame, tmp_path: Path
) -> None:
    """SIGSTOP in the middle of a job, another poller ends the job, SIGCONT: an error, and nothing is there twice."""
    view = view_of("zombie", "1m", "mean")
    command = backfill(prometheus, kafka, view.topics.prefix, "--range-samples", "1000", "--json")
    frozen = Child([*command, "--max-samples-per-second", "1000"], log_path=tmp_path / "frozen.log", stdout=PIPE)
    with frozen:
        told = [next(frozen.stdout) for _ in range(4)]
        assert any(b'"range"' in line for line in told)
        os.kill(frozen.pid, signal.SIGSTOP)
        rest = run(command)
        assert "job goes on" in rest.stderr
        os.kill(frozen.pid, signal.SIGCONT)
        assert frozen.wait(PATIENCE_S) == 1
    (last_words,) = [line for line in frozen.log_path.read_text().splitlines() if line.startswith("error:")]
    assert "has taken over" in last_words
    with worker(kafka, view, tmp_path / "worker.log") as child:
        wait_until_windowed(kafka, view, child)
    verdict.assert_right(kafka, view, samples, tmp_path / "data", history.TIME)


def test_a_poller_that_was_frozen_in_its_commit(
    prometheus: LocalPrometheus, samples: pd.DataFrame, tmp_path: Path
) -> None:
    """Replaced meanwhile, it hears of no fence but of a time-out: it ends and says why, and its successor goes on."""
    prefix = "zombie-commit"
    in_commit = Point(Api.END_TXN, is_answered=False, nth=3, of=f"{prefix}.poller.backfill".encode())
    with (
        ProxiedKafka(tmp_path / "kafka") as broker,
        KafkaProxy(broker.proxied_port, broker.proxy_port) as net,
    ):
        command, direct = (
            backfill(prometheus, way, prefix, "--range-samples", "1000") for way in (broker.way_in, broker)
        )
        stop = net.stop_at(in_commit)
        with Child(command, log_path=tmp_path / "frozen.log") as frozen:
            wait_until(stop.reached.is_set, frozen)
            os.kill(frozen.pid, signal.SIGSTOP)
            # Slow: it has more to do than the first one stands still for.
            with Child([*direct, "--max-samples-per-second", "50"], log_path=tmp_path / "next.log") as successor:
                wait_for_line(successor, "range published")
                os.kill(frozen.pid, signal.SIGCONT)
                assert frozen.wait(PATIENCE_S) == 1
                stop.go_on()
                log = successor.log_path.read_text()
                wait_for_line(successor, "range published", log.count("range published") + 1)
        run(direct)
        told = frozen.log_path.read_text()
        assert "nothing was committed" in told
        (last_words,) = [line for line in told.splitlines() if line.startswith("error:")]
        assert "has taken over" in last_words
        published = chunks.published(broker.cluster, prefix)
    assert not published.duplicated(["namespace", "pod", "metric", "series", "timestamp"]).any()
    assert len(published) == len(samples)
