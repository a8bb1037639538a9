"""A real Prometheus understands what the poller's web server says."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import requests
from commands import PATIENCE_S

from ingestor.core.time_range import TimeRange
from ingestor.local.prometheus import LocalPrometheus
from ingestor.telemetry import Telemetry
from ingestor.web import web_server


def scraping(url: str) -> dict[str, Any]:
    target = {"targets": [url.removeprefix("http://")]}
    return {"scrape_configs": [{"job_name": "podstream", "scrape_interval": "200ms", "static_configs": [target]}]}


def value(prometheus: LocalPrometheus, query: str) -> float | None:
    """Return an expression's only value; None while there is none."""
    with requests.Session() as session:
        session.trust_env = False
        answer = session.get(f"{prometheus.url}/api/v1/query", params={"query": query}, timeout=10).json()
    result = answer["data"]["result"]
    assert len(result) <= 1
    return float(result[0]["value"][1]) if result else None


def wait_for(prometheus: LocalPrometheus, query: str, wanted: float) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while (seen := value(prometheus, query)) != wanted:
        assert time.monotonic() < deadline, f"{query} is {seen}, not {wanted}"
        time.sleep(0.1)


def test_prometheus_scrapes_the_poller(tmp_path: Path) -> None:
    """Position, counts and durations can be queried as they were told; the lag goes on by itself."""
    telemetry = Telemetry("live")
    telemetry.activated()
    now_ms = int(time.time() * 1000)
    time_range = TimeRange(now_ms - 100_000, now_ms - 40_000)
    with (
        web_server(("127.0.0.1", 0), telemetry, lambda: None) as url,
        LocalPrometheus(tmp_path, config=scraping(url)) as prometheus,
    ):
        wait_for(prometheus, "up", 1)
        wait_for(prometheus, "podstream_poller_ranges_total", 0)
        telemetry.backend_clock(int(time.time() * 1000))
        with telemetry.request("samples"):
            pass
        telemetry.samples_read(time_range, 1_234_567)
        telemetry.samples_read(TimeRange(time_range.end_ms, now_ms), 89)
        telemetry.incomplete('odd "name"\\\n')
        telemetry.range_published(time_range, samples=1_234_567, series=4_321, size_bytes=99, seconds=0.25)
        wait_for(prometheus, "podstream_poller_ranges_total", 1)
        wait_for(prometheus, "podstream_poller_samples_total", 1_234_567)
        wait_for(prometheus, "podstream_poller_series", 4_321)
        wait_for(prometheus, "podstream_poller_in_flight_samples", 89)
        wait_for(prometheus, "podstream_poller_active", 1)
        wait_for(prometheus, "podstream_poller_position_timestamp_seconds", time_range.end_ms / 1000)
        wait_for(prometheus, 'podstream_poller_request_duration_seconds_count{kind="samples",outcome="ok"}', 1)
        wait_for(prometheus, "histogram_quantile(1, podstream_poller_publish_duration_seconds_bucket)", 0.25)
        wait_for(prometheus, r'podstream_poller_incomplete_ranges_total{metric="odd \"name\"\\\n"}', 1)
        wait_for(prometheus, 'podstream_poller_job_info{poller_job="live",job="podstream"}', 1)
        # Both clocks are this machine's: the lag is the position's age, at any moment, though nothing is fed.
        lag_s = value(prometheus, "podstream_poller_lag_seconds") or 0
        wait_for(prometheus, f"podstream_poller_lag_seconds > bool {lag_s + 1}", 1)
        age = "timestamp(podstream_poller_lag_seconds) - podstream_poller_position_timestamp_seconds"
        wait_for(prometheus, f"abs(podstream_poller_lag_seconds - ({age})) < bool 0.5", 1)
        assert (value(prometheus, "process_resident_memory_bytes") or 0) > 1e6
    wait_gone(url)


def wait_gone(url: str) -> None:
    """Nothing listens any more."""
    with requests.Session() as session:
        session.trust_env = False
        try:
            session.get(url, timeout=5)
        except requests.ConnectionError:
            return
    raise AssertionError(f"{url} still answers")
