"""What Faust's Kafka transport needs changed: read_committed, larger fetches, no waiting under back-pressure.

Faust has no setting for these. The private names used here are those of the exact
versions in pyproject.toml; ``tests/integration/test_worker.py`` fails if an update moves them.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

import faust
from faust.transport.drivers import aiokafka as driver

from ingestor.kafka_security import Security
from stream_app.standing import Read
from stream_app.web import Web

_FETCH_MAX_BYTES = 16 * 1024 * 1024

_FETCH_MAX_WAIT_MS = 100
"""One request at a time is under way to a broker, and where some partitions are read to their ends it waits for them
so long, and the others with it; Faust's own is 1.5 s."""

_IDLE_FETCH_MAX_WAIT_MS = 500
"""Where all partitions are waited for, whatever comes ends the request: the library's own."""

_IDLE_LOOK_S = 1.0
"""The library looks five times a second whether there is something to ask for; what is new wakes it anyway."""

_PAUSE_S = 0.01
"""Some ten messages are handled meanwhile; a buffer has 16."""


class _ConsumerThread(driver.AIOKafkaConsumerThread):
    reads: Mapping[int, Read] = {}
    """How far each partition was read, as of the last fetch; the app has one topic."""
    _assignment: Any = None

    async def on_start(self) -> None:
        await super().on_start()
        consumer: Any = self._consumer
        coordinator, app = consumer._coordinator, cast(App, self.app)  # noqa: SLF001
        join = coordinator._do_rejoin_group  # noqa: SLF001

        async def join_as_before(subscription: Any) -> Any:
            # The name is lost while partitions are revoked, or with the group's answer to a join: there is no other
            # place where it is seen in time.
            if not coordinator.member_id:
                await app.before_nameless_join()
            return await join(subscription)

        coordinator._do_rejoin_group = join_as_before  # noqa: SLF001
        consumer._fetcher._fetcher_timeout = _IDLE_LOOK_S  # noqa: SLF001

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        # Faust asks for read_committed only together with its own exactly_once, which is not.
        consumer._isolation_level = "read_committed"  # noqa: SLF001
        consumer._fetch_max_bytes = _FETCH_MAX_BYTES  # noqa: SLF001
        consumer._fetch_max_wait_ms = _FETCH_MAX_WAIT_MS  # noqa: SLF001
        return consumer

    async def _fetch_records(self, consumer: Any, active_partitions: Any, *arguments: Any, **more: Any) -> Any:
        records = await super()._fetch_records(consumer, active_partitions, *arguments, **more)
        subscription = consumer._subscription.subscription  # noqa: SLF001
        assignment = subscription.assignment if subscription is not None else None
        if assignment is None:
            self.reads = {}
            return records
        before = self.reads if assignment is self._assignment else {}
        if assignment is not self._assignment:
            for tp in assignment.tps:
                self._watch(tp.partition, assignment.state_value(tp))
        self._assignment, reads = assignment, {}
        for tp in assignment.tps:
            read = before.get(tp.partition, Read(None, None, None))
            first, handed_to = read.first, read.handed_to
            if messages := records.get(tp):
                first = messages[0].offset if first is None else first
                handed_to = messages[-1].offset + 1
            # Private, because the public one waits where there is none yet.
            reads[tp.partition] = Read(first, handed_to, assignment.state_value(tp)._position)  # noqa: SLF001
        self.reads = reads
        is_idle = not records and active_partitions == assignment.tps
        consumer._fetcher._fetch_max_wait_ms = _IDLE_FETCH_MAX_WAIT_MS if is_idle else _FETCH_MAX_WAIT_MS  # noqa: SLF001
        return records

    def _watch(self, partition: int, state: Any) -> None:
        """Have the app told where retention overtakes us: the library goes on at the first message that is left."""
        reset, app = state.await_reset, cast(App, self.app)

        def await_reset(strategy: Any) -> None:
            # Without a commit it begins so too, and there is no position yet.
            if state.has_valid_position:
                app.overtaken(partition, state.position)
            reset(strategy)

        state.await_reset = await_reset


class _Consumer(driver.Consumer):
    def _new_consumer_thread(self) -> _ConsumerThread:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def _wait_next_records(self, timeout: float) -> Any:  # noqa: ASYNC109 - the overridden signature
        # Stock code sleeps a whole second whenever every partition's buffer is full; there is no event to wait for.
        while (  # noqa: ASYNC110
            self._buffered_partitions and not self._active_partitions and self.flow_active and not self.should_stop
        ):
            await asyncio.sleep(_PAUSE_S)
        # Nor may it wait for partitions that are read to their ends while a full one's buffer runs empty.
        return await super()._wait_next_records(_PAUSE_S if self._buffered_partitions else timeout)


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
    """A Faust app without tables, which would keep a folder for them where it is started; with our own pages only."""

    listener: socket.socket | None = None
    """Where the web server listens; set before it starts."""
    before_nameless_join: Callable[[], Awaitable[None]]
    """Awaited in the consumer's thread before each join of the group by which this worker asks for a new name: the
    first one, and those after the group has put it out."""
    overtaken: Callable[[int, int], None]
    """Called in the consumer's thread with a partition, and with the offset that was to be read and is deleted."""

    def _new_web(self) -> Web:
        return Web(self, self.listener)

    def _create_directories(self) -> None:
        pass


def reads(app: faust.App) -> Mapping[int, Read]:
    """Return how far Faust has read each partition, as of its last fetch."""
    consumer: Any = app.consumer
    known: Mapping[int, Read] = consumer._thread.reads  # noqa: SLF001
    return known


def arrived(event: faust.EventT[bytes], stream: faust.StreamT[bytes]) -> list[faust.types.Message]:
    """Return an event's message, and those that wait in the stream's buffer behind it."""
    messages, queue = [event.message], cast(Any, stream).channel.queue
    while not queue.empty():
        messages.append(queue.get_nowait().message)
    # Else it would be filled again only when all of these are handled.
    queue.maybe_endorse_pressure_drop()
    return messages


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
