"""What an ML service opens: pods' windows, each with its history."""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import numpy as np
from confluent_kafka import KafkaException

from ingestor.core.durations import ChunkSize, parse_duration_ms
from ingestor.core.errors import ConfigError, MalformedMessage, PublishError
from ingestor.core.topics import DEFAULT_PREFIX, Topics
from ingestor.kafka import Cluster, connect, failure, find_topics, wait_for_leaders
from ingestor.kafka_security import Security
from stream_app.consumer.batch import Batch, Gathering
from stream_app.consumer.forms import Matrix
from stream_app.consumer.history import Int64Array
from stream_app.consumer.mailbox import Block, Mailbox
from stream_app.consumer.partition import Partition, Policy, Taken
from stream_app.consumer.reader import Reader, ReaderSettings
from stream_app.consumer.selection import Selection
from stream_app.consumer.starts import Start
from stream_app.consumer.views import ViewChoice
from stream_app.consumer.window import Window
from stream_app.reading import start_of
from stream_app.tail_filter import RecordFilter, Wanted

log = logging.getLogger(__name__)

_PREFETCH = 20_000
"""Messages that are read and not yet taken: about 40 MB at 20 metrics."""

_BATCH_WINDOWS = 100_000

_LAST_OFFSET = (1 << 63) - 1

_LOOK_S = 1.0
_NEVER = float("inf")
_STALL_S = 90.0
"""Longer than a crashed worker's transaction stays open, or a dead member's session."""

Names = str | Sequence[str]

_Read = TypeVar("_Read")


@dataclass(frozen=True, slots=True)
class Malformed:
    """A message that is no record, or a later version's."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    error: MalformedMessage
    """What is wrong with it."""


@dataclass(slots=True)
class _Block:
    """What of one partition's records is to be delivered, and how far that has come."""

    partition: Partition
    taken: Taken
    numbers: Int64Array
    """Of the records to be delivered, in their order."""
    offsets: list[int]
    """Of these."""
    position: int
    """Behind all."""
    next: int = 0
    """How many are delivered, and processed."""


class PodConsumer:
    """Reads pods' (or services') records from Kafka; delivers each as a `Window` with its pod's history.

    ::

        with PodConsumer("localhost:9092", namespace="shop", services=["cart", "orders"], lookback="2h") as pods:
            for window in pods:
                history = window.frame()
                scores = model.predict(history)

    Only what is committed is read. What is to be known beyond the arguments:

    **Order.** Windows come as they were written: of one pod, and one job, in the order of
    time. What comes behind a later window of its pod (a backfill behind live data, a
    revision) is delivered when it comes, with `Window.late`; or with ``late="history"``
    only becomes history, and windows of a pod strictly rise. Of a window that comes again,
    complete beats partial, then the higher revision, then the later one; what loses, or says
    the same, is not delivered. `Window.frame` is what was known when the window was
    delivered, up to its own start: never a later window's row.

    **Without a group** nothing is stored: each opening begins at *start*.

    **In a group** members share the partitions, and what is processed is committed: a window
    when the loop comes back for the next one, a batch when it comes back for the next batch,
    about every *commit_s* seconds, when partitions move, and at the end. A window that was
    not processed when a process died is delivered again: at least once, and what was
    processed and committed never again. Stored is the offset of the oldest record that a
    lookback needs (lag that Kafka's tools show is that much longer), and beside it how far
    has been processed: from there windows are delivered, what is between is read again for
    the histories only. Where another member takes over partitions, what waits here is
    dropped, and delivered there; what is in the loop's hands at that moment comes there too.

    **A slow loop** loses nothing: a thread reads ahead (20,000 records), then pauses, and
    keeps the membership. A loop that never comes back keeps its partitions, too.

    **Memory.** A pod's lookback takes 8 bytes a value and 24 a window, up to twice that, and
    about 1.5 kB: 2 h of minutes with 20 metrics 22 to 45 kB. Pods without a record for
    longer than a lookback are forgotten.
    """

    def __init__(
        self,
        bootstrap_servers: str = "localhost:9092",
        *,
        topic_prefix: str = DEFAULT_PREFIX,
        group_by: Literal["pod", "service"] = "pod",
        namespace: Names = (),
        services: Names = (),
        pods: Names = (),
        metrics: Names = (),
        chunk_size: str | None = None,
        method: str | None = None,
        lookback: str | timedelta | None = None,
        start: str | datetime | None = None,
        until: Literal["now"] | None = None,
        late: Literal["deliver", "history"] = "deliver",
        group: str | None = None,
        group_instance_id: str | None = None,
        session_timeout_s: float = 10.0,
        auto_commit: bool = True,
        commit_s: float = 1.0,
        on_malformed: Callable[[Malformed], object] | None = None,
        kafka_tls: bool = False,
        kafka_ca_file: str | Path | None = None,
        kafka_cert_file: str | Path | None = None,
        kafka_key_file: str | Path | None = None,
        kafka_key_password_file: str | Path | None = None,
        kafka_sasl: str | None = None,
        kafka_user: str | None = None,
        kafka_password_file: str | Path | None = None,
    ) -> None:
        """Say what is to be read; nothing is asked of Kafka yet.

        Args:
            bootstrap_servers: Kafka, ``host:port`` with commas between.
            topic_prefix: as the worker's.
            group_by: ``pod`` or ``service``: which records.
            namespace: of these only; names or shell patterns (``shop-*``); none: all. ``_`` is the empty one.
            services: the same.
            pods: the same.
            metrics: the same; others are taken out, and records that have no other are left out.
            chunk_size: which view, where the topic has several: as the worker's ``--chunk-size``.
            method: as records name it: ``mean``, ``p95``, ``mean-of-last``.
            lookback: how far before a window's end its history reaches, like ``2h``; None: the window alone.
            start: where to begin (in a group, where it has not begun): ``latest``, ``earliest``, or windows
                that start at a time or later: RFC 3339, Unix seconds, a duration ago like ``10d``, or a
                datetime with a time zone. What comes after the opening is delivered whatever its time. None:
                ``latest``, with *until* ``earliest``.
            until: ``now``: end when all is read that is committed at the opening; None: go on for good.
            late: ``deliver`` or ``history``: what becomes of windows behind a later one of their pod.
            group: a consumer group; None: read alone, and leave nothing in Kafka.
            group_instance_id: this member's lasting name in the group: restarted within *session_timeout_s* it
                goes on with its partitions at once, and no other member's move.
            session_timeout_s: a member that is dead for so long loses its partitions; Kafka takes 6 and more.
            auto_commit: False: only `commit` says what is processed.
            commit_s: seconds between commits.
            on_malformed: called with each message that is no record, which is then skipped; None: it is logged.
            kafka_tls: encrypt; certificates and host names are always verified.
            kafka_ca_file: PEM, who signs the brokers' certificates; None: the system's. Turns TLS on.
            kafka_cert_file: PEM, a client certificate.
            kafka_key_file: PEM, its key.
            kafka_key_password_file: one line, the password of an encrypted key.
            kafka_sasl: ``PLAIN``, ``SCRAM-SHA-256`` or ``SCRAM-SHA-512``.
            kafka_user: who logs in.
            kafka_password_file: one line, the password.

        Raises:
            ConfigError: names every argument that is wrong.
        """
        paths = [kafka_ca_file, kafka_cert_file, kafka_key_file, kafka_key_password_file, kafka_password_file]
        ca, cert, key, key_password, password = [None if path is None else Path(path) for path in paths]
        security = Security(kafka_tls, ca, cert, key, key_password, kafka_sasl, kafka_user, password)
        faults = _Faults()
        faults.check(security.check)
        lookback_ms = faults.check(lambda: _lookback_ms(lookback)) or 0
        start_at = faults.check(lambda: _start(start, finite=until is not None)) or Start("latest")
        size = faults.check(lambda: _size(chunk_size))
        faults.add(group_by not in ("pod", "service"), f"group_by={group_by!r}: write pod or service")
        faults.add(until not in (None, "now"), f"until={until!r}: write now, or leave it out")
        faults.add(late not in ("deliver", "history"), f"late={late!r}: write deliver or history")
        faults.add(group is None and group_instance_id is not None, "group_instance_id= needs group=")
        faults.add(group is None and not auto_commit, "auto_commit=False needs group=")
        faults.add(group == "", "group= is empty: give it a name, or leave it out")
        faults.add(group_by == "service" and bool(pods), "records of services have no pod: give services=")
        faults.add(session_timeout_s < 1 or commit_s <= 0, "session_timeout_s= and commit_s= must be positive")
        faults.raise_if_any()
        topic = Topics(topic_prefix).sink(group_by)
        self._cluster = Cluster(bootstrap_servers, security)
        self._views = ViewChoice(topic, size, method)
        wanted = Wanted(_names(namespace), _names(services), _names(pods), _names(metrics))
        self._selection = Selection(RecordFilter(wanted), self._views, of_services=group_by == "service")
        self._settings = ReaderSettings(
            self._cluster,
            topic,
            start_at,
            finite=until is not None,
            policy=Policy(lookback_ms, deliver_late=late == "deliver"),
            group=group,
            group_instance_id=group_instance_id,
            session_timeout_s=session_timeout_s,
            commit_s=commit_s,
        )
        self._auto_commit = auto_commit
        self._on_malformed = on_malformed or _log_malformed
        self._mailbox = Mailbox(_PREFETCH)
        self._reader: Reader | None = None
        self._is_closed = False
        self._block: _Block | None = None
        self._is_in_hand = False

    def __enter__(self) -> Self:
        """Open: as `open`."""
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Window]:
        """Deliver windows as they come; asking for the next one says that the one before is processed.

        Raises:
            ConfigError: the topic has records of two views, and none is chosen; Kafka does not let us in
                any more; the group has processed another view.
            PublishError: Kafka cannot be read any more.
            Fenced: another process has this *group_instance_id*.

        A loop that is left by ``break`` has not come back: in a group its last window is delivered again.
        """
        return self

    def __next__(self) -> Window:
        reader = self._opened()
        self._pass_hand(reader)
        while True:
            block = self._block
            if block is not None and block.next < len(block.numbers) and block.partition.is_ours:
                number = int(block.numbers[block.next])
                window = block.taken.window(number, block.taken.snapshot(number))
                self._is_in_hand = True
                return window
            self._pass_block(reader)
            if not self._next_block(reader, _NEVER):
                raise StopIteration

    def open(self) -> None:
        """Connect, and begin to read ahead; ``with`` does it.

        Raises:
            ConfigError: no broker answers, or lets us in; with *until*: there is no such topic.
        """
        if self._is_closed:
            raise ConfigError("this PodConsumer is closed: make another one")
        if self._reader is not None:
            return
        topic = self._settings.topic
        try:
            admin = connect(self._cluster)
            found = find_topics(admin, [topic]).get(topic)
            if found is None and self._settings.finite:
                raise ConfigError(
                    f"topic {topic} does not exist: start a worker (stream-app worker), or give its topic_prefix="
                )
            wait_for_leaders(admin, [topic])
            reader = Reader(self._settings, admin, found, self._views, self._selection.accepts, self._mailbox)
        except KafkaException as error:
            raise failure(error, f"{topic} cannot be read") from error
        reader.pins = not self._auto_commit
        reader.begin()
        self._reader = reader

    def close(self) -> None:
        """Commit what is processed, leave the group and let go of all; ``with`` does it, on Ctrl-C too."""
        self._is_closed = True
        if self._reader is not None:
            self._reader.close()

    def commit(self) -> None:
        """Say that all windows that were delivered are processed, the one in hand too; wait until Kafka has it.

        Raises:
            ConfigError: there is no group.
            PublishError: Kafka does not take it: they may be delivered again.
        """
        if self._settings.group is None:
            raise ConfigError("commit() needs group=")
        reader = self._opened()
        self._confirm(reader)
        reader.commit()

    def batches(self, seconds: float = 60.0, max_windows: int = _BATCH_WINDOWS) -> Iterator[Batch]:
        """Deliver the windows that came within some seconds of the first of them, in columns.

        Args:
            seconds: how long a batch is gathered.
            max_windows: it ends earlier when it has so many.

        Yields:
            Batches of one window and more; asking for the next one says that the one before is processed.

        Raises:
            The same as iterating.
        """
        reader = self._opened()
        self._pass_hand(reader)
        self._confirm(reader)
        reader.pins = True
        try:
            is_open = True
            while is_open:
                gathering, until_s = Gathering(), _NEVER
                while gathering.count < max_windows and time.monotonic() < until_s:
                    block = self._block
                    if block is not None and block.partition.is_ours:
                        gathering.add(block.partition, block.taken, block.numbers[block.next :])
                    self._pass_block(reader)
                    if gathering.count and until_s == _NEVER:
                        until_s = time.monotonic() + seconds
                    is_open = self._next_block(reader, until_s)
                    if not is_open:
                        break
                batch = gathering.close()
                if len(batch):
                    yield batch
                for partition in gathering.partitions:
                    # Lost meanwhile, it may have come back.
                    partition.done = max(partition.done, partition.position)
                if self._auto_commit:
                    self._confirm(reader)
        finally:
            reader.pins = not self._auto_commit

    def read(self) -> Batch:
        """Read to the end, and return all windows in columns.

        Raises:
            ConfigError: without ``until="now"`` there is no end; and as iterating.
        """
        if not self._settings.finite:
            raise ConfigError('this reads to an end: give until="now", or use batches(), which have the same methods')
        return next(self.batches(_NEVER, _LAST_OFFSET), Batch("", {}))

    def matrix(self, metrics: Sequence[str] | None = None) -> Matrix:
        """Read to the end, and return all windows as one array, shape (pods, windows, metrics).

        Args:
            metrics: the last axis, in this order; None: all that there are, by name.

        Raises:
            ConfigError: as `read`.
        """
        return self.read().matrix(metrics)

    def _next_block(self, reader: Reader, until_s: float) -> bool:
        """Take what was read next, if it comes before a moment of the monotonic clock; return False at the end."""
        begun_s = time.monotonic()
        while not self._is_closed:
            if self._settings.finite and self._mailbox.is_empty() and reader.is_at_end():
                return False
            now_s = time.monotonic()
            block = self._mailbox.get(max(0.0, min(_LOOK_S, until_s - now_s)))
            if block is not None:
                self._block = self._take(reader, block)
                return True
            if now_s >= until_s:
                return True
            if self._settings.finite and now_s - begun_s > _STALL_S:
                raise PublishError(
                    "Kafka gives no more records, though it has some: is a broker away, or a transaction open "
                    "(kafka-transactions.sh find-hanging)? start again"
                )
        return False

    def _take(self, reader: Reader, block: Block) -> _Block | None:
        partition = block.partition
        with reader.lock:
            partition.go_on_from_earlier()
        end = reader.ends.get(partition.number, _LAST_OFFSET)
        offsets, keys, values = self._worth_reading(block, partition.position, end)
        found, faults = self._selection.read(keys, values, offsets)
        for at, error in faults:
            if partition.is_ours and not partition.is_history(offsets[at]):
                self._on_malformed(
                    Malformed(self._settings.topic, partition.number, offsets[at], keys[at], values[at], error)
                )
        with reader.lock:
            if not partition.is_ours:
                return None
            taken = partition.take(found, block.written_ms)
        numbers = np.flatnonzero(taken.is_delivered)
        return _Block(partition, taken, numbers, found.records.offset[numbers].tolist(), min(block.position, end))

    def _worth_reading(self, block: Block, first: int, end: int) -> tuple[list[int], list[Any], list[Any]]:
        """Return offsets, keys and values of what may be wanted from *first* up to *end*."""
        rows = slice(bisect_left(block.offsets, first), bisect_left(block.offsets, end))
        offsets, keys, values = block.offsets[rows], block.keys[rows], block.values[rows]
        unwanted = {key for key in set(keys) if not self._selection.may_be_wanted(key)}
        if not unwanted:
            return offsets, keys, values
        places = [at for at, key in enumerate(keys) if key not in unwanted]
        return [offsets[at] for at in places], [keys[at] for at in places], [values[at] for at in places]

    def _pass_hand(self, reader: Reader) -> None:
        """Take the window that was delivered last as processed: the loop has come back."""
        if self._is_in_hand and self._block is not None:
            self._is_in_hand = False
            self._pass(reader, self._block.partition, self._block.offsets[self._block.next] + 1)
            self._block.next += 1

    def _pass_block(self, reader: Reader) -> None:
        block, self._block = self._block, None
        if block is not None and block.partition.is_ours:
            with reader.lock:
                self._pass(reader, block.partition, block.position)
                block.partition.pass_by()

    def _pass(self, reader: Reader, partition: Partition, position: int) -> None:
        partition.position = max(partition.position, position)
        if not reader.pins:
            partition.done = max(partition.done, position)

    def _confirm(self, reader: Reader) -> None:
        """Take all that was delivered as processed."""
        with reader.lock:
            if self._is_in_hand and self._block is not None:
                partition = self._block.partition
                partition.position = max(partition.position, self._block.offsets[self._block.next] + 1)
            for partition in reader.partitions.values():
                partition.done = max(partition.done, partition.position)
                partition.pinned = partition.resume_at()

    def _opened(self) -> Reader:
        self.open()
        if self._reader is None:
            raise ConfigError("this PodConsumer is not open")
        return self._reader


class _Faults:
    """Gathers what is wrong with arguments, to tell it at once."""

    def __init__(self) -> None:
        self._faults: list[str] = []

    def add(self, wrong: bool, fault: str) -> None:  # noqa: FBT001
        if wrong:
            self._faults.append(fault)

    def check(self, read: Callable[[], _Read]) -> _Read | None:
        try:
            return read()
        except (ValueError, ConfigError) as error:
            self._faults.append(str(error))
            return None

    def raise_if_any(self) -> None:
        if self._faults:
            raise ConfigError("; ".join(self._faults))


def _names(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _lookback_ms(lookback: str | timedelta | None) -> int:
    if lookback is None:
        return 0
    if isinstance(lookback, timedelta):
        if lookback <= timedelta(0):
            raise ValueError(f"lookback={lookback!r} is not positive")
        return lookback // timedelta(milliseconds=1)
    return parse_duration_ms(lookback)


def _start(start: str | datetime | None, *, finite: bool) -> Start:
    if start is None:
        return Start("earliest" if finite else "latest")
    if isinstance(start, datetime):
        if start.tzinfo is None:
            raise ValueError(f"start={start!r} has no time zone")
        start = start.isoformat()
    kind, from_ms = start_of(start, round(time.time() * 1000))
    return Start(kind, from_ms or 0)


def _size(chunk_size: str | None) -> str | None:
    if chunk_size is None:
        return None
    # As records spell it; a zone's rules are not needed for that, and may not be here.
    size, at, zone = chunk_size.partition("@")
    return f"{ChunkSize.parse(size)}{at}{zone}"


def _log_malformed(malformed: Malformed) -> None:
    where = {"topic": malformed.topic, "partition": malformed.partition, "offset": malformed.offset}
    log.error("message skipped", extra={**where, "error": str(malformed.error)})
