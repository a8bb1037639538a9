"""Readers that retention overtakes while they run: their next request asks for what is deleted meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import builders
import oracle
import pandas as pd
import pytest
from commands import PATIENCE_S, run, stream_app, view_flags, view_of, wait_until, wait_until_windowed
from files import assert_equal_to_oracle, read
from kafka_proxy import Api, KafkaProxy, Point
from pod_topic import MINUTE_MS, NOON_MS, PodTopic, record
from proxied_kafka import ProxiedKafka
from test_worker_refusals import (
    BUSY,
    RANGES,
    Hole,
    assert_told,
    cells,
    delete_records,
    made,
    publish,
    records,
    without,
    work,
)

from ingestor.kafka import read_to_end
from ingestor.local.processes import Child
from ingestor.options import cluster_arguments
from stream_app.consumer import PodConsumer

CHUNKS = 8
"""Messages of each busy partition that a worker has read when it is overtaken: of each range a chunk and a marker."""


@pytest.fixture
def topic(broker: ProxiedKafka) -> Iterator[PodTopic]:
    made = PodTopic(broker)
    made.make()
    yield made
    made.delete()


def overtake(net: KafkaProxy, act: Callable[[], object]) -> None:
    """Do something while the reader's next request for messages is on its way."""
    stop = net.stop_at(Point(Api.FETCH, is_answered=False))
    assert stop.reached.wait(PATIENCE_S)
    act()
    stop.go_on()


@pytest.mark.parametrize("accepts", [False, True])
def test_a_worker(
    broker: ProxiedKafka, net: KafkaProxy, samples: pd.DataFrame, tmp_path: Path, *, accepts: bool
) -> None:
    """It ends as its next start is refused; told to accept it, it goes on, and marks what is cut, and only that."""
    view = view_of(f"overtaken-{accepts}".lower(), "5m", "mean")
    made(broker, view)
    streams = builders.messages(samples, RANGES)
    publish(broker, view, [stream[:CHUNKS] for stream in streams])
    until_ms = view.chunk_size.floor_ms(RANGES[CHUNKS // 2 - 1].end_ms)
    early = oracle.windows(samples[samples["timestamp"] < until_ms], "5m", "mean", "pod")
    # Of the range that is cut, a chunk that is there may not be the only one.
    first = {number: 12 + place % 2 for place, number in enumerate(BUSY)}
    told = [Hole(number, until_ms, RANGES[6].end_ms) for number in first]
    # A worker that goes on has of an open window in memory what it has read.
    from_ms = RANGES[CHUNKS // 2].start_ms if accepts else until_ms
    gone = [Hole(number, from_ms, RANGES[6 - (at == 12)].end_ms) for number, at in first.items()]

    def delete() -> None:
        publish(broker, view, [stream[CHUNKS:] for stream in streams])
        delete_records(broker, view.topics.range_chunks, first)

    where = ["--topic-prefix", view.topics.prefix, *cluster_arguments(broker.way_in.cluster), "--slot", "0"]
    flags = ["--web-listen-address", "none", *view_flags(view), *(["--accept-loss"] if accepts else [])]
    with Child(stream_app("worker", *where, *flags), log_path=tmp_path / "worker.log") as child:
        wait_until(lambda: len(records(broker, view)) == len(early), child)
        overtake(net, delete)
        if accepts:
            wait_until_windowed(broker, view, child)
        else:
            assert child.wait(PATIENCE_S) == 2, child.log_tail()
    log = child.log_path.read_text()
    assert log.count("chunks were deleted before they were read") == (len(BUSY) if accepts else 0)
    if not accepts:
        [line] = [line for line in log.splitlines() if line.startswith("error:")]
        for words in (view.topics.range_chunks, "deleted by retention", "retention.ms", "--accept-loss"):
            assert words in line
        assert cells(records(broker, view)).keys() == early.keys()
        work(broker, view, tmp_path / "accepted.log", "--accept-loss")
    assert_told(records(broker, view), told)
    assert_equal_to_oracle(cells(records(broker, view)), without(samples, gone), "5m", "mean", "pod")


def delete_up_to(topic: PodTopic, *, left: int) -> None:
    """Delete all of the pod's records but the last few."""
    offsets = [message.offset() for message in read_to_end(topic.kafka.cluster, topic.names.pods, topic.partition())]
    delete_records(topic.kafka, topic.names.pods, {topic.partition(): offsets[-left]})


def test_files(broker: ProxiedKafka, net: KafkaProxy, topic: PodTopic, tmp_path: Path) -> None:
    """It ends with a line that says what to do; what is in the files stays, and another storage takes what is left."""
    topic.send(*(record(m) for m in range(5)))
    flags = ["--topic-prefix", topic.names.prefix, "--storage"]
    command = stream_app("files", *cluster_arguments(broker.way_in.cluster), *flags, str(tmp_path / "data"))
    with Child(command, log_path=tmp_path / "files.log") as child:
        # A header and five rows: whole lines only.
        wait_until(lambda: sum(file.read_text().count("\n") for file in tmp_path.glob("data/*/*.csv")) == 6, child)

        def delete() -> None:
            topic.send(*(record(m) for m in range(5, 10)))
            delete_up_to(topic, left=2)

        overtake(net, delete)
        assert child.wait(PATIENCE_S) == 1, child.log_tail()
    [line] = [line for line in child.log_path.read_text().splitlines() if line.startswith("error:")]
    for words in (f"{topic.names.pods} [{topic.partition()}] has lost what follows", "another --storage"):
        assert words in line
    assert minutes(tmp_path / "data") == [0, 1, 2, 3, 4]
    direct = stream_app("files", *cluster_arguments(broker.cluster), "--until-idle", "--idle", "1ms", *flags)
    assert "lost offsets" in run([*direct, str(tmp_path / "data")], code=1).stderr
    run([*direct, str(tmp_path / "anew")])
    assert minutes(tmp_path / "anew") == [8, 9]


def minutes(storage: Path) -> list[int]:
    return [(start_ms - NOON_MS) // MINUTE_MS for _, _, start_ms in read(storage, pods=True)]


@pytest.mark.parametrize("group", [None, "model"])
def test_a_model(
    broker: ProxiedKafka, net: KafkaProxy, topic: PodTopic, caplog: pytest.LogCaptureFixture, group: str | None
) -> None:
    """It is told, and goes on with the first window that is left; what it knew of the pod is history still."""
    topic.send(*(record(m) for m in range(5)))
    where = topic.where | {"bootstrap_servers": broker.way_in.cluster.bootstrap_servers}
    with PodConsumer(**where, group=group, start="earliest", lookback="20m") as pods:
        found = [next(pods) for _ in range(5)]

        def delete() -> None:
            topic.send(*(record(m) for m in range(5, 10)))
            delete_up_to(topic, left=2)

        overtake(net, delete)
        found += [next(pods) for _ in range(2)]
        known = [round(t.timestamp() * 1000 - NOON_MS) // MINUTE_MS for t in found[-1].frame().index]
    assert [(w.record.window_start_ms - NOON_MS) // MINUTE_MS for w in found] == known == [0, 1, 2, 3, 4, 8, 9]
    assert [r.message for r in caplog.records].count("records were deleted before they were read") == 1
