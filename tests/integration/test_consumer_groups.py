"""``PodConsumer`` in a group on a real Kafka: what is processed is committed, and histories outlive a restart."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from commands import PATIENCE_S, wait_until
from confluent_kafka import Consumer, TopicPartition
from pod_topic import MINUTE_MS, NOON_MS, PodTopic, record

from ingestor.core.errors import ConfigError, Fenced
from ingestor.local.kafka import LocalKafka
from stream_app.consumer import Malformed, PodConsumer, Window

GROUP = "models"


@pytest.fixture
def topic(kafka: LocalKafka) -> Iterator[PodTopic]:
    """Sink topics of this test alone."""
    made = PodTopic(kafka)
    made.make()
    yield made
    made.delete()


def member(topic: PodTopic, **arguments: Any) -> PodConsumer:
    arguments = {"group": f"{topic.names.prefix}.{GROUP}", "start": "earliest", "session_timeout_s": 6.0} | arguments
    return PodConsumer(**topic.where, **arguments)


def finite(topic: PodTopic, **arguments: Any) -> PodConsumer:
    return member(topic, until="now", **arguments)


def minute(window: Window) -> int:
    return (window.record.window_start_ms - NOON_MS) // MINUTE_MS


def minutes(pods: Any) -> list[int]:
    return [minute(window) for window in pods]


def length(window: Window) -> int:
    return len(window.frame())


def committed(topic: PodTopic) -> tuple[int, int]:
    """Return the offset that Kafka holds for the partition of the cart, and up to where is processed."""
    consumer = Consumer(
        {"bootstrap.servers": topic.kafka.bootstrap_servers, "group.id": f"{topic.names.prefix}.{GROUP}"}
    )
    (at,) = consumer.committed([TopicPartition(topic.names.pods, topic.partition())], 30)
    consumer.close()
    return at.offset, orjson.loads(at.metadata)["processed"] if at.metadata else -1


def commit(topic: PodTopic, offset: int, metadata: str = "") -> None:
    """Commit for the partition of the cart, as somebody else."""
    consumer = Consumer(
        {"bootstrap.servers": topic.kafka.bootstrap_servers, "group.id": f"{topic.names.prefix}.{GROUP}"}
    )
    at = TopicPartition(topic.names.pods, topic.partition(), offset, metadata)
    consumer.commit(offsets=[at], asynchronous=False)
    consumer.close()


def test_a_lookback_across_restarts(topic: PodTopic) -> None:
    """Who starts again goes on behind what was processed, with the history as if nothing had been."""
    topic.send(*(record(m, pod) for m in range(60) for pod in ("cart-0", "cart-1")))
    found: list[Window] = []
    for count in (31, 1, 50, 100):
        with finite(topic, lookback="10m") as pods:
            # Who is not asked for the next one has not processed the last.
            found += list(itertools.islice(pods, count))[: count - 1]
    assert [(w.id, minute(w)) for w in found] == [(f"shop/{pod}", m) for m in range(60) for pod in ("cart-0", "cart-1")]
    assert [length(w) for w in found] == [min(m + 1, 10) for m in range(60) for _ in range(2)]
    # What is kept in Kafka is what the next window looks back at, and no more.
    assert committed(topic) == (120 - 2 * 10, 121)
    topic.send(record(60))
    with finite(topic, lookback="10m") as pods:
        assert [(minute(w), length(w)) for w in pods] == [(60, 10)]


def test_a_window_is_processed_when_the_loop_comes_back(topic: PodTopic) -> None:
    """A loop body that raises has not processed its window; it comes again, those before it do not."""
    topic.send(*(record(m) for m in range(5)))

    def fail_at(last: int) -> None:
        with finite(topic) as pods:
            for window in pods:
                if minute(window) == last:
                    raise LookupError

    with pytest.raises(LookupError):
        fail_at(2)
    with finite(topic) as pods:
        assert minutes(pods) == [2, 3, 4]
    with finite(topic) as pods:
        assert minutes(pods) == []


def test_a_batch_is_processed_when_the_loop_comes_back(topic: PodTopic) -> None:
    """All of its windows, or none."""
    topic.send(*(record(m) for m in range(10)))
    with finite(topic, lookback="5m") as pods:
        (batch,) = itertools.islice(pods.batches(600), 1)
        assert len(batch) == 10
    with finite(topic, lookback="5m") as pods:
        assert [len(batch) for batch in pods.batches(600)] == [10]
    topic.send(record(10))
    with finite(topic, lookback="5m") as pods:
        (batch,) = pods.batches(600)
    assert len(batch) == 1
    assert batch.histories(["memory"]).values[0, :, 0].tolist() == [6, 7, 8, 9, 10]


def test_commits_by_hand(topic: PodTopic) -> None:
    """Without auto_commit only commit() says what is processed: with the window in hand, and Kafka has it then."""
    topic.send(*(record(m) for m in range(10)))
    with finite(topic, auto_commit=False, lookback="3m") as pods:
        for window in pods:
            if minute(window) == 4:
                assert committed(topic)[1] <= 0
                pods.commit()
                assert committed(topic)[1] == 5
    with finite(topic, auto_commit=False, lookback="3m") as pods:
        found = list(pods)
    assert [(minute(w), length(w)) for w in found] == [(m, 3) for m in range(5, 10)]


def test_commits_come_by_themselves(topic: PodTopic) -> None:
    """A process that is killed has committed, about every commit_s seconds."""
    topic.send(*(record(m) for m in range(5)))
    with member(topic, commit_s=0.2) as pods:
        assert minutes(itertools.islice(pods, 5)) == list(range(5))
        topic.send(record(5))
        assert minute(next(pods)) == 5
        wait_until(lambda: committed(topic)[1] in (5, 6))


def test_a_group_begins_at_the_opening(topic: PodTopic) -> None:
    """A group that starts with the latest has its place from then on: what comes while nobody runs is not lost."""
    topic.send(*(record(m) for m in range(50)))
    with member(topic, start="latest", lookback="10m") as pods:
        wait_until(lambda: pods._opened().is_assigned and committed(topic)[1] > 0)
    topic.send(record(50), record(51))
    with finite(topic, start="latest", lookback="10m") as pods:
        assert [(minute(w), length(w)) for w in pods] == [(50, 10), (51, 10)]


def test_poison_is_told_once(topic: PodTopic) -> None:
    """What was skipped before a restart is not told again, though it is read again for the histories."""
    topic.send(*(record(m) for m in range(3)))
    topic.send_bytes([b"poison"], partition=topic.partition())
    topic.send(record(3))
    told: list[Malformed] = []
    with finite(topic, lookback="1h", on_malformed=told.append) as pods:
        assert minutes(pods) == [0, 1, 2, 3]
    topic.send(record(4))
    with finite(topic, lookback="1h", on_malformed=told.append) as pods:
        assert [(minute(w), length(w)) for w in pods] == [(4, 5)]
    assert [m.value for m in told] == [b"poison"]


def test_a_group_keeps_to_its_view(topic: PodTopic) -> None:
    """Positions are of one view: another one needs another group."""
    topic.send(record(0))
    with finite(topic) as pods:
        assert minutes(pods) == [0]
    with (
        finite(topic, chunk_size="5m") as pods,
        pytest.raises(ConfigError, match=r"of chunk size 1m, method mean, not"),
    ):
        next(pods)
    # What a second view writes is refused after a restart as it would have been before.
    topic.send(record(5, chunk_size="5m"))
    with finite(topic) as pods, pytest.raises(ConfigError, match="two views"):
        list(pods)
    with finite(topic, chunk_size="1m") as pods:
        assert minutes(pods) == []


def test_commits_of_another_program(topic: PodTopic) -> None:
    """A group of something else is not overwritten."""
    topic.send(record(0))
    commit(topic, 1)
    with finite(topic) as pods, pytest.raises(ConfigError, match=r"commits of another program .* another group="):
        next(pods)
    assert committed(topic) == (1, -1)


def test_a_topic_that_was_made_anew(topic: PodTopic, caplog: pytest.LogCaptureFixture) -> None:
    """Offsets of another topic of this name say nothing: it is read from its beginning, and said."""
    topic.send(*(record(m) for m in range(3)))
    commit(topic, 2, '{"topic":"another","processed":2,"jobs":{},"view":["1h","sum"]}')
    with finite(topic, start="latest") as pods:
        assert minutes(pods) == [0, 1, 2]
    assert "the topic was made anew since the group's commit" in {r.message for r in caplog.records}


def test_records_that_retention_has_taken(topic: PodTopic, caplog: pytest.LogCaptureFixture) -> None:
    """A group that stood still for too long goes on with what is left, and it is said."""
    topic.send(*(record(m) for m in range(10)))
    with finite(topic) as pods:
        assert minutes(itertools.islice(pods, 3)) == [0, 1, 2]
    at = TopicPartition(topic.names.pods, topic.partition(), 6)
    for future in topic.admin.delete_records([at]).values():
        future.result()
    with finite(topic) as pods:
        assert minutes(pods) == [6, 7, 8, 9]
    assert "records were deleted before they were read" in {r.message for r in caplog.records}


def test_a_second_process_of_one_name(topic: PodTopic) -> None:
    """The one that comes last has the place; the other one is told."""
    topic.send(record(0))
    with member(topic, group_instance_id="model-0") as first:
        assert minute(next(first)) == 0
        with member(topic, group_instance_id="model-0") as second:
            assert minute(next(second)) == 0
            with pytest.raises(Fenced, match=r"another process is model-0 .* its own group_instance_id="):
                next(first)


def test_members_share_partitions(topic: PodTopic) -> None:
    """A second member takes over some partitions; what the first one keeps stays where it is, with its histories."""
    services = [f"s{n}" for n in range(16)]
    assert {topic.partition(service) for service in services} == set(range(topic.partitions))
    topic.send(*(record(m, f"{s}-0", s) for m in range(5) for s in services))
    with member(topic, lookback="10m") as first:
        assert len(list(itertools.islice(first, 5 * len(services)))) == 5 * len(services)
        reader = first._opened()
        kept = dict(reader.partitions)
        with member(topic, lookback="10m") as second:
            wait_until(lambda: len(second._opened().partitions) == 2)
            mine, theirs = dict(reader.partitions), second._opened().partitions
            assert mine.keys() | theirs.keys() == kept.keys()
            assert all(partition is kept[number] for number, partition in mine.items())
            topic.send(*(record(5, f"{s}-0", s) for s in services))
            found: list[Window] = []
            loops = [
                threading.Thread(target=lambda fresh=fresh, n=n: found.extend(itertools.islice(fresh, n)))
                # The first one's last window of the round before was in its hands when a partition moved.
                for pods, owned in ((first, mine), (second, theirs))
                for fresh in [(w for w in pods if minute(w) == 5)]
                for n in [sum(topic.partition(s) in owned for s in services)]
            ]
            for loop in loops:
                loop.start()
            for loop in loops:
                loop.join(PATIENCE_S)
    assert {w.service for w in found} == set(services)
    assert {length(w) for w in found} == {6}
