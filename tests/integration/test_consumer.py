"""``PodConsumer`` on a real Kafka: pods' windows, each with its history."""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import oracle
import pandas as pd
import pytest
from base_install import alone
from commands import PATIENCE_S, backfill, run, view_of, wait_until_windowed, worker, write_files
from files import read as read_files
from pod_topic import MINUTE_MS, NOON_MS, PodTopic, record

from ingestor.core.errors import ConfigError, PublishError
from ingestor.local.kafka import LocalKafka
from ingestor.local.prometheus import LocalPrometheus
from stream_app.consumer import Malformed, PodConsumer, Window


@pytest.fixture
def topic(kafka: LocalKafka) -> Iterator[PodTopic]:
    """Sink topics of this test alone."""
    made = PodTopic(kafka)
    made.make()
    yield made
    made.delete()


def finite(topic: PodTopic, **arguments: Any) -> PodConsumer:
    return PodConsumer(**topic.where, until="now", **arguments)


def windows(topic: PodTopic, **arguments: Any) -> list[Window]:
    with finite(topic, **arguments) as pods:
        return list(pods)


def minutes(frame: pd.DataFrame) -> list[int]:
    return minutes_of(frame.index)


def minutes_of(index: Any) -> list[int]:
    noon = pd.Timestamp(NOON_MS, unit="ms", tz="UTC")
    return [round((start - noon) / pd.Timedelta("1min")) for start in index]


def minute(window: Window) -> int:
    return (window.record.window_start_ms - NOON_MS) // MINUTE_MS


def test_windows_with_their_histories(topic: PodTopic) -> None:
    """Of each pod in the order of time; what was aborted is not there, and a history ends with its window."""
    for at in range(0, 20, 5):
        topic.send(*(record(m, pod) for m in range(at, at + 5) for pod in ("cart-0", "cart-1")))
        topic.send(record(at, "cart-9"), commit=False)
    found = windows(topic, lookback="10m")
    assert [(w.id, minute(w)) for w in found] == [(f"shop/{p}", m) for m in range(20) for p in ("cart-0", "cart-1")]
    for window in found:
        frame = window.frame()
        assert minutes(frame) == list(range(max(0, minute(window) - 9), minute(window) + 1))
        assert frame.columns.tolist() == ["cpu", "memory"]
        assert frame["cpu"].tolist() == [m / 7 for m in minutes(frame)]
        assert str(frame.index.tz) == "UTC"
        assert window.frame(["memory", "none"]).iloc[-1].tolist()[0] == minute(window)
        assert math.isnan(window.frame(["memory", "none"]).iloc[-1].tolist()[1])
    last = found[-1]
    assert (last.namespace, last.pod, last.service, last.late, last.revision) == ("shop", "cart-1", "cart", False, 0)
    assert last.end - last.start == pd.Timedelta("1min")
    assert last.metrics == {"cpu": 19 / 7, "memory": 19.0}


def test_without_a_lookback_a_history_is_the_window(topic: PodTopic) -> None:
    """Nothing is kept that was not asked for."""
    topic.send(*(record(m) for m in range(5)))
    assert [minutes(w.frame()) for w in windows(topic)] == [[m] for m in range(5)]


def test_the_latest_has_its_history_at_once(topic: PodTopic) -> None:
    """What comes after the opening is delivered, and looks back at what was there before."""
    topic.send(*(record(m) for m in range(100)), record(0, "web-0", "web"))
    with PodConsumer(**topic.where, lookback="30m") as pods:
        topic.send(record(100), record(1, "web-0", "web"))
        found = {window.id: window for window in itertools.islice(pods, 2)}
    assert minutes(found["shop/cart-0"].frame()) == list(range(71, 101))
    assert minutes(found["shop/web-0"].frame()) == [0, 1]


def test_the_latest_of_a_pipeline_that_stood_still(topic: PodTopic) -> None:
    """A lookback is counted from the newest window, by when it was written: not from now."""
    for m in range(100):
        topic.send_at(NOON_MS + (m + 1) * MINUTE_MS + 30_000, record(m))
    with PodConsumer(**topic.where, lookback="30m") as pods:
        topic.send_at(NOON_MS + 500 * MINUTE_MS, record(100))
        window = next(pods)
        assert minutes(window.frame()) == list(range(71, 101))
        # It did not read all, but from what was written in that time or later.
        assert pods._opened().partitions[topic.partition()]._beginning.offset == 69


def test_a_start_in_time(topic: PodTopic) -> None:
    """Windows that start there and later are delivered, with histories that reach back beyond."""
    for m in range(50):
        topic.send_at(NOON_MS + (m + 1) * MINUTE_MS, record(m))
    moment = datetime.fromtimestamp(NOON_MS / 1000, UTC) + timedelta(minutes=40)
    for start in (moment, moment.isoformat(), str(NOON_MS // 1000 + 2_400)):
        found = windows(topic, start=start, lookback="10m")
        assert [minute(w) for w in found] == list(range(40, 50))
        assert minutes(found[0].frame()) == list(range(31, 41))


def test_history_that_a_backfill_has_written(topic: PodTopic) -> None:
    """Kafka's timestamps are times of writing: a start finds what was written long after its time."""
    later_ms = NOON_MS + 1_000 * MINUTE_MS
    topic.send_at(later_ms, *(record(m) for m in range(90, 100)))
    topic.send_at(later_ms + 1, *(record(m, job="backfill") for m in range(90)))
    moment = datetime.fromtimestamp(NOON_MS / 1000, UTC) + timedelta(minutes=80)
    assert sorted(map(minute, windows(topic, start=moment))) == list(range(80, 100))


def test_a_backfill_behind_live(topic: PodTopic) -> None:
    """It is delivered when it comes, marked as late, with its own history; live windows then look back at it."""
    topic.send(*(record(m) for m in range(50, 60)))
    topic.send(*(record(m, job="backfill") for m in range(50)))
    topic.send(record(60))
    found = windows(topic, lookback="20m")
    assert [(minute(w), w.late) for w in found] == [
        *((m, False) for m in range(50, 60)),
        *((m, True) for m in range(50)),
        (60, False),
    ]
    assert minutes(found[9].frame()) == list(range(50, 60))
    assert minutes(found[40].frame()) == list(range(11, 31))
    assert minutes(found[-1].frame()) == list(range(41, 61))


def test_late_windows_as_history_only(topic: PodTopic) -> None:
    """A model that learns as it goes can ask for time that only moves on."""
    topic.send(*(record(m) for m in range(5)), record(2, job="live.recheck", revision=1, metrics={"cpu": 9.0}))
    topic.send(record(5))
    found = windows(topic, lookback="5m", late="history")
    assert [minute(w) for w in found] == list(range(6))
    assert found[-1].frame()["cpu"].tolist() == [1 / 7, 9.0, 3 / 7, 4 / 7, 5 / 7]


def test_revisions(topic: PodTopic) -> None:
    """One replaces the row and is delivered; complete beats partial, then the higher revision; the same is no news."""
    topic.send(record(0), record(1), record(2))
    topic.send(record(1, revision=1, metrics={"cpu": 7.0}))
    topic.send(record(1, revision=2, partial=True, metrics={"cpu": 8.0}))
    topic.send(record(1, revision=1, metrics={"cpu": 7.0}), record(0))
    topic.send(record(3))
    found = windows(topic, lookback="10m")
    assert [(minute(w), w.revision, w.late) for w in found] == [
        *((m, 0, False) for m in range(3)),
        (1, 1, True),
        (3, 0, False),
    ]
    assert found[3].frame()["cpu"].tolist() == [0.0, 7.0]
    assert found[2].frame()["cpu"].tolist() == [0.0, 1 / 7, 2 / 7]
    assert found[4].frame()["cpu"].tolist() == [0.0, 7.0, 2 / 7, 3 / 7]


def test_a_silent_pod_and_pod_churn(topic: PodTopic) -> None:
    """A pod that is silent has a hole, none has another's rows, and who comes back after a lookback begins anew."""
    for m in range(60):
        here = [pod for pod, at in (("cart-0", range(60)), ("cart-1", [0, 1, 2, 8, 50])) if m in at]
        topic.send(*(record(m, pod) for pod in here), record(m, f"job-{m}", "job"))
    found = windows(topic, lookback="10m")
    by_pod = {name: [w for w in found if w.id == name] for name in {w.id for w in found}}
    assert len(by_pod) == 62
    assert [minutes(w.frame()) for w in by_pod["shop/cart-1"]] == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 8], [50]]
    assert all(minutes(by_pod[f"shop/job-{m}"][0].frame()) == [m] for m in range(60))
    assert minutes(by_pod["shop/cart-0"][-1].frame()) == list(range(50, 60))


def test_values_as_they_are(topic: PodTopic) -> None:
    """NaN and infinities are what a pod reported; a metric that a window does not have is NaN, and never a number."""
    topic.send(record(0, metrics={"a": None, "b": "+Inf"}), record(1, metrics={"b": "-Inf", "c": 1}))
    frame = windows(topic, lookback="1h")[-1].frame()
    expected = pd.DataFrame({"a": [math.nan] * 2, "b": [math.inf, -math.inf], "c": [math.nan, 1.0]}, frame.index)
    pd.testing.assert_frame_equal(frame, expected, check_column_type=False)
    assert windows(topic, lookback="1m")[-1].frame().columns.tolist() == ["b", "c"]


def test_filters(topic: PodTopic) -> None:
    """By namespace, service, pod and metric, by name or shell pattern."""
    topic.send(
        *(
            record(m, f"{service}-{n}", service)
            for m in range(3)
            for service in ("cart", "orders", "web")
            for n in "01"
        ),
        record(0, "db-0", "db", namespace="data"),
        record(0, "lone", "lone", namespace=""),
    )
    assert {w.id for w in windows(topic, namespace="shop", services=["cart", "orders"])} == {
        f"shop/{service}-{n}" for service in ("cart", "orders") for n in "01"
    }
    assert {w.id for w in windows(topic, pods=["*-1"])} == {"shop/cart-1", "shop/orders-1", "shop/web-1"}
    assert {w.id for w in windows(topic, namespace=["data", "_"])} == {"data/db-0", "_/lone"}
    found = windows(topic, services="cart", metrics=["mem*"], lookback="1h")
    assert found[-1].frame().columns.tolist() == ["memory"]
    assert found[-1].metrics == {"memory": 2.0}
    assert windows(topic, metrics=["nothing"]) == []


def test_records_of_services(topic: PodTopic) -> None:
    """The other sink topic, by the name of the service."""
    topic.send(*(record(m, None) for m in range(5)), *(record(m) for m in range(3)))
    found = windows(topic, group_by="service", lookback="3m")
    assert [(w.id, w.pod, minutes(w.frame())) for w in found][-1] == ("shop/cart", None, [2, 3, 4])
    assert len(found) == 5


def test_two_views(topic: PodTopic) -> None:
    """Records of two views are refused until one is chosen."""
    topic.send(record(0), record(0, chunk_size="5m"), record(1), record(0, method="p95"))
    with pytest.raises(ConfigError, match=r"two views .* choose one with chunk_size= and method="):
        windows(topic)
    assert [minute(w) for w in windows(topic, chunk_size="1t", method="mean")] == [0, 1]
    assert len(windows(topic, chunk_size="5m")) == 1
    with pytest.raises(ConfigError, match="two views"):
        windows(topic, chunk_size="1m")


def test_a_poison_record(topic: PodTopic, caplog: pytest.LogCaptureFixture) -> None:
    """It is skipped, and named: topic, partition, offset and what is wrong with it."""
    partition = topic.partition()
    topic.send(record(0))
    poison = [b"{", None, record(1, version=2), record(1, pod=None), record(1, window_start=-1)]
    topic.send_bytes(poison, partition=partition)
    topic.send(record(2))
    told: list[Malformed] = []
    assert [minute(w) for w in windows(topic, on_malformed=told.append)] == [0, 2]
    assert [(m.topic, m.partition, m.value) for m in told] == [(topic.names.pods, partition, value) for value in poison]
    assert [m.offset for m in told] == [2, 3, 4, 5, 6]
    words = ["not a record", "not a record", "has version 2", "in a topic of pods", "outside the years"]
    assert all(word in str(m.error) for word, m in zip(words, told, strict=True))
    with caplog.at_level(logging.ERROR):
        assert [minute(w) for w in windows(topic)] == [0, 2]
    assert [(r.message, r.offset) for r in caplog.records] == [("message skipped", offset) for offset in range(2, 7)]


def test_a_finite_read_ends_where_the_topic_ended(topic: PodTopic) -> None:
    """All that was committed at the opening comes, and nothing that is committed afterwards."""
    topic.send(*(record(m) for m in range(10)))
    with finite(topic) as pods:
        topic.send(record(10))
        assert [minute(w) for w in pods] == list(range(10))
        assert list(pods) == []
    assert [minute(w) for w in windows(topic, start="latest")] == []


def test_batches(topic: PodTopic) -> None:
    """What came within a while, in columns; each pod's lookback with it."""
    topic.send(*(record(m, pod) for m in range(10) for pod in ("cart-0", "cart-1")), record(3, "web-0", "web"))
    with finite(topic, lookback="5m") as pods:
        (batch,) = pods.batches(seconds=600)
    assert (len(batch), batch.ids, batch.chunk_size) == (21, ["shop/cart-0", "shop/cart-1", "shop/web-0"], "1m")
    assert [minute(w) for w in batch.latest()] == [9, 9, 3]
    assert minutes(batch.latest()[0].frame()) == [5, 6, 7, 8, 9]
    whole = batch.matrix(["memory"])
    assert whole.values.shape == (3, 10, 1)
    assert (whole.ids, whole.metrics, minutes_of(whole.starts)) == (batch.ids, ["memory"], list(range(10)))
    assert whole.values[0, :, 0].tolist() == list(range(10))
    assert np.flatnonzero(~np.isnan(whole.values[2, :, 0])).tolist() == [3]
    histories = batch.histories()
    assert (histories.values.shape, minutes_of(histories.starts)) == ((3, 7, 2), list(range(3, 10)))
    assert batch.wide().index.names == ["id", "timestamp"]


def test_batches_come_in_time(topic: PodTopic) -> None:
    """One is closed some seconds after its first window, whatever comes; and when it is full."""
    with PodConsumer(**topic.where) as pods:
        batches = pods.batches(seconds=0.2)
        topic.send(record(0), record(1))
        assert len(next(batches)) == 2
        topic.send(record(2))
        assert len(next(batches)) == 1
        batches = pods.batches(seconds=3_600, max_windows=2)
        topic.send(record(3), record(4), record(5))
        assert len(next(batches)) == 3


def test_a_loop_and_batches_take_turns(topic: PodTopic) -> None:
    """Nothing is lost or doubled where a loop is left and batches go on."""
    topic.send(*(record(m) for m in range(10)))
    with finite(topic) as pods:
        first = [minute(w) for w in itertools.islice(pods, 3)]
        (batch,) = pods.batches(seconds=600)
        rest = minutes_of(batch.wide().index.get_level_values("timestamp"))
    assert first + rest == list(range(10))


def test_the_wide_form_is_a_panel(topic: PodTopic) -> None:
    """A unique, sorted MultiIndex of instance and time, floats in columns: what sktime's ``pd-multiindex`` is."""
    topic.send(record(1, "cart-1"), *(record(m) for m in (0, 1)), record(2, job="backfill", metrics={"disk": 1.0}))
    with finite(topic) as pods:
        (batch,) = pods.batches(seconds=600)
    wide = batch.wide()
    assert isinstance(wide.index, pd.MultiIndex)
    assert wide.index.nlevels == 2
    assert isinstance(wide.index.levels[1], pd.DatetimeIndex)
    assert wide.index.is_unique
    assert wide.index.is_monotonic_increasing
    assert wide.columns.tolist() == ["cpu", "disk", "memory"]
    assert wide.dtypes.tolist() == [np.dtype(float)] * 3
    # And flat, a group column, a time column and values: what darts' from_group_dataframe takes.
    assert wide.reset_index().columns.tolist() == ["id", "timestamp", "cpu", "disk", "memory"]


def test_the_long_form_is_a_row_a_value(topic: PodTopic) -> None:
    """``id``, ``time``, ``kind``, ``value``, no NaN and no missing cell: what tsfresh extracts features of."""
    topic.send(*(record(m) for m in range(3)), record(3, metrics={"cpu": None, "disk": 1.0}), record(0, "cart-1"))
    with finite(topic) as pods:
        (batch,) = pods.batches(seconds=600)
    long = batch.long()
    assert long.columns.tolist() == ["id", "time", "kind", "value"]
    assert len(long) == 3 * 2 + 1 + 2
    assert not long.isna().any().any()
    melted = batch.wide().reset_index().melt(["id", "timestamp"], var_name="kind").dropna()
    expected = melted.rename(columns={"timestamp": "time"}).sort_values(["id", "kind", "time"], ignore_index=True)
    pd.testing.assert_frame_equal(long, expected, check_dtype=False)
    pivoted = long[long["id"] == "shop/cart-0"].pivot_table(index="time", columns="kind", values="value")
    assert pivoted["disk"].dropna().tolist() == [1.0]


def test_nothing_is_left_in_kafka(topic: PodTopic) -> None:
    """Without a group, reading has no effect."""
    topic.send(record(0))
    before = {group.group_id for group in topic.admin.list_consumer_groups().result().valid}
    assert len(windows(topic)) == 1
    # Others may end meanwhile.
    assert {group.group_id for group in topic.admin.list_consumer_groups().result().valid} <= before


def test_topics_that_come_later(kafka: LocalKafka) -> None:
    """A service may start before its worker: it waits, and gets the very first record."""
    topic = PodTopic(kafka)
    with PodConsumer(**topic.where) as pods:
        found: list[Window] = []
        waiting = threading.Thread(target=lambda: found.extend(itertools.islice(pods, 2)))
        waiting.start()
        topic.make()
        topic.send(record(0), record(1))
        waiting.join(PATIENCE_S)
    assert [minute(w) for w in found] == [0, 1]
    topic.delete()


def test_topics_that_are_missing(kafka: LocalKafka) -> None:
    """What would have no end is said at once."""
    with pytest.raises(ConfigError, match=r"never\.pods does not exist: start a worker .*topic_prefix="):
        PodConsumer(kafka.bootstrap_servers, topic_prefix="never", until="now").open()


def test_a_topic_that_is_deleted(topic: PodTopic) -> None:
    """One line, no silence."""
    topic.send(record(0))
    with PodConsumer(**topic.where, start="earliest") as pods:
        assert minute(next(pods)) == 0
        topic.delete()
        with pytest.raises(PublishError, match=r"is gone or was made anew: start again"):
            next(pods)


def test_a_slow_loop_holds_little(topic: PodTopic) -> None:
    """However much there is, no more is read ahead than what is allowed, and all of it comes."""
    topic.send(*(record(m, f"cart-{n}") for m in range(300) for n in range(100)))
    with finite(topic) as pods:
        next(pods)
        deadline = time.monotonic() + PATIENCE_S
        while not pods._opened()._paused:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert pods._mailbox._count <= 20_000 + 2_000
        assert sum(1 for _ in pods) == 30_000 - 1


def test_interrupted_loops_end(topic: PodTopic) -> None:
    """What is raised in a loop comes out of the ``with`` at once, though more records would come."""
    topic.send(*(record(m) for m in range(3)))

    def loop() -> None:
        with PodConsumer(**topic.where, start="earliest") as pods:
            for window in pods:
                if minute(window) == 2:
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop()
    assert not [thread for thread in threading.enumerate() if thread.name == "PodConsumer"]


def test_a_closed_consumer_is_closed(topic: PodTopic) -> None:
    """It says so."""
    topic.send(record(0))
    pods = finite(topic)
    assert minute(next(pods)) == 0
    pods.close()
    with pytest.raises(ConfigError, match="is closed: make another one"):
        next(pods)


def test_nothing_else_need_be_installed(topic: PodTopic) -> None:
    """Where only the base dependencies are, it reads from a real Kafka into every form."""
    topic.send(*(record(m) for m in range(5)))
    program = """
from stream_app.consumer import PodConsumer

where = dict(bootstrap_servers=sys.argv[1], topic_prefix=sys.argv[2], until="now", lookback="3m")
with PodConsumer(**where) as pods:
    print([len(window.frame()) for window in pods])
with PodConsumer(**where) as pods:
    everything = pods.read()
print(everything.matrix().values.shape, len(everything.long()), len(everything.wide()))
"""
    assert alone(program, *topic.where.values()).splitlines() == ["[1, 2, 3, 3, 3]", "(1, 5, 2) 10 5"]


def test_matrix_of_a_stream_needs_an_end(topic: PodTopic) -> None:
    """Where nothing ends, nothing can be read to the end."""
    with PodConsumer(**topic.where) as pods, pytest.raises(ConfigError, match='until="now"'):
        pods.matrix()


def test_frames_files_and_oracle_are_the_same(
    kafka: LocalKafka, prometheus: LocalPrometheus, samples: pd.DataFrame, tmp_path: Any
) -> None:
    """From Prometheus to a model: matrix and frames have every cell of the oracle's, and the files no other."""
    prefix = f"consumer-whole-{NOON_MS}"
    run(backfill(prometheus, kafka, prefix))
    view = view_of(prefix, "7m", "mean")
    with worker(kafka, view, tmp_path / "worker.log") as child:
        wait_until_windowed(kafka, view, child)
    write_files(kafka, view, tmp_path / "data")
    expected = oracle.windows(samples, "7m", "mean", "pod")
    assert read_files(tmp_path / "data", pods=True).keys() == expected.keys()

    where = {"bootstrap_servers": kafka.bootstrap_servers, "topic_prefix": prefix, "until": "now"}
    with PodConsumer(**where, lookback="1d") as pods:
        latest = {window.id: window for window in pods}
    with PodConsumer(**where) as pods:
        whole = pods.matrix()
    cells = {
        (w.namespace, w.pod, start.value // 10**6): row for w in latest.values() for start, row in w.frame().iterrows()
    }
    assert cells.keys() == expected.keys()
    ids = {(w.namespace, w.pod): whole.ids.index(w.id) for w in latest.values()}
    place = {start.value // 10**6: at for at, start in enumerate(whole.starts)}
    files = read_files(tmp_path / "data", pods=True)
    for (namespace, pod, start_ms), metrics in expected.items():
        row = cells[namespace, pod, start_ms].dropna().to_dict()
        assert row == files[namespace, pod, start_ms]
        assert row.keys() == metrics.keys()
        assert all(oracle.same(row[name], value) for name, value in metrics.items())
        dense = whole.values[ids[namespace, pod], place[start_ms]]
        assert {name: v for name, v in zip(whole.metrics, dense, strict=True) if not math.isnan(v)} == row
    assert np.isnan(whole.values).sum() == whole.values.size - sum(map(len, expected.values()))
