"""A worker seen from outside: its metrics are what it has done, and it is ready and healthy when it is."""

from __future__ import annotations

import asyncio
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import builders
import history
import pandas as pd
import pytest
import requests
from commands import (
    PATIENCE_S,
    end,
    run,
    stream_app,
    view_flags,
    view_of,
    wait_for_line,
    wait_until,
    wait_until_windowed,
)
from confluent_kafka import Consumer, Producer, TopicPartition
from prometheus_client.parser import text_string_to_metric_families
from test_scrape import scraping, wait_for

from ingestor.core.errors import ConfigError
from ingestor.core.time_range import TimeRange
from ingestor.kafka import client_config, connect, ensure_topics, read_to_end
from ingestor.local.kafka import LocalKafka
from ingestor.local.processes import Child, free_port
from ingestor.local.prometheus import Binaries, LocalPrometheus
from ingestor.web import listening, url_of
from stream_app.app import Worker, WorkerSettings
from stream_app.standing import Standing
from stream_app.telemetry import Telemetry
from stream_app.view import View

RANGE_MS = 600_000
RANGES = [TimeRange(start, start + RANGE_MS) for start in range(history.START_MS, history.END_MS - RANGE_MS, RANGE_MS)]


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


@contextmanager
def transaction(kafka: LocalKafka, name: str, *, commit: bool = True) -> Iterator[Producer]:
    producer = Producer({**client_config(kafka.cluster), "transactional.id": name})
    producer.init_transactions(30)
    producer.begin_transaction()
    yield producer
    if commit:
        producer.commit_transaction(30)
    else:
        producer.flush(30)
        producer.abort_transaction(30)


def publish(
    kafka: LocalKafka,
    view: View,
    samples: pd.DataFrame,
    ranges: list[TimeRange],
    *,
    commit: bool = True,
    job: str = "a",
) -> int:
    """Publish a job as a poller would, in one transaction; return the number of its messages."""
    ensure_topics(connect(kafka.cluster), view.topics, builders.PARTITIONS)
    streams = builders.messages(samples, ranges, job)
    with transaction(kafka, f"{view.topics.prefix}.poller", commit=commit) as producer:
        for partition, stream in enumerate(streams):
            for headers, value in stream:
                producer.produce(view.topics.range_chunks, value, headers=headers, partition=partition)
    return sum(map(len, streams))


def child_of(kafka: LocalKafka, view: View, log: Path, *flags: str) -> Child:
    where = ["--topic-prefix", view.topics.prefix, "--bootstrap-servers", kafka.bootstrap_servers]
    return Child(stream_app("worker", *flags, *where, *view_flags(view)), log_path=log)


def url_in(child: Child) -> str:
    wait_for_line(child, "worker is ready")
    found = re.search(r"web=(http://\S+)", child.log_path.read_text())
    assert found, child.log_tail()
    return found[1]


def records(kafka: LocalKafka, topic: str) -> int:
    return sum(1 for p in range(builders.PARTITIONS) for _ in read_to_end(kafka.cluster, topic, p))


def scraped(session: requests.Session, url: str) -> dict[str, float]:
    """Return the samples of a scrape, by name and labels' values."""
    families = text_string_to_metric_families(session.get(f"{url}/metrics", timeout=10).text)
    found = (sample for family in families for sample in family.samples)
    return {" ".join([sample.name, *sample.labels.values()]): sample.value for sample in found}


def is_ready(session: requests.Session, url: str) -> bool:
    return session.get(f"{url}/-/ready", timeout=10).status_code == 200


def test_a_prometheus_scrapes_a_worker(
    kafka: LocalKafka,
    samples: pd.DataFrame,
    session: requests.Session,
    prometheus_binaries: Binaries,
    tmp_path: Path,
) -> None:
    """Once ready, what a real Prometheus has scraped is what stands on the topics; nothing lags behind."""
    view = view_of("scraped", "5m", "median", "pod", "service")
    messages = publish(kafka, view, samples, RANGES)
    whole = samples[(samples["timestamp"] >= RANGES[0].start_ms) & (samples["timestamp"] < RANGES[-1].end_ms)]
    worker = child_of(kafka, view, tmp_path / "worker.log", "--web-listen-address", "127.0.0.1:0")
    with worker as child, LocalPrometheus(tmp_path, config=scraping(url_in(child))) as prometheus:
        url = url_in(child)
        wait_until(lambda: is_ready(session, url), child)
        wait_until_windowed(kafka, view, child)
        for topic in (view.topics.pods, view.topics.services):
            count = records(kafka, topic)
            assert count > 0
            wait_for(prometheus, f'podstream_worker_records_total{{topic="{topic}"}}', count)
        wait_for(prometheus, "sum(podstream_worker_messages_total)", messages)
        wait_for(prometheus, "podstream_worker_samples_total", len(whole))
        wait_for(prometheus, "sum(podstream_worker_lag_messages)", 0)
        wait_for(prometheus, "count(podstream_worker_lag_messages)", builders.PARTITIONS)
        wait_for(prometheus, "podstream_worker_partitions", builders.PARTITIONS)
        for nothing in ("replay_messages", "open_windows", "open_cells", "held_values"):
            wait_for(prometheus, f"podstream_worker_{nothing}", 0)
        wait_for(prometheus, "min(podstream_worker_position_timestamp_seconds)", RANGES[-1].end_ms / 1000)
        seen = scraped(session, url)
        closed = seen["podstream_worker_windows_closed_total"]
        assert closed == seen["podstream_worker_emission_delay_seconds_count"] > 0
        linted = subprocess.run(
            [prometheus_binaries.promtool, "check", "metrics"],
            input=session.get(f"{url}/metrics", timeout=10).content,
            capture_output=True,
            check=False,
        )
        assert (linted.returncode, linted.stdout, linted.stderr) == (0, b"", b"")
        # Aborted messages and what ends transactions take offsets, and are nothing to wait for.
        publish(kafka, view, samples, RANGES[:3], commit=False, job="b")
        with transaction(kafka, f"{view.topics.prefix}.other") as producer:
            headers, value = builders.messages(samples.head(0), RANGES[:1], "c")[0][-1]
            producer.produce(view.topics.range_chunks, value, headers=headers, partition=0)
        wait_for(prometheus, "sum(podstream_worker_messages_total)", messages + 1)
        wait_until(lambda: lag(session, url) == 0, child)
        end(child)


def lag(session: requests.Session, url: str) -> float:
    found = {name: value for name, value in scraped(session, url).items() if "lag_messages" in name}
    assert len(found) == builders.PARTITIONS
    return sum(found.values())


def test_pages(kafka: LocalKafka, session: requests.Session, tmp_path: Path) -> None:
    """Only ours answer, to GET and HEAD; Faust's own are not there, and no versions are told."""
    view = view_of("pages", "1m", "mean")
    ensure_topics(connect(kafka.cluster), view.topics, 1)
    with child_of(kafka, view, tmp_path / "worker.log", "--web-listen-address", "127.0.0.1:0") as child:
        url = url_in(child)
        wait_until(lambda: is_ready(session, url), child)
        for path, kind in PAGES.items():
            got, head = session.get(f"{url}{path}?x=y"), session.head(f"{url}{path}")
            assert (got.status_code, got.headers["Content-Type"]) == (200, kind)
            assert (head.status_code, head.content, head.headers["Content-Type"]) == (200, b"", kind)
            assert int(got.headers["Content-Length"]) == len(got.content) > 0
            assert session.post(f"{url}{path}", data=b"x").status_code == 405
            assert got.headers["Server"] == "podstream"
        for path in ("/metrics/", "/router/", "/table/", "/graph/", "/stats/", "/performance/", "/-/", "/favicon.ico"):
            assert session.get(f"{url}{path}").status_code == 404, path
        openmetrics = session.get(f"{url}/metrics", headers={"Accept": "application/openmetrics-text"})
        assert openmetrics.headers["Content-Type"].startswith("application/openmetrics-text")
        assert openmetrics.text.endswith("# EOF\n")
        # The session's connection stays open meanwhile.
        end(child)


TEXT = "text/plain; charset=utf-8"
PAGES = {
    "/": "text/html; charset=utf-8",
    "/metrics": "text/plain; version=0.0.4; charset=utf-8",
    "/-/ready": TEXT,
    "/-/healthy": TEXT,
}


def test_an_idle_standby_is_ready(kafka: LocalKafka, session: requests.Session, tmp_path: Path) -> None:
    """Of two workers on one partition, one has it and the other none: both are ready and healthy."""
    view = view_of("standby-worker", "1m", "mean")
    ensure_topics(connect(kafka.cluster), view.topics, 1)
    flags = ["--web-listen-address", "127.0.0.1:0"]
    with (
        child_of(kafka, view, tmp_path / "one.log", *flags) as one,
        child_of(kafka, view, tmp_path / "two.log", *flags) as two,
    ):
        urls = [url_in(one), url_in(two)]

        def partitions() -> list[float]:
            return sorted(scraped(session, url)["podstream_worker_partitions"] for url in urls)

        wait_until(lambda: partitions() == [0, 1] and all(is_ready(session, url) for url in urls), one)
        assert all(session.get(f"{url}/-/healthy").status_code == 200 for url in urls)


def test_where_to_listen(kafka: LocalKafka, tmp_path: Path) -> None:
    """A port that was asked for and is taken is an error; where nobody asked, the worker works without."""
    view = view_of("listening", "1m", "mean")
    port = free_port()
    where = ["--topic-prefix", "listening", "--bootstrap-servers", kafka.bootstrap_servers]
    taken = listening(("127.0.0.1", port))
    try:
        for address in (f"127.0.0.1:{port}", f":{port}"):
            refused = run(stream_app("worker", "--web-listen-address", address, *where), code=2)
            assert "the port is taken" in refused.stderr
    finally:
        taken.close()
    assert "no address to listen on" in run(stream_app("worker", "--web-listen-address", "6066", *where), 2).stderr
    # Someone else, such as a demo, may have it, and let go of it at any time.
    with (
        suppress(ConfigError),
        closing(listening(("127.0.0.1", 6066))),
        child_of(kafka, view, tmp_path / "worker.log") as child,
    ):
        wait_for_line(child, "worker is ready")
        assert "no web pages" in child.log_path.read_text()
        assert "web=" not in child.log_path.read_text()
    with child_of(kafka, view, tmp_path / "none.log", "--web-listen-address", "none") as child:
        wait_for_line(child, "worker is ready")
        assert "web" not in child.log_path.read_text()


STUCK_AFTER_S = 1.5


def test_a_worker_that_is_held_up_says_so(kafka: LocalKafka, samples: pd.DataFrame, session: requests.Session) -> None:
    """Behind another's open transaction on its offsets it is neither ready nor, after a while, healthy; then both.

    So stands a worker whose forerunner without a slot was killed while it committed.
    """
    view = view_of("held", "5m", "mean")
    messages = publish(kafka, view, samples, RANGES)
    telemetry = Telemetry(Standing(STUCK_AFTER_S))
    listener = listening(("127.0.0.1", 0))
    url = url_of(listener)

    def said(page: str) -> tuple[int, str]:
        answer = session.get(f"{url}/-/{page}", timeout=10)
        return answer.status_code, answer.text

    def watch() -> None:
        with transaction(kafka, "forerunner", commit=False) as forerunner:
            group = Consumer({**client_config(kafka.cluster), "group.id": view.group_id})
            offsets = [TopicPartition(view.topics.range_chunks, p, 0) for p in range(builders.PARTITIONS)]
            forerunner.send_offsets_to_transaction(offsets, group.consumer_group_metadata(), 30)
            group.close()
            begun.set()
            wait_until(lambda: said("ready")[1].startswith("replaying: ") and "not known" not in said("ready")[1])
            assert said("ready")[0] == 503
            # Each partition's commit marker of the poller takes an offset too.
            left = messages + builders.PARTITIONS
            wait_until(lambda: scraped(session, url)["podstream_worker_replay_messages"] == left)
            assert lag(session, url) == left
            wait_until(lambda: said("healthy")[0] == 503)
            assert re.fullmatch(rf"nothing was processed for \d+ s, and {left} messages wait\n", said("healthy")[1])
            assert said("ready")[0] == 503
            assert session.get(f"{url}/metrics").status_code == 200
        wait_until(lambda: said("ready") == (200, "ready\n"))
        wait_until(lambda: said("healthy") == (200, "healthy\n"))
        assert scraped(session, url)["podstream_worker_replay_messages"] == 0
        wait_until(lambda: lag(session, url) == 0)

    async def held() -> None:
        worker = Worker(WorkerSettings(kafka.cluster, view, listener=listener), telemetry)
        watching = asyncio.create_task(asyncio.to_thread(watch))
        await asyncio.to_thread(begun.wait, PATIENCE_S)
        running = asyncio.create_task(worker.run(lambda: None))
        done, _ = await asyncio.wait([watching, running], return_when=asyncio.FIRST_COMPLETED)
        worker._stop.set()
        await asyncio.gather(*done, running, watching)

    begun = threading.Event()
    asyncio.run(held())
    assert records(kafka, view.topics.pods) == scraped_records(telemetry, view)


def scraped_records(telemetry: Telemetry, view: View) -> float | None:
    return telemetry.registry.get_sample_value("podstream_worker_records_total", {"topic": view.topics.pods})
