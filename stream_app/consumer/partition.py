"""PURE: one partition's pods, what of them a later window can look back at, and what a group commits for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from stream_app.consumer.commits import Beginning, Front
from stream_app.consumer.history import PodHistory, Row, Stretch, rank_of
from stream_app.consumer.window import Window
from stream_app.records import Record

_SILENT_MS = 900_000
"""A job that has written nothing for so long, or for a lookback, is not waited for any more: ended jobs do not say."""

_SWEEP_RECORDS = 4_096


@dataclass(frozen=True, slots=True)
class Policy:
    """What is asked for."""

    lookback_ms: int
    deliver_late: bool


class Partition:
    """What one member knows of one partition while it has it.

    Records are taken in the order of their offsets. A job's windows rise, so what a later
    window of a job can look back at are the windows up to one lookback before the job's
    latest: that *stretch* is kept for each job, of all jobs' records.
    """

    def __init__(self, number: int, beginning: Beginning, policy: Policy, earlier: Partition | None = None) -> None:
        self.number = number
        self.is_ours = True
        """False: the group has given it to another member, or has taken it back."""
        self.position = max(beginning.offset, 0)
        """All below has been taken."""
        self.done = beginning.processed
        """All below is processed: the user has come back for more."""
        self.pinned: Beginning | None = None
        """What `resume_at` was when the user last came back for more, where that is not asked for each window."""
        self._policy = policy
        self._beginning = beginning
        self._processed = beginning.processed
        self._earlier = earlier
        self._fronts: dict[str, Front] = dict(beginning.fronts)
        self._pods: dict[tuple[str, str], PodHistory] = {}
        self._first_offsets: dict[int, int] = {}
        self._until_sweep = _SWEEP_RECORDS

    def go_on_from_earlier(self) -> None:
        """Deliver nothing that this process had processed when it had this partition before.

        The loop may have come back for more only after the partition was lost: no commit says so.
        """
        if self._earlier is not None:
            self.done = max(self.done, self._earlier.done)
            self._processed, self._earlier = self.done, None

    def is_history(self, offset: int) -> bool:
        """Tell whether a record was processed before, by this process or another one."""
        return offset < self._processed

    def take(self, record: Record, offset: int, written_ms: int) -> Window | None:
        """Keep a record; return it as a window where it is to be delivered.

        Args:
            record: the next one of the partition.
            offset: where it is.
            written_ms: when Kafka took it.
        """
        start_ms, end_ms = record.window_start_ms, record.window_end_ms
        front = self._fronts.get(record.job)
        if front is None or start_ms > front.start_ms:
            front = Front(start_ms, end_ms, written_ms)
        elif written_ms > front.written_ms:
            front = front._replace(written_ms=written_ms)
        self._fronts[record.job] = front
        self._first_offsets.setdefault(start_ms, offset)
        self._until_sweep -= 1
        if not self._until_sweep:
            self._sweep()
        name = record.namespace, record.service if record.pod is None else record.pod
        history = self._pods.get(name)
        if history is None:
            history = self._pods[name] = PodHistory()
        rank = rank_of(record.revision, partial=record.partial)
        late = start_ms <= history.newest_ms
        if late and _is_no_news(history, record, rank):
            return None
        names, values = tuple(record.metrics), list(record.metrics.values())
        history.add(Row(start_ms, rank, offset, names, values), self.stretches)
        if offset < self._processed or (late and not self._policy.deliver_late):
            return None
        if offset < self._beginning.was_end and start_ms < self._beginning.from_ms:
            return None
        from_ms = min(end_ms - self._policy.lookback_ms, start_ms)
        return Window(record, history.snapshot(), from_ms, late=late)

    def stretches(self) -> list[Stretch]:
        """Return the windows that a later one may look back at: from first to last start, for each job."""
        lookback_ms = self._policy.lookback_ms
        newest_ms = max((front.written_ms for front in self._fronts.values()), default=0)
        alive_ms = newest_ms - max(lookback_ms, _SILENT_MS)
        self._fronts = {job: front for job, front in self._fronts.items() if front.written_ms >= alive_ms}
        return [(min(f.end_ms - lookback_ms, f.start_ms), f.start_ms) for f in self._fronts.values()]

    def resume_at(self) -> Beginning:
        """Return what another member must begin with, to deliver what is not processed here.

        Holds as long as no more than one record beyond `done` has been taken: that one's
        window is looked back from already.
        """
        stretches = self.stretches()
        self._first_offsets = {
            start: offset for start, offset in self._first_offsets.items() if _is_in(start, stretches)
        }
        return Beginning(
            min([self.position, self.done, *self._first_offsets.values()]),
            self.done,
            self._beginning.from_ms,
            self._beginning.was_end,
            self._fronts,
        )

    def let_go(self) -> None:
        """Forget all but what is done: the partition is another member's."""
        self.is_ours = False
        self._pods, self._first_offsets = {}, {}

    @property
    def pod_count(self) -> int:
        """Pods that are remembered."""
        return len(self._pods)

    def _sweep(self) -> None:
        stretches = self.stretches()
        self._first_offsets = {
            start: offset for start, offset in self._first_offsets.items() if _is_in(start, stretches)
        }
        self._pods = {name: history for name, history in self._pods.items() if not history.forget(stretches)}
        # As many records as it has pods to look at: a record costs the same, however many there are.
        self._until_sweep = max(_SWEEP_RECORDS, len(self._pods))


def _is_in(start_ms: int, stretches: list[Stretch]) -> bool:
    return any(first <= start_ms <= last for first, last in stretches)


def _is_no_news(history: PodHistory, record: Record, rank: int) -> bool:
    """Tell whether what is known of a window is better, or the same."""
    known = history.best(record.window_start_ms)
    if known is None or known[0] < rank:
        return False
    return known[0] > rank or _same(known[1], record.metrics)


def _same(a: Mapping[str, float], b: Mapping[str, float]) -> bool:
    return a.keys() == b.keys() and all(
        b[name] == value or (math.isnan(value) and math.isnan(b[name])) for name, value in a.items()
    )
