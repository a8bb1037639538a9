"""``stream-app tail`` on a real Kafka: what is committed is shown, as it is, and nothing is left behind."""

from __future__ import annotations

import io
import os
import pty
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import oracle
import orjson
import pandas as pd
import pytest
from builders import messages
from commands import PATIENCE_S, backfill, run, stream_app, view_of, wait_until_windowed, worker
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from pod_topic import wait_until_ended

from ingestor.core import wire
from ingestor.core.durations import ChunkSize
from ingestor.core.time_range import TimeRange, iso
from ingestor.core.topics import Topics, partition_of
from ingestor.kafka import find_topics
from ingestor.local.kafka import LocalKafka
from ingestor.local.prometheus import LocalPrometheus
from stream_app import tail as tail_module
from stream_app.pipeline import Pipeline
from stream_app.reading import Ear, start_of
from stream_app.records import decode_record, record_key
from stream_app.tail import TailSettings, run_tail
from stream_app.tail_display import JsonLines
from stream_app.tail_filter import Wanted
from stream_app.view import View

NOON_MS = 1_732_449_600_000
"""In the past of any clock: records are written after their window."""

MINUTE_MS = 60_000
PARTITIONS = 3
CART, WEB, DB = "cart-5c689d88bb-q2w9z", "web-7d9f8b6c5-x2x4z", "db-0"


@pytest.fixture
def admin(kafka: LocalKafka) -> AdminClient:
    return AdminClient({"bootstrap.servers": kafka.bootstrap_servers})


@pytest.fixture
def topics(admin: AdminClient) -> Iterator[Topics]:
    """Sink topics of this test alone."""
    names = Topics(f"tail-{uuid.uuid4().hex[:8]}")
    make(admin, names)
    yield names
    for future in admin.delete_topics([names.pods, names.services]).values():
        future.exception()


@pytest.fixture
def settings(kafka: LocalKafka, topics: Topics) -> TailSettings:
    """All that is there, and no more."""
    return TailSettings(kafka.cluster, topics, start="earliest", follow=False)


def make(admin: AdminClient, names: Topics) -> None:
    for future in admin.create_topics(
        [NewTopic(name, PARTITIONS, 1) for name in (names.pods, names.services)]
    ).values():
        future.result()


def windows(minutes: Sequence[int], *pods: str, group_by: tuple[Any, ...] = ("pod",), size: str = "1m") -> list[bytes]:
    """Return the records that a worker makes of a sample a minute and pod, in its order."""
    rows = [
        ("shop" if pod != DB else "data", pod, metric, 0, NOON_MS + minute * MINUTE_MS, minute / 7)
        for minute in minutes
        for pod in pods or (CART,)
        for metric in ("cpu_seconds", "memory_bytes")
    ]
    samples = pd.DataFrame(rows, columns=["namespace", "pod", "metric", "series", "timestamp", "value"])
    whole = TimeRange(NOON_MS, NOON_MS + (max(minutes) + 1) * MINUTE_MS)
    values = []
    for stream in messages(samples, [whole]):
        pipeline = Pipeline(View(ChunkSize.parse(size), "mean", group_by=group_by), 0, "")
        for offset, (headers, value) in enumerate(stream):
            for emission in pipeline.feed(offset, wire.decode(headers, value)):
                values += [output.value for output in emission.outputs]
    return sorted(values, key=lambda value: orjson.loads(value)["window_start"])


class Writer:
    """Sends records in transactions, as the stream app does."""

    def __init__(self, kafka: LocalKafka, topics: Topics) -> None:
        self._topics, self._admin = topics, AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
        self._producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": uuid.uuid4().hex})
        self._producer.init_transactions(30)

    def send(self, *values: bytes, commit: bool = True, written_ms: int = 0, key: bytes | None = None) -> None:
        self._producer.begin_transaction()
        for value in values:
            topic, of_record = self._topics.pods, key
            if of_record is None:
                record = decode_record(value)
                of_record = record_key(record.namespace, record.pod, record.service)
                topic = self._topics.services if record.pod is None else topic
            partition = partition_of(of_record, PARTITIONS)
            self._producer.produce(topic, value, of_record, partition, timestamp=written_ms)
        self._producer.flush(30)
        if commit:
            self._producer.commit_transaction(30)
        else:
            self._producer.abort_transaction(30)
        wait_until_ended(self._admin, self._topics, PARTITIONS)


@pytest.fixture
def writer(kafka: LocalKafka, topics: Topics) -> Writer:
    return Writer(kafka, topics)


def tailed(settings: TailSettings) -> list[bytes]:
    """Return the JSON lines that come to an end by themselves."""
    out = io.BytesIO()
    lines = JsonLines(all_metrics=not settings.wanted.metrics, for_terminal=False)
    assert run_tail(settings, threading.Event(), lines, out)
    return out.getvalue().splitlines()


def command(settings: TailSettings, *more: str) -> list[str]:
    where = ["--bootstrap-servers", settings.cluster.bootstrap_servers, "--topic-prefix", settings.topics.prefix]
    return stream_app("tail", *where, *more)


class Tail:
    """The command, run until it is stopped."""

    def __init__(self, settings: TailSettings, *more: str) -> None:
        self.process = subprocess.Popen(command(settings, *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._watchdog = threading.Timer(PATIENCE_S, self.process.kill)

    def __enter__(self) -> Self:
        self._watchdog.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._watchdog.cancel()
        self.process.kill()
        self.process.wait()

    def line(self) -> bytes:
        assert self.process.stdout is not None
        return self.process.stdout.readline().removesuffix(b"\n")

    def interrupted(self) -> tuple[int, bytes, bytes]:
        """Press Ctrl-C; return the exit code and what came after the lines that were read."""
        self.process.send_signal(signal.SIGINT)
        out, errors = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, out, errors


def test_json_is_what_is_on_the_topic(settings: TailSettings, writer: Writer) -> None:
    """Byte for byte, each record once, those of one pod in order."""
    values = windows(range(20), CART, WEB, DB)
    writer.send(*values)
    lines = tailed(settings)
    assert sorted(lines) == sorted(values)
    for pod in (CART, WEB, DB):
        assert [v for v in lines if decode_record(v).pod == pod] == [v for v in values if decode_record(v).pod == pod]


def test_what_was_aborted_is_not_shown(settings: TailSettings, writer: Writer) -> None:
    """Nor does it, or an open end of markers alone, keep the end from being reached."""
    first, second, third = windows(range(3))
    writer.send(second, third, commit=False)
    assert tailed(settings) == []
    writer.send(first)
    writer.send(second, commit=False)
    writer.send(third)
    writer.send(second, commit=False)
    assert tailed(settings) == [first, third]


def test_an_open_transaction_is_no_part_of_the_end(settings: TailSettings, writer: Writer, kafka: LocalKafka) -> None:
    """The end is that of what is committed: nothing waits for a writer that hangs."""
    first, second = windows(range(2))
    writer.send(first)
    hanging = Producer({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": uuid.uuid4().hex})
    hanging.init_transactions(30)
    hanging.begin_transaction()
    for partition in range(PARTITIONS):
        hanging.produce(settings.topics.pods, second, b"x", partition)
    hanging.flush(30)
    assert tailed(settings) == [first]
    hanging.abort_transaction(30)


def test_an_empty_topic(settings: TailSettings) -> None:
    """Its end is its beginning."""
    assert tailed(settings) == []
    assert tailed(replace(settings, start="latest")) == []


@pytest.mark.parametrize(
    ("wanted", "pods"),
    [
        (Wanted(namespaces=("shop",)), {CART, WEB}),
        (Wanted(namespaces=("da*", "x")), {DB}),
        (Wanted(services=("web", "d?")), {WEB, DB}),
        (Wanted(pods=("cart-*",)), {CART}),
        (Wanted(pods=(DB,), namespaces=("shop",)), set()),
    ],
)
def test_filters(settings: TailSettings, writer: Writer, wanted: Wanted, pods: set[str]) -> None:
    """Every record of what is asked for, and no other."""
    values = windows(range(4), CART, WEB, DB)
    writer.send(*values)
    expected = sorted(value for value in values if decode_record(value).pod in pods)
    assert sorted(tailed(replace(settings, wanted=wanted))) == expected


def test_chosen_metrics(settings: TailSettings, writer: Writer) -> None:
    """Others are taken out, and nothing else is changed."""
    (value,) = windows([3])
    writer.send(value)
    (line,) = tailed(replace(settings, wanted=Wanted(metrics=("cpu*",))))
    assert orjson.loads(line) == orjson.loads(value) | {"metrics": {"cpu_seconds": 3 / 7}}
    assert tailed(replace(settings, wanted=Wanted(metrics=("disk*",)))) == []


def test_views_are_told_apart(settings: TailSettings, writer: Writer) -> None:
    """All views come, unless one is chosen."""
    minutes, halves = windows(range(2)), windows(range(2), size="2m")
    writer.send(*minutes, *halves)
    assert tailed(settings) == [*minutes, *halves]
    assert tailed(replace(settings, wanted=Wanted(chunk_size="2m"))) == halves
    assert tailed(replace(settings, wanted=Wanted(method="sum"))) == []


def test_both_groupings(settings: TailSettings, writer: Writer) -> None:
    """Pods' and services' records, from both topics."""
    values = windows(range(3), CART, WEB, group_by=("pod", "service"))
    writer.send(*values)
    of_services = [value for value in values if decode_record(value).pod is None]
    assert sorted(tailed(replace(settings, group_by=("pod", "service")))) == sorted(values)
    assert sorted(tailed(replace(settings, group_by=("service",)))) == sorted(of_services)


def test_from_a_time(settings: TailSettings, writer: Writer) -> None:
    """Windows that start then or later, though they were written later still; what was written before is not read."""
    values = windows(range(10))
    for minute, value in enumerate(values):
        writer.send(value, written_ms=NOON_MS + minute * MINUTE_MS + 95_000)
    start, from_ms = start_of(iso(NOON_MS + 6 * MINUTE_MS), 0)
    asked = replace(settings, start=start, wanted=Wanted(from_ms=from_ms))
    assert tailed(asked) == values[6:]
    # Of a window that claims to be later than its own writing, nothing is known: it shows where reading began.
    writer.send(values[9], written_ms=NOON_MS + 60 * MINUTE_MS)
    hour = replace(settings, start="time", wanted=Wanted(from_ms=NOON_MS + 9 * MINUTE_MS))
    assert tailed(hour) == [values[9], values[9]]
    assert tailed(replace(settings, start="time", wanted=Wanted(from_ms=NOON_MS + 10**9))) == []


def test_a_time_seeks(settings: TailSettings, writer: Writer, topics: Topics, admin: AdminClient) -> None:
    """Nothing that was written before the time is read: not even what is malformed there."""
    value, later = windows([0, 5])
    writer.send(b"poison", key=b"shop/x", written_ms=NOON_MS - 1)
    for one in (value, later):
        writer.send(one, written_ms=NOON_MS + 10 * MINUTE_MS)
    found = run([*command(settings), "--json", "--no-follow", "--from", iso(NOON_MS)])
    assert found.stdout.encode().splitlines() == [value, later]
    assert "skipped" not in found.stderr


def test_poison_is_told_and_skipped(settings: TailSettings, writer: Writer) -> None:
    """With its place, and only where its key does not say that nobody wants it."""
    (value,) = windows([0])
    newer = value.replace(b'"version":1', b'"version":2')
    writer.send(b"{", newer, value, key=b"shop/" + CART.encode())
    writer.send(b"poison", key=b"shop/other")
    done = run([*command(settings), "--json", "--no-follow", "--from", "earliest", "--pod", "cart-*"])
    assert done.stdout.encode() == value + b"\n"
    told = done.stderr.splitlines()
    partition = partition_of(b"shop/" + CART.encode(), PARTITIONS)
    for offset, line in enumerate(told):
        assert f"message skipped topic={settings.topics.pods} partition={partition} offset={offset}" in line
    assert len(told) == 2
    assert "update podstream" in told[1]


def test_so_many_lines(settings: TailSettings, writer: Writer) -> None:
    """Exactly so many, and an end though more could come."""
    values = windows(range(9))
    writer.send(*values)
    assert tailed(replace(settings, lines=4, follow=True)) == values[:4]
    assert tailed(replace(settings, lines=40)) == values


def test_live(settings: TailSettings, writer: Writer) -> None:
    """What was there before is not shown; what comes is, at once; Ctrl-C ends with 0 and no word."""
    before, *values = windows(range(4))
    writer.send(before)
    with Tail(settings, "--json", "--log-level", "debug") as tail:
        # When it has begun is not told; a probe that it has seen shows it.
        stop = threading.Event()
        probe = windows([50])[0]

        def send_probes() -> None:
            while not stop.wait(0.2):
                writer.send(probe)

        prober = threading.Thread(target=send_probes)
        prober.start()
        assert tail.line() == probe
        stop.set()
        prober.join()
        for value in values:
            writer.send(value)
            while (line := tail.line()) == probe:
                pass
            assert line == value
        assert tail.interrupted() == (0, b"", b"")


def test_interrupted_before_its_end(settings: TailSettings, writer: Writer) -> None:
    """Who asked for ten lines and did not get them is told so by the exit code."""
    values = windows(range(3))
    writer.send(*values)
    with Tail(settings, "--from", "earliest", "--json", "-n", "10") as tail:
        assert [tail.line() for _ in values] == values
        assert tail.interrupted() == (130, b"", b"")


def test_a_reader_that_leaves(settings: TailSettings, writer: Writer) -> None:
    """``| head -2`` ends quietly, also where no third line ever comes."""
    values = windows(range(2))
    writer.send(*values)
    with Tail(settings, "--from", "earliest", "--json") as tail:
        assert [tail.line(), tail.line()] == values
        assert tail.process.stdout is not None
        assert tail.process.stderr is not None
        tail.process.stdout.close()
        assert tail.process.wait(PATIENCE_S) == 0
        assert tail.process.stderr.read() == b""


def test_a_reader_that_leaves_amid_lines(settings: TailSettings, writer: Writer) -> None:
    """More than a pipe holds is waiting to be written when it closes."""
    writer.send(*windows(range(2000)))
    with Tail(settings, "--from", "earliest", "--json") as tail:
        tail.line()
        assert tail.process.stdout is not None
        assert tail.process.stderr is not None
        tail.process.stdout.close()
        assert tail.process.wait(PATIENCE_S) == 0
        assert tail.process.stderr.read() == b""


def test_fields_in_a_pipe(settings: TailSettings, writer: Writer) -> None:
    """No header, no colour: a line is a record."""
    writer.send(*windows([0]))
    done = run([*command(settings), "--no-follow", "--from", "earliest"])
    fields = [iso(NOON_MS), f"shop/{CART}", "1m", "mean", "-", "cpu_seconds=0", "memory_bytes=0"]
    assert done.stdout == "\t".join(fields) + "\n"
    assert done.stderr == ""


@pytest.mark.parametrize(("no_color", "codes"), [("", True), ("1", False)])
def test_a_table_on_a_terminal(settings: TailSettings, writer: Writer, no_color: str, *, codes: bool) -> None:
    """With a header and colours, but where NO_COLOR is set."""
    writer.send(*windows([0]))
    ours, theirs = pty.openpty()
    variables = {**os.environ, "NO_COLOR": no_color, "COLUMNS": "80", "TERM": "xterm"}
    arguments = command(settings, "--no-follow", "--from", "earliest", "--metric", "cpu*")
    subprocess.run(arguments, stdout=theirs, env=variables, check=True, timeout=PATIENCE_S)
    os.close(theirs)
    text = os.read(ours, 65_536).decode()
    os.close(ours)
    assert ("\x1b[" in text) == codes
    lines = text.replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()
    assert lines == [
        "TIME UTC        POD, 1m mean                cpu_seconds",
        "11-24 12:00:00  shop/cart-5c…d88bb-q2w9z              0",
    ]


def test_topics_that_come_later(settings: TailSettings, admin: AdminClient, kafka: LocalKafka) -> None:
    """They are waited for, with one line that says so, and their first record is shown."""
    later = replace(settings, topics=Topics(f"tail-later-{uuid.uuid4().hex[:8]}"))
    values = windows(range(2))
    with Tail(later, "--json") as tail:
        assert tail.process.stderr is not None
        assert b"waiting for topics: a worker makes them" in tail.process.stderr.readline()
        make(admin, later.topics)
        Writer(kafka, later.topics).send(*values)
        assert [tail.line(), tail.line()] == values
        assert tail.interrupted() == (0, b"", b"")


def test_topics_that_are_missing(settings: TailSettings) -> None:
    """Where nothing is waited for, that is an error that says what to do."""
    done = run(command(replace(settings, topics=Topics("never")), "--no-follow"), code=2)
    assert "topic never.pods does not exist: start a worker" in done.stderr


def test_a_topic_that_is_deleted(settings: TailSettings, writer: Writer, admin: AdminClient) -> None:
    """One line, no silence."""
    (value,) = windows([0])
    writer.send(value)
    with Tail(settings, "--from", "earliest", "--json") as tail:
        assert tail.line() == value
        admin.delete_topics([settings.topics.pods])[settings.topics.pods].result()
        assert tail.process.stderr is not None
        assert f"error: topic {settings.topics.pods} is gone".encode() in tail.process.stderr.read()
        assert tail.process.wait(PATIENCE_S) == 1


def test_records_that_retention_takes(
    settings: TailSettings, writer: Writer, admin: AdminClient, caplog: pytest.LogCaptureFixture
) -> None:
    """What is there is shown; what goes while it is being read is told."""
    values, others = windows(range(6)), windows(range(500), DB)
    writer.send(*values, *others)
    partition = partition_of(f"shop/{CART}".encode(), PARTITIONS)
    elsewhere = partition_of(f"data/{DB}".encode(), PARTITIONS)
    assert partition != elsewhere
    topic = settings.topics.pods
    for future in admin.delete_records([TopicPartition(topic, partition, 4)]).values():
        future.result()
    left = sorted([*values[4:], *others])
    assert sorted(tailed(settings)) == left
    assert not caplog.records
    # As if the first was still there when we began.
    ear, out = Ear(), io.BytesIO()
    consumer = tail_module._consumer(settings, ear)
    found = find_topics(admin, [topic])
    lines = JsonLines(all_metrics=True, for_terminal=False)
    at, ends = (
        dict.fromkeys([(topic, partition), (topic, elsewhere)], 0),
        {(topic, partition): 6, (topic, elsewhere): 500},
    )
    loop = tail_module._Loop(settings, admin, found, ear, consumer, at, ends, lines, out)
    assert loop.run(threading.Event())
    consumer.close()
    assert sorted(out.getvalue().splitlines()) == left
    assert [record.message for record in caplog.records] == ["records were deleted before they were read"]


def test_nothing_is_left_in_kafka(settings: TailSettings, writer: Writer, admin: AdminClient) -> None:
    """No group, no commit: looking has no effect."""
    writer.send(*windows(range(3)))
    tailed(settings)
    groups = admin.list_consumer_groups().result().valid
    assert not [group for group in groups if group.group_id.startswith(settings.topics.prefix)]


def test_what_cannot_be() -> None:
    """Faults are told before Kafka is asked."""
    done = run(stream_app("tail", "--group-by", "service", "--pod", "x"), code=2)
    assert "records of services have no pod: give --service" in done.stderr
    done = run(stream_app("tail", "--from", "yesterday", "--lines", "0"), code=2)
    assert "2 settings are wrong" in done.stderr
    assert "or earliest or latest" in done.stderr


def test_a_broker_that_comes_back(tmp_path: Path) -> None:
    """An outage is waited out, and nothing of what comes afterwards is missed."""
    topics = Topics("tail")
    first, second = windows(range(2))
    with LocalKafka(tmp_path) as broker:
        make(AdminClient({"bootstrap.servers": broker.bootstrap_servers}), topics)
        Writer(broker, topics).send(first)
        with Tail(TailSettings(broker.cluster, topics), "--json", "--from", "earliest") as tail:
            assert tail.line() == first
            broker.stop()
            time.sleep(2)
            broker.start()
            Writer(broker, topics).send(second)
            assert tail.line() == second
            code, out, errors = tail.interrupted()
            assert (code, out) == (0, b"")
            assert errors.count(b"\n") == errors.count(b"kafka client")


def test_records_of_a_real_worker(
    kafka: LocalKafka, prometheus: LocalPrometheus, samples: pd.DataFrame, tmp_path: Path
) -> None:
    """From Prometheus to a line: every window of the oracle's, with its values."""
    prefix = f"tail-whole-{uuid.uuid4().hex[:8]}"
    run(backfill(prometheus, kafka, prefix))
    view = view_of(prefix, "7m", "mean")
    with worker(kafka, view, tmp_path / "worker.log") as child:
        wait_until_windowed(kafka, view, child)
    settings = TailSettings(kafka.cluster, Topics(prefix), start="earliest", follow=False)
    records = [decode_record(line) for line in tailed(settings)]
    cells = {(r.namespace, r.pod, r.window_start_ms): r.metrics for r in records}
    expected = oracle.windows(samples, "7m", "mean", "pod")
    assert len(records) == len(cells)
    assert cells.keys() == expected.keys()
    for key, metrics in expected.items():
        assert cells[key].keys() == metrics.keys()
        assert all(oracle.same(cells[key][name], value) for name, value in metrics.items())
