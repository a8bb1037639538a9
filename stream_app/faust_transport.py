"""What Faust's Kafka transport needs changed: read_committed, larger fetches, no sleep under back-pressure.

Faust has no setting for these. The private names used here are those of the exact
versions in pyproject.toml; ``tests/integration/test_worker.py`` fails if an update moves them.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import faust
from faust.transport.drivers import aiokafka as driver

from ingestor.kafka_security import Security

_FETCH_MAX_BYTES = 16 * 1024 * 1024


class _ConsumerThread(driver.AIOKafkaConsumerThread):
    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        # Faust asks for read_committed only together with its own exactly_once, which is not.
        consumer._isolation_level = "read_committed"  # noqa: SLF001
        consumer._fetch_max_bytes = _FETCH_MAX_BYTES  # noqa: SLF001
        return consumer


class _Consumer(driver.Consumer):
    def _new_consumer_thread(self) -> _ConsumerThread:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def _wait_next_records(self, timeout: float) -> Any:  # noqa: ASYNC109 - the overridden signature
        # Stock code sleeps a whole second whenever every partition's buffer is full; there is no event to wait for.
        while (  # noqa: ASYNC110
            self._buffered_partitions and not self._active_partitions and self.flow_active and not self.should_stop
        ):
            await asyncio.sleep(0.01)
        return await super()._wait_next_records(timeout)


class Transport(driver.Transport):
    """Faust's aiokafka transport that sees committed messages only."""

    Consumer = _Consumer


def credentials(security: Security) -> faust.SASLCredentials | faust.SSLCredentials | None:
    """Return what Faust is given to get into the cluster; None for a plaintext one.

    Raises:
        ConfigError: a file cannot be read any more.
    """
    context = security.ssl_context()
    if security.mechanism is not None:
        return faust.SASLCredentials(
            username=security.user,
            password=security.password(),
            ssl_context=context,
            mechanism=security.mechanism,
        )
    return None if context is None else faust.SSLCredentials(context)


class App(faust.App):
    """A Faust app without tables, which would keep a folder for them where it is started."""

    def _create_directories(self) -> None:
        pass


def group_metadata(app: faust.App, generation_id: int) -> bytes:
    """Return this worker's membership as confluent-kafka's ``send_offsets_to_transaction`` wants it.

    With it the broker refuses the commit of a worker that lost its partitions, or its slot.
    Source: what librdkafka's own ``consumer_group_metadata()`` gives, of members with and without an instance id.
    """
    group, instance = app.conf.id.encode(), app.conf.consumer_group_instance_id
    static = b"\1" if not instance else b"\0" + instance.encode() + b"\0"
    return b"CGMDv2:" + struct.pack("<i", generation_id) + group + b"\0" + member_id(app).encode() + b"\0" + static


def member_id(app: faust.App) -> str:
    """Return the name that the group gave this worker; empty before it joins, and where the group has put it out."""
    consumer: Any = app.consumer
    return str(consumer._thread._consumer._coordinator.member_id)  # noqa: SLF001
