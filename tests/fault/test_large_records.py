"""Records that are too large, for us or for a topic that takes less: what becomes of them, and of all others."""

from __future__ import annotations

import json
import random
import threading
from pathlib import Path

import builders
import feeding
import files
import numpy as np
import oracle
import pandas as pd
import records
from commands import PATIENCE_S, end, view_of, wait_for_line, wait_until, wait_until_windowed, worker, write_files
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType

from ingestor.core.time_range import iso
from ingestor.kafka import MAX_MESSAGE_BYTES, client_config, read_to_end
from ingestor.local.kafka import LocalKafka
from stream_app.consumer import PodConsumer
from stream_app.view import View

MINUTE_MS = 60_000
LENGTH_MS = 3 * MINUTE_MS
HUGE_MS = [feeding.START_MS, feeding.START_MS + 2 * MINUTE_MS]
"""The windows in which one pod has far too many metrics."""
METRICS = 2_100


ONE = {"namespace": "shop", "pod": "huge-0", "series": ""}


def without_many() -> pd.DataFrame:
    """Return the samples of pods in all partitions, and of one metric of the pod that has many."""
    stamps = [feeding.START_MS + minute * MINUTE_MS for minute in range(3)]
    up = pd.DataFrame(ONE | {"metric": "up", "timestamp": stamps, "value": 1.0})
    return pd.concat([feeding.samples(LENGTH_MS, 1), up], ignore_index=True)


def many(names: list[str]) -> pd.DataFrame:
    """Return a sample of each of *names* in the first and the last window."""
    values = np.random.default_rng(3).random(2 * len(names))
    return pd.DataFrame(
        ONE | {"metric": np.tile(names, 2), "timestamp": np.repeat(HUGE_MS, len(names)), "value": values}
    )


def publish(kafka: LocalKafka, view: View, *held: pd.DataFrame) -> None:
    feed = feeding.Feed(kafka.cluster, view.topics, pd.concat(held), feeding.ranges(LENGTH_MS, MINUTE_MS // 2), 0.0)
    feed.run(threading.Event())


def test_a_record_that_is_too_large(kafka: LocalKafka, tmp_path: Path) -> None:
    """It says that its metrics are missing, and a dead letter says why, once each; all others are whole and right.

    So it is in the topics, where the worker was killed as it met the first, and for whoever reads them.
    """
    view = view_of("large", "1m", "mean", "pod", "service")
    held = without_many()
    publish(kafka, view, held, many([f"{'a_long_name_' * 84}{number}" for number in range(METRICS)]))
    child = worker(kafka, view, tmp_path / "worker.log")
    child.start()
    wait_for_line(child, "a record is too large")
    child.kill()
    with worker(kafka, view, tmp_path / "again.log") as child:
        wait_until_windowed(kafka, view, child)
        end(child)
    for group_by, who in [("pod", "huge-0"), ("service", "huge")]:
        topic = view.topics.sink(group_by)
        expected = oracle.windows(held, "1m", "mean", group_by) | {("shop", who, start_ms): {} for start_ms in HUGE_MS}
        found = records.read(kafka.cluster, topic, builders.PARTITIONS)
        cells = {records.key(record): record.metrics for record in found}
        assert len(cells) == len(found)
        assert records.compare_cells(cells, expected).is_right
        huge = {(r.window_start_ms, r.samples, r.partial) for r in found if r.incomplete == ("*",)}
        assert huge == {(start_ms, METRICS + 1, True) for start_ms in HUGE_MS}
        assert sum(r.partial or bool(r.incomplete) for r in found) == len(HUGE_MS)
        assert_told(kafka, view, topic, f"shop/{who}")
    expected = oracle.windows(held, "1m", "mean", "pod") | {("shop", "huge-0", start_ms): {} for start_ms in HUGE_MS}
    write_files(kafka, view, tmp_path / "data")
    assert records.compare_cells(files.read(tmp_path / "data", pods=True), expected).is_right
    where = {"bootstrap_servers": kafka.bootstrap_servers, "topic_prefix": view.topics.prefix}
    with PodConsumer(**where, until="now", lookback="3m") as pods:
        seen = {records.key(window.record): window for window in pods}
    assert records.compare_cells({key: window.metrics for key, window in seen.items()}, expected).is_right
    assert seen["shop", "huge-0", HUGE_MS[1]].incomplete == ("*",)
    assert seen["shop", "huge-0", HUGE_MS[1]].frame()["up"].dropna().tolist() == [1.0]


def assert_told(kafka: LocalKafka, view: View, topic: str, who: str) -> None:
    """Check that dead letters name each window of *who* once, and what to do."""
    letters = [m for p in range(builders.PARTITIONS) for m in read_to_end(kafka.cluster, view.topics.dead_letters, p)]
    mine = [letter for letter in letters if dict(letter.headers())["dead-letter.topic"] == topic.encode()]
    for letter, start_ms in zip(mine, HUGE_MS, strict=True):
        headers = {name.removeprefix("dead-letter."): text.decode() for name, text in letter.headers()}
        assert (letter.key(), json.loads(letter.value())["window_start"]) == (who.encode(), start_ms)
        assert headers.keys() == {"topic", "partition", "error", "cut"}
        assert int(headers["partition"]) == letter.partition()
        assert int(headers["cut"]) > 2_000_000
        for words in (who, iso(start_ms), f"{int(headers['cut']):,} bytes", "--match", "--relabel", "--split-by"):
            assert words in headers["error"]


def test_a_topic_that_takes_less(kafka: LocalKafka, tmp_path: Path) -> None:
    """A start says which topic takes less than records may have; who meets such a record names it, and what to give."""
    view = view_of("narrow-topic", "1m", "mean")
    admin = AdminClient(client_config(kafka.cluster))
    # As the releases before made it.
    made = admin.create_topics([NewTopic(view.topics.pods, builders.PARTITIONS, 1)])
    made[view.topics.pods].result()
    generator = random.Random(5)
    # What does not compress.
    held, large = without_many(), many([f"m{generator.getrandbits(3200):0800x}" for _ in range(METRICS)])
    # Of one window, and the last of its partition: what follows makes the library wait for half a minute.
    held, large = (frame[frame["timestamp"] < feeding.START_MS + MINUTE_MS] for frame in (held, large))
    publish(kafka, view, held, large)
    child = worker(kafka, view, tmp_path / "worker.log")
    child.start()
    assert child.wait(PATIENCE_S) == 1, child.log_tail()
    lines = child.log_path.read_text().splitlines()
    [warned] = [line for line in lines if "max_message_bytes=" in line]
    [error] = [line for line in lines if line.startswith("error:")]
    assert f"--entity-name {view.topics.pods} --add-config max.message.bytes={MAX_MESSAGE_BYTES}" in warned
    for words in ("shop/huge-0", view.topics.pods, f"max.message.bytes={MAX_MESSAGE_BYTES}"):
        assert words in error
    alter(admin, view.topics.pods, MAX_MESSAGE_BYTES)
    with worker(kafka, view, tmp_path / "again.log") as again:
        wait_until_windowed(kafka, view, again)
        end(again)
    assert "max_message_bytes=" not in again.log_path.read_text()
    found = records.read(kafka.cluster, view.topics.pods, builders.PARTITIONS)
    expected = oracle.windows(held, "1m", "mean", "pod")
    expected["shop", "huge-0", feeding.START_MS] |= dict(zip(large["metric"], large["value"], strict=True))
    cells = {records.key(record): record.metrics for record in found}
    assert len(cells) == len(found)
    assert records.compare_cells(cells, expected).is_right
    assert not any(record.incomplete for record in found)


def alter(admin: AdminClient, topic: str, most_bytes: int) -> None:
    entry = ConfigEntry("max.message.bytes", str(most_bytes), incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin.incremental_alter_configs([resource])[resource].result()
    asked = ConfigResource(ResourceType.TOPIC, topic)
    wait_until(lambda: admin.describe_configs([asked])[asked].result()["max.message.bytes"].value == str(most_bytes))
