"""Positions and ends are read whole, whatever other jobs are doing."""

from __future__ import annotations

import threading
import time

import pytest
from commands import PATIENCE_S
from confluent_kafka import Producer

from ingestor.core.errors import Fenced
from ingestor.core.time_range import TimeRange
from ingestor.core.topics import Topics
from ingestor.kafka import connect, ensure_topics, has_unread
from ingestor.local.kafka import LocalKafka
from ingestor.packing import PackedRange
from ingestor.poller import Poller, PollerSettings
from ingestor.positions import Position, read_positions
from ingestor.publisher import Publisher
from ingestor.selector import Selector
from ingestor.sources.http_query import HttpQuerySource


def nothing(start_ms: int, end_ms: int) -> PackedRange:
    return PackedRange(TimeRange(start_ms, end_ms), "test", 0, 0, [[], []])


def test_an_open_transaction_hides_nothing(kafka: LocalKafka) -> None:
    """A position that was committed behind another job's open transaction is waited for, not missed."""
    topics = Topics("hidden")
    ensure_topics(connect(kafka.cluster), topics, 2)
    other = Producer({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": "hidden-other"})
    other.init_transactions(30)
    other.begin_transaction()
    other.produce(topics.positions, b"{}", b"other", 0)
    other.flush(10)
    with Publisher(kafka.cluster, topics, "job") as publisher:
        moved = publisher.publish(nothing(0, 1000), Position("job", 0, 9000, 0, (0, 0)))
    is_over = threading.Event()

    def end() -> None:
        is_over.set()
        other.abort_transaction(30)

    threading.Timer(2.0, end).start()
    assert read_positions(kafka.cluster, topics) == {"job": moved}
    assert is_over.is_set()
    assert moved.sequences == (1, 1)


def test_an_open_transaction_is_no_end(kafka: LocalKafka) -> None:
    """What is committed behind it is unread, though nobody can read it yet; once it has ended, only messages count."""
    topics = Topics("unread")
    ensure_topics(connect(kafka.cluster), topics, 2)
    other = Producer({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": "unread-other"})
    other.init_transactions(30)
    other.begin_transaction()
    other.produce(topics.range_chunks, b"", b"other", 0)
    other.flush(10)
    assert has_unread(kafka.cluster, topics.range_chunks, {0: 0, 1: 0})
    other.abort_transaction(30)
    deadline = time.monotonic() + PATIENCE_S
    # Its end is answered before it stands in the partition.
    while has_unread(kafka.cluster, topics.range_chunks, {0: 0, 1: 0}):
        assert time.monotonic() < deadline
    with Publisher(kafka.cluster, topics, "job") as publisher:
        publisher.publish(nothing(0, 1000), Position("job", 0, 9000, 0, (0, 0)))
    assert has_unread(kafka.cluster, topics.range_chunks, {0: 0, 1: 0})


def test_a_second_poller_of_a_job_fences_the_first(kafka: LocalKafka) -> None:
    """Never do two publish at once: the first one's next range is refused, and it says why."""
    topics = Topics("fenced")
    ensure_topics(connect(kafka.cluster), topics, 2)
    position = Position("job", 0, 9000, 0, (0, 0))
    with Publisher(kafka.cluster, topics, "job") as first:
        position = first.publish(nothing(0, 1000), position)
        with Publisher(kafka.cluster, topics, "job") as second:
            with pytest.raises(Fenced, match="another poller"):
                first.publish(nothing(1000, 2000), position)
            assert read_positions(kafka.cluster, topics) == {"job": position}
            moved = second.publish(nothing(1000, 9000), position)
    assert moved.ended
    assert moved.sequences == (3, 3), "a marker, then a marker and the job's end"
    assert read_positions(kafka.cluster, topics) == {"job": moved}


def test_two_pollers_of_a_command_that_is_new(kafka: LocalKafka) -> None:
    """Both have looked, and found nothing: whoever claims the time second goes on with what the first has begun."""
    topics = Topics("both-new")
    ensure_topics(connect(kafka.cluster), topics, 2)
    settings = PollerSettings(kafka.cluster, topics, Selector.parse('{pod!=""}'), "0", "9")
    first, second = (Poller(settings, HttpQuerySource("http://127.0.0.1:9")) for _ in range(2))
    (begun,) = first._claimed(0, 9000, 2)
    assert begun.claimed == TimeRange(0, 9000)
    assert [position.job for position in second._claimed(0, 9000, 2)] == [begun.job]
    assert read_positions(kafka.cluster, topics).keys() == {begun.job}
