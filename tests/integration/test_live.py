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
from commands import PATIENCE_S, end, ingestor, view_of, worker, write_files
from scraped import SETTLE, windowed

from ingestor.kafka import read_to_end
from ingestor.local.kafka import LocalKafka
from ingestor.local.processes import PIPE, Child
from ingestor.local.prometheus import LocalPrometheus

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
        deadline = time.monotonic() + PATIENCE_S
        # The poller stays behind: all that it reads has samples.
        while not instant(again, f'{METRIC}{{pod="{POD}"}} offset {SETTLE}'):
            assert time.monotonic() < deadline, "nothing was scraped"
            time.sleep(0.2)
        yield again


def test_live_windows_hold_every_sample_once(kafka: LocalKafka, scraping: LocalPrometheus, tmp_path: Path) -> None:
    """A poller that is stopped and started again leaves no gap and no double between its runs."""
    where = ["--bootstrap-servers", kafka.bootstrap_servers, "--topic-prefix", "live"]
    flags = ["--settle", SETTLE, "--poll-interval", "1s", "--include", METRIC, "--url", scraping.url]
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
            end(poller)
            # What Prometheus scrapes meanwhile is read by the next run.
            time.sleep(3)
        windowed(kafka, view, child)
    write_files(kafka, view, tmp_path / "data")
    rows = {key[2]: value[METRIC] for key, value in files.read(tmp_path / "data", pods=True).items()}
    # The first window is cut by the poller's start, and the last one by its end.
    whole = range(-(-began_ms // 2000) * 2000, event["end_ms"] // 2000 * 2000, 2000)
    assert len(whole) >= 6
    # A machine that stands still may scrape nothing in a window.
    scraped = {start_ms: values for start_ms in whole if (values := held(scraping, start_ms))}
    assert rows.keys() & set(whole) == scraped.keys()
    for start_ms, values in scraped.items():
        assert math.isclose(rows[start_ms], math.fsum(values), rel_tol=1e-12)
    markers = [dict(m.headers() or []) for m in read_to_end(kafka.cluster, "live.range-chunks")]
    edges = [(int(m["start"]), int(m["end"])) for m in markers if m["kind"] == b"marker"]
    assert all(a[1] == b[0] for a, b in pairwise(edges)), "ranges must adjoin"


def held(prometheus: LocalPrometheus, start_ms: int) -> list[float]:
    """Return the values that Prometheus holds in a window of two seconds."""
    found = instant(prometheus, f'{METRIC}{{pod="{POD}"}}[1999ms]', (start_ms + 1999) / 1000)
    return [float(value) for series in found for _, value in series["values"]]


def instant(prometheus: LocalPrometheus, query: str, time_s: float | None = None) -> list[dict[str, Any]]:
    """Return what Prometheus answers to a query."""
    parameters = {"query": query, "time": time_s} if time_s else {"query": query}
    answer = requests.get(f"{prometheus.url}/api/v1/query", params=parameters, timeout=10)
    return answer.json()["data"]["result"]
