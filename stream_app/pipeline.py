"""One partition's stream: messages in, emissions out. No clock, no I/O.

A window closes when its job's markers have passed its end. What must be kept for a
restart is small: the offset to replay from, and, for each job, from where on its
windows are whole and up to where they were emitted. Both travel in one commit.
"""

from __future__ import annotations

import base64
import logging
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import orjson

from ingestor.core.chunk import LOOKBACK_MS, Header, Int64Array, Marker, RangeChunk, Refused
from ingestor.core.errors import ConfigError, IngestorError
from stream_app.encoding import RecordContext, encode_records, record_results, record_starts
from stream_app.methods import GroupBy
from stream_app.records import record_key
from stream_app.view import View
from stream_app.windows import Closed, GroupWindows, runs_of

log = logging.getLogger(__name__)

_MAX_METADATA_BYTES = 4096
"""The broker's default ``offset.metadata.max.bytes``."""

_FOREVER_MS = 2**62

_MOST_HOLES = 20
"""Remembered of a job at most; more are told as longer ones."""

EMISSION_RECORDS = 20_000
"""Cut emissions at window borders after about so many records: a transaction stays short."""

_Kind = TypeVar("_Kind")

Identity = tuple[str, bytes, int]
"""Names a record: topic, key, window start (ms)."""


class Results(Protocol):
    """What was emitted of windows before."""

    def get(self, identity: Identity, /) -> int | None:
        """Return the hash of the result (`record_results`); 0 where only a partial one is there, None where none is."""


@dataclass(frozen=True, slots=True)
class Output:
    """One message for a sink topic, or for the dead letters."""

    topic: str
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()
    reason: str = ""
    """Why it is a dead letter; empty: it is none."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Records for one sink topic, in order: thousands of small objects would cost more than what they hold."""

    topic: str
    keys: list[bytes]
    values: list[bytes]
    """Of each record."""
    too_large: Mapping[int, int] = field(default_factory=dict)
    """Those that are written without their metrics, by their place: how many bytes each would have."""

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A message that does not follow the contract."""

    header: Header | None
    """As far as it can be read."""
    letter: Output
    """What is kept of it."""


@dataclass(frozen=True, slots=True)
class Emission:
    """What must be written in one transaction: records, and the commit that they stand for."""

    records: Sequence[Batch]
    letters: Sequence[Output]
    """Dead letters."""
    offset: int
    """Where a restart replays from."""
    metadata: str
    final: bool
    """A job ended here: commit even where there are no records."""
    window_ends_ms: Sequence[int] = ()
    """Of the windows that it closes; a recheck closes none."""

    @property
    def outputs(self) -> list[Output]:
        """All messages, one by one."""
        records = (Output(b.topic, *pair) for b in self.records for pair in zip(b.keys, b.values, strict=True))
        return [*records, *self.letters]


class _Pending(NamedTuple):
    offset: int
    range_end_ms: int
    sequence: int


class _JobState(NamedTuple):
    """What a commit says of an open job."""

    whole_from_ms: int
    emitted_to_ms: int
    next_sequence: int | None
    recheck: str
    rechecked_to_ms: int
    holes: list[tuple[int, int]]


class _State(NamedTuple):
    """What a commit says."""

    view: str
    read_to: int
    jobs: dict[str, _JobState]


class _Emitted:
    """What was emitted, window by window: hashes of records' identities and results, about 100 bytes a record."""

    def __init__(self) -> None:
        self._windows: dict[int, dict[int, int]] = {}

    def get(self, identity: Identity, /) -> int | None:
        """Return what was emitted, as Results."""
        known = self._windows.get(identity[2])
        return None if known is None else known.get(hash(identity))

    def add(self, identity: Identity, result: int) -> None:
        """Note a record's result; 0 where not all of it had come."""
        self._windows.setdefault(identity[2], {})[hash(identity)] = result

    def forget(self, before_ms: int) -> None:
        """Let go of windows that start before *before_ms*."""
        for start_ms in [start_ms for start_ms in self._windows if start_ms < before_ms]:
            del self._windows[start_ms]


@dataclass(slots=True)
class _Job:
    whole_from_ms: int
    """Windows that start earlier are cut by the job's start."""
    covered_to_ms: int
    emitted_to_ms: int
    closed_to_ms: int
    """Below *emitted_to_ms* only after a restart: windows between are counted again, to be compared with a recheck."""
    windows: list[GroupWindows]
    pending: deque[_Pending] = field(default_factory=deque)
    """The messages that a restart may need, oldest first."""
    next_sequence: int | None = None
    replayed_to: int = 0
    """Lower sequence numbers are another job's replay: what this one needs of them is emitted."""
    revision: int = 0
    is_recheck: bool = False
    """It reads another job's ranges once more, and says nothing of what that one has not said."""
    recheck: str = ""
    """The job that reads the same ranges later, once more."""
    rechecked_to_ms: int = _FOREVER_MS
    emitted: _Emitted = field(default_factory=_Emitted)
    """What was emitted from *rechecked_to_ms* on."""
    incomplete: list[Refused] = field(default_factory=list)
    """What the backend has refused."""
    holes: list[tuple[int, int]] = field(default_factory=list)
    """Stretches of time of which messages are missing or unreadable; rising, apart from one another."""
    earlier: Results | None = None
    """What other jobs have emitted of windows that this one repeats; read when it is needed."""

    @property
    def counted_from_ms(self) -> int:
        """After a restart, windows are counted from here on."""
        return min(self.emitted_to_ms, self.rechecked_to_ms)

    def to_metadata(self) -> dict[str, object]:
        """Return what a restart must know of the job."""
        return {
            "from": self.whole_from_ms,
            "to": self.emitted_to_ms,
            "next": self.pending[0].sequence if self.pending else self.next_sequence,
            **({"recheck": [self.recheck, self.rechecked_to_ms]} if self.recheck else {}),
            **({"holes": self.holes} if self.holes else {}),
        }

    def add_hole(self, start_ms: int, end_ms: int) -> None:
        """Note that not all of [start_ms, end_ms) has come; nothing where that is empty."""
        if start_ms >= end_ms:
            return
        merged: list[tuple[int, int]] = []
        for start, end in sorted([*self.holes, (start_ms, end_ms)]):
            if merged and start <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(end, merged[-1][1])
            else:
                merged.append((start, end))
        if len(merged) > _MOST_HOLES:
            merged[-2:] = [(merged[-2][0], merged[-1][1])]
        self.holes = merged

    def add_refused(self, refused: Sequence[Refused]) -> None:
        """Note what the backend has refused; a metric's stretches that adjoin become one."""
        for one in refused:
            at = next((i for i, r in enumerate(self.incomplete) if r.metric == one.metric and _adjoin(r, one)), None)
            if at is None:
                self.incomplete.append(one)
            else:
                before = self.incomplete[at]
                start_ms, end_ms = min(before.start_ms, one.start_ms), max(before.end_ms, one.end_ms)
                self.incomplete[at] = Refused(one.metric, start_ms, end_ms)

    def forget(self, lookback_ms: int) -> None:
        """Let go of what no restart and no recheck needs any more."""
        needed_from_ms = self.counted_from_ms - lookback_ms
        while self.pending and self.pending[0].range_end_ms <= needed_from_ms:
            self.pending.popleft()
        self.incomplete = [refused for refused in self.incomplete if refused.end_ms > needed_from_ms]
        self.holes = [hole for hole in self.holes if hole[1] > needed_from_ms]
        self.emitted.forget(self.rechecked_to_ms)


def _adjoin(a: Refused, b: Refused) -> bool:
    return a.start_ms <= b.end_ms and b.start_ms <= a.end_ms


class Pipeline:
    """The state of one partition.

    Args:
        view: what to make.
        offset: the committed offset, where reading begins.
        metadata: the committed metadata; empty at the very first start.
        earlier: reads what the view has emitted before of windows from a time (ms) on.

    Raises:
        ConfigError: the metadata was written for another view.
    """

    def __init__(
        self,
        view: View,
        offset: int,
        metadata: str,
        earlier: Callable[[int], Results] = lambda _: {},
    ) -> None:
        self._view = view
        self._earlier = earlier
        self._lookback_ms = LOOKBACK_MS if view.reductions.looks_back else 0
        self._next_offset = offset
        self._read_to = 0
        self._jobs: dict[str, _Job] = {}
        self._ended: set[str] = set()
        self.committed = offset
        """The offset of the last emission; set by whoever commits."""
        if metadata:
            self._restore(metadata)

    @property
    def next_offset(self) -> int:
        """The offset of the first message that was not fed yet."""
        return self._next_offset

    @property
    def low(self) -> int:
        """The oldest message that a restart must see again."""
        pending = (job.pending[0].offset for job in self._jobs.values() if job.pending)
        return min(pending, default=self._next_offset)

    @property
    def open_windows(self) -> int:
        """How many windows are open, each counted once a job."""
        return sum(
            len({start for windows in job.windows for start in windows.window_starts_ms if start >= job.closed_to_ms})
            for job in list(self._jobs.values())
        )

    @property
    def open_cells(self) -> int:
        """How many partial results are in memory."""
        return sum(len(windows) for job in list(self._jobs.values()) for windows in job.windows)

    @property
    def held_values(self) -> int:
        """How many samples are in memory one by one, for median and quantiles."""
        return sum(windows.held_values for job in list(self._jobs.values()) for windows in job.windows)

    def feed(self, offset: int, message: RangeChunk | Marker | Unreadable) -> list[Emission]:
        """Take in the next message; return what it allows to emit, in order."""
        self._next_offset = offset + 1
        if not isinstance(message, Unreadable):
            return self._take_in(offset, message)
        if message.header is not None:
            self._mark(offset, message.header)
        # Below what the commit has read, it is a dead letter already.
        return [self._emission(letters=[message.letter], final=True)] if offset >= self._read_to else []

    def _mark(self, offset: int, header: Header) -> None:
        """Note what is lost with a message that cannot be read.

        Where it is not its job's next one, or the first, the job's own next one will show that one is missing.
        """
        job = self._jobs.get(header.job)
        if job is not None and header.sequence == job.next_sequence:
            job.add_hole(header.time_range.start_ms, header.time_range.end_ms)
            job.pending.append(_Pending(offset, header.time_range.end_ms, header.sequence))
            job.next_sequence += 1

    def _take_in(self, offset: int, message: RangeChunk | Marker) -> list[Emission]:
        header = message.header
        job = self._jobs.get(header.job)
        if job is None and (offset < self._read_to or header.job in self._ended):
            # The commit knows all jobs that were open when it had read so far.
            return []
        if job is None:
            job = self._jobs[header.job] = self._begin(header, message)
        job.revision = header.revision
        if header.recheck == header.job:
            job.is_recheck = True
        elif header.recheck != job.recheck and header.time_range.end_ms > job.emitted_to_ms:
            # What was emitted is replayed: what its messages say of rechecks, the commit knows better.
            self._expect_recheck(job, header)
        if not self._is_next(job, header):
            return []
        if isinstance(message, RangeChunk):
            runs = runs_of(message.series, self._view.chunk_size)
            for windows in job.windows:
                windows.add(message.series, runs, job.closed_to_ms, is_lookback=message.is_lookback)
        ends_job = isinstance(message, Marker) and message.ends_job
        range_end_ms = _FOREVER_MS if ends_job else header.time_range.end_ms
        job.pending.append(_Pending(offset, range_end_ms, header.sequence))
        return self._advance(job, message) if isinstance(message, Marker) else []

    def _new_job(self, start_ms: int) -> _Job:
        view, first_ms = self._view, self._view.chunk_size.floor_ms(start_ms)
        windows = [GroupWindows(group_by, view.reductions, view.chunk_size) for group_by in view.group_by]
        return _Job(start_ms, start_ms, first_ms, first_ms, windows)

    def _begin(self, header: Header, message: RangeChunk | Marker) -> _Job:
        """Begin a job that no commit knows: at its own start, or where retention has left its rest."""
        is_lookback = isinstance(message, RangeChunk) and message.is_lookback
        job = self._new_job(header.time_range.end_ms if is_lookback else header.time_range.start_ms)
        if header.sequence > 0:
            # What came before in this range may be gone, so only what follows the range is surely whole.
            job.whole_from_ms = header.time_range.end_ms
            job.add_hole(header.time_range.start_ms, header.time_range.end_ms)
        return job

    def _expect_recheck(self, job: _Job, header: Header) -> None:
        """From this range on *job* is read once more by another job, or no longer."""
        job.recheck = header.recheck
        if not job.recheck or job.recheck in self._ended:
            job.rechecked_to_ms = _FOREVER_MS
        else:
            known = self._jobs.get(job.recheck)
            from_ms = self._view.chunk_size.floor_ms(header.time_range.start_ms)
            job.rechecked_to_ms = known.emitted_to_ms if known else from_ms

    @staticmethod
    def _is_next(job: _Job, header: Header) -> bool:
        """Tell whether the message is to be taken in: not when it repeats an earlier one."""
        expected, job_and_sequence = job.next_sequence, {"job": header.job, "sequence": header.sequence}
        if header.sequence < job.replayed_to:
            return False
        if expected is not None and header.sequence < expected:
            log.error("a message came twice; it is left out", extra={**job_and_sequence, "expected": expected})
            return False
        if expected is not None and header.sequence > expected:
            log.error(
                "messages of a range are missing; its windows are marked incomplete",
                extra={**job_and_sequence, "expected": expected},
            )
            # What is looked back to comes before all that is covered.
            job.add_hole(min(job.covered_to_ms, header.time_range.start_ms), header.time_range.end_ms)
        job.next_sequence = header.sequence + 1
        return True

    def _advance(self, job: _Job, marker: Marker) -> list[Emission]:
        name, time_range = marker.header.job, marker.header.time_range
        if marker.ends_job:
            return self._emit(name, job, _FOREVER_MS)
        if time_range.start_ms > job.covered_to_ms:
            log.error(
                "a stretch of time is missing; its windows are marked incomplete",
                extra={"job": name, "start": job.covered_to_ms, "end": time_range.start_ms},
            )
            job.add_hole(job.covered_to_ms, time_range.start_ms)
        job.covered_to_ms = max(job.covered_to_ms, time_range.end_ms)
        job.add_refused(marker.incomplete)
        closed_to_ms = self._view.chunk_size.floor_ms(job.covered_to_ms)
        return self._emit(name, job, closed_to_ms) if closed_to_ms > job.closed_to_ms else []

    def _emit(self, name: str, job: _Job, before_ms: int) -> list[Emission]:
        closed = [windows.close(job.closed_to_ms, before_ms) for windows in job.windows]
        self._remember(name, job, closed)
        job.closed_to_ms = before_ms
        if before_ms <= job.emitted_to_ms:
            return []
        cells_of_all = [cells for cells in closed if cells is not None]
        windows_ms = _windows_of_records_ms(cells_of_all)
        cuts = _cuts(windows_ms, job.emitted_to_ms, before_ms)
        emissions = []
        for start_ms, end_ms in zip([job.emitted_to_ms, *cuts[:-1]], cuts, strict=True):
            records = [
                batch
                for group_by, cells in zip(self._view.group_by, closed, strict=True)
                if cells is not None
                if len(batch := self._records(name, job, group_by, cells, start_ms, end_ms))
            ]
            job.emitted_to_ms = end_ms
            for other in self._jobs.values():
                if other.recheck == name:
                    other.rechecked_to_ms = end_ms
                    other.forget(self._lookback_ms)
            job.forget(self._lookback_ms)
            # Not sooner: a crash between two emissions must find the job as open as it still is.
            if ended := end_ms == _FOREVER_MS:
                del self._jobs[name]
                self._ended.add(name)
            first, last = np.searchsorted(windows_ms, [start_ms, end_ms])
            # A recheck comes late on purpose: it closes nothing.
            starts_ms = np.unique(windows_ms[first : first if job.is_recheck else last])
            ends_ms: list[int] = self._view.chunk_size.ends_ms(starts_ms).tolist()
            emissions.append(self._emission(records, final=ended, window_ends_ms=ends_ms))
        return emissions

    def _remember(self, name: str, job: _Job, closed: list[Closed | None]) -> None:
        """Keep the results of windows that will be rechecked."""
        if not job.recheck:
            return
        context = self._context(name, job)
        for group_by, cells in zip(self._view.group_by, closed, strict=True):
            if cells is not None:
                identities = self._identities(group_by, cells, 0, len(cells))
                whole = _whole_windows(cells.window_ms, context)
                for identity, result in zip(identities, record_results(cells, 0, len(cells)), strict=True):
                    job.emitted.add(identity, result if identity[2] in whole else 0)
        job.forget(self._lookback_ms)

    def _identities(self, group_by: GroupBy, cells: Closed, first: int, last: int) -> list[Identity]:
        """Return what names each record of ``cells[first:last]``."""
        starts = first + record_starts(cells, first, last)
        topic, groups = self._view.topics.sink(group_by), (cells.groups[i] for i in cells.group[starts].tolist())
        return [
            (topic, record_key(who.namespace, who.pod, who.service), window_ms)
            for who, window_ms in zip(groups, cells.window_ms[starts].tolist(), strict=True)
        ]

    def _records(self, name: str, job: _Job, group_by: GroupBy, cells: Closed, start_ms: int, end_ms: int) -> Batch:
        first, last = map(int, np.searchsorted(cells.window_ms, [start_ms, end_ms]))
        context = self._context(name, job)
        news = self._news(name, job, group_by, cells, first, last, context)
        topic = self._view.topics.sink(group_by)
        if news is not None and not any(news):
            return Batch(topic, [], [])
        keys, values, too_large = encode_records(cells, first, last, context)
        if news is None:
            return Batch(topic, keys, values, too_large)
        kept = enumerate(compress(range(len(news)), news))
        return Batch(
            topic,
            list(compress(keys, news)),
            list(compress(values, news)),
            {place: too_large[before] for place, before in kept if before in too_large} if too_large else {},
        )

    def _context(self, name: str, job: _Job) -> RecordContext:
        return RecordContext(
            job=name,
            chunk_size=self._view.chunk_size,
            method=self._view.method_name,
            whole_from_ms=job.whole_from_ms,
            whole_to_ms=job.covered_to_ms,
            revision=job.revision,
            incomplete=job.incomplete,
            holes=job.holes,
            lookback_ms=self._lookback_ms,
        )

    def _news(
        self, name: str, job: _Job, group_by: GroupBy, cells: Closed, first: int, last: int, context: RecordContext
    ) -> list[bool] | None:
        """Tell of each record of a job that repeats others whether it says something new; None: all do.

        A window that is seen in part says nothing new where there is a record already, and in a
        recheck never.
        """
        if first == last or not job.revision:
            return None
        known: Results | None
        if job.is_recheck:
            known = next((other.emitted for other in self._jobs.values() if other.recheck == name), None)
            if known is None:
                # Where its job was cancelled, there is nothing to compare with.
                return []
        else:
            if job.earlier is None:
                job.earlier = self._earlier(job.emitted_to_ms)
            known = job.earlier
        whole = _whole_windows(cells.window_ms[first:last], context)
        identities = self._identities(group_by, cells, first, last)
        return [
            before != result if identity[2] in whole else before is None and not job.is_recheck
            for identity, result in zip(identities, record_results(cells, first, last), strict=True)
            for before in (known.get(identity),)
        ]

    def _emission(
        self,
        records: Sequence[Batch] = (),
        letters: Sequence[Output] = (),
        *,
        final: bool,
        window_ends_ms: Sequence[int] = (),
    ) -> Emission:
        return Emission(records, letters, self.low, self._metadata(), final, window_ends_ms)

    def idle_emission(self) -> Emission:
        """Return a commit without records: it only moves the offset that a restart replays from."""
        return self._emission(final=False)

    def _metadata(self) -> str:
        jobs = {name: job.to_metadata() for name, job in self._jobs.items()}
        # While messages are read again, what was read before them counts.
        read_to = max(self._read_to, self._next_offset)
        state = {"view": self._view.identity, "jobs": jobs, "read": read_to}
        plain = orjson.dumps(state)
        text = plain.decode() if len(plain) < _MAX_METADATA_BYTES else base64.b64encode(zlib.compress(plain)).decode()
        if len(text) >= _MAX_METADATA_BYTES:
            raise IngestorError(
                f"{len(jobs):,} jobs are begun and not ended, more than a commit's metadata can name: ingestor status "
                "shows them; give up those that will never go on (ingestor cancel JOB), then go on under another "
                "--topic-prefix"
            )
        return text

    def _restore(self, metadata: str) -> None:
        refuse_other_view(self._view, metadata)
        state = _state_of(metadata)
        self._read_to = state.read_to
        for name, known in state.jobs.items():
            job = self._jobs[name] = self._new_job(known.whole_from_ms)
            job.emitted_to_ms = known.emitted_to_ms
            job.next_sequence, job.replayed_to = known.next_sequence, known.next_sequence or 0
            job.recheck, job.rechecked_to_ms = known.recheck, known.rechecked_to_ms
            job.holes = known.holes
            # What was emitted and not yet rechecked is counted again, to be compared.
            job.closed_to_ms = job.counted_from_ms
            # What a restart does not see again ended before: coverage begins there.
            job.covered_to_ms = max(job.whole_from_ms, job.closed_to_ms)


def _whole_windows(window_ms: Int64Array, context: RecordContext) -> set[int]:
    """Return the starts of those windows of which nothing is missing; *window_ms* rises."""
    starts = np.unique(window_ms)
    windows = zip(starts.tolist(), context.chunk_size.ends_ms(starts).tolist(), strict=True)
    return {start_ms for start_ms, end_ms in windows if context.is_whole(start_ms, end_ms)}


def _state_of(metadata: str) -> _State:
    """Read a commit's metadata: JSON, which is packed where it is long.

    Raises:
        ConfigError: nothing that a worker has committed.
    """
    try:
        plain = metadata if metadata.startswith("{") else zlib.decompress(base64.b64decode(metadata))
        state: dict[str, Any] = orjson.loads(plain)
        jobs = {name: _job_state(known) for name, known in state["jobs"].items()}
        return _State(_of_kind(state["view"], str), _of_kind(state["read"], int), jobs)
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
        raise ConfigError(
            f"the consumer group's commit was not written by stream-app worker ({error!r}): give --topic-prefix a "
            "name that no other program's group has"
        ) from error


def _job_state(known: dict[str, Any]) -> _JobState:
    recheck, rechecked_to_ms = known.get("recheck", ("", _FOREVER_MS))
    return _JobState(
        whole_from_ms=_of_kind(known["from"], int),
        emitted_to_ms=_of_kind(known["to"], int),
        next_sequence=None if known["next"] is None else _of_kind(known["next"], int),
        recheck=_of_kind(recheck, str),
        rechecked_to_ms=_of_kind(rechecked_to_ms, int),
        holes=[(_of_kind(start_ms, int), _of_kind(end_ms, int)) for start_ms, end_ms in known.get("holes", ())],
    )


def _of_kind(value: Any, kind: type[_Kind]) -> _Kind:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is not of type {kind.__name__}")
    return value


def refuse_other_view(view: View, metadata: str) -> None:
    """Refuse a commit of a view that makes other records under the same names.

    Raises:
        ConfigError: *metadata* was written for another view.
    """
    other = _state_of(metadata).view
    if other != view.identity:
        raise ConfigError(
            f"the consumer group {view.group_id} was committed by another view ({other}): "
            "give --metric-method as it was, or this view another --topic-prefix"
        )


def _windows_of_records_ms(closed: list[Closed]) -> Int64Array:
    """Return where the window of each record starts, rising."""
    windows = [cells.window_ms[record_starts(cells, 0, len(cells))] for cells in closed]
    return np.sort(np.concatenate([np.empty(0, np.int64), *windows]))


def _cuts(windows_ms: Int64Array, from_ms: int, before_ms: int) -> list[int]:
    """Return where emissions end: at window starts about EMISSION_RECORDS apart, and *before_ms* at last."""
    windows = windows_ms[np.searchsorted(windows_ms, from_ms) :]
    cuts = np.unique(windows[EMISSION_RECORDS::EMISSION_RECORDS])
    return [*cuts[cuts > windows[:1]].tolist(), before_ms]
