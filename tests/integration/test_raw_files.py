"""``stream-app raw-files`` against a real Kafka: every sample that jobs have published, once."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import builders
import commands
import duckdb
import feeding
import orjson
import pandas as pd
import pyarrow.dataset as ds
import pytest
from confluent_kafka import Producer

from ingestor.core.time_range import TimeRange
from ingestor.core.topics import Topics
from ingestor.kafka import client_config, connect, ensure_topics
from ingestor.local.kafka import LocalKafka

MINUTE_MS = 60_000


@pytest.fixture
def topics(kafka: LocalKafka) -> Iterator[Topics]:
    """Topics of this test alone."""
    names = Topics(f"raw-{uuid.uuid4().hex[:8]}")
    admin = connect(kafka.cluster)
    ensure_topics(admin, names, builders.PARTITIONS)
    yield names
    for future in admin.delete_topics([*names.partitioned, *names.compacted]).values():
        future.exception()


@pytest.fixture
def samples() -> pd.DataFrame:
    """Twenty minutes from ten minutes before midnight on, so that there are two days."""
    frame = feeding.samples(20 * MINUTE_MS, seed=5)
    midnight = frame["timestamp"].min() // 86_400_000 * 86_400_000 + 86_400_000
    return frame.assign(timestamp=frame["timestamp"] - feeding.START_MS + midnight - 10 * MINUTE_MS)


def publish(kafka: LocalKafka, topics: Topics, streams: list[list], *, commit: bool = True) -> None:
    producer = Producer({**client_config(kafka.cluster), "transactional.id": uuid.uuid4().hex})
    producer.init_transactions(30)
    producer.begin_transaction()
    for partition, stream in enumerate(streams):
        for headers, value in stream:
            producer.produce(topics.range_chunks, value, None, partition, headers=headers)
    producer.flush(30)
    if commit:
        producer.commit_transaction(30)
    else:
        producer.abort_transaction(30)


def ranges(samples: pd.DataFrame, first: int, last: int) -> list[TimeRange]:
    """Return a range for each of these minutes of *samples*."""
    start = int(samples["timestamp"].min())
    return [TimeRange(start + m * MINUTE_MS, start + (m + 1) * MINUTE_MS) for m in range(first, last)]


def raw_files(kafka: LocalKafka, topics: Topics, storage: Path, *more: str, code: int = 0) -> CompletedProcess[str]:
    where = ["--bootstrap-servers", kafka.bootstrap_servers, "--topic-prefix", topics.prefix, "--storage", str(storage)]
    return commands.run(commands.stream_app("raw-files", *where, "--until-idle", "--idle", "1ms", *more), code)


def rows(frame: pd.DataFrame) -> pd.DataFrame:
    names = ["metric", "namespace", "pod", "timestamp", "value"]
    frame = frame.assign(timestamp=frame["timestamp"].astype("datetime64[ms, UTC]").astype("int64"))
    return frame[names].astype({"metric": str}).sort_values(names).reset_index(drop=True)


def test_jobs_that_overlap_and_a_recheck(
    kafka: LocalKafka, topics: Topics, samples: pd.DataFrame, tmp_path: Path
) -> None:
    """Each sample is there once, late ones too; a higher revision's value counts; markers and lookbacks are none."""
    late = samples["timestamp"] % 7 == 3
    assert late.any()
    seen_late = samples.assign(value=samples["value"].where(~late, samples["value"] + 1))
    publish(kafka, topics, builders.messages(samples, ranges(samples, 8, 20), "live", looks_back=True))
    publish(kafka, topics, builders.messages(samples, ranges(samples, 4, 20), "aborted"), commit=False)
    raw_files(kafka, topics, tmp_path)
    publish(kafka, topics, builders.messages(samples, ranges(samples, 0, 12), "backfill"))
    publish(kafka, topics, builders.messages(seen_late, ranges(samples, 10, 20), "live.recheck", revision=1))
    # A job that comes later with a lower revision changes nothing.
    publish(kafka, topics, builders.messages(samples, ranges(samples, 15, 18), "again"))
    done = raw_files(kafka, topics, tmp_path, "--json")
    last = orjson.loads(done.stdout.splitlines()[-1])
    assert (last["event"], last["behind"]) == ("written", 0)
    rechecked = samples["timestamp"] >= ranges(samples, 10, 11)[0].start_ms
    expected = rows(
        pd.concat([samples[~rechecked], seen_late[rechecked]]).assign(
            timestamp=lambda frame: pd.to_datetime(frame["timestamp"], unit="ms", utc=True)
        )
    )
    pd.testing.assert_frame_equal(rows(pd.read_parquet(tmp_path)), expected, check_exact=True)
    whole = duckdb.sql(f"from read_parquet('{tmp_path}/**/*.parquet', union_by_name = true)").df()
    pd.testing.assert_frame_equal(rows(whole), expected, check_exact=True, check_dtype=False)
    assert len(set(whole["date"].astype(str))) == 2
    assert set(whole["service"]) == {f"app{number}" for number in range(feeding.SERVICES)}
    again = raw_files(kafka, topics, tmp_path)
    assert again.stderr.endswith("0 samples written, 4 files\n"), again.stderr


def test_a_corrupt_chunk_is_named_and_skipped(
    kafka: LocalKafka, topics: Topics, samples: pd.DataFrame, tmp_path: Path
) -> None:
    streams = builders.messages(samples, ranges(samples, 0, 2), "live")
    headers, value = streams[0][0]
    streams[0].insert(1, (headers, value[:-40]))
    publish(kafka, topics, streams)
    done = raw_files(kafka, topics, tmp_path)
    assert f"topic={topics.range_chunks} partition=0 offset=1" in done.stderr
    assert "message skipped" in done.stderr
    inside = samples["timestamp"] < ranges(samples, 2, 3)[0].start_ms
    assert len(pd.read_parquet(tmp_path)) == inside.sum()


def test_what_is_asked_for(kafka: LocalKafka, topics: Topics, samples: pd.DataFrame, tmp_path: Path) -> None:
    """Some metrics, from a time on, as CSV; another choice is refused."""
    publish(kafka, topics, builders.messages(samples, ranges(samples, 0, 4), "live"))
    from_ms = ranges(samples, 2, 3)[0].start_ms
    more = ["--format", "csv", "--metric", "queue_*", "--from", str(from_ms / 1000)]
    raw_files(kafka, topics, tmp_path, *more)
    assert [path.name for path in tmp_path.glob("metric=*")] == ["metric=queue_depth"]
    found = pd.concat(map(pd.read_csv, tmp_path.glob("metric=*/date=*/part-*.csv")))
    asked = samples[(samples["metric"] == "queue_depth") & (samples["timestamp"] >= from_ms)]
    asked = asked[asked["timestamp"] < ranges(samples, 4, 5)[0].start_ms]
    assert sorted(found["value"]) == sorted(asked["value"])
    refused = raw_files(kafka, topics, tmp_path, "--format", "csv", "--metric", "rss", code=2)
    assert "choose another --storage" in refused.stderr
    nothing = raw_files(kafka, topics, tmp_path / "nothing", "--metric", "queue-depth", "--metric", "mem*y")
    assert nothing.stderr.endswith(" is like queue-depth, mem*y: look at --metric\n")


def test_labels_are_columns(kafka: LocalKafka, topics: Topics, samples: pd.DataFrame, tmp_path: Path) -> None:
    """The columns are those of the contract, and a label of each name that series have."""
    publish(kafka, topics, builders.messages(samples, ranges(samples, 0, 2), "live"))
    raw_files(kafka, topics, tmp_path)
    table = ds.dataset(tmp_path, partitioning="hive").to_table()
    assert set(table.column_names) == {
        *("timestamp", "value", "namespace", "pod", "service", "type", "label.series", "series", "metric", "date")
    }
