"""One partition's stream: messages in, emissions out. No clock, no I/O.

A window closes when its job's markers have passed its end. What must be kept for a
restart is small: the offset to replay from, and, for each job, from where on its
windows are whole and up to where they were emitted. Both travel in one commit.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import compress, pairwise

import numpy as np
import orjson

from ingestor.core.chunk import Header, Marker, RangeChunk, Refused
from ingestor.core.durations import ChunkSize
from ingestor.core.errors import ConfigError, IngestorError
from ingestor.core.topics import DEFAULT_PREFIX, Topics
from stream_app.encoding import RecordContext, encode_records, record_results, record_starts
from stream_app.records import record_key
from stream_app.windows import Closed, GroupBy, GroupWindows, Method, OverTime, runs_of

log = logging.getLogger(__name__)

_MAX_METADATA_BYTES = 4096
"""The broker's default ``offset.metadata.max.bytes``."""

_FOREVER_MS = 2**62

EMISSION_RECORDS = 20_000
"""Cut emissions at window borders after about so many records: a transaction stays short."""


def method_name(method: str, over_time: str) -> str:
    """Return how records name a method: ``mean``, or ``mean-of-last``."""
    return method if over_time == "pooled" else f"{method}-of-{over_time}"


@dataclass(frozen=True, slots=True)
class View:
    """What one group of workers makes of the chunks."""

    chunk_size: ChunkSize
    method: Method
    over_time: OverTime = "pooled"
    group_by: tuple[GroupBy, ...] = ("pod",)
    topics: Topics = field(default_factory=lambda: Topics(DEFAULT_PREFIX))

    @property
    def method_name(self) -> str:
        """How records name the method."""
        return method_name(self.method, self.over_time)

    def in_words(self) -> str:
        """Say what was understood: ``windows of 5 minutes, mean of all samples, a record a pod``."""
        what = "all samples" if self.over_time == "pooled" else f"each series' {self.over_time} sample"
        records = " and ".join(f"a record a {group_by}" for group_by in self.group_by)
        return f"windows of {self.chunk_size.in_words()}, {self.method} of {what}, {records}"

    def sinks_in_words(self) -> str:
        """Name the sink topics."""
        return ", ".join(self.topics.sink(group_by) for group_by in self.group_by)

    @property
    def group_id(self) -> str:
        """The consumer group, and the beginning of the transactional ids."""
        return f"{self.topics.prefix}.view.{self.chunk_size}.{self.method_name}.{'+'.join(self.group_by)}"


@dataclass(frozen=True, slots=True)
class Output:
    """One message for a sink topic."""

    topic: str
    key: bytes
    value: bytes
    reason: str = ""
    """Why it is a dead letter; a record has none."""


@dataclass(frozen=True, slots=True)
class Emission:
    """What must be written in one transaction: records, and the commit that they stand for."""

    outputs: list[Output]
    offset: int
    """Where a restart replays from."""
    metadata: str
    final: bool
    """A job ended here: commit even where there are no records."""
    window_ends_ms: Sequence[int] = ()
    """Where the windows end that it closes; none of a recheck's, which were closed before."""


@dataclass(slots=True)
class _Job:
    whole_from_ms: int
    """Windows that start earlier are cut: by the job's start, or by a hole."""
    covered_to_ms: int
    emitted_to_ms: int
    closed_to_ms: int
    """Below *emitted_to_ms* only after a restart: windows between are counted again, to be compared with a recheck."""
    windows: list[GroupWindows]
    pending: deque[tuple[int, int]] = field(default_factory=deque)
    """(offset, range end) of the messages that a restart may need, oldest first."""
    next_sequence: int | None = None
    revision: int = 0
    is_recheck: bool = False
    """It reads another job's ranges once more, and says nothing of what that one has not said."""
    recheck: str = ""
    """The job that reads the same ranges later, once more."""
    rechecked_to_ms: int = _FOREVER_MS
    results: dict[tuple[str, bytes, int], int] = field(default_factory=dict)
    """What was emitted from *rechecked_to_ms* on: (topic, key, window) to a hash of the result."""
    incomplete: list[Refused] = field(default_factory=list)

    @property
    def needed_from_ms(self) -> int:
        """A restart needs no message of a range that ends before."""
        return min(self.emitted_to_ms, self.rechecked_to_ms)

    def to_metadata(self) -> list[int | str]:
        """Return what a restart must know of the job."""
        compared = self.recheck and self.rechecked_to_ms < _FOREVER_MS
        return [self.whole_from_ms, self.emitted_to_ms, *((self.recheck, self.rechecked_to_ms) if compared else ())]

    def forget(self) -> None:
        """Let go of what no restart and no recheck needs any more."""
        while self.pending and self.pending[0][1] <= self.needed_from_ms:
            self.pending.popleft()
        self.incomplete = [refused for refused in self.incomplete if refused.end_ms > self.emitted_to_ms]
        if self.results:
            self.results = {key: result for key, result in self.results.items() if key[2] >= self.rechecked_to_ms}


class Pipeline:
    """The state of one partition.

    Args:
        view: what to make.
        offset: the committed offset, where reading begins.
        metadata: the committed metadata; empty at the very first start.

    Raises:
        ConfigError: the metadata was written for another view.
    """

    def __init__(self, view: View, offset: int, metadata: str) -> None:
        self._view = view
        self._next_offset = offset
        self._jobs: dict[str, _Job] = {}
        self._ended: dict[str, int] = {}
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
        pending = (job.pending[0][0] for job in self._jobs.values() if job.pending)
        return min(pending, default=self._next_offset)

    @property
    def open_windows(self) -> int:
        """Windows that hold something, each job's for themselves."""
        jobs = self._jobs.values()
        return sum(len(set().union(*(windows.open_windows for windows in job.windows))) for job in jobs)

    @property
    def open_cells(self) -> int:
        """What open windows hold: a cell is one, or several until they are merged."""
        return sum(windows.open_cells for job in self._jobs.values() for windows in job.windows)

    @property
    def held_values(self) -> int:
        """Values that open windows keep as they came."""
        return sum(windows.held_values for job in self._jobs.values() for windows in job.windows)

    def feed(self, offset: int, message: RangeChunk | Marker) -> list[Emission]:
        """Take in the next message; return what it allows to emit, in order."""
        header = message.header
        if header.job in self._ended:
            self._next_offset = offset + 1
            return []
        job = self._jobs.get(header.job)
        if job is None:
            job = self._jobs[header.job] = self._begin(header)
        job.revision = header.revision
        if header.recheck == header.job:
            job.is_recheck = True
        elif header.recheck != job.recheck and header.time_range.end_ms > job.emitted_to_ms:
            # What was emitted is replayed: what its messages say of rechecks, the commit knows better.
            self._expect_recheck(job, header)
        if not self._is_next(job, header):
            self._next_offset = offset + 1
            return []
        if isinstance(message, RangeChunk):
            runs = runs_of(message.series, self._view.chunk_size)
            for windows in job.windows:
                windows.add(message.series, runs, job.closed_to_ms)
        ends_job = isinstance(message, Marker) and message.ends_job
        job.pending.append((offset, _FOREVER_MS if ends_job else header.time_range.end_ms))
        self._next_offset = offset + 1
        return self._advance(job, message) if isinstance(message, Marker) else []

    def _new_job(self, start_ms: int) -> _Job:
        view, first_ms = self._view, self._view.chunk_size.floor_ms(start_ms)
        windows = [GroupWindows(group_by, view.method, view.over_time) for group_by in view.group_by]
        return _Job(start_ms, start_ms, first_ms, first_ms, windows)

    def _begin(self, header: Header) -> _Job:
        """Begin a job that no commit knows: at its own start, or where retention has left its rest."""
        job = self._new_job(header.time_range.start_ms)
        if header.sequence > 0:
            # What came before in this range may be gone, so only what follows the range is surely whole.
            job.whole_from_ms = header.time_range.end_ms
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
        if expected is not None and header.sequence < expected:
            log.error("a message came twice; it is left out", extra={**job_and_sequence, "expected": expected})
            return False
        if expected is not None and header.sequence > expected:
            log.error(
                "messages of a range are missing; its windows are marked partial",
                extra={**job_and_sequence, "expected": expected},
            )
            job.whole_from_ms = max(job.whole_from_ms, header.time_range.end_ms)
        job.next_sequence = header.sequence + 1
        return True

    def _advance(self, job: _Job, marker: Marker) -> list[Emission]:
        name, time_range = marker.header.job, marker.header.time_range
        if marker.ends_job:
            return self._emit(name, job, _FOREVER_MS)
        if time_range.start_ms > job.covered_to_ms:
            log.error(
                "a stretch of time is missing; the windows that it cuts are marked partial",
                extra={"job": name, "start": job.covered_to_ms, "end": time_range.start_ms},
            )
            job.whole_from_ms = max(job.whole_from_ms, time_range.start_ms)
        job.covered_to_ms = max(job.covered_to_ms, time_range.end_ms)
        job.incomplete += marker.incomplete
        closed_to_ms = self._view.chunk_size.floor_ms(job.covered_to_ms)
        return self._emit(name, job, closed_to_ms) if closed_to_ms > job.closed_to_ms else []

    def _emit(self, name: str, job: _Job, before_ms: int) -> list[Emission]:
        closed = [windows.close(before_ms) for windows in job.windows]
        self._remember(job, closed)
        job.closed_to_ms = before_ms
        if before_ms <= job.emitted_to_ms:
            return []
        cuts = _cuts([c for c in closed if c is not None], job.emitted_to_ms, before_ms)
        emissions = []
        for start_ms, end_ms in zip([job.emitted_to_ms, *cuts[:-1]], cuts, strict=True):
            outputs: list[Output] = []
            for group_by, cells in zip(self._view.group_by, closed, strict=True):
                if cells is not None:
                    outputs += self._outputs(name, job, group_by, cells, start_ms, end_ms)
            job.emitted_to_ms = end_ms
            for other in self._jobs.values():
                if other.recheck == name:
                    other.rechecked_to_ms = end_ms
                    other.forget()
            job.forget()
            # Not sooner: a crash between two emissions must find the job as open as it still is.
            if ended := end_ms == _FOREVER_MS:
                del self._jobs[name]
                self._ended[name] = self._next_offset - 1
            ends_ms = () if job.is_recheck else self._window_ends_ms(closed, start_ms, end_ms)
            emissions.append(self._emission(outputs, final=ended, window_ends_ms=ends_ms))
        return emissions

    def _remember(self, job: _Job, closed: list[Closed | None]) -> None:
        """Keep the results of windows that will be rechecked."""
        if not job.recheck:
            return
        for group_by, cells in zip(self._view.group_by, closed, strict=True):
            if cells is not None:
                whole = 0, len(cells.window_ms)
                job.results.update(
                    zip(self._identities(group_by, cells, *whole), record_results(cells, *whole), strict=True)
                )
        job.forget()

    def _identities(self, group_by: GroupBy, cells: Closed, first: int, last: int) -> list[tuple[str, bytes, int]]:
        """Return what names each record of ``cells[first:last]``."""
        starts = first + record_starts(cells, first, last)
        topic, groups = self._view.topics.sink(group_by), (cells.groups[i] for i in cells.group[starts].tolist())
        return [
            (topic, record_key(who.namespace, who.pod, who.service), window_ms)
            for who, window_ms in zip(groups, cells.window_ms[starts].tolist(), strict=True)
        ]

    def _outputs(
        self, name: str, job: _Job, group_by: GroupBy, cells: Closed, start_ms: int, end_ms: int
    ) -> list[Output]:
        first, last = map(int, np.searchsorted(cells.window_ms, [start_ms, end_ms]))
        context = RecordContext(
            job=name,
            chunk_size=self._view.chunk_size,
            method=self._view.method_name,
            whole_from_ms=job.whole_from_ms,
            whole_to_ms=job.covered_to_ms,
            revision=job.revision,
            incomplete=job.incomplete,
        )
        changed = self._changed(name, group_by, cells, first, last, context) if job.is_recheck else None
        if changed is not None and not any(changed):
            return []
        topic = self._view.topics.sink(group_by)
        outputs = [Output(topic, key, value) for key, value in encode_records(cells, first, last, context)]
        return outputs if changed is None else list(compress(outputs, changed))

    def _changed(
        self, name: str, group_by: GroupBy, cells: Closed, first: int, last: int, context: RecordContext
    ) -> list[bool]:
        """Tell of each record of a recheck whether it says something new; a window that is seen in part does not."""
        rechecked = next((other for other in self._jobs.values() if other.recheck == name), None)
        if rechecked is None or first == last:
            # Where its job was cancelled, there is nothing to compare with.
            return []
        windows_ms = cells.window_ms[first:last]
        edges = self._view.chunk_size.edges_ms(int(windows_ms[0]), int(windows_ms[-1]) + 1).tolist()
        whole = {
            start_ms
            for start_ms, end_ms in pairwise(edges)
            if not context.is_partial(start_ms, end_ms) and not context.missing(start_ms, end_ms)
        }
        results = record_results(cells, first, last)
        return [
            identity[2] in whole and rechecked.results.get(identity) != result
            for identity, result in zip(self._identities(group_by, cells, first, last), results, strict=True)
        ]

    def _window_ends_ms(self, closed: list[Closed | None], start_ms: int, end_ms: int) -> Sequence[int]:
        """Return where the windows end that start in [start_ms, end_ms)."""
        starts = np.unique(np.concatenate([c.window_ms for c in closed if c is not None] or [np.empty(0, np.int64)]))
        starts = starts[(starts >= start_ms) & (starts < end_ms)]
        if not len(starts):
            return ()
        edges = self._view.chunk_size.edges_ms(int(starts[0]), int(starts[-1]) + 1)
        ends: list[int] = edges[np.searchsorted(edges, starts, side="right")].tolist()
        return ends

    def _emission(self, outputs: list[Output], *, final: bool, window_ends_ms: Sequence[int] = ()) -> Emission:
        low = self.low
        self._ended = {name: offset for name, offset in self._ended.items() if offset >= low}
        return Emission(outputs, low, self._metadata(), final, window_ends_ms)

    def idle_emission(self) -> Emission:
        """Return a commit without records: it only moves the offset that a restart replays from."""
        return self._emission([], final=False)

    def _metadata(self) -> str:
        jobs = {name: job.to_metadata() for name, job in self._jobs.items()}
        text = orjson.dumps({"view": self._view.group_id, "jobs": jobs, "ended": self._ended}).decode()
        if len(text) >= _MAX_METADATA_BYTES:
            oldest = min(self._jobs, key=lambda name: self._jobs[name].pending[0][0] if self._jobs[name].pending else 0)
            raise IngestorError(
                f"{len(jobs) + len(self._ended)} jobs are held open, more than a commit's metadata can name: the job "
                f"{oldest} holds them back; finish it (the same ingestor command again) or give it up "
                f"(ingestor cancel {oldest}), then start this worker again"
            )
        return text

    def _restore(self, metadata: str) -> None:
        state = orjson.loads(metadata)
        if state["view"] != self._view.group_id:
            raise ConfigError(
                f"the consumer group {self._view.group_id} was committed by another view ({state['view']}): "
                "give this view another --topic-prefix"
            )
        self._ended = state["ended"]
        for name, (whole_from_ms, emitted_to_ms, *recheck) in state["jobs"].items():
            job = self._jobs[name] = self._new_job(whole_from_ms)
            job.emitted_to_ms = emitted_to_ms
            if recheck:
                job.recheck, job.rechecked_to_ms = recheck
            # What was emitted and not yet rechecked is counted again, to be compared.
            job.closed_to_ms = job.needed_from_ms
            # What a restart does not see again ended before: coverage begins there.
            job.covered_to_ms = max(whole_from_ms, job.closed_to_ms)


def _cuts(closed: list[Closed], from_ms: int, before_ms: int) -> list[int]:
    """Return where emissions end: at window starts about EMISSION_RECORDS apart, and *before_ms* at last."""
    if not closed:
        return [before_ms]
    windows = np.sort(np.concatenate([c.window_ms[record_starts(c, 0, len(c.window_ms))] for c in closed]))
    windows = windows[windows >= from_ms]
    cuts = np.unique(windows[EMISSION_RECORDS::EMISSION_RECORDS])
    return [*cuts[cuts > windows[:1]].tolist(), before_ms]
