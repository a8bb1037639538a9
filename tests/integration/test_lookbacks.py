"""Before a job's first range lies the last sample of each series in the five minutes before its start, and once."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import chunks
import exporter
import history
import pandas as pd
import pytest
import requests
import scraped
from commands import PATIENCE_S, backfill, end, ingestor, run, wait_for_line
from confluent_kafka import Producer
from misbehaving import MisbehavingProxy, api_error

from ingestor.core import wire
from ingestor.core.chunk import LOOKBACK_MS, Header, Marker, RangeChunk, Refused
from ingestor.core.time_range import TimeRange, iso
from ingestor.core.topics import Topics
from ingestor.local.kafka import LocalKafka
from ingestor.local.processes import PIPE, Child, free_port
from ingestor.local.prometheus import LocalPrometheus
from ingestor.positions import Position, read_positions

KEY = ["namespace", "pod", "metric", "series", "timestamp"]
VANISHED_MS = history.START_MS + round(0.4 * (history.END_MS - history.START_MS))
SOON_MS, LATER_MS = VANISHED_MS // 1000 * 1000 + 120_000, VANISHED_MS // 1000 * 1000 + 1_200_000


def lookbacks(kafka: LocalKafka, prefix: str) -> dict[str, pd.DataFrame]:
    """Return each job's samples before its start, whose place among its messages is checked."""
    streams = chunks.read(kafka.cluster, Topics(prefix))
    positions = read_positions(kafka.cluster, Topics(prefix))
    for job, position in positions.items():
        chunks.assert_adjoining(streams, job)
        mine = [[m for m in stream if m.header.job == job] for stream in streams]
        assert tuple(map(len, mine)) == position.sequences
        before = TimeRange(position.start_ms - LOOKBACK_MS, position.start_ms)
        told = [m for stream in mine for m in stream if isinstance(m, RangeChunk) and m.is_lookback]
        assert {m.header.time_range for m in told} <= {before}
        assert {m.header.revision for m in told} <= {position.revision}
    found = chunks.lookbacks(streams)
    return {job: found[found["job"] == job] for job in positions}


def assert_lasts(found: pd.DataFrame, held: pd.DataFrame, start_ms: int) -> pd.DataFrame:
    """See that these are the last samples of *held* in the five minutes before; return those."""
    inside = held[held["timestamp"].between(start_ms - LOOKBACK_MS, start_ms - 1)].sort_values("timestamp")
    lasts = inside.drop_duplicates(KEY[:-1], keep="last").sort_values(KEY, ignore_index=True)[[*KEY, "value"]]
    pd.testing.assert_frame_equal(found.sort_values(KEY, ignore_index=True)[[*KEY, "value"]], lasts)
    return lasts


def in_history(samples: pd.DataFrame) -> pd.DataFrame:
    """Return the made history with its series named as `chunks` names them."""
    labels = [
        {"namespace": row.namespace, "pod": row.pod, "container": "app", "code": row.series}
        for row in samples.itertuples()
    ]
    names = [chunks.series_name({name: value for name, value in each.items() if value}) for each in labels]
    return samples.assign(series=names)


def where(kafka: LocalKafka, prefix: str) -> list[str]:
    return ["--topic-prefix", prefix, "--bootstrap-servers", kafka.bootstrap_servers]


def test_each_job_has_its_own(kafka: LocalKafka, prometheus: LocalPrometheus, samples: pd.DataFrame) -> None:
    """A job in the middle, the two stretches beside it, and all once more: each looks back from its own start."""
    prefix, held = "lookbacks", in_history(samples)
    run(backfill(prometheus, kafka, prefix, "--start", iso(SOON_MS), "--end", iso(LATER_MS)))
    run(backfill(prometheus, kafka, prefix))
    run(backfill(prometheus, kafka, prefix, "--start", iso(LATER_MS - 1), "--again"))
    found = {(p.start_ms, p.revision): p.job for p in read_positions(kafka.cluster, Topics(prefix)).values()}
    assert sorted(found) == [(history.START_MS, 0), (SOON_MS, 0), (LATER_MS - 1, 1), (LATER_MS, 0)]
    published = lookbacks(kafka, prefix)
    lasts = {start: assert_lasts(published[job], held, start[0]) for start, job in found.items()}
    assert lasts[history.START_MS, 0].empty, "there is no history before"
    assert history.VANISHES in set(lasts[SOON_MS, 0]["pod"]), "it has gone two minutes ago"
    assert history.VANISHES not in set(lasts[LATER_MS, 0]["pod"]), "it has gone twenty minutes ago"
    types = published[found[SOON_MS, 0]].set_index("metric")["type"].to_dict()
    assert types["http_requests_total"] == "counter"
    # What stands in the ranges, and what positions and progress say of it, is as it was.
    ranges = chunks.samples(chunks.read(kafka.cluster, Topics(prefix)))
    assert (ranges["revision"] == 0).sum() == len(samples)
    positions = read_positions(kafka.cluster, Topics(prefix)).values()
    assert {p.job: p.samples for p in positions} == ranges["job"].value_counts().to_dict()


def test_a_poller_that_is_killed_before_its_first_commit_looks_back_again(
    kafka: LocalKafka, prometheus: LocalPrometheus, samples: pd.DataFrame, tmp_path: Path
) -> None:
    """While it reads, and in the middle of its transaction: it is published once, with the range."""
    prefix = "lookback-killed"
    flags = ["--start", iso(SOON_MS), "--end", iso(LATER_MS)]
    slow = backfill(prometheus, kafka, prefix, *flags, "--max-samples-per-second", "1")
    with Child(slow, log_path=tmp_path / "killed.log") as child:
        wait_for_line(child, "job begins")
        child.kill()
    [position] = read_positions(kafka.cluster, Topics(prefix)).values()
    assert position.position_ms == position.start_ms == SOON_MS
    leave_open(kafka, Topics(prefix), position)
    run(backfill(prometheus, kafka, prefix, *flags))
    assert_lasts(lookbacks(kafka, prefix)[position.job], in_history(samples), SOON_MS)


def leave_open(kafka: LocalKafka, topics: Topics, position: Position) -> None:
    """Leave what a poller leaves that dies in its first transaction: messages that are not committed."""
    died = Producer(
        {"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": f"{topics.prefix}.poller.{position.job}"}
    )
    died.init_transactions(30)
    died.begin_transaction()
    before = TimeRange(position.start_ms - LOOKBACK_MS, position.start_ms)
    headers = wire.headers("lookback", Header(position.job, before, 0, "query"))
    for partition in range(position.partitions):
        died.produce(topics.range_chunks, b"", None, partition, headers=headers)  # type: ignore[arg-type]
    assert died.flush(10) == 0


def test_what_is_refused_before_a_job_holds_up_nothing(
    kafka: LocalKafka, prometheus: LocalPrometheus, samples: pd.DataFrame
) -> None:
    """A metric that the backend refuses there alone is told of the job's first millisecond, and is in the range."""
    prefix, metric = "lookback-refused", "queue_depth"
    with MisbehavingProxy(prometheus.url) as proxy:
        proxy.behaviour = lambda asked, _: (
            api_error(422, "corrupt block")
            if asked.kind == "samples" and asked.metric == metric and asked.time_range.start_ms < SOON_MS
            else None
        )
        run(backfill(proxy, kafka, prefix, "--start", iso(SOON_MS)))  # type: ignore[arg-type]
    streams = chunks.read(kafka.cluster, Topics(prefix))
    told = {m.incomplete for stream in streams for m in stream if isinstance(m, Marker) and m.incomplete}
    assert told == {(Refused(metric, SOON_MS, SOON_MS + 1),)}
    [found] = lookbacks(kafka, prefix).values()
    held = in_history(samples)
    assert_lasts(found, held[held["metric"] != metric], SOON_MS)
    assert len(chunks.samples(streams)) == (samples["timestamp"] >= SOON_MS).sum()


@pytest.fixture
def scraping(tmp_path: Path) -> Iterator[LocalPrometheus]:
    """A Prometheus that scrapes a real exporter, one of whose pods has gone for good."""
    port = free_port()
    target = {"targets": [f"127.0.0.1:{port}"], "labels": {"namespace": "monitoring", "pod": "exporter-0"}}
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "scrape_configs": [{"job_name": "pods", "honor_labels": True, "static_configs": [target]}],
    }
    program = [sys.executable, exporter.__file__, str(port), "3600", "12"]
    with (
        Child(program, log_path=tmp_path / "exporter.log"),
        LocalPrometheus(tmp_path / "prometheus", config=config) as server,
    ):
        deadline = time.monotonic() + PATIENCE_S
        # Pollers stay behind, and all of them begin after the stale markers.
        query = "app_queue_depth offset 10s"
        while not (pods := {series["metric"]["pod"] for series in raw(server, query)}) or exporter.GOES in pods:
            assert time.monotonic() < deadline, pods
            time.sleep(0.2)
        yield server


def test_scraped_samples_before_live_jobs(kafka: LocalKafka, scraping: LocalPrometheus, tmp_path: Path) -> None:
    """A backfill, a poller from now, its recheck, and a restart: what a range read gives, stale series included."""
    prefix = "lookback-live"
    asked = ["--url", scraping.url, "--settle", scraped.SETTLE, *where(kafka, prefix)]
    began_s = int(time.time()) - 8
    run(ingestor("backfill", "--start", str(began_s), "--end", str(began_s + 2), *asked))
    command = ingestor("run", *asked, "--poll-interval", "1s", "--recheck", "8s", "--json")
    for _ in range(2):
        with Child(command, log_path=tmp_path / "poller.log", stdout=PIPE) as poller:
            seen: set[str] = set()
            while len(seen) < 2:
                seen.add(json.loads(poller.stdout.readline())["job"])
            end(poller)
    positions = read_positions(kafka.cluster, Topics(prefix))
    assert {"live", "live.recheck"} < positions.keys()
    assert len(positions) == 3
    found = lookbacks(kafka, prefix)
    for job, position in positions.items():
        lasts = assert_lasts(found[job], held(scraping, position.start_ms), position.start_ms)
        assert exporter.GOES in set(lasts["pod"]), "its stale marker is no sample, the one before it is"


def held(server: LocalPrometheus, start_ms: int) -> pd.DataFrame:
    """Return what Prometheus holds in the five minutes before."""
    rows = []
    for series in raw(server, f'{{pod!=""}}[{LOOKBACK_MS}ms]', start_ms - 1):
        labels = series["metric"]
        for seconds, value in series["values"]:
            identity = labels["namespace"], labels["pod"], labels["__name__"], chunks.series_name(labels)
            rows.append((*identity, round(seconds * 1000), float(value)))
    return chunks.frame(rows)


def raw(server: LocalPrometheus, query: str, time_ms: int | None = None) -> list[dict]:
    parameters = {"query": query} | ({"time": iso(time_ms)} if time_ms else {})
    answer = requests.post(f"{server.url}/api/v1/query", data=parameters, timeout=10)
    return answer.json()["data"]["result"]
