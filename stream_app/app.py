"""The Faust app: membership, assignment and fetching are Faust's; the work is the pipeline's."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, NoReturn, TypeVar

import faust
from aiokafka.errors import KafkaError as AiokafkaError

from ingestor.command_line import fail
from ingestor.core import wire
from ingestor.core.chunk import Marker, RangeChunk
from ingestor.core.errors import ConfigError, IngestorError, MalformedMessage, NewerVersion, NotLetIn, PublishError
from ingestor.core.time_range import iso
from ingestor.kafka import Admin, Cluster, connect, stable_ends
from ingestor.web import pages
from stream_app.dashboard.server import PAGES, Dashboard
from stream_app.dead_letters import SMALLER_RECORDS, dead_letter, size_letter
from stream_app.earlier import EarlierResults, earlier_results, has_written, used_partitions
from stream_app.faust_transport import App, Transport, arrived, credentials, group_metadata, member_id, reads
from stream_app.group_commit import GroupCommit
from stream_app.methods import MAX_HELD_VALUES
from stream_app.pipeline import Emission, Pipeline, Unreadable
from stream_app.records import decode_record
from stream_app.telemetry import Telemetry
from stream_app.transactions import Commit, Transactions, instance_id
from stream_app.view import View
from stream_app.warm_up import warm_up
from stream_app.web import add_pages

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

_TURN_SAMPLES = 1_000_000
"""Feed no more in one turn: chunks are in memory until it ends."""

_DELETED = (
    "where this view must go on, was deleted by retention: lengthen the topic's retention.ms, and give --accept-loss "
    "to go on; windows that the deleted stretch cuts are marked incomplete"
)

_REFUSED_AT_MOST = 2
"""Looks without an answer between them, before the password is taken for another."""

_LOOK_EVERY_S = 5.0
"""How often the partitions' ends are asked for, with one request."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    cluster: Cluster
    view: View
    slot: int | None = None
    max_held_values: int = MAX_HELD_VALUES
    """Samples in memory one by one at most, for median and quantiles."""
    accept_loss: bool = False
    """Go on where chunks, or the view's commit, are gone."""
    listener: socket.socket | None = None
    """Where the web server listens; None: there is none."""


class _Fed(NamedTuple):
    """A message that its pipeline has taken in."""

    message: faust.types.Message
    pipeline: Pipeline
    item: RangeChunk | Marker | Unreadable | None
    """None: the pipeline had it already."""
    took_s: float
    emissions: Sequence[Emission]


class Worker:
    """One Faust worker of a view."""

    def __init__(self, settings: WorkerSettings, telemetry: Telemetry) -> None:
        self._cluster, self._settings = settings.cluster, settings
        self._view = settings.view
        self._telemetry = telemetry
        self._transactions = Transactions(
            settings.cluster, self._view.topics.range_chunks, self._view.group_id, settings.slot
        )
        self._commits = GroupCommit(self._written, telemetry, self._superseded, self._fail)
        self._admin = Admin(settings.cluster)
        self._pipelines: dict[int, Pipeline] = {}
        # The event loop itself would let it be collected.
        self._restoring: asyncio.Task[None] | None = None
        # Another number after each revoke: what was taken out of the buffer before it is let go.
        self._assignment = 0
        self._is_superseded = False
        self._member_id = ""
        # Held while messages are fed: what a revoke takes away waits for that.
        self._lock = asyncio.Lock()
        self._stop = asyncio.Event()
        self._stopping = False
        self._failure: Exception | None = None
        self._shared_out = asyncio.Event()
        self.app = self._faust_app(settings)
        standing = telemetry.standing
        standing.reads = lambda: reads(self.app)
        own = pages("worker", telemetry, standing.not_ready, standing.not_healthy)
        add_pages(self.app, {path: page for path, page in own.items() if path not in PAGES})
        if settings.listener is not None:
            is_local = ipaddress.ip_address(settings.listener.getsockname()[0]).is_loopback
            dashboard = Dashboard(settings.cluster, self._view, telemetry, self._own_member_id, is_local=is_local)
            dashboard.add_to(self.app)

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Work until SIGTERM or SIGINT.

        Raises:
            IngestorError: something failed; nothing half-done was committed.
        """
        self._loop = asyncio.get_running_loop()
        # Joining the group is mostly waiting.
        loading = asyncio.create_task(asyncio.to_thread(warm_up, self._view))
        await asyncio.to_thread(self._transactions.start)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop.set)
        await self._start_app()
        looks = asyncio.create_task(self._look_at_ends())
        waits = [asyncio.ensure_future(self._stop.wait()), asyncio.ensure_future(self.app.wait_until_stopped())]
        # Without a cache of compiled code it takes a while.
        await asyncio.wait([loading, *waits], return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()
            on_ready()
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        looks.cancel()
        if self._failure is not None:
            await self._leave()
        if failure := self._failure or self.app.crash_reason:
            if isinstance(failure, AiokafkaError):
                await _in_thread(self._transactions.refuse_other_holder, self._member_id)
                raise PublishError(f"Faust has lost Kafka ({failure}): start the worker again") from failure
            raise failure
        if not self._stop.is_set():
            raise IngestorError("Faust ended by itself: start the worker again")
        await self._leave()

    async def _leave(self) -> None:
        """End what was begun, and leave the group, or the next start would wait for this member's session to end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                async with self._lock:
                    self._stopping = True
                # What was emitted is committed first, if the broker answers; else the next start ends what has begun.
                await self._commits.settled()
                # A slot stays a member, to find its partitions again. Faust's stop tells the group nothing of
                # it, and meanwhile would join once more if the slot has got another holder: it would put that one out.
                if self._settings.slot is None:
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
            web_enabled=settings.listener is not None,
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
        app.listener = settings.listener
        app.before_nameless_join = self._refuse_second_turn
        app.overtaken = self._refuse_deleted
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
                    await self._handle(arrived(event, stream))
                except Exception as error:  # noqa: BLE001 - a failed agent restarts behind the message and loses it
                    self._fail(error)
                    return

        @app.on_partitions_revoked.connect
        async def forget(*_: object, **__: object) -> None:
            # Rebalances are eager: every partition is delivered again from its commit.
            self._assignment += 1
            async with self._lock:
                await self._commits.drop()
                self._pipelines.clear()
                self._is_superseded = False
                self._telemetry.revoked()

        @app.on_partitions_assigned.connect  # type: ignore[arg-type]
        async def look(_: object, assigned: set[faust.types.TP], **__: object) -> None:
            self._member_id = member_id(app)
            partitions = {tp.partition for tp in assigned}
            self._telemetry.assigned(partitions)
            self._shared_out.set()
            if partitions:
                self._restoring = asyncio.create_task(self._restore_ahead(partitions, self._assignment))

        return app

    async def _refuse_second_turn(self) -> None:
        """See that a slot which the group has put out does not put its new holder out in turn, and so on for ever.

        It was put out because it stood still, or because its slot has another holder. Called in the consumer's thread.
        """
        if self._settings.slot is None or not self._member_id:
            return
        try:
            await _in_thread(self._transactions.refuse_other_holder, self._member_id)
        except IngestorError as error:
            self._loop.call_soon_threadsafe(self._fail, error)
            self._stopping = True
        if self._stopping:
            # It joins when this returns.
            await asyncio.Event().wait()

    def _refuse_deleted(self, partition: int, offset: int) -> None:
        """End the worker where retention has overtaken it, as its next start would be refused.

        What is missing would be told only of jobs of which something comes later. Called in the consumer's thread.
        """
        topic = self._view.topics.range_chunks
        if self._settings.accept_loss:
            log.error(
                "chunks were deleted before they were read; windows that they cut are marked incomplete",
                extra={"topic": topic, "partition": partition, "offset": offset},
            )
        else:
            error = ConfigError(f"{topic} partition {partition}: offset {offset}, {_DELETED}")
            self._loop.call_soon_threadsafe(self._fail, error)

    def _own_member_id(self) -> str:
        return self._member_id

    def _fail(self, error: Exception) -> None:
        """End the worker: nothing further is handled, and `run` raises *error*."""
        self._telemetry.failed(error)
        # What goes wrong while it ends is not why.
        self._failure, self._stopping = self._failure or error, True
        self._stop.set()

    async def _handle(self, messages: Sequence[faust.types.Message]) -> None:
        """Feed messages to their pipelines, and have what they emit written.

        Some at a time in one turn of a thread; a turn ends with what emits, which is written while the next is fed.
        """
        assignment = self._assignment
        # A message of an earlier assignment can still come out of the buffer.
        waiting = [message for message in messages if message.generation_id == self.app.consumer_generation_id]
        while waiting:
            await self._commits.room()
            async with self._lock:
                if self._is_over(assignment):
                    return
                membership = group_metadata(self.app, waiting[0].generation_id or 0)
                if missing := {message.partition for message in waiting} - self._pipelines.keys():
                    restored = await self._restored(missing)
                    if self._is_over(assignment):
                        return
                    self._pipelines.update(restored)
                fed, error = await asyncio.to_thread(self._fed, waiting, dict(self._pipelines))
                if self._is_over(assignment):
                    return
                for one in fed:
                    self._take(one, membership)
                if error is not None:
                    raise error
            waiting = waiting[len(fed) :]

    def _is_over(self, assignment: int) -> bool:
        """Tell whether messages of *assignment* count for nothing any more."""
        return self._stopping or self._is_superseded or assignment != self._assignment

    async def _restore_ahead(self, partitions: Collection[int], assignment: int) -> None:
        """Restore what is assigned before its first messages come; what is wrong with it is told when they do.

        Where records must be looked through for what a lost commit stood for, it waits for the messages: those of
        another view may fill all partitions.
        """
        with suppress(IngestorError):
            restored = await self._restored(partitions, looks_through=False)
            if not self._is_over(assignment):
                # Whose first message was sooner goes on with its own.
                self._pipelines = {**restored, **self._pipelines}

    async def _restored(self, partitions: Collection[int], *, looks_through: bool = True) -> dict[int, Pipeline]:
        """Return partitions' pipelines as they were committed.

        Args:
            partitions: which.
            looks_through: also of those without a commit, whose sink topics have records.

        Raises:
            ConfigError: what a restart must read is gone.
        """
        commits = await _in_thread(self._transactions.committed, partitions)
        without = [partition for partition, commit in commits.items() if not commit.metadata]
        may_be_lost: set[int] = set()
        if without and not self._settings.accept_loss:
            may_be_lost = await _in_thread(used_partitions, self._admin, self._view, without)
        if not looks_through:
            commits = {partition: commit for partition, commit in commits.items() if partition not in may_be_lost}
        return await asyncio.to_thread(
            lambda: {
                partition: self._restored_from(partition, commit, may_be_lost=partition in may_be_lost)
                for partition, commit in commits.items()
            }
        )

    def _fed(
        self, messages: Sequence[faust.types.Message], pipelines: Mapping[int, Pipeline]
    ) -> tuple[list[_Fed], Exception | None]:
        """Feed messages up to one that emits, or to many samples; return what was taken in, and why not the next."""
        fed: list[_Fed] = []
        samples = 0
        for message in messages:
            pipeline = pipelines[message.partition]
            if message.offset < pipeline.next_offset:
                fed.append(_Fed(message, pipeline, None, 0.0, ()))
                continue
            began = self._telemetry.clock()
            try:
                item = self._decoded(message)
                emissions = self._worth_writing(message.partition, pipeline, pipeline.feed(message.offset, item))
            except Exception as error:  # noqa: BLE001 - raised by the caller, once what came before is on its way
                return fed, error
            fed.append(_Fed(message, pipeline, item, self._telemetry.clock() - began, emissions))
            samples += item.series.samples if isinstance(item, RangeChunk) else 0
            if emissions or samples >= _TURN_SAMPLES:
                break
        return fed, self._held_too_much(pipelines)

    def _worth_writing(self, partition: int, pipeline: Pipeline, emissions: list[Emission]) -> list[Emission]:
        """Return what is written of *emissions*; where there are none, a commit when it is time for one."""
        reached, kept = self._commits.reached(partition, pipeline), []
        if not emissions and pipeline.low - reached >= _COMMIT_EVERY:
            emissions = [pipeline.idle_emission()]
        for emission in emissions:
            if emission.records or emission.letters or emission.final or emission.offset - reached >= _COMMIT_EVERY:
                reached = emission.offset
                kept.append(self._told_of_size(partition, emission))
        return kept

    def _told_of_size(self, partition: int, emission: Emission) -> Emission:
        """Return an emission with a dead letter for each record that is written without its metrics."""
        letters, to = [], self._view.topics.dead_letters
        for batch in emission.records:
            for place, size_bytes in batch.too_large.items():
                key, value, topic = batch.keys[place], batch.values[place], batch.topic
                window = iso(decode_record(value).window_start_ms)
                log.error(
                    "a record is too large and is written without its metrics: %s",
                    SMALLER_RECORDS,
                    extra={"topic": topic, "record": key.decode(), "window": window, "bytes": size_bytes},
                )
                letters.append(
                    size_letter(to, key, value, topic=topic, partition=partition, window=window, size_bytes=size_bytes)
                )
        return replace(emission, letters=[*emission.letters, *letters]) if letters else emission

    def _take(self, fed: _Fed, membership: bytes) -> None:
        partition = fed.message.partition
        if fed.item is not None:
            self._telemetry.taken_in(partition, fed.item, fed.took_s, fed.pipeline)
        for emission in fed.emissions:
            self._commits.add(partition, fed.pipeline, emission, membership)
        self._commits.handled(partition, fed.message.offset)

    async def _written(self, emissions: Sequence[tuple[int, Emission]], membership: bytes) -> None:
        await _in_thread(self._transactions.write, emissions, membership)

    def _superseded(self) -> None:
        """Note that the group has moved on: all partitions are delivered again, after they are revoked."""
        self._is_superseded = True
        self._pipelines.clear()

    def _restored_from(self, partition: int, commit: Commit, *, may_be_lost: bool) -> Pipeline:
        """Return a partition's pipeline as it was committed.

        Args:
            partition: its number.
            commit: where it goes on.
            may_be_lost: it has no commit, and there are records in its sink topics.

        Raises:
            ConfigError: what a restart must read is gone.
        """
        view, topic = self._view, self._view.topics.range_chunks
        if commit.offset < commit.first and not self._settings.accept_loss:
            raise ConfigError(
                f"{topic} partition {partition}: offset {commit.offset} (the first is {commit.first}), {_DELETED}"
            )
        if may_be_lost and has_written(self._cluster, view, partition, self._went_on):
            raise ConfigError(
                f"the consumer group {view.group_id} has no commit for partition {partition}, but has written records "
                f"there (Kafka forgets the commits of a group without workers after offsets.retention.minutes): give "
                f"--accept-loss to emit once more all that {topic} holds, or this view another --topic-prefix"
            )

        def earlier(from_ms: int) -> EarlierResults:
            # Asked for by the feeding thread: what was fed before may still be on its way there.
            asyncio.run_coroutine_threadsafe(self._commits.settled(), self._loop).result()
            return earlier_results(self._cluster, view, partition, from_ms, self._went_on)

        return Pipeline(view, max(commit.offset, commit.first), commit.metadata, earlier)

    def _went_on(self) -> None:
        """Note progress, from any thread: reading what was written before can take minutes."""
        self._loop.call_soon_threadsafe(self._telemetry.standing.went_on)

    def _decoded(self, message: faust.types.Message) -> RangeChunk | Marker | Unreadable:
        headers: Any = message.headers
        topic, partition, offset = message.topic, message.partition, message.offset
        try:
            return wire.decode(headers, message.value)
        except NewerVersion as error:
            raise NewerVersion(f"{topic} partition {partition} offset {offset}: {error}") from error
        except MalformedMessage as error:
            self._telemetry.failed(error)
            header = wire.header_of(headers)
            marked = "" if header is None else ", and its windows are marked incomplete"
            # A traceback of the decoder says nothing more.
            log.error(  # noqa: TRY400
                f"a message cannot be read; it goes to the dead letters{marked}",  # noqa: G004 - once a bad message
                extra={"topic": topic, "partition": partition, "offset": offset, "error": str(error)},
            )
            letter = dead_letter(
                self._view.topics.dead_letters,
                message.key,
                message.value,
                headers,
                topic=topic,
                partition=partition,
                offset=offset,
                error=error,
                reason="headers" if header is None else "value",
            )
            return Unreadable(header, letter)

    def _held_too_much(self, pipelines: Mapping[int, Pipeline]) -> ConfigError | None:
        """Return what to raise where memory may not be enough for the values of open windows."""
        held, most = sum(pipeline.held_values for pipeline in pipelines.values()), self._settings.max_held_values
        if held <= most:
            return None
        return ConfigError(
            f"open windows hold {held:,} samples for {self._view.method_name}, more than --max-held-values "
            f"({most:,}): choose a shorter --chunk-size, or a method that holds none (mean, max, stddev), or start "
            "more workers, or allow more where there is memory (up to 30 bytes each)"
        )

    async def _look_at_ends(self) -> None:
        """Tell the telemetry where the partitions end: at once when they are assigned, and from time to time.

        And see whether the cluster still lets us in: Faust would try the old password for ever.
        """
        standing, refused = self._telemetry.standing, 0
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_EVERY_S):
                    await self._shared_out.wait()
            self._shared_out.clear()
            assignment, ends = standing.assignment, {}
            try:
                if standing.partitions:
                    ends = await asyncio.to_thread(
                        stable_ends, self._admin, self._view.topics.range_chunks, standing.partitions
                    )
                    refused = 0
            except NotLetIn as error:
                # A broker that has just started may not know its users yet.
                refused += 1
                if refused == _REFUSED_AT_MOST:
                    self._fail(error)
                    return
            except IngestorError as error:
                # What is known stays; the work itself has its own ways to find out and to tell.
                self._telemetry.failed(error)
            standing.looked(assignment, ends)


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
            f"Kafka's client has not answered for {_BLOCKED_S:.0f} s, or this worker stood still: "
            "start it again, it goes on from its commit"
        ) from error


async def run_worker(settings: WorkerSettings, telemetry: Telemetry, on_ready: Callable[[], None]) -> NoReturn:
    """Run one worker until it is told to stop, then end the process: 0 when told, else the error's exit code."""
    code = 0
    try:
        await Worker(settings, telemetry).run(on_ready)
    except IngestorError as error:
        fail(error)
        code = error.exit_code
    except Exception:
        log.critical("the worker failed; nothing half-done was committed", exc_info=True)
        code = 1
    logging.shutdown()
    # A thread that is stuck in librdkafka must not hold the process.
    os._exit(code)
