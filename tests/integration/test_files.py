"""``run_files`` against a real Kafka: what is committed is in the files, once, and nothing else is."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import logging
import os
import pty
import random
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import commands
import held_sink
import orjson
import pytest
from commands import PATIENCE_S, stream_app
from confluent_kafka import KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from pod_topic import wait_until_ended

from ingestor.core.errors import ConfigError, SinkError
from ingestor.core.topics import Topics, partition_of
from ingestor.kafka import Cluster
from ingestor.local.kafka import LocalKafka
from stream_app.files import FilesProgress, FilesSettings, run_files
from stream_app.sink_loop import Start
from stream_app.sinks.csv_style import CsvStyle

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

    def send(self, topic: str, *values: bytes, service: str = "api", commit: bool = True, written_ms: int = 0) -> None:
        self._producer.begin_transaction()
        partition = partition_of(f"prod/{service}".encode(), PARTITIONS)
        for value in values:
            self._producer.produce(topic, value, partition=partition, timestamp=written_ms)
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


def test_until_idle_waits_for_what_an_open_transaction_hides(
    settings: FilesSettings, worker: Worker, topics: Topics, kafka: LocalKafka
) -> None:
    """What a frozen worker has begun hides what its successor has committed behind it: that is not the end."""
    frozen = Producer({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": uuid.uuid4().hex})
    frozen.init_transactions(30)
    frozen.begin_transaction()
    frozen.produce(topics.pods, message(0), partition=partition_of(b"prod/api", PARTITIONS))
    frozen.flush(30)
    worker.send(topics.pods, message(0), message(1))
    worker.send(topics.pods, message(0, "web"), service="web")
    seen = threading.Event()
    written: list[FilesProgress] = []

    def write() -> None:
        stop = threading.Event()
        written.append(run_files(replace(settings, idle_s=0.01), stop, lambda progress: progress.rows and seen.set()))

    writing = threading.Thread(target=write)
    writing.start()
    assert seen.wait(PATIENCE_S), "what is hidden nowhere is written"
    writing.join(2)
    assert writing.is_alive()
    frozen.abort_transaction(30)
    writing.join(PATIENCE_S)
    assert [progress.rows for progress in written] == [3]
    assert minutes(settings.storage / "prod/api.csv") == [0, 1]


def test_a_second_run_goes_on(settings: FilesSettings, worker: Worker, topics: Topics) -> None:
    worker.send(topics.pods, message(0), message(1))
    assert run(settings).rows == 2
    assert run(settings).rows == 0
    worker.send(topics.pods, message(2))
    assert run(settings).rows == 1
    assert minutes(settings.storage / "prod/api.csv") == [0, 1, 2]


def test_killed_again_and_again(settings: FilesSettings, worker: Worker, topics: Topics) -> None:
    """After kill -9 at random moments every committed record is in its file once."""
    services, count = [f"s{i}" for i in range(12)], 10_000
    for service in services:
        values = [message(i, service, f"pod-{i % 7}") for i in range(count)]
        worker.send(topics.pods, *values, service=service)
        worker.send(topics.pods, *values, service=service, commit=False)
    arguments = [settings.cluster.bootstrap_servers, topics.prefix, str(settings.storage), "csv", "500"]
    chance = random.Random(3)
    for _ in range(5):
        with subprocess.Popen([sys.executable, held_sink.__file__, *arguments], stdout=subprocess.PIPE) as process:
            deadline = threading.Timer(PATIENCE_S, process.kill)
            deadline.start()
            assert process.stdout is not None
            assert process.stdout.readline(), "nothing was left to be written"
            deadline.cancel()
            time.sleep(chance.uniform(0, 0.05))
            process.kill()
    assert run(settings).rows > 0
    for service in services:
        assert minutes(settings.storage / f"prod/{service}.csv") == list(range(count))


def test_history_behind_live_data_killed_again_and_again(
    settings: FilesSettings, worker: Worker, topics: Topics
) -> None:
    """What waits to be merged survives kill -9 too; an end of what is there is never returned without it."""
    live, history = range(40_000, 40_400), range(25_000)
    worker.send(topics.pods, *(message(minute) for minute in live))
    assert run(settings).rows == len(live)
    for first in range(0, len(history), 1_000):
        worker.send(topics.pods, *(message(minute) for minute in history[first : first + 1_000]))
    arguments = [settings.cluster.bootstrap_servers, topics.prefix, str(settings.storage), "csv", "500"]
    chance = random.Random(5)
    for _ in range(3):
        with subprocess.Popen([sys.executable, held_sink.__file__, *arguments], stdout=subprocess.PIPE) as process:
            deadline = threading.Timer(PATIENCE_S, process.kill)
            deadline.start()
            assert process.stdout is not None
            assert process.stdout.readline(), "nothing was left to be written"
            deadline.cancel()
            time.sleep(chance.uniform(0, 0.05))
            process.kill()
    run(settings)
    assert minutes(settings.storage / "prod/api.csv") == [*history, *live]
    assert not list((settings.storage / ".stream-app").glob("waiting/*/*"))


def test_what_is_late_is_there_in_time(settings: FilesSettings, worker: Worker, topics: Topics) -> None:
    """Although more and more comes, and a file is never left alone."""
    stop, path = threading.Event(), settings.storage / "prod/api.csv"
    live = replace(settings, until_idle=False, complete_s=1.0)
    worker.send(topics.pods, *(message(minute) for minute in range(1_000, 3_000)))
    runner = threading.Thread(target=run_files, args=(live, stop))
    runner.start()
    deadline = time.monotonic() + PATIENCE_S
    try:
        for minute in range(1_000):
            worker.send(topics.pods, message(3_000 + minute), *([message(7)] if minute == 5 else []))
            if path.exists() and b"\n2026-11-23T12:07:00Z," in path.read_bytes():
                break
            assert time.monotonic() < deadline
    finally:
        stop.set()
        runner.join()
    run(settings)
    assert minutes(path) == [7, *range(1_000, 3_001 + minute)]


def test_a_topic_that_goes_is_told(settings: FilesSettings, worker: Worker, topics: Topics, admin: AdminClient) -> None:
    """A run for good does not wait for ever for what cannot come."""
    worker.send(topics.pods, message(0))
    errors: list[Exception] = []
    seen = threading.Event()

    def run_for_good() -> None:
        try:
            run_files(replace(settings, until_idle=False), threading.Event(), lambda _: seen.set())
        except SinkError as error:
            errors.append(error)

    runner = threading.Thread(target=run_for_good, daemon=True)
    runner.start()
    assert seen.wait(PATIENCE_S)
    admin.delete_topics([topics.pods])[topics.pods].result()
    runner.join(PATIENCE_S)
    assert [str(error).partition(":")[0] for error in errors] == [f"topic {topics.pods} is gone or was made anew"]
    make(admin, topics.pods)


def test_from_now_on(settings: FilesSettings, worker: Worker, topics: Topics, admin: AdminClient) -> None:
    """A storage that begins at the latest has what came since its first start, also where nothing came until then."""
    worker.send(topics.pods, message(0), message(1))
    wait_until_ended(admin, topics, PARTITIONS)
    latest = replace(settings, start=Start.parse("latest", 0))
    assert run(latest).rows == 0
    worker.send(topics.pods, message(2))
    assert run(latest).rows == 1
    worker.send(topics.pods, message(3))
    assert run(settings).rows == 1
    assert minutes(settings.storage / "prod/api.csv") == [2, 3]


def test_from_a_time(settings: FilesSettings, worker: Worker, topics: Topics) -> None:
    """Windows that start there or later, whenever they are written, and however often it is started."""
    worker.send(topics.pods, message(0), written_ms=NOON_MS + 60_000)
    worker.send(topics.pods, message(5), message(1), message(6), written_ms=NOON_MS + 400_000)
    timed = replace(settings, start=Start.parse(f"{(NOON_MS + 300_000) // 1000}", 0))
    assert run(timed).rows == 2
    worker.send(topics.pods, message(2), message(7), written_ms=NOON_MS + 500_000)
    assert run(settings).rows == 1
    assert minutes(settings.storage / "prod/api.csv") == [5, 6, 7]


@pytest.mark.parametrize(("first", "then"), [("latest", "earliest"), (None, "latest"), ("10m", "20m")])
def test_another_start_is_refused(
    settings: FilesSettings, worker: Worker, topics: Topics, first: str | None, then: str
) -> None:
    """What a storage has not got from its beginning it never gets; the same words go on."""
    now_ms = time.time_ns() // 1_000_000
    worker.send(topics.pods, message(0))
    run(replace(settings, start=first and Start.parse(first, now_ms)))
    with pytest.raises(ConfigError, match=f"began with --from {first or 'earliest'}.*leave --from {then} out"):
        run(replace(settings, start=Start.parse(then, now_ms)))
    run(replace(settings, start=first and Start.parse(first, now_ms + 60_000)))
    run(settings)


def test_another_spelling_is_refused(settings: FilesSettings, worker: Worker, topics: Topics) -> None:
    """A file is spelled in one way from its first row to its last."""
    worker.send(topics.pods, message(0))
    spelled = replace(settings, style=CsvStyle("0", "epoch-s"))
    run(spelled)
    run(spelled)
    with pytest.raises(ConfigError, match="missing is the default, was '0'; time_format is the default, was"):
        run(settings)


def test_columns_are_dropped_at_the_end(settings: FilesSettings, worker: Worker, topics: Topics) -> None:
    """Once; what comes afterwards is refused, and stays in Kafka for another storage."""
    worker.send(topics.pods, message(0, metrics={"cpu": 1.0, "idle": 0.0}), message(1, metrics={"up": None}))
    finished = replace(settings, drop=frozenset({"empty", "zero"}))
    assert run(finished).rows == 2
    text = "timestamp,pod,cpu\n2026-11-23T12:00:00Z,a,1.0\n2026-11-23T12:01:00Z,a,\n"
    assert (settings.storage / "prod/api.csv").read_text() == text
    assert run(finished).rows == 0
    worker.send(topics.pods, message(2), commit=False)
    assert run(settings).rows == 0
    worker.send(topics.pods, message(2))
    for again in (finished, settings):
        with pytest.raises(ConfigError, match=r"is finished .* choose another --storage"):
            run(again)
    assert (settings.storage / "prod/api.csv").read_text() == text
    with pytest.raises(ConfigError, match="--drop-empty-columns and --drop-zero-columns is for files that end"):
        run(replace(finished, until_idle=False))


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
    assert seen.wait(PATIENCE_S)
    stop.set()
    runner.join(PATIENCE_S)
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
    stop, rows = threading.Event(), list[int]()

    def written(progress: FilesProgress) -> None:
        rows.append(progress.rows)
        stop.set()

    for_good = replace(settings, topics=topics, until_idle=False)
    runner = threading.Thread(target=run_files, args=(for_good, stop, written))
    with caplog.at_level(logging.WARNING):
        runner.start()
        deadline = time.monotonic() + PATIENCE_S
        while not any("waiting for topics" in one.message for one in caplog.records):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    make(admin, topics.pods)
    worker.send(topics.pods, message(0))
    runner.join(PATIENCE_S)
    assert rows[0] == 1


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
    deadline = time.monotonic() + PATIENCE_S
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


def command(settings: FilesSettings, *more: str) -> list[str]:
    where = ["--bootstrap-servers", settings.cluster.bootstrap_servers, "--topic-prefix", settings.topics.prefix]
    return stream_app("files", "--storage", str(settings.storage), *where, *more)


def test_the_command_to_its_end(settings: FilesSettings, worker: Worker, topics: Topics) -> None:
    """Flags reach the files, a line says what was written, JSON lines are for machines; again it does nothing."""
    worker.send(topics.pods, message(0, metrics={"up": 1.0, "idle": 0.0}), message(1, metrics={"zzz": 2.0}))
    flags = ["--until-idle", "--idle", "1ms", "--missing", "-1", "--time-format", "epoch-ms", "--drop-zero-columns"]
    done = commands.run(command(settings, *flags))
    assert (settings.storage / "prod/api.csv").read_text() == (
        "timestamp,pod,up,zzz\n1795435200000,a,1.0,-1\n1795435260000,a,-1,2.0\n"
    )
    assert done.stdout == ""
    first, last = done.stderr.splitlines()
    assert "INFO rows written rows=2 files=1 behind=" in first
    assert last == f"{settings.storage}: 2 rows written, 1 files"
    done = commands.run(command(settings, *flags))
    assert done.stderr == f"{settings.storage}: 0 rows written, 1 files\n"
    other = replace(settings, storage=settings.storage / "other")
    done = commands.run(command(other, "--until-idle", "--idle", "1ms", "--json"))
    # The end of its transaction is one more message, which may be heard of later.
    last = orjson.loads(done.stdout.splitlines()[-1])
    assert last == {"event": "written", "rows": 2, "files": 1, "behind": 0}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--missing", "none"], "'none' is not empty, nan or a number"),
        (["--from", "yesterday"], "or earliest or latest"),
        (["--drop-empty-columns"], "--drop-empty-columns is for files that end: give --until-idle too"),
    ],
)
def test_wrong_flags(settings: FilesSettings, flags: list[str], message: str) -> None:
    """They are told before anything is made."""
    assert message in commands.run(command(settings, *flags), code=2).stderr
    assert not settings.storage.exists()


@pytest.mark.parametrize(("flags", "code"), [([], 0), (["--until-idle", "--idle", "1h"], 130)])
def test_what_a_terminal_shows(
    settings: FilesSettings, worker: Worker, topics: Topics, flags: list[str], code: int
) -> None:
    """One bar in 80 columns; Ctrl-C ends it with what was written, and says whether that was the end."""
    worker.send(topics.pods, *(message(minute) for minute in range(2_000)))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "NO_COLOR": "1"}
    shown = b""
    with subprocess.Popen(command(settings, *flags), stderr=theirs, stdout=theirs, env=environment) as process:
        os.close(theirs)
        while b"2,000 rows  1 files  0 behind" not in shown:
            shown += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):
            while more := os.read(ours, 4096):
                shown += more
    os.close(ours)
    assert process.returncode == code
    text = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", shown).decode().replace("\r", "\n")
    assert text.startswith("waiting ")
    assert max(len(line) for line in text.splitlines() if "rows written" not in line) <= 80
    assert text.rstrip().endswith("2,000 rows written, 1 files")
