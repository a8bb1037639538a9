"""What a view makes of the same chunks, in the words of its flags: time zones, quantiles, counters, single metrics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import builders
import files
import pandas as pd
import pytest
from commands import run, stream_app, wait_until_windowed
from confluent_kafka import Producer
from valid_records import decode_record

from ingestor.core.durations import ChunkSize
from ingestor.core.time_range import TimeRange
from ingestor.core.topics import Topics
from ingestor.kafka import client_config, connect, ensure_topics, read_to_end
from ingestor.local.kafka import LocalKafka
from ingestor.local.processes import Child
from stream_app.view import View

TOPICS = Topics("many-views")
HOUR_MS = 3_600_000
START_MS = 1_792_758_000_000 + 5 * 60_000
"""2026-10-23T12:25Z, two days before Berlin's day of 25 hours."""
RANGES = [TimeRange(start, start + 6 * HOUR_MS) for start in range(START_MS, START_MS + 96 * HOUR_MS, 6 * HOUR_MS)]
PODS = [("shop", "web-7d9f8b6c5-x2x4z"), ("shop", "web-7d9f8b6c5-8vx7t"), ("data", "db-0")]


@pytest.fixture(scope="module")
def job(kafka: LocalKafka) -> pd.DataFrame:
    """Publish four days, a sample every four minutes; return them with what was before, which counters begin at."""
    times = range(START_MS - 240_000, RANGES[-1].end_ms, 240_000)
    rows = []
    for number, (namespace, pod) in enumerate(PODS):
        for at, t in enumerate(times):
            # A restart every 200 samples.
            rows.append((namespace, pod, "requests_total", "", t, float((at % 200) * (number + 1.5))))
            rows.append((namespace, pod, "memory", "", t, float((at * 7_919 + number) % 1_013) / 7))
    samples = pd.DataFrame(rows, columns=["namespace", "pod", "metric", "series", "timestamp", "value"])
    ensure_topics(connect(kafka.cluster), TOPICS, builders.PARTITIONS)
    producer = Producer(client_config(kafka.cluster))
    for partition, stream in enumerate(builders.messages(samples, RANGES, looks_back=True)):
        for headers, value in stream:
            producer.produce(TOPICS.range_chunks, value, headers=headers, partition=partition)
    assert producer.flush(30) == 0
    return samples


def command(kafka: LocalKafka, *flags: str) -> list[str]:
    where = ["--topic-prefix", TOPICS.prefix, "--bootstrap-servers", kafka.bootstrap_servers]
    return stream_app("worker", *where, "--web-listen-address", "none", *flags)


def cells(kafka: LocalKafka, view: View, group_by: str) -> Iterator[tuple[tuple[str, str, int], dict[str, float]]]:
    topic = TOPICS.sink(group_by)
    for message in (m for p in range(builders.PARTITIONS) for m in read_to_end(kafka.cluster, topic, p)):
        record = decode_record(message.value())
        if (record.chunk_size, record.method) == (str(view.chunk_size), view.method_name):
            yield (record.namespace, record.pod or record.service, record.window_start_ms), record.metrics


def test_views_side_by_side(kafka: LocalKafka, job: pd.DataFrame, tmp_path: Path) -> None:
    """Three views of the same chunks, all at once: each is the oracle's; none is in another's way."""
    berlin, seldom = ChunkSize.parse("1d@Europe/Berlin"), (("req.*", "max"),)
    views = [
        (View(berlin, "mean", topics=TOPICS), "--timezone Europe/Berlin --chunk-size 1d"),
        (
            View(ChunkSize.parse("6h"), "p99.9", topics=TOPICS, metric_methods=seldom),
            "--chunk-size 6h --method p99.9 --metric-method req.*=max",
        ),
        (
            View(ChunkSize.parse("1h"), "mean", group_by=("pod", "service"), topics=TOPICS, counters="rate"),
            "--chunk-size 1h --counters rate --group-by pod --group-by service",
        ),
    ]
    with ExitStack() as stack:
        children = [
            stack.enter_context(Child(command(kafka, *flags.split()), log_path=tmp_path / f"{number}.log"))
            for number, (_, flags) in enumerate(views)
        ]
        for (view, _), child in zip(views, children, strict=True):
            wait_until_windowed(kafka, view, child)
    for view, _ in views:
        samples = job if view.counters == "rate" else job[job["timestamp"] >= START_MS]
        how = {"counters": view.counters, "metric_methods": view.metric_methods, "from_ms": START_MS}
        for group_by in view.group_by:
            found = list(cells(kafka, view, group_by))
            assert len(dict(found)) == len(found), "a record came twice"
            files.assert_equal_to_oracle(dict(found), samples, str(view.chunk_size), view.method, group_by, **how)
    days = sorted({start_ms for (_, _, start_ms), _ in cells(kafka, views[0][0], "pod")})
    assert [(b - a) // HOUR_MS for a, b in pairwise(days)] == [24, 24, 25, 24]
    # Records do not say which metrics had methods of their own, so it is found out before anything is read.
    flags = "--chunk-size 6h --method p99.9 --metric-method req.*=sum"
    told = run(command(kafka, *flags.split()), code=2).stderr.strip().splitlines()[-1]
    assert told.startswith("error:")
    assert "--metric-method as it was" in told
