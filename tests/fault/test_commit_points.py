"""Processes killed at each point of their commits: nothing is missing, doubled, wrong or too many afterwards."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import chunks
import click
import consuming
import files
import history
import killed_sink
import orjson
import pandas as pd
import pod_topic
import pyarrow.dataset as ds
import pytest
import verdict
from commands import PATIENCE_S, backfill, run, view_of, wait_until_windowed, worker
from confluent_kafka import Consumer, TopicPartition
from kafka_proxy import Api, KafkaProxy, Point
from proxied_kafka import ProxiedKafka

from ingestor.kafka import client_config, read_to_end
from ingestor.local.processes import Child
from ingestor.local.prometheus import LocalPrometheus
from stream_app.records import Record, decode_record


def points(of: str, *apis: Api, nth: int = 1) -> list[Point]:
    """Return where the broker has not heard of a request yet, one after another, and where it has done the last one.

    To whoever is killed, behind one request is before the next.
    """
    places = [(api, False) for api in apis] + [(apis[-1], True)]
    return [Point(api, is_answered, nth, of.encode()) for api, is_answered in places]


def kill_at_each(points: Sequence[Point], child: Child, net: KafkaProxy) -> None:
    """Start a process and SIGKILL it, once for each point."""
    for point in points:
        stop = net.stop_at(point)
        child.start()
        while not stop.reached.wait(0.2):
            assert child.poll() is None, f"it ended before {point}: {child.log_tail()}"
        child.kill()
        stop.drop()
        click.echo(f"  killed {point}")


def test_the_poller(
    broker: ProxiedKafka, net: KafkaProxy, prometheus: LocalPrometheus, samples: pd.DataFrame, tmp_path: Path
) -> None:
    """When it asks for its claims' id and commits them, when it names a range's partitions, sends and commits it, and
    when it has committed.
    """
    view = view_of("points-poller", "1m", "mean")
    command = backfill(prometheus, broker.way_in, view.topics.prefix, "--range-samples", "1000")
    poller = Child(command, log_path=tmp_path / "poller.log")
    claims, ranges = (f"{view.topics.prefix}.poller.{of}" for of in ("claims", "backfill"))
    apis = (Api.ADD_PARTITIONS_TO_TXN, Api.PRODUCE, Api.END_TXN)
    kill_at_each(
        [
            *points(claims, Api.INIT_PRODUCER_ID, Api.END_TXN),
            *points(ranges, *apis, nth=2),
            *points(ranges, Api.PRODUCE, nth=3),
        ],
        poller,
        net,
    )
    poller.start()
    assert poller.wait(PATIENCE_S) == 0, poller.log_tail()
    published = chunks.published(broker.cluster, view.topics.prefix)
    assert not published.duplicated(["namespace", "pod", "metric", "series", "timestamp"]).any()
    assert len(published) == len(samples)
    with worker(broker, view, tmp_path / "worker.log") as child:
        wait_until_windowed(broker, view, child)
    verdict.assert_right(broker, view, samples, tmp_path / "data", history.TIME)


def test_the_worker(
    broker: ProxiedKafka, net: KafkaProxy, prometheus: LocalPrometheus, samples: pd.DataFrame, tmp_path: Path
) -> None:
    """When it asks for its id, names partitions and group, sends records and offset, commits and has committed."""
    view = view_of("points-worker", "1m", "mean")
    run(backfill(prometheus, broker, view.topics.prefix, "--range-samples", "1000"))
    child = worker(broker.way_in, view, tmp_path / "worker.log")
    mine = f"{view.group_id}.slot-0"
    apis = (
        Api.ADD_PARTITIONS_TO_TXN, Api.PRODUCE, Api.ADD_OFFSETS_TO_TXN, Api.TXN_OFFSET_COMMIT, Api.END_TXN
    )  # fmt: skip
    kill_at_each(points(mine, Api.INIT_PRODUCER_ID, *apis), child, net)
    with child:
        wait_until_windowed(broker, view, child)
    verdict.assert_right(broker, view, samples, tmp_path / "data", history.TIME)


def windows(minutes: range, services: Sequence[str], pods: Sequence[str], **changed: Any) -> list[bytes]:
    return [pod_topic.record(minute, f"{s}-{p}", s, **changed) for minute in minutes for s in services for p in pods]


@pytest.mark.parametrize("file_format", ["csv", "parquet"])
def test_the_file_sink(broker: ProxiedKafka, tmp_path: Path, file_format: str) -> None:
    """Before and behind everything that it brings to disk, renames or removes: of new files, of rows behind others,
    of history before them, and of rows that replace others.
    """
    topic = pod_topic.PodTopic(broker)
    topic.make()
    storage = tmp_path / "data"
    program = [sys.executable, killed_sink.__file__, broker.bootstrap_servers, topic.names.prefix, storage, file_format]
    sent: dict[tuple[str, int], dict[str, float]] = {}
    died: Counter[str] = Counter()
    for values in (
        windows(range(20, 30), ["cart"], "0"),
        windows(range(30, 34), ["cart", "orders"], "01"),
        [
            *windows(range(20), ["cart"], "0"),
            *windows(range(22, 26), ["cart"], "0", revision=1, metrics={"cpu": 0.5}),
        ],
    ):
        topic.send(*values)
        records = [decode_record(value) for value in values]
        sent |= {(record.pod or "", record.window_start_ms): dict(record.metrics) for record in records}
        done = run(list(map(str, program)))
        died.update(done.stdout.splitlines())
        found = written(storage, file_format)
        assert len(found) == len(sent)
        assert dict(found) == sent
    click.echo(f"  {file_format}: {died.total()} kills, {died}")
    assert {f"{at} checkpoint.log" for at in ("before fsync", "behind fsync")} <= died.keys()
    assert any(place.startswith("before replace") for place in died)
    assert any(place.startswith("behind replace") for place in died)


def written(storage: Path, file_format: str) -> list[tuple[tuple[str, int], dict[str, float]]]:
    """Return all rows of a storage: pod and window's start, and cells."""
    if file_format == "csv":
        return [((pod, at), cells) for (_, pod, at), cells in files.read(storage, pods=True).items()]
    table = ds.dataset(storage, format="parquet", partitioning="hive", exclude_invalid_files=True).to_table()
    rows = table.select(["pod", "timestamp", "cpu", "memory"]).to_pylist()
    return [
        (
            (row["pod"], round(row["timestamp"].timestamp() * 1000)),
            {m: row[m] for m in ("cpu", "memory") if row[m] is not None},
        )
        for row in rows
    ]


def test_the_consumer(broker: ProxiedKafka, net: KafkaProxy, tmp_path: Path) -> None:
    """What it has processed comes again where its commit has not reached the broker, and never where it has, though it
    was not told so: each window is processed and committed once.
    """
    topic = pod_topic.PodTopic(broker)
    topic.make()
    values = windows(range(40), ["cart", "orders", "web"], "01")
    topic.send(*values)
    log = tmp_path / "processed"
    group = consuming.group_of(topic.names.prefix)
    where = [broker.way_in.cluster.bootstrap_servers, topic.names.prefix, str(log)]
    member = Child(
        [sys.executable, consuming.__file__, *where, "--name", "model-0", "--by-hand", "--until-now"],
        log_path=tmp_path / "member.log",
    )
    written = {
        (partition, message.offset()): window_of(decode_record(message.value()))
        for partition in range(topic.partitions)
        for message in read_to_end(broker.cluster, topic.names.pods, partition)
    }
    safe, unheard = set[str](), set[str]()
    # The first commit of a life is of where it begins; the loop's come then, mostly once each.
    for nth, is_answered in ((1, False), (2, False), (2, True), (3, False), (3, True)):
        kill_at_each([Point(Api.OFFSET_COMMIT, is_answered, nth, group.encode())], member, net)
        told, untold = last_life(log)
        now_safe = committed(broker, topic, group, written)
        assert not safe & (told | untold), "it was committed, and came again"
        assert told <= now_safe - safe <= told | untold
        unheard |= now_safe - safe - told
        safe = now_safe
    member.start()
    assert member.wait(PATIENCE_S) == 0, member.log_tail()
    told, untold = last_life(log)
    assert not safe & told
    assert not untold
    assert committed(broker, topic, group, written) == safe | told == set(written.values())
    again = log.read_text().count("shop/") - len(written)
    click.echo(f"  {len(written)} windows; {again} came again, {len(unheard)} were committed and nobody was told")
    assert again > 0
    assert unheard


def last_life(log: Path) -> tuple[set[str], set[str]]:
    """Return the windows that a life has processed: those whose commit it has heard of, and those after them."""
    life = log.read_text().rpartition("begin\n")[2]
    # Whoever ends in order has committed all.
    told, _, untold = (life, "", "") if life.endswith("end\n") else life.rpartition("committed\n")
    return windows_in(told), windows_in(untold)


def windows_in(lines: str) -> set[str]:
    found = [" ".join(line.split()[:2]) for line in lines.splitlines() if " " in line]
    assert len(found) == len(set(found)), "a window came twice in one life"
    return set(found)


def window_of(record: Record) -> str:
    return f"shop/{record.pod} {record.window_start_ms}"


def committed(
    broker: ProxiedKafka, topic: pod_topic.PodTopic, group: str, written: Mapping[tuple[int, int], str]
) -> set[str]:
    """Return the windows that the broker knows as processed."""
    consumer = Consumer({**client_config(broker.cluster), "group.id": group})
    places = [TopicPartition(topic.names.pods, partition) for partition in range(topic.partitions)]
    stored = consumer.committed(places, 30)
    consumer.close()
    until = {at.partition: orjson.loads(at.metadata)["processed"] for at in stored if at.metadata}
    return {window for (partition, offset), window in written.items() if offset < until.get(partition, 0)}
