"""A way to Kafka that takes 40 kB a second: what is to be sent waits, and nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import history
import pandas as pd
import pytest
import verdict
from commands import backfill, run, view_of, wait_until_windowed, worker
from confluent_kafka import Producer
from proxied_kafka import ProxiedKafka
from tcp_proxy import TcpProxy

from ingestor.core.time_range import TimeRange, floor_ms, iso
from ingestor.core.topics import Topics
from ingestor.kafka import client_config, connect, ensure_topics, hand_over, read_to_end
from ingestor.local.prometheus import LocalPrometheus

BYTES_PER_S = 40_000.0
MIDDLE_MS = floor_ms(history.START_MS + 3_600_000, 60_000)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxiedKafka]:
    with (
        ProxiedKafka(tmp_path_factory.mktemp("kafka")) as started,
        TcpProxy(started.proxied_port, started.proxy_port) as net,
    ):
        net.slow(BYTES_PER_S)
        yield started


def test_a_full_queue_is_waited_for(broker: ProxiedKafka) -> None:
    """Of a queue for ten messages, far more are sent than it holds: all arrive, once and in order.

    The product's queues hold a gigabyte and a million messages; its transactions have a few dozen megabytes.
    """
    topics = Topics("full")
    ensure_topics(connect(broker.cluster), topics, 1)
    settings = {"transactional.id": "full", "queue.buffering.max.messages": 10, "linger.ms": 5}
    producer = Producer({**client_config(broker.way_in.cluster), **settings})
    producer.init_transactions(30)
    producer.begin_transaction()
    values = [number.to_bytes(2, "big") + bytes(500) for number in range(300)]
    for value in values:
        hand_over(producer, topics.pods, value, None, 0, timeout_s=30.0)
    producer.commit_transaction(30)
    assert [message.value() for message in read_to_end(broker.cluster, topics.pods)] == values


def test_a_queue_that_stays_full_is_an_error() -> None:
    """Nobody takes anything: it does not wait for ever."""
    producer = Producer({"bootstrap.servers": "127.0.0.1:9", "queue.buffering.max.messages": 1, "log_level": 2})
    hand_over(producer, "topic", b"", timeout_s=0.1)
    with pytest.raises(BufferError):
        hand_over(producer, "topic", b"", timeout_s=0.1)
    producer.purge()


def test_poller_and_worker(
    broker: ProxiedKafka, prometheus: LocalPrometheus, samples: pd.DataFrame, tmp_path: Path
) -> None:
    """Both work as fast as they are let, and every window is there once."""
    view = view_of("slow", "1m", "mean")
    # Of options that are there twice the last one counts.
    first_hour = ["--end", iso(MIDDLE_MS)]
    run(backfill(prometheus, broker.way_in, view.topics.prefix, "--range-samples", "2000", *first_hour))
    with worker(broker.way_in, view, tmp_path / "worker.log") as child:
        wait_until_windowed(broker, view, child)
    published = samples[samples["timestamp"] < MIDDLE_MS]
    verdict.assert_right(broker, view, published, tmp_path / "data", TimeRange(history.START_MS, MIDDLE_MS))
