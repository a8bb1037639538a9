"""One partition's stream: messages in, emissions out. No clock, no I/O.

A window closes when its job's markers have passed its end. What must be kept for a
restart is small: the offset to replay from, and, for each job, from where on its
windows are whole and up to where they were emitted. Both travel in one commit.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import orjson

from ingestor.core.chunk import Marker, RangeChunk
from ingestor.core.durations import ChunkSize
from ingestor.core.errors import ConfigError, IngestorError
from ingestor.core.topics import DEFAULT_PREFIX, Topics
from stream_app.encoding import RecordContext, encode_records
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


@dataclass(frozen=True, slots=True)
class Emission:
    """What must be written in one transaction: records, and the commit that they stand for."""

    outputs: list[Output]
    offset: int
    """Where a restart replays from."""
    metadata: str
    final: bool
    """A job ended here: commit even where there are no records."""


@dataclass(slots=True)
class _Job:
    whole_from_ms: int
    """Windows that start earlier are cut: by the job's start, or by a hole."""
    covered_to_ms: int
    emitted_to_ms: int
    windows: list[GroupWindows]
    pending: deque[tuple[int, int]] = field(default_factory=deque)
    """(offset, range end) of the messages that a restart may need, oldest first."""
    next_sequence: int | None = None


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

    def feed(self, offset: int, message: RangeChunk | Marker) -> list[Emission]:
        """Take in the next message; return what it allows to emit, in order."""
        if message.job in self._ended:
            self._next_offset = offset + 1
            return []
        job = self._jobs.get(message.job)
        if job is None:
            job = self._jobs[message.job] = self._begin(message)
        if not self._is_next(job, message):
            self._next_offset = offset + 1
            return []
        if isinstance(message, RangeChunk):
            runs = runs_of(message.series, self._view.chunk_size)
            for windows in job.windows:
                windows.add(message.series, runs, job.emitted_to_ms)
        ends_job = isinstance(message, Marker) and message.ends_job
        job.pending.append((offset, _FOREVER_MS if ends_job else message.time_range.end_ms))
        self._next_offset = offset + 1
        return self._advance(job, message) if isinstance(message, Marker) else []

    def _new_job(self, start_ms: int) -> _Job:
        view = self._view
        windows = [GroupWindows(group_by, view.method, view.over_time) for group_by in view.group_by]
        return _Job(start_ms, start_ms, view.chunk_size.floor_ms(start_ms), windows)

    def _begin(self, message: RangeChunk | Marker) -> _Job:
        """Begin a job that no commit knows: at its own start, or where retention has left its rest."""
        job = self._new_job(message.time_range.start_ms)
        if message.sequence > 0:
            # What came before in this range may be gone, so only what follows the range is surely whole.
            job.whole_from_ms = message.time_range.end_ms
        return job

    @staticmethod
    def _is_next(job: _Job, message: RangeChunk | Marker) -> bool:
        """Tell whether the message is to be taken in: not when it repeats an earlier one."""
        expected, job_and_sequence = job.next_sequence, {"job": message.job, "sequence": message.sequence}
        if expected is not None and message.sequence < expected:
            log.error("a message came twice; it is left out", extra={**job_and_sequence, "expected": expected})
            return False
        if expected is not None and message.sequence > expected:
            log.error(
                "messages of a range are missing; its windows are marked partial",
                extra={**job_and_sequence, "expected": expected},
            )
            job.whole_from_ms = max(job.whole_from_ms, message.time_range.end_ms)
        job.next_sequence = message.sequence + 1
        return True

    def _advance(self, job: _Job, marker: Marker) -> list[Emission]:
        if marker.ends_job:
            return self._emit(marker.job, job, _FOREVER_MS)
        if marker.time_range.start_ms > job.covered_to_ms:
            log.error(
                "a stretch of time is missing; the windows that it cuts are marked partial",
                extra={"job": marker.job, "start": job.covered_to_ms, "end": marker.time_range.start_ms},
            )
            job.whole_from_ms = max(job.whole_from_ms, marker.time_range.start_ms)
        job.covered_to_ms = max(job.covered_to_ms, marker.time_range.end_ms)
        closed_to_ms = self._view.chunk_size.floor_ms(job.covered_to_ms)
        return self._emit(marker.job, job, closed_to_ms) if closed_to_ms > job.emitted_to_ms else []

    def _emit(self, name: str, job: _Job, before_ms: int) -> list[Emission]:
        closed = [windows.close(before_ms) for windows in job.windows]
        cuts = _cuts([c for c in closed if c is not None], before_ms)
        emissions = []
        for start_ms, end_ms in zip([-_FOREVER_MS, *cuts[:-1]], cuts, strict=True):
            outputs: list[Output] = []
            for group_by, cells in zip(self._view.group_by, closed, strict=True):
                if cells is not None:
                    outputs += self._outputs(name, job, group_by, cells, start_ms, end_ms)
            job.emitted_to_ms = end_ms
            while job.pending and job.pending[0][1] <= end_ms:
                job.pending.popleft()
            # Not sooner: a crash between two emissions must find the job as open as it still is.
            if ended := end_ms == _FOREVER_MS:
                del self._jobs[name]
                self._ended[name] = self._next_offset - 1
            emissions.append(self._emission(outputs, final=ended))
        return emissions

    def _outputs(
        self, name: str, job: _Job, group_by: GroupBy, cells: Closed, start_ms: int, end_ms: int
    ) -> list[Output]:
        first, last = np.searchsorted(cells.window_ms, [start_ms, end_ms])
        context = RecordContext(
            job=name,
            chunk_size=self._view.chunk_size,
            method=self._view.method_name,
            whole_from_ms=job.whole_from_ms,
            whole_to_ms=job.covered_to_ms,
        )
        topic = self._view.topics.sink(group_by)
        return [Output(topic, key, value) for key, value in encode_records(cells, int(first), int(last), context)]

    def _emission(self, outputs: list[Output], *, final: bool) -> Emission:
        low = self.low
        self._ended = {name: offset for name, offset in self._ended.items() if offset >= low}
        return Emission(outputs, low, self._metadata(), final)

    def idle_emission(self) -> Emission:
        """Return a commit without records: it only moves the offset that a restart replays from."""
        return self._emission([], final=False)

    def _metadata(self) -> str:
        jobs = {name: [job.whole_from_ms, job.emitted_to_ms] for name, job in self._jobs.items()}
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
        for name, (whole_from_ms, emitted_to_ms) in state["jobs"].items():
            job = self._jobs[name] = self._new_job(whole_from_ms)
            job.emitted_to_ms = emitted_to_ms
            # What a restart does not see again ended before emitted_to_ms: coverage begins there.
            job.covered_to_ms = max(whole_from_ms, emitted_to_ms)


def _cuts(closed: list[Closed], before_ms: int) -> list[int]:
    """Return where emissions end: at window starts about EMISSION_RECORDS apart, and *before_ms* at last."""
    if not closed:
        return [before_ms]
    windows = np.sort(np.concatenate([_record_windows(cells) for cells in closed]))
    cuts = np.unique(windows[EMISSION_RECORDS::EMISSION_RECORDS])
    return [*cuts[cuts > windows[0]].tolist(), before_ms]


def _record_windows(cells: Closed) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the window of each record of *cells*."""
    first = np.ones(len(cells.window_ms), bool)
    first[1:] = (cells.group[1:] != cells.group[:-1]) | (cells.window_ms[1:] != cells.window_ms[:-1])
    return cells.window_ms[first]
