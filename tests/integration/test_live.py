"""`ingestor run` against a Prometheus that scrapes: live windows, through a restart of the poller."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import files
import pytest
import requests
from commands import ingestor, view_of, worker, write_files

from ingestor.kafka import read_to_end
from ingestor.local.kafka import LocalKafka
from ingestor.local.processes import PIPE, Child
from ingestor.local.prometheus import LocalPrometheus
from stream_app.records import decode_record

POD = "prometheus-0"
METRIC = "prometheus_tsdb_head_samples_appended_total"


@pytest.fixture(scope="module")
def scraping(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPrometheus]:
    """A Prometheus that scrapes itself every second, as a pod."""
    server = LocalPrometheus(tmp_path_factory.mktemp("scraping"), config=None)
    server.start()
    labels = {"namespace": "monitoring", "pod": POD}
    target = {"targets": [server.url.removeprefix("http://")], "labels": labels}
    server.stop()
    config: dict[str, Any] = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [{"job_name": "self", "static_configs": [target]}],
    }
    with LocalPrometheus(server.data_dir.parent, port=int(server.url.rpartition(":")[2]), config=config) as again:
        deadline = time.monotonic() + 30
        while not instant(again, f'{METRIC}{{pod="{POD}"}}'):
            assert time.monotonic() < deadline, "nothing was scraped"
            time.sleep(0.2)
        # The poller stays two seconds behind: all that it reads has samples.
        time.sleep(3)
        yield again


def test_live_windows_hold_every_sample_once(kafka: LocalKafka, scraping: LocalPrometheus, tmp_path: Path) -> None:
    """A poller that is stopped and started again leaves no gap and no double between its runs."""
    where = ["--bootstrap-servers", kafka.bootstrap_servers, "--topic-prefix", "live"]
    flags = ["--settle", "2s", "--poll-interval", "1s", "--include", METRIC, "--url", scraping.url]
    view = view_of("live", "2s", "sum")
    poller = Child(ingestor("run", "--json", *where, *flags), log_path=tmp_path / "poller.log", stdout=PIPE)
    with worker(kafka, view, tmp_path / "worker.log") as child:
        began_ms = 0
        for wanted_ms in (6_000, 16_000):
            poller.start()
            for line in poller.stdout:
                event = json.loads(line)
                began_ms = began_ms or event["start_ms"]
                if event["end_ms"] - began_ms >= wanted_ms:
                    break
            assert poller.stop() == 0, poller.log_tail()
            # What Prometheus scrapes meanwhile is read by the next run.
            time.sleep(3)
        # The last whole window before the poller's position closes with it.
        wait_for_window(kafka, event["end_ms"] // 2000 * 2000, child)
    write_files(kafka, view, tmp_path / "data")
    rows = {key[2]: value[METRIC] for key, value in files.read(tmp_path / "data", pods=True).items()}
    windows = sorted(rows)
    assert len(windows) >= 6
    assert windows == list(range(windows[0], windows[-1] + 1, 2000)), "a window is missing"
    # The first window is cut by the poller's start.
    for start_ms in windows[1:]:
        assert math.isclose(rows[start_ms], math.fsum(held(scraping, start_ms)), rel_tol=1e-12)
    markers = [dict(m.headers() or []) for m in read_to_end(kafka.cluster, "live.range-chunks")]
    edges = [(int(m["start"]), int(m["end"])) for m in markers if m["kind"] == b"marker"]
    assert all(a[1] == b[0] for a, b in pairwise(edges)), "ranges must adjoin"


def wait_for_window(kafka: LocalKafka, end_ms: int, child: Child) -> None:
    """Wait until the window that ends at *end_ms* is on the sink topic."""
    deadline = time.monotonic() + 30
    while True:
        messages = [m for p in range(8) for m in read_to_end(kafka.cluster, "live.pods", p)]
        if any(decode_record(message.value()).window_end_ms == end_ms for message in messages):
            return
        assert child.poll() is None, child.log_tail()
        assert time.monotonic() < deadline, child.log_tail()


def held(prometheus: LocalPrometheus, start_ms: int) -> list[float]:
    """Return the values that Prometheus holds in a window of two seconds."""
    found = instant(prometheus, f'{METRIC}{{pod="{POD}"}}[1999ms]', (start_ms + 1999) / 1000)
    return [float(value) for series in found for _, value in series["values"]]


def instant(prometheus: LocalPrometheus, query: str, time_s: float | None = None) -> list[dict[str, Any]]:
    """Return what Prometheus answers to a query."""
    parameters = {"query": query, "time": time_s} if time_s else {"query": query}
    answer = requests.get(f"{prometheus.url}/api/v1/query", params=parameters, timeout=10)
    return answer.json()["data"]["result"]
