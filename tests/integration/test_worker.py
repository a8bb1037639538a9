"""What the worker uses of Faust's and aiokafka's insides is still there, and means the same, in the pinned versions."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.consumer.group_coordinator import GroupCoordinator
from commands import PATIENCE_S, view_of, wait_until
from confluent_kafka import Consumer, Producer
from faust.transport.consumer import ThreadDelegateConsumer
from faust.transport.drivers import aiokafka as driver
from mode.utils.queues import ThrowableQueue

from ingestor.core import wire
from ingestor.core.chunk import Header
from ingestor.core.time_range import TimeRange
from ingestor.kafka import client_config, connect, ensure_topics
from ingestor.local.kafka import LocalKafka
from stream_app.app import Worker, WorkerSettings
from stream_app.faust_transport import (
    _FETCH_MAX_WAIT_MS,
    _IDLE_FETCH_MAX_WAIT_MS,
    Transport,
    group_metadata,
    member_id,
)
from stream_app.standing import Standing
from stream_app.telemetry import Telemetry
from stream_app.view import View


@pytest.mark.parametrize("slot", [None, 3])
def test_membership_is_written_as_librdkafka_does(kafka: LocalKafka, slot: int | None) -> None:
    """The bytes are those that librdkafka's own consumer gives of itself, with and without a slot."""
    view = view_of(f"membership-{slot}", "1m", "mean", "pod", "service")
    ensure_topics(connect(kafka.cluster), view.topics, 2)
    name, generation, written = membership(kafka, view, {} if slot is None else {"group.instance.id": f"slot-{slot}"})
    app: Any = Worker(WorkerSettings(kafka.cluster, view, slot), Telemetry(Standing())).app
    coordinator = SimpleNamespace(member_id=name)
    app.consumer = SimpleNamespace(_thread=SimpleNamespace(_consumer=SimpleNamespace(_coordinator=coordinator)))
    assert generation > 0
    assert group_metadata(app, generation) == written


def membership(kafka: LocalKafka, view: View, instance: dict[str, str]) -> tuple[str, int, bytes]:
    """Join a group with librdkafka's own consumer; return member id, generation, and what it says of them itself."""
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap_servers, "group.id": view.group_id, **instance})
    consumer.subscribe([view.topics.range_chunks])
    deadline = time.monotonic() + PATIENCE_S
    while not consumer.assignment():
        assert time.monotonic() < deadline, "no partitions"
        consumer.poll(0.1)
    written: Any = consumer.consumer_group_metadata()
    members = connect(kafka.cluster).describe_consumer_groups([view.group_id])[view.group_id].result().members
    consumer.close()
    generation = int.from_bytes(written[len(b"CGMDv2:") :][:4], "little")
    return members[0].member_id, generation, written


def test_private_names_are_where_the_transport_looks_for_them(kafka: LocalKafka) -> None:
    """A name that an update moves would be set, or overridden, without any effect and without an error."""
    view = view_of("insides", "1m", "mean")
    worker: Any = Worker(WorkerSettings(kafka.cluster, view, 3), Telemetry(Standing())).app
    assert isinstance(worker.transport, Transport)
    # Set on aiokafka's consumer before it starts, and read by it when it starts.
    settings = {"isolation_level", "fetch_max_bytes", "fetch_max_wait_ms"}
    assert {f"_{name}" for name in settings} <= assigned_in(AIOKafkaConsumer.__init__)
    starts = inspect.getsource(AIOKafkaConsumer.start)
    assert all(f"{name}=self._{name}" in starts for name in settings)
    assert settings <= inspect.signature(Fetcher.__init__).parameters.keys()
    # Overridden, and called by Faust.
    for owner, name in [
        (driver.AIOKafkaConsumerThread, "_create_worker_consumer"),
        (driver.AIOKafkaConsumerThread, "on_start"),
        (driver.Consumer, "_new_consumer_thread"),
        (driver.Consumer, "_wait_next_records"),
        (driver.Consumer, "_get_active_partitions"),
        # Called, to take all that a stream's buffer has.
        (ThrowableQueue, "maybe_endorse_pressure_drop"),
    ]:
        assert callable(getattr(owner, name))
    assert isinstance(worker.topic("any").queue, ThrowableQueue)
    assert "self._create_worker_consumer(" in inspect.getsource(driver.AIOKafkaConsumerThread._create_consumer)
    assert "self._new_consumer_thread()" in inspect.getsource(ThreadDelegateConsumer.__init__)
    assert "self._wait_next_records(" in inspect.getsource(driver.Consumer.getmany)
    # Wrapped, and called before each join, with a name or without.
    assert "await self._do_rejoin_group(subscription)" in inspect.getsource(GroupCoordinator.ensure_active_group)
    assert "await self._consumer.start()" in inspect.getsource(driver.AIOKafkaConsumerThread.on_start)
    # Read.
    assert {"member_id", "generation"} <= assigned_in(GroupCoordinator.__init__)
    assert {"_coordinator", "_fetcher"} <= assigned_in(AIOKafkaConsumer.start)
    # Set while it runs, and read for each request.
    waits = {"_fetch_max_wait_ms", "_fetcher_timeout"}
    assert waits <= assigned_in(Fetcher.__init__)
    assert all(f"self.{name}" in inspect.getsource(Fetcher._get_actions_per_node) for name in waits)


def test_a_new_name_is_asked_for_only_when_that_is_allowed(kafka: LocalKafka) -> None:
    """Also where a worker's name is lost after its partitions were revoked, amid a join: it waits until it may."""
    view = view_of("names", "1m", "mean")
    ensure_topics(connect(kafka.cluster), view.topics, 2)
    worker = Worker(WorkerSettings(kafka.cluster, view, 3), Telemetry(Standing()))
    asyncio.run(lose_name(kafka, view, worker))


async def lose_name(kafka: LocalKafka, view: View, worker: Worker) -> None:
    app: Any = worker.app
    asked, allowed = threading.Semaphore(0), threading.Event()

    async def before_nameless_join() -> None:
        asked.release()
        await asyncio.to_thread(allowed.wait)

    app.before_nameless_join = before_nameless_join
    allowed.set()
    await app.start()
    try:
        first = await asyncio.to_thread(named, app)
        assert asked.acquire(blocking=False), "the first join is nameless"
        while asked.acquire(blocking=False):
            pass
        allowed.clear()
        coordinator, loop = app.consumer._thread._consumer._coordinator, app.consumer._thread.thread_loop

        def lose() -> None:
            coordinator._performed_join_prepare = True
            coordinator.reset_generation()

        loop.call_soon_threadsafe(lose)
        assert await asyncio.to_thread(asked.acquire, timeout=PATIENCE_S)
        assert await asyncio.to_thread(members, kafka, view) == {first}
        assert not member_id(app)
        allowed.set()
        second = await asyncio.to_thread(named, app)
        assert await asyncio.to_thread(members, kafka, view) == {second} != {first}
    finally:
        allowed.set()
        await app.stop()


def test_a_worker_that_waits_has_restored_its_partitions_and_asks_seldom(kafka: LocalKafka) -> None:
    """Before the first message comes; while messages come it asks as often as without a rest."""
    view = view_of("waits", "1m", "mean")
    ensure_topics(connect(kafka.cluster), view.topics, 2)
    worker = Worker(WorkerSettings(kafka.cluster, view, 3), Telemetry(Standing()))
    asyncio.run(wait_and_read(kafka, view, worker))


async def wait_and_read(kafka: LocalKafka, view: View, worker: Worker) -> None:
    app: Any = worker.app
    await app.start()
    try:
        await asyncio.to_thread(named, app)
        fetcher = app.consumer._thread._consumer._fetcher
        await asyncio.to_thread(
            wait_until,
            lambda: worker._pipelines.keys() == {0, 1} and fetcher._fetch_max_wait_ms == _IDLE_FETCH_MAX_WAIT_MS,
        )
        async with asyncio.timeout(PATIENCE_S):
            assert [pipeline.next_offset for pipeline in worker._pipelines.values()] == [0, 0]
            restored, producer, sent = dict(worker._pipelines), Producer(client_config(kafka.cluster)), 0
            while fetcher._fetch_max_wait_ms != _FETCH_MAX_WAIT_MS or not restored[1].next_offset:
                minute = TimeRange(sent * 60_000, (sent + 1) * 60_000)
                headers = wire.headers("marker", Header("job", minute, sent, "any"))
                producer.produce(view.topics.range_chunks, b"", partition=1, headers=headers)
                await asyncio.to_thread(producer.flush)
                sent += 1
        assert worker._pipelines == restored, "what was restored ahead is what is fed"
    finally:
        await app.stop()


def named(app: Any) -> str:
    """Return the name that the group has given a worker, once it has one, and partitions."""
    deadline = time.monotonic() + PATIENCE_S
    while not (name := member_id(app)) or not app.consumer.assignment():
        assert time.monotonic() < deadline, "no name"
        time.sleep(0.05)
    return name


def members(kafka: LocalKafka, view: View) -> set[str]:
    groups = connect(kafka.cluster).describe_consumer_groups([view.group_id])
    return {member.member_id for member in groups[view.group_id].result().members}


def assigned_in(function: Any) -> set[str]:
    """Return the names of the attributes that a method sets on its object."""
    lines = inspect.getsource(function).splitlines()
    return {
        line.strip()[len("self.") :].split(" ")[0].rstrip(":") for line in lines if line.strip().startswith("self.")
    }
