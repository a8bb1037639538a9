"""What a worker does when something is wrong: what it sets aside, what it refuses, and what it says to do."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import builders
import files
import history
import oracle
import orjson
import pandas as pd
import poisoned
import requests
from commands import (
    end,
    run,
    stream_app,
    view_flags,
    view_of,
    wait_for_line,
    wait_until,
    wait_until_windowed,
    write_files,
)
from confluent_kafka import Consumer, ConsumerGroupState, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from test_worker_pages import scraped, url_in
from valid_records import decode_record

from ingestor.core import wire
from ingestor.core.chunk import Header
from ingestor.core.errors import MalformedMessage
from ingestor.core.time_range import TimeRange
from ingestor.core.topics import message_key, partition_of
from ingestor.kafka import client_config, connect, ensure_topics, read_to_end
from ingestor.local.kafka import LocalKafka
from ingestor.local.processes import Child
from ingestor.workloads import service_of
from stream_app.consumer import Malformed, PodConsumer
from stream_app.records import Record
from stream_app.records import decode_record as decoded
from stream_app.view import View

EMPTY = ConsumerGroupState.EMPTY
MINUTE_MS = 60_000
RANGE_MS = 10 * MINUTE_MS
RANGES = [TimeRange(start, start + RANGE_MS) for start in range(history.START_MS, history.END_MS, RANGE_MS)]

Message = tuple[list[tuple[str, bytes]] | None, bytes]


class Hole(NamedTuple):
    """What is lost of a partition."""

    partition: int
    start_ms: int
    end_ms: int


def partition(namespace: str, pod: str) -> int:
    return partition_of(message_key(namespace, service_of(pod)), builders.PARTITIONS)


BUSY = sorted({partition(*pod) for pod in history.PODS})


def made(kafka: LocalKafka, view: View) -> None:
    ensure_topics(connect(kafka.cluster), view.topics, builders.PARTITIONS)


def publish(kafka: LocalKafka, view: View, streams: list[list[Message]]) -> None:
    """Publish each partition's messages, as they are."""
    producer = Producer(client_config(kafka.cluster))
    for number, stream in enumerate(streams):
        for headers, value in stream:
            producer.produce(view.topics.range_chunks, value, headers=headers, partition=number)
    assert producer.flush(30) == 0


def where(kafka: LocalKafka, view: View) -> list[str]:
    return ["--topic-prefix", view.topics.prefix, "--bootstrap-servers", kafka.bootstrap_servers, "--slot", "0"]


def worker(kafka: LocalKafka, view: View, log: Path, *flags: str) -> Child:
    """Return a worker of a view, in its own words or those of *flags*."""
    return Child(
        stream_app("worker", *where(kafka, view), "--web-listen-address", "none", *view_flags(view), *flags),
        log_path=log,
    )


def work(kafka: LocalKafka, view: View, log: Path, *flags: str) -> None:
    """Let a worker do all that there is to do."""
    with worker(kafka, view, log, *flags) as child:
        wait_until_windowed(kafka, view, child)
        end(child)


def refused(kafka: LocalKafka, view: View, *flags: str, code: int = 2) -> str:
    """Return the line with which a worker ends at once."""
    command = stream_app("worker", *where(kafka, view), "--web-listen-address", "none", *view_flags(view), *flags)
    told = run(command, code).stderr
    assert "Traceback" not in told
    errors = [line for line in told.splitlines() if line.lower().startswith("error:")]
    assert len(errors) == 1, told
    return errors[0]


def messages_of(kafka: LocalKafka, topic: str) -> list:
    return [m for p in range(builders.PARTITIONS) for m in read_to_end(kafka.cluster, topic, p)]


def records(kafka: LocalKafka, view: View) -> list[Record]:
    """Return a view's records as they stand, those of other views left out."""
    found = (decode_record(m.value()) for name in view.group_by for m in messages_of(kafka, view.topics.sink(name)))
    return [r for r in found if (r.chunk_size, r.method) == (str(view.chunk_size), view.method_name)]


def cells(found: list[Record]) -> dict[tuple[str, str, int], dict[str, float]]:
    """Return records as the oracle gives them; none is there twice."""
    by_name = {(r.namespace, r.pod or r.service, r.window_start_ms): r.metrics for r in found}
    assert len(by_name) == len(found), "a record came twice"
    return by_name


def assert_told(found: list[Record], holes: list[Hole]) -> None:
    """Check that the records of windows with a hole say so, and no others; those that the job cuts are partial too."""
    cuts = RANGES[0].start_ms, RANGES[-1].end_ms
    for record in found:
        start_ms, end_ms = record.window_start_ms, record.window_end_ms
        mine = [hole for hole in holes if hole.partition == partition(record.namespace, record.pod)]
        has_hole = any(hole.start_ms < end_ms and start_ms < hole.end_ms for hole in mine)
        assert record.incomplete == (("*",) if has_hole else ()), record
        assert record.partial == (has_hole or any(start_ms < cut < end_ms for cut in cuts)), record


def without(samples: pd.DataFrame, holes: list[Hole]) -> pd.DataFrame:
    """Return the samples that are in no hole."""
    numbers = pd.Series([partition(*pod) for pod in zip(samples["namespace"], samples["pod"], strict=True)])
    gone = pd.Series(data=False, index=samples.index)
    for hole in holes:
        gone |= (
            (numbers.to_numpy() == hole.partition)
            & (samples["timestamp"] >= hole.start_ms)
            & (samples["timestamp"] < hole.end_ms)
        )
    return samples[~gone]


def kill_at(child: Child, text: str, times: int) -> None:
    """Start a worker and SIGKILL it as soon as it has said *text* so many times."""
    child.start()
    wait_until(lambda: child.log_path.read_text().count(text) >= times, child)
    child.kill()


def end_transaction(kafka: LocalKafka, view: View) -> None:
    """End what a killed worker of slot 0 has left open, as its next start would: it hides what comes behind it."""
    producer = Producer({**client_config(kafka.cluster), "transactional.id": f"{view.group_id}.slot-0"})
    producer.init_transactions(30)


def delete_records(kafka: LocalKafka, topic: str, first: dict[int, int]) -> None:
    """Delete what lies before the offset *first* of each partition, as retention would."""
    before = [TopicPartition(topic, number, offset) for number, offset in first.items()]
    admin = AdminClient(client_config(kafka.cluster))
    for future in admin.delete_records(before).values():
        future.result()


def test_what_cannot_be_read_is_set_aside_once(kafka: LocalKafka, samples: pd.DataFrame, tmp_path: Path) -> None:
    """Five kinds of poison on all busy partitions, a worker that is killed around them: each is a dead letter once.

    The windows of what was lost say so, all others are whole and right. The last worker still meets a message that
    says nothing of itself and one that does.
    """
    view = view_of("poisoned", "5m", "mean")
    made(kafka, view)
    streams: list[list[Message]] = builders.messages(samples, RANGES)
    poison: dict[tuple[int, int], tuple[str, Message]] = {}
    lost: list[Hole] = []
    for place, number in enumerate(BUSY):
        # Each range of a busy partition is a chunk and a marker.
        for kind, n in [("cut", 1), ("schema", 3), ("headless", 5), ("large", 7), ("foreign", 9)]:
            at = 2 * (n + place % 2) + (kind == "foreign")
            headers, value = streams[number][at]
            assert kind == "foreign" or dict(headers)["kind"] == b"chunk"
            message = {
                "cut": (headers, value[: len(value) // 2]),
                "schema": ([(k, b"other.thing/7" if k == "schema" else v) for k, v in headers], value),
                "headless": (None, value),
                "large": (headers, b"garbage." * 118_750),
                "foreign": ([("trace", b"\x00\xff"), ("empty", None)], b'{"hello": "world"}'),
            }[kind]
            if kind == "foreign":
                streams[number].insert(at, message)
            else:
                streams[number][at] = message
                lost.append(Hole(number, RANGES[n + place % 2].start_ms, RANGES[n + place % 2].end_ms))
            poison[number, at] = kind, message
    for first, last, letters_seen in [(0, 7, 2), (7, 15, 4)]:
        publish(kafka, view, [stream[first:last] for stream in streams])
        kill_at(worker(kafka, view, tmp_path / f"{first}.log"), "a message cannot be read", letters_seen)
    end_transaction(kafka, view)
    before = len(messages_of(kafka, view.topics.dead_letters))
    with (
        worker(kafka, view, tmp_path / "last.log", "--web-listen-address", "127.0.0.1:0") as child,
        requests.Session() as session,
    ):
        publish(kafka, view, [stream[15:] for stream in streams])
        url = url_in(child)
        wait_until_windowed(kafka, view, child)
        counted = {name: n for name, n in scraped(session, url).items() if n and "dead_letters_total" in name}
        end(child)
    letters = messages_of(kafka, view.topics.dead_letters)
    told_of = [line for line in child.log_path.read_text().splitlines() if "a message cannot be read" in line]
    # What says nothing of itself is missing from no window.
    assert {("has no header 'schema'" in line, "its windows" in line) for line in told_of} == {
        (True, False),
        (False, True),
    }
    assert sum(counted.values()) == len(letters) - before > 0
    assert set(counted) == {f"podstream_worker_dead_letters_total {reason}" for reason in ("headers", "value")}
    found = {}
    for letter in letters:
        headers = dict(letter.headers())
        told = {name: headers.pop(f"dead-letter.{name}").decode() for name in ("topic", "partition", "offset", "error")}
        assert told["topic"] == view.topics.range_chunks
        assert told["error"]
        place = int(told["partition"]), int(told["offset"])
        assert letter.partition() == place[0]
        assert place not in found, "it was set aside twice"
        found[place] = headers, letter.value()
    assert found == {
        place: ({name: text or b"" for name, text in message[0] or ()}, message[1])
        for place, (_, message) in poison.items()
    }
    files.assert_equal_to_oracle(cells(records(kafka, view)), without(samples, lost), "5m", "mean", "pod")
    assert_told(records(kafka, view), lost)


def test_two_thousand_spoiled_messages(kafka: LocalKafka, samples: pd.DataFrame, tmp_path: Path) -> None:
    """Among a backfill's chunks they stop no worker, among its records no file sink and no model.

    A chunk that cannot be read is a dead letter once; each window of the backfill is right, for all three.
    """
    view, rng = view_of("spoiled", "5m", "mean"), random.Random(11)
    made(kafka, view)
    streams: list[list[Message]] = builders.messages(samples, RANGES)
    unreadable: Counter[int] = Counter()
    for number, message in enumerate(poisoned.spoiled_chunks(2_000, history.START_MS, rng)):
        at = number % builders.PARTITIONS
        streams[at].insert(rng.randrange(len(streams[at])), message)
        unreadable[at] += not can_be_read(wire.decode, *message)
    assert unreadable.total() > 1_000
    # What could be read of them is of a job that holds the commit back until it ends.
    ends = wire.headers("end", Header("spoiled", TimeRange(history.START_MS, history.END_MS), 2**62, "query"))
    for stream in streams:
        stream.append((ends, b""))
    half = [len(stream) // 2 for stream in streams]
    publish(kafka, view, [stream[:at] for stream, at in zip(streams, half, strict=True)])
    with worker(kafka, view, tmp_path / "worker.log") as child:
        wait_until(lambda: bool(messages_of(kafka, view.topics.pods)), child)
        no_records = spoil_records(kafka, view, 1_000, rng)
        publish(kafka, view, [stream[at:] for stream, at in zip(streams, half, strict=True)])
        wait_until_windowed(kafka, view, child)
        no_records += spoil_records(kafka, view, 1_000, rng)
        end(child)
    letters = [
        (m.partition(), dict(m.headers())["dead-letter.offset"]) for m in messages_of(kafka, view.topics.dead_letters)
    ]
    assert len(set(letters)) == len(letters)
    assert Counter(number for number, _ in letters) == unreadable
    malformed: list[Malformed] = []
    with PodConsumer(
        bootstrap_servers=kafka.bootstrap_servers, topic_prefix="spoiled", chunk_size="5m", method="mean", until="now",
        on_malformed=malformed.append,
    ) as pods:  # fmt: skip
        seen = [window.record for window in pods if window.record.job == "job"]
    assert_told(seen, [])
    files.assert_equal_to_oracle(cells(seen), samples, "5m", "mean", "pod")
    assert {(one.partition, one.value) for one in malformed} >= set(no_records)
    write_files(kafka, view, tmp_path / "data")
    sound = {namespace or "_" for namespace in samples["namespace"]}
    (tmp_path / "sound").mkdir()
    for folder in (tmp_path / "data").iterdir():
        if folder.name in sound:
            folder.rename(tmp_path / "sound" / folder.name)
    files.assert_equal_to_oracle(files.read(tmp_path / "sound", pods=True), samples, "5m", "mean", "pod")


def can_be_read(decode: Callable[..., object], *message: object) -> bool:
    try:
        decode(*message)
    except MalformedMessage:
        return False
    return True


def spoil_records(kafka: LocalKafka, view: View, count: int, rng: random.Random) -> list[tuple[int, bytes]]:
    """Write spoiled records of a namespace that is no other's; return partition and value of those that are none."""
    body = orjson.dumps({**orjson.loads(poisoned.RECORD), "namespace": "spoiled", "chunk_size": str(view.chunk_size)})
    producer, no_records = Producer(client_config(kafka.cluster)), []
    for number in range(count):
        at, value = number % builders.PARTITIONS, poisoned.spoiled(body, poisoned.JSON, rng)
        producer.produce(view.topics.pods, value, b"spoiled/api-0", at)
        if not can_be_read(decoded, value):
            no_records.append((at, value))
    assert producer.flush(30) == 0
    return no_records


def test_what_a_newer_podstream_wrote_is_waited_for(kafka: LocalKafka, samples: pd.DataFrame, tmp_path: Path) -> None:
    """The worker ends with a line that says where it is and to update; nothing is set aside or committed past it."""
    view = view_of("newer", "5m", "mean")
    made(kafka, view)
    streams = builders.messages(samples, RANGES)
    number, at = BUSY[-1], 8
    headers, value = streams[number][at]
    newer = [(name, b"podstream.range-chunk/2" if name == "schema" else text) for name, text in headers]
    publish(kafka, view, [[(newer, value) if m is streams[number][at] else m for m in s] for s in streams])
    line = refused(kafka, view, code=1)
    for words in (f"{view.topics.range_chunks} partition {number} offset {at}:", "update podstream"):
        assert words in line
    group = Consumer({**client_config(kafka.cluster), "group.id": view.group_id})
    [stored] = group.committed([TopicPartition(view.topics.range_chunks, number)], 30)
    group.close()
    assert stored.offset <= at
    assert not messages_of(kafka, view.topics.dead_letters)
    covered = [r for r in records(kafka, view) if partition(r.namespace, r.pod) == number]
    assert all(r.window_end_ms <= RANGES[at // 2].start_ms and not r.incomplete for r in covered)


def test_a_lost_commit_is_not_a_first_start(kafka: LocalKafka, samples: pd.DataFrame, tmp_path: Path) -> None:
    """Where records are and the group's offsets are gone, it is refused; other views of the topic are not."""
    view = view_of("forgotten", "5m", "mean", "pod", "service")
    made(kafka, view)
    publish(kafka, view, builders.messages(samples, RANGES))
    work(kafka, view, tmp_path / "first.log")
    once = Counter(map(repr, records(kafka, view)))
    # Retention cuts the sinks too.
    delete_records(kafka, view.topics.pods, dict.fromkeys(BUSY, 3))
    left = Counter(map(repr, records(kafka, view)))
    assert 0 < left.total() < once.total()
    admin = AdminClient(client_config(kafka.cluster))
    # A slot stays a member until its session ends.
    wait_until(lambda: admin.describe_consumer_groups([view.group_id])[view.group_id].result().state == EMPTY)
    admin.delete_consumer_groups([view.group_id])[view.group_id].result()
    other = view_of("forgotten", "10m", "mean", "pod", "service")
    with worker(kafka, other, tmp_path / "other.log") as child:
        line = refused(kafka, view)
        wait_until_windowed(kafka, other, child)
    assert view.group_id in line
    assert "--accept-loss" in line
    assert Counter(map(repr, records(kafka, view))) == left
    work(kafka, view, tmp_path / "accepted.log", "--accept-loss")
    assert Counter(map(repr, records(kafka, view))) == left + once


def test_chunks_that_retention_took(kafka: LocalKafka, samples: pd.DataFrame, tmp_path: Path) -> None:
    """A worker that must read what was deleted is refused; told to accept it, it marks what is cut, and only that."""
    view = view_of("deleted", "5m", "mean")
    made(kafka, view)
    streams = builders.messages(samples, RANGES)
    publish(kafka, view, [stream[:8] for stream in streams])
    # Each range of a busy partition is a chunk and a marker.
    until_ms = view.chunk_size.floor_ms(RANGES[3].end_ms)
    early = oracle.windows(samples[samples["timestamp"] < until_ms], "5m", "mean", "pod")
    with worker(kafka, view, tmp_path / "first.log") as child:
        wait_until(lambda: len(records(kafka, view)) == len(early), child)
        end(child)
    publish(kafka, view, [stream[8:] for stream in streams])
    first = {number: 12 + place % 2 for place, number in enumerate(BUSY)}
    assert set(first.values()) == {12, 13}
    delete_records(kafka, view.topics.range_chunks, first)
    line = refused(kafka, view)
    for words in (view.topics.range_chunks, "deleted by retention", "retention.ms", "--accept-loss"):
        assert words in line
    work(kafka, view, tmp_path / "accepted.log", "--accept-loss")
    # Of the range that is cut, a chunk that is there may not be the only one.
    told = [Hole(number, until_ms, RANGES[6].end_ms) for number in first]
    gone = [hole._replace(end_ms=RANGES[6 - (first[hole.partition] == 12)].end_ms) for hole in told]
    assert_told(records(kafka, view), told)
    files.assert_equal_to_oracle(cells(records(kafka, view)), without(samples, gone), "5m", "mean", "pod")


def test_memory_has_an_end(kafka: LocalKafka, samples: pd.DataFrame, tmp_path: Path) -> None:
    """A median over more samples than --max-held-values ends the worker, which says what to do; a mean holds none."""
    median, mean = view_of("held-values", "1d", "median"), view_of("held-values", "1d", "mean")
    made(kafka, median)
    publish(kafka, median, builders.messages(samples, RANGES))
    line = refused(kafka, median, "--max-held-values", "3000")
    for words in ("--max-held-values (3,000)", "median", "--chunk-size", "mean", "more workers"):
        assert words in line
    assert not records(kafka, median)
    work(kafka, mean, tmp_path / "mean.log", "--max-held-values", "3000")
    files.assert_equal_to_oracle(cells(records(kafka, mean)), samples, "1d", "mean", "pod")


def test_quantiles_are_no_groupings_of_each_other(kafka: LocalKafka, tmp_path: Path) -> None:
    """The dot of p99.9 is no border: a worker of p99 begins beside one of p99.9."""
    both, one = view_of("dotted", "5m", "p99.9", "pod", "service"), view_of("dotted", "5m", "p99", "service")
    made(kafka, both)
    with worker(kafka, both, tmp_path / "both.log") as child:
        wait_for_line(child, "worker is ready")
        with worker(kafka, one, tmp_path / "one.log") as other:
            wait_for_line(other, "worker is ready")
            assert child.poll() is None
