"""The example ML service, on the demo's own history: Prometheus, poller, worker, and what it publishes."""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import programs
import pytest
import records
from commands import PATIENCE_S, end, ingestor, run, view_of, wait_until_windowed, worker

from ingestor.core.time_range import iso
from ingestor.kafka import connect, partition_counts, read_to_end
from ingestor.local.kafka import LocalKafka
from ingestor.local.processes import Child
from ingestor.local.prometheus import LocalPrometheus, create_blocks
from ingestor.options import cluster_arguments
from stream_app.view import View

_DEMO = programs.modules("demo")
metrics, history = _DEMO["metrics"], _DEMO["history"]

MINUTE_MS = 60_000
START_MS = 1_795_435_200_000
END_MS = START_MS + 100 * MINUTE_MS


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPrometheus]:
    """The demo's own history."""
    folder = tmp_path_factory.mktemp("ml")
    with (folder / "history.om").open("w") as file:
        history.write_history(file, START_MS, END_MS, interval_ms=15_000)
    server = LocalPrometheus(folder)
    create_blocks(folder / "history.om", server.data_dir)
    with server:
        yield server


def window(kafka: LocalKafka, demo: LocalPrometheus, view: View, start_ms: int, end_ms: int, log: Path) -> None:
    """Publish the windows of a part of the history."""
    when = ["--start", iso(start_ms), "--end", iso(end_ms)]
    with worker(kafka, view, log) as child:
        run(
            ingestor(
                "backfill", "--url", demo.url, *when,
                "--topic-prefix", view.topics.prefix, *cluster_arguments(kafka.cluster),
            )
        )  # fmt: skip
        wait_until_windowed(kafka, view, child)


def service(kafka: LocalKafka, log: Path, *more: str) -> Child:
    command = [sys.executable, str(programs.DOCKER / "ml_service" / "main.py"), "--topic-prefix", "ml"]
    return Child([*command, "--bootstrap-servers", kafka.bootstrap_servers, *more], log_path=log)


def scores(kafka: LocalKafka) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Return what is published, by pod and window."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for partition in range(partition_counts(connect(kafka.cluster)).get("ml.anomalies", 0)):
        for message in read_to_end(kafka.cluster, "ml.anomalies", partition):
            score = json.loads(message.value())
            assert message.key() == f"{score['namespace']}/{score['pod']}".encode()
            found[score["pod"], score["window_start"]].append(score)
    return found


def windows(kafka: LocalKafka, view: View) -> set[tuple[str, int]]:
    return {(r.pod, r.window_start_ms) for r in records.read(kafka.cluster, view.topics.pods)}


def wait_until_scored(kafka: LocalKafka, expected: set[tuple[str, int]], child: Child) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while scores(kafka).keys() != expected:
        assert child.poll() is None, child.log_tail()
        assert time.monotonic() < deadline, child.log_tail()
        time.sleep(0.3)


def test_the_pod_that_goes_bad_is_found(kafka: LocalKafka, demo: LocalPrometheus, tmp_path: Path) -> None:
    """Each window of the demo's sick pod is an anomaly while it is ill, with its queue as the reason, and none else is.

    Killed on its way and started again, the service scores every window all the same.
    """
    view = view_of("ml", "1m", "mean")
    middle_ms = (START_MS + END_MS) // 2
    window(kafka, demo, view, START_MS, middle_ms, tmp_path / "worker.log")
    flags = ["--start", "earliest", "--group", "ml.anomalies"]
    log = tmp_path / "service.log"
    with service(kafka, log, *flags) as first:
        deadline = time.monotonic() + PATIENCE_S
        while len(scores(kafka)) < 100:
            assert first.poll() is None, first.log_tail()
            assert time.monotonic() < deadline, first.log_tail()
            time.sleep(0.05)
        first.kill()
    window(kafka, demo, view, middle_ms, END_MS, tmp_path / "worker.log")
    with service(kafka, log, *flags) as second:
        wait_until_scored(kafka, windows(kafka, view), second)
        end(second)
    found = {where: published[-1] for where, published in scores(kafka).items()}
    warm_ms = START_MS + 40 * MINUTE_MS
    ill = {
        (metrics.SICK_POD, start_ms)
        for start_ms in range(warm_ms, END_MS, MINUTE_MS)
        if metrics.is_sick(metrics.SICK_POD, start_ms)
    }
    assert len(ill) == 9
    assert {where for where, score in found.items() if score["anomalous"] and where[1] >= warm_ms} == ill
    assert all([reason["metric"] for reason in found[where]["reasons"]] == ["queue_depth"] for where in ill)
    assert f"shop/{metrics.SICK_POD} is not as its service mostly is: queue_depth" in log.read_text()


def test_no_broker_is_told(tmp_path: Path) -> None:
    command = [sys.executable, str(programs.DOCKER / "ml_service" / "main.py"), "--bootstrap-servers", "127.0.0.1:1"]
    done = run(command, code=2)
    assert done.stderr.splitlines()[-1].startswith("error: no Kafka broker answers at 127.0.0.1:1")
