"""The Faust app: membership, assignment and fetching are Faust's; the work is the pipeline's."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import faust
from aiokafka.errors import KafkaError as AiokafkaError

from ingestor.command_line import fail
from ingestor.core import wire
from ingestor.core.errors import IngestorError, MalformedMessage, PublishError
from ingestor.kafka import Cluster, connect
from stream_app.faust_transport import App, Transport, credentials, group_metadata, member_id
from stream_app.pipeline import Emission, Pipeline, View
from stream_app.transactions import Superseded, Transactions, instance_id

log = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")

_BLOCKED_S = 40.0
"""Longer than a transaction may last (30 s). librdkafka's calls have time-outs of their own, and after a
broker's restart have been seen to block beyond them, for ever."""

_START_S = 60.0
"""Faust asks for ever for a topic that it may not read; a start takes about a second."""

_STOP_TIMEOUT_S = 4.0
"""Faust leaves its group meanwhile; the process ends with or without it."""

_COMMIT_EVERY = 200
"""Commit after so many messages even when they close no window: a restart then replays no more than it must."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    cluster: Cluster
    view: View
    slot: int | None = None
    web_host: str = "127.0.0.1"
    web_port: int | None = None
    """None: no web server."""


class Worker:
    """One Faust worker of a view."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._cluster = settings.cluster
        self._view = settings.view
        self._transactions = Transactions(
            settings.cluster, self._view.topics.range_chunks, self._view.group_id, settings.slot
        )
        self._pipelines: dict[int, Pipeline] = {}
        self._member_id = ""
        # One producer has one transaction at a time, so one message is handled at a time.
        self._lock = asyncio.Lock()
        self._stop = asyncio.Event()
        self._stopping = False
        self._failure: Exception | None = None
        self.app = self._faust_app(settings)

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Work until SIGTERM or SIGINT.

        Raises:
            IngestorError: something failed; nothing half-done was committed.
        """
        await asyncio.to_thread(self._transactions.start)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop.set)
        await self._start_app()
        on_ready()
        waits = [asyncio.ensure_future(self._stop.wait()), asyncio.ensure_future(self.app.wait_until_stopped())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if failure := self._failure or self.app.crash_reason:
            if isinstance(failure, AiokafkaError):
                await _in_thread(self._transactions.refuse_other_holder, self._member_id)
                raise PublishError(f"Faust has lost Kafka ({failure}): start the worker again") from failure
            raise failure
        if not self._stop.is_set():
            raise IngestorError("Faust ended by itself: start the worker again")
        with suppress(TimeoutError):
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                # A transaction that has begun is ended first, if the broker answers; else the next start ends it.
                async with self._lock:
                    self._stopping = True
                await self.app.stop()

    async def _start_app(self) -> None:
        """Start Faust.

        Raises:
            ConfigError: the cluster does not let it in.
            PublishError: it cannot reach the cluster, or is never ready.
        """
        try:
            async with asyncio.timeout(_START_S):
                await self.app.start()
        except AiokafkaError as error:
            # Its own error never says why.
            await asyncio.to_thread(connect, self._cluster)
            raise PublishError(f"Faust cannot reach Kafka ({error}): start the worker again") from error
        except TimeoutError as error:
            raise PublishError(
                f"Faust is not ready after {_START_S:.0f} s: look at the lines above, and start the worker again"
            ) from error

    def _faust_app(self, settings: WorkerSettings) -> faust.App:
        app = App(
            self._view.group_id,
            broker=[f"kafka://{server.strip()}" for server in settings.cluster.bootstrap_servers.split(",")],
            broker_credentials=credentials(settings.cluster.security),
            store="memory://",
            topic_disable_leader=True,
            topic_allow_declare=False,
            web_enabled=settings.web_port is not None,
            web_bind=settings.web_host,
            web_host=settings.web_host,
            web_port=settings.web_port or 6066,
            # Without it stopping waits for the stream to run empty, which a live one never does.
            stream_wait_empty=False,
            stream_buffer_maxsize=16,
            consumer_max_fetch_size=4 * 1024 * 1024,
            # Zero standbys: Faust's assignor gives way to plain round-robin.
            table_standby_replicas=0,
            broker_heartbeat_interval=1.0,
            broker_session_timeout=10.0,
            # A static member: started again within the session time-out, it goes on where it was, without a rebalance.
            consumer_group_instance_id=instance_id(settings.slot),
            # An idle standby would else leave the group for good.
            broker_max_poll_interval=1e6,
        )
        app.transport = Transport(app.conf.broker_consumer, app)
        chunks = app.topic(
            self._view.topics.range_chunks,
            key_type=bytes,
            value_type=bytes,
            key_serializer="raw",
            value_serializer="raw",
            # Faust commits past un-acked messages; offsets are committed in our transactions only.
            acks=False,
        )

        @app.agent(chunks, name="windows")
        async def windows(stream: faust.StreamT[bytes]) -> None:
            async for event in stream.events():
                try:
                    async with self._lock:
                        await self._handle(event.message)
                except Exception as error:  # noqa: BLE001 - a failed agent restarts behind the message and loses it
                    self._fail(error)
                    return

        @app.on_partitions_revoked.connect
        async def forget(*_: object, **__: object) -> None:
            # Rebalances are eager: every partition is delivered again from its commit.
            async with self._lock:
                self._pipelines.clear()
            if self._member_id and not member_id(app) and not self._stopping:
                # Put out of the group: this worker stood still, or its slot has another holder. If it
                # joined again, it would put that one out in turn, and so on for as long as nothing is written.
                try:
                    await _in_thread(self._transactions.refuse_other_holder, self._member_id)
                except IngestorError as error:
                    self._fail(error)
                    # It joins when this returns.
                    await asyncio.Event().wait()

        @app.on_partitions_assigned.connect
        async def remember(*_: object, **__: object) -> None:
            self._member_id = member_id(app)

        return app

    def _fail(self, error: Exception) -> None:
        """End the worker: nothing further is handled, and `run` raises *error*."""
        self._failure, self._stopping = error, True
        self._stop.set()

    async def _handle(self, message: faust.types.Message) -> None:
        # A message of an earlier assignment can still come out of the buffer.
        if self._stopping or message.generation_id != self.app.consumer_generation_id:
            return
        pipeline = self._pipelines.get(message.partition)
        if pipeline is None:
            offset, metadata = await _in_thread(self._transactions.committed, message.partition)
            pipeline = self._pipelines[message.partition] = Pipeline(self._view, offset, metadata)
        if message.offset < pipeline.next_offset:
            return
        emissions = await asyncio.to_thread(_decode_and_feed, pipeline, message)
        if not emissions and pipeline.low - pipeline.committed >= _COMMIT_EVERY:
            emissions = [pipeline.idle_emission()]
        for emission in emissions:
            if not await self._write(message, pipeline, emission):
                return

    async def _write(self, message: faust.types.Message, pipeline: Pipeline, emission: Emission) -> bool:
        if not emission.outputs and not emission.final and emission.offset - pipeline.committed < _COMMIT_EVERY:
            return True
        membership = group_metadata(self.app, message.generation_id or 0)
        try:
            await _in_thread(self._transactions.write, message.partition, emission, membership)
        except Superseded:
            self._pipelines.pop(message.partition, None)
            return False
        pipeline.committed = emission.offset
        log.info(
            "windows emitted",
            extra={"partition": message.partition, "records": len(emission.outputs), "offset": emission.offset},
        )
        return True


async def _in_thread(call: Callable[..., _Answer], *arguments: object) -> _Answer:
    """Run a blocking call of librdkafka off the event loop, with an end to all patience.

    Raises:
        PublishError: it has not come back; the process must end, for the thread may never.
    """
    try:
        async with asyncio.timeout(_BLOCKED_S):
            return await asyncio.to_thread(call, *arguments)
    except TimeoutError as error:
        raise PublishError(
            f"Kafka's client has not answered for {_BLOCKED_S:.0f} s: "
            "start the worker again, it goes on from its commit"
        ) from error


def _decode_and_feed(pipeline: Pipeline, message: faust.types.Message) -> list[Emission]:
    headers: Any = message.headers
    try:
        item = wire.decode(headers, message.value)
    except MalformedMessage as error:
        raise MalformedMessage(
            f"{message.topic} partition {message.partition} offset {message.offset}: {error}"
        ) from error
    return pipeline.feed(message.offset, item)


async def run_worker(settings: WorkerSettings, on_ready: Callable[[], None]) -> NoReturn:
    """Run one worker until it is told to stop, then end the process: 0 when told, else the error's exit code."""
    code = 0
    try:
        await Worker(settings).run(on_ready)
    except IngestorError as error:
        fail(error)
        code = error.exit_code
    except Exception:
        log.critical("the worker failed; nothing half-done was committed", exc_info=True)
        code = 1
    logging.shutdown()
    # A thread that is stuck in librdkafka must not hold the process.
    os._exit(code)
