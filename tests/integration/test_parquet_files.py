"""``stream-app files --format parquet`` against a real Kafka."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import commands
import held_sink
import pandas as pd
import pytest
from commands import PATIENCE_S
from confluent_kafka import Producer
from confluent_kafka.admin import NewTopic
from record_columns import encoded

from ingestor.core.topics import Topics
from ingestor.kafka import connect
from ingestor.local.kafka import LocalKafka
from stream_app.records import Record

NOON_MS = 1_795_435_200_000
PARTITIONS = 3


@pytest.fixture
def topics(kafka: LocalKafka) -> Iterator[Topics]:
    names, admin = Topics(f"parquet-{uuid.uuid4().hex[:8]}"), connect(kafka.cluster)
    for future in admin.create_topics(
        [NewTopic(name, PARTITIONS, 1) for name in (names.pods, names.services)]
    ).values():
        future.result()
    yield names
    for future in admin.delete_topics([names.pods, names.services]).values():
        future.exception()


def record(minute: int, service: str, pod: str | None, revision: int = 0) -> Record:
    start_ms = NOON_MS + minute * 60_000
    metrics = {"cpu": minute / 7 + revision} | ({"late": 1.0} if minute > 1_000 else {})
    return Record(
        "prod", pod, service, start_ms, start_ms + 60_000, "1m", "mean", "live", revision, partial=False, samples=4,
        metrics=metrics,
    )  # fmt: skip


def send(kafka: LocalKafka, topic: str, records: list[Record], *, commit: bool = True) -> None:
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": uuid.uuid4().hex})
    producer.init_transactions(30)
    producer.begin_transaction()
    for one in records:
        producer.produce(topic, encoded(one), partition=sum(one.service.encode()) % PARTITIONS)
    producer.flush(30)
    (producer.commit_transaction if commit else producer.abort_transaction)(30)


def files(kafka: LocalKafka, topics: Topics, storage: Path, *more: str) -> subprocess.CompletedProcess[str]:
    where = ["--bootstrap-servers", kafka.bootstrap_servers, "--topic-prefix", topics.prefix, "--storage", str(storage)]
    flags = ["--format", "parquet", "--until-idle", "--idle", "1ms", *more]
    return commands.run(commands.stream_app("files", *where, *flags))


def cells(frame: pd.DataFrame) -> dict[tuple[str, str, int], float]:
    minutes = (frame["timestamp"].astype("datetime64[ms, UTC]").astype("int64") - NOON_MS) // 60_000
    keys = zip(frame["service"].astype(str), frame["pod"], minutes, strict=True)
    found = dict(zip(keys, frame["cpu"], strict=True))
    assert len(found) == len(frame)
    return found


def test_killed_again_and_again(kafka: LocalKafka, topics: Topics, tmp_path: Path) -> None:
    """After kill -9 at random moments every committed record is there once, revised ones with their last value."""
    services, pods, minutes = [f"s{number}" for number in range(6)], "abc", 2_000
    for service in services:
        records = [record(minute, service, pod) for minute in range(minutes) for pod in pods]
        send(kafka, topics.pods, records)
        send(kafka, topics.pods, records, commit=False)
        send(kafka, topics.pods, [record(minute, service, "b", 1) for minute in range(300, 600)])
    chance = random.Random(5)
    arguments = [kafka.bootstrap_servers, topics.prefix, str(tmp_path), "parquet", "2000"]
    for _ in range(4):
        with subprocess.Popen([sys.executable, held_sink.__file__, *arguments], stdout=subprocess.PIPE) as process:
            deadline = threading.Timer(PATIENCE_S, process.kill)
            deadline.start()
            assert process.stdout is not None
            assert process.stdout.readline(), "nothing was left to be written"
            deadline.cancel()
            time.sleep(chance.uniform(0, 0.05))
            process.kill()
    files(kafka, topics, tmp_path)
    expected = {
        (service, pod, minute): minute / 7 + (pod == "b" and 300 <= minute < 600)
        for service in services
        for pod in pods
        for minute in range(minutes)
    }
    frame = pd.read_parquet(tmp_path)
    assert cells(frame) == expected
    assert frame["late"].notna().sum() == len(services) * len(pods) * (minutes - 1_001)


def test_both_groupings(kafka: LocalKafka, topics: Topics, tmp_path: Path) -> None:
    """A line says what was written; pods and services have a folder each."""
    send(kafka, topics.pods, [record(0, "api", "a"), record(1, "api", "a")])
    send(kafka, topics.services, [record(0, "api", None)])
    done = files(kafka, topics, tmp_path, "--group-by", "pod", "--group-by", "service")
    assert done.stderr.splitlines()[-1] == f"{tmp_path}: 3 rows written, 2 files"
    assert cells(pd.read_parquet(tmp_path / "group=pod")) == {("api", "a", 0): 0.0, ("api", "a", 1): 1 / 7}
    assert pd.read_parquet(tmp_path / "group=service")["cpu"].tolist() == [0.0]
