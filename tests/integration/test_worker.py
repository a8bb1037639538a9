"""What the worker uses of Faust's and aiokafka's insides is still there, and means the same, in the pinned versions."""

from __future__ import annotations

import inspect
import time
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.consumer.group_coordinator import GroupCoordinator
from commands import view_of
from confluent_kafka import Consumer
from faust.transport.consumer import ThreadDelegateConsumer
from faust.transport.drivers import aiokafka as driver

from ingestor.kafka import connect, ensure_topics
from ingestor.local.kafka import LocalKafka
from stream_app.app import Worker, WorkerSettings
from stream_app.faust_transport import Transport, group_metadata
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
    deadline = time.monotonic() + 30
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
        (driver.Consumer, "_new_consumer_thread"),
        (driver.Consumer, "_wait_next_records"),
        (driver.Consumer, "_get_active_partitions"),
    ]:
        assert callable(getattr(owner, name))
    assert "self._create_worker_consumer(" in inspect.getsource(driver.AIOKafkaConsumerThread._create_consumer)
    assert "self._new_consumer_thread()" in inspect.getsource(ThreadDelegateConsumer.__init__)
    assert "self._wait_next_records(" in inspect.getsource(driver.Consumer.getmany)
    # Read.
    assert {"member_id", "generation"} <= assigned_in(GroupCoordinator.__init__)
    assert "_coordinator" in assigned_in(AIOKafkaConsumer.start)


def assigned_in(function: Any) -> set[str]:
    """Return the names of the attributes that a method sets on its object."""
    lines = inspect.getsource(function).splitlines()
    return {
        line.strip()[len("self.") :].split(" ")[0].rstrip(":") for line in lines if line.strip().startswith("self.")
    }
