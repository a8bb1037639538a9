"""A Prometheus that scrapes, and what it then holds: of windows of two seconds."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import chunks
import click
import exporter
import files
import oracle
import pandas as pd
import records
import requests
from commands import PATIENCE_S, ingestor, run, wait_until_windowed
from verdict import FILES, KAFKA

from ingestor.core.time_range import TimeRange, iso
from ingestor.local.kafka import LocalKafka
from ingestor.local.processes import Child, free_port
from ingestor.local.prometheus import LocalPrometheus
from ingestor.options import cluster_arguments
from stream_app.records import Record
from stream_app.view import View

WINDOW_MS = 2_000
SELECTOR = '{pod!=""}'


@contextmanager
def scraping(folder: Path, comes_after_s: float, goes_after_s: float) -> Iterator[LocalPrometheus]:
    """Run a Prometheus that scrapes a real exporter every second; of its pods one comes and one goes."""
    port = free_port()
    program = [sys.executable, exporter.__file__, str(port), str(comes_after_s), str(goes_after_s)]
    target = {"targets": [f"127.0.0.1:{port}"], "labels": {"namespace": "monitoring", "pod": "exporter-0"}}
    config: dict[str, Any] = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        # The exporter speaks of other pods; what Prometheus says of the scrape is the exporter's own.
        "scrape_configs": [{"job_name": "pods", "honor_labels": True, "static_configs": [target]}],
    }
    with (
        Child(program, log_path=folder / "exporter.log"),
        LocalPrometheus(folder / "prometheus", config=config) as server,
    ):
        deadline = time.monotonic() + PATIENCE_S
        while not ask(server, "app_requests_total"):
            assert time.monotonic() < deadline, "nothing was scraped"
            time.sleep(0.2)
        yield server


SETTLE = "5s"
"""Of pollers: a machine that stands still for a moment may store what it has scraped that much later."""


def windowed(kafka: LocalKafka, view: View, child: Child) -> list[Record]:
    """End the live job of a poller that has ended; return all records once all of it is windowed."""
    run(ingestor("cancel", "live", "--topic-prefix", view.topics.prefix, *cluster_arguments(kafka.cluster)))
    wait_until_windowed(kafka, view, child)
    return records.read(kafka.cluster, view.topics.pods)


def assert_windows(found: list[Record], storage: Path, held: pd.DataFrame, whole: TimeRange) -> None:
    """Compare all records of whole windows, and their rows in files, with the oracle; each is there once."""
    inside = [r for r in found if whole.start_ms <= r.window_start_ms and r.window_end_ms <= whole.end_ms]
    rows = {key: row for key, row in files.read(storage, pods=True).items() if whole.start_ms <= key[2] < whole.end_ms}
    click.echo(f"  {whole.length_ms // WINDOW_MS} windows of all pods")
    for where, compared in (
        (KAFKA, records.compare(inside, held, "2s", "mean", "pod")),
        (FILES, records.compare_cells(rows, oracle.windows(held, "2s", "mean", "pod"))),
    ):
        click.echo(f"  {where}: {compared}")
        assert compared.is_right, f"{where}: {compared}"


def samples(prometheus: LocalPrometheus, time_range: TimeRange) -> pd.DataFrame:
    """Return all that Prometheus holds in a range, as its query API tells it."""
    # Prometheus 2 closes a range on both sides.
    answer = ask(prometheus, f"{SELECTOR}[{time_range.length_ms}ms]", time_range.end_ms - 1)
    rows = []
    for series in answer:
        labels = series["metric"]
        name = chunks.series_name(labels)
        for seconds, value in series["values"]:
            timestamp_ms = round(seconds * 1000)
            if time_range.start_ms <= timestamp_ms < time_range.end_ms:
                rows.append((labels["namespace"], labels["pod"], labels["__name__"], name, timestamp_ms, float(value)))
    return chunks.frame(rows)


def now_ms(prometheus: LocalPrometheus) -> int:
    """Return the server's clock."""
    return math.floor(ask(prometheus, "time()")[0] * 1000)


def ask(prometheus: LocalPrometheus, query: str, time_ms: int | None = None) -> list[Any]:
    """Return the result of a query."""
    parameters = {"query": query} | ({"time": iso(time_ms)} if time_ms else {})
    with requests.Session() as session:
        session.trust_env = False
        answer = session.post(f"{prometheus.url}/api/v1/query", data=parameters, timeout=30)
    return answer.json()["data"]["result"]
