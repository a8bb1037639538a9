"""``run_files`` against a real Kafka: what is committed is in the files, once, and nothing else is."""

from __future__ import annotations

import csv
import logging
import random
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka import KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from ingestor.core.errors import ConfigError, SinkError
from ingestor.core.topics import Topics, partition_of
from ingestor.kafka import Cluster
from ingestor.local.kafka import LocalKafka
from stream_app.files import FilesProgress, FilesSettings, run_files

NOON_MS = 1_795_435_200_000
PARTITIONS = 3


@pytest.fixture
def admin(kafka: LocalKafka) -> AdminClient:
    return AdminClient({"bootstrap.servers": kafka.bootstrap_servers})


@pytest.fixture
def topics(admin: AdminClient) -> Iterator[Topics]:
    """Sink topics of this test alone."""
    names = Topics(f"files-{uuid.uuid4().hex[:8]}")
    make(admin, names.pods, names.services)
    yield names
    for future in admin.delete_topics([names.pods, names.services]).values():
        future.exception()


@pytest.fixture
def settings(kafka: LocalKafka, topics: Topics, tmp_path: Path) -> FilesSettings:
    return FilesSettings(kafka.cluster, topics, tmp_path / "data", until_idle=True, idle_s=0.5, commit_s=0.1)


def make(admin: AdminClient, *names: str) -> None:
    for future in admin.create_topics([NewTopic(name, PARTITIONS, 1) for name in names]).values():
        future.result()


def message(minute: int, service: str = "api", pod: str | None = "a", **changed: Any) -> bytes:
    fields = {
        "namespace": "prod",
        "pod": pod,
        "service": service,
        "window_start": NOON_MS + minute * 60_000,
        "window_end": NOON_MS + minute * 60_000 + 60_000,
        "chunk_size": "1m",
        "method": "mean",
        "job": "live",
        "revision": 0,
        "partial": False,
        "version": 1,
        "samples": 4,
        "metrics": {"cpu": minute / 7},
    }
    return orjson.dumps(fields | changed)


class Worker:
    """Sends records in transactions, as the stream app does."""

    def __init__(self, kafka: LocalKafka) -> None:
        self._producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": uuid.uuid4().hex})
        self._producer.init_transactions(30)

    def send(self, topic: str, *values: bytes, service: str = "api", commit: bool = True) -> None:
        self._producer.begin_transaction()
        for value in values:
            self._producer.produce(topic, value, partition=partition_of(f"prod/{service}".encode(), PARTITIONS))
        self._producer.flush(30)
        if commit:
            self._producer.commit_transaction(30)
        else:
            self._producer.abort_transaction(30)


@pytest.fixture
def worker(kafka: LocalKafka) -> Worker:
    return Worker(kafka)


def run(settings: FilesSettings) -> FilesProgress:
    return run_files(settings, threading.Event())


def minutes(path: Path) -> list[int]:
    with path.open(newline="") as file:
        starts = [datetime.fromisoformat(row["timestamp"]).timestamp() for row in csv.DictReader(file)]
    return [round(start - NOON_MS / 1000) // 60 for start in starts]


def test_until_idle_writes_what_is_committed(settings: FilesSettings, worker: Worker, topics: Topics) -> None:
    """Aborted records are not written, and the markers at the end of a topic do not keep it from being idle."""
    worker.send(topics.pods, message(0), message(1))
    worker.send(topics.pods, message(2), commit=False)
    worker.send(topics.pods, message(0, "web"), service="web")
    worker.send(topics.pods, message(3))
    worker.send(topics.pods, message(4), commit=False)
    progress = run(settings)
    assert (progress.rows, progress.files, progress.behind) == (4, 2, 0)
    assert minutes(settings.storage / "prod/api.csv") == [0, 1, 3]
    assert minutes(settings.storage / "prod/web.csv") == [0]


def test_a_second_run_goes_on(settings: FilesSettings, worker: Worker, topics: Topics) -> None:
    worker.send(topics.pods, message(0), message(1))
    assert run(settings).rows == 2
    assert run(settings).rows == 0
    worker.send(topics.pods, message(2))
    assert run(settings).rows == 1
    assert minutes(settings.storage / "prod/api.csv") == [0, 1, 2]


PROGRAM = """
import sys, threading
from pathlib import Path
from ingestor.core.topics import Topics
from ingestor.kafka import Cluster
from stream_app.files import FilesSettings, run_files

settings = FilesSettings(Cluster(sys.argv[1]), Topics(sys.argv[2]), Path(sys.argv[3]), commit_s=0.02, commit_rows=500)
run_files(settings, threading.Event(), lambda progress: print(progress.rows, flush=True))
"""


def test_killed_again_and_again(settings: FilesSettings, worker: Worker, topics: Topics) -> None:
    """After kill -9 at random moments every committed record is in its file once."""
    services, count = [f"s{i}" for i in range(12)], 10_000
    for service in services:
        values = [message(i, service, f"pod-{i % 7}") for i in range(count)]
        worker.send(topics.pods, *values, service=service)
        worker.send(topics.pods, *values, service=service, commit=False)
    arguments = [settings.cluster.bootstrap_servers, topics.prefix, str(settings.storage)]
    chance = random.Random(3)
    for _ in range(5):
        with subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE) as process:
            deadline = threading.Timer(20, process.kill)
            deadline.start()
            assert process.stdout is not None
            assert process.stdout.readline(), "nothing was left to be written"
            deadline.cancel()
            time.sleep(chance.uniform(0, 0.05))
            process.kill()
    assert run(settings).rows > 0
    for service in services:
        assert minutes(settings.storage / f"prod/{service}.csv") == list(range(count))


def test_both_groupings(settings: FilesSettings, worker: Worker, topics: Topics) -> None:
    worker.send(topics.pods, message(0))
    worker.send(topics.services, message(0, pod=None), message(1, pod=None))
    assert run(replace(settings, group_by=("pod", "service"))).rows == 3
    assert minutes(settings.storage / "prod/api.csv") == [0]
    assert minutes(settings.storage / "prod/api.service.csv") == [0, 1]
    with pytest.raises(ConfigError, match="group_by"):
        run(settings)


def test_for_good_until_stopped(settings: FilesSettings, worker: Worker, topics: Topics) -> None:
    """Records are in the files about a second after their transaction, and a stop commits."""
    stop, seen = threading.Event(), threading.Event()
    runner = threading.Thread(
        target=run_files, args=(replace(settings, until_idle=False), stop, lambda p: p.rows >= 2 and seen.set())
    )
    runner.start()
    worker.send(topics.pods, message(0))
    worker.send(topics.pods, message(1))
    assert seen.wait(30)
    stop.set()
    runner.join(30)
    assert not runner.is_alive()
    assert minutes(settings.storage / "prod/api.csv") == [0, 1]


def test_poison_is_skipped_and_told(
    settings: FilesSettings, worker: Worker, topics: Topics, caplog: pytest.LogCaptureFixture
) -> None:
    """One message that is no record stops nothing."""
    poison = [
        b"",
        b"{",
        message(1, pod=5),  # type: ignore[arg-type]
        message(1, pod=None),
        message(1, window_start=10**17),
        message(1, version=2),
        message(1, metrics={"cpu": "x"}),
    ]
    worker.send(topics.pods, message(0), *poison, message(2))
    with caplog.at_level(logging.ERROR):
        progress = run(settings)
    assert (progress.rows, progress.malformed) == (2, len(poison))
    told = [vars(one) for one in caplog.records if one.name == "stream_app.files"]
    assert [one["offset"] for one in told] == list(range(1, len(poison) + 1))
    assert {one["topic"] for one in told} == {topics.pods}
    assert minutes(settings.storage / "prod/api.csv") == [0, 2]


def test_two_views_must_be_told_apart(settings: FilesSettings, worker: Worker, topics: Topics) -> None:
    worker.send(topics.pods, message(0), message(0, chunk_size="1h"), message(1), message(1, method="sum"))
    with pytest.raises(SinkError, match=r"chunk size 1m, method mean; chunk size 1h, method mean.*--chunk-size"):
        run(settings)
    with pytest.raises(SinkError, match=r"method mean; chunk size 1m, method sum.*--method"):
        run(replace(settings, chunk_size="1t"))
    chosen = replace(settings, chunk_size="1t", method="mean")
    progress = run(chosen)
    assert (progress.rows, progress.other_views) == (2, 2)
    with pytest.raises(ConfigError, match="choose another --storage"):
        run(replace(settings, method="sum"))


def test_a_topic_that_comes_later(
    settings: FilesSettings, worker: Worker, admin: AdminClient, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker makes the topics; files may be started first."""
    topics = Topics(f"later-{uuid.uuid4().hex[:8]}")
    results: list[FilesProgress] = []
    runner = threading.Thread(target=lambda: results.append(run(replace(settings, topics=topics))))
    with caplog.at_level(logging.WARNING):
        runner.start()
        deadline = time.monotonic() + 20
        while not any("waiting for topics" in one.message for one in caplog.records):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    make(admin, topics.pods)
    worker.send(topics.pods, message(0))
    runner.join(30)
    assert [one.rows for one in results] == [1]


def test_stopped_while_waiting_for_topics(settings: FilesSettings) -> None:
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    assert run_files(replace(settings, topics=Topics("never")), stop) == FilesProgress()


def test_a_topic_made_anew_is_refused(
    settings: FilesSettings, worker: Worker, topics: Topics, admin: AdminClient
) -> None:
    """Same name, other topic: its offsets mean other records."""
    worker.send(topics.pods, message(0))
    run(settings)
    admin.delete_topics([topics.pods])[topics.pods].result()
    deadline = time.monotonic() + 20
    while True:
        try:
            make(admin, topics.pods)
            break
        except KafkaException:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    with pytest.raises(ConfigError, match="choose another --storage"):
        run(settings)


def test_records_that_retention_has_taken(
    settings: FilesSettings, worker: Worker, topics: Topics, admin: AdminClient
) -> None:
    """A gap is an error, never a silence; where nothing was read yet, what is there is all there is."""
    worker.send(topics.pods, message(0), message(1))
    run(settings)
    worker.send(topics.pods, message(2), message(3))
    partition = partition_of(b"prod/api", PARTITIONS)
    for future in admin.delete_records([TopicPartition(topics.pods, partition, 4)]).values():
        future.result()
    with pytest.raises(SinkError, match=r"lost offsets 3 to 3 .*choose another --storage"):
        run(settings)
    run(replace(settings, storage=settings.storage / "anew"))
    assert minutes(settings.storage / "anew/prod/api.csv") == [3]


def test_a_storage_that_cannot_be_written_is_told_first(settings: FilesSettings, tmp_path: Path) -> None:
    """Before Kafka is asked for anything."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        run(replace(settings, storage=tmp_path / "file/data", cluster=Cluster("127.0.0.1:1")))


@pytest.mark.parametrize("changed", [{"group_by": ()}, {"group_by": ("node",)}, {"chunk_size": "1x"}])
def test_wrong_settings(settings: FilesSettings, changed: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        run(replace(settings, **changed))
