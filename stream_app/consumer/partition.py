"""PURE: one partition's pods, what of them a later window can look back at, and what a group commits for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream_app.consumer.commits import Beginning, Front
from stream_app.consumer.history import BoolArray, Part, PodHistory, Snapshot, Stretch
from stream_app.consumer.selection import Found
from stream_app.consumer.window import Window
from stream_app.records import Records

_SILENT_MS = 900_000
"""A job that has written nothing for so long, or for a lookback, is not waited for any more: ended jobs do not say."""

_SWEEP_RECORDS = 4_096


@dataclass(frozen=True, slots=True)
class Policy:
    """What is asked for."""

    lookback_ms: int
    deliver_late: bool


@dataclass(frozen=True, slots=True)
class Taken:
    """Records of a partition, and which of them are to be delivered."""

    found: Found
    is_delivered: BoolArray
    is_late: BoolArray
    histories: list[PodHistory | None]
    """By the number of who has it."""
    snapshots: dict[int, Snapshot]
    """Of pods with late records: what was known at each of them, by the number of the record."""
    lookback_ms: int

    def snapshot(self, number: int) -> Snapshot:
        """Return what is known of the pod of a record, up to that."""
        known = self.snapshots.get(number)
        if known is None:
            history = self.histories[self.found.records.who[number]]
            known = () if history is None else history.snapshot()
        return known

    def window(self, number: int, snapshot: Snapshot) -> Window:
        """Return what the user gets of one record, with a snapshot that was taken of it."""
        records = self.found.records
        start_ms = int(records.window_start_ms[number])
        from_ms = min(int(records.window_end_ms[number]) - self.lookback_ms, start_ms)
        return Window(self.found.record(number), snapshot, from_ms, late=bool(self.is_late[number]))


class Partition:
    """What one member knows of one partition while it has it.

    Records are taken in the order of their offsets, many at once. A job's windows rise, so
    what a later window of a job can look back at are the windows up to one lookback before
    the job's latest: that *stretch* is kept for each job, of all jobs' records.
    """

    def __init__(self, number: int, beginning: Beginning, policy: Policy, earlier: Partition | None = None) -> None:
        self.number = number
        self.is_ours = True
        """False: the group has given it to another member, or has taken it back."""
        self.position = max(beginning.offset, 0)
        """All below is delivered, or is not to be."""
        self.done = beginning.processed
        """All below is processed: the user has come back for more."""
        self.pinned = beginning
        """What `resume_at` was when the user last came back for more, where that is not asked for each window."""
        self._policy = policy
        self._beginning = beginning
        self._processed = beginning.processed
        self._earlier = earlier
        self._fronts: dict[str, Front] = dict(beginning.fronts)
        """As of the last `pass_by`: windows that were taken since may not be delivered yet."""
        self._ahead = self._fronts
        self._stretches: dict[str, Stretch] = {}
        self._pods: dict[tuple[str, str], PodHistory] = {}
        self._first_offsets: dict[int, int] = {}
        self._until_sweep = _SWEEP_RECORDS
        self._narrow()

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

    def take(self, found: Found, written_ms: int) -> Taken:
        """Keep records, the next ones of the partition.

        Args:
            found: the records.
            written_ms: when Kafka took the last of them.

        Nothing that their windows look back at is forgotten before `pass_by`.
        """
        records = found.records
        self._move_fronts(records, written_ms)
        # Of each window its first record: those before it in the partition are not needed.
        starts_ms, first = np.unique(records.window_start_ms, return_index=True)
        for start_ms, offset in zip(starts_ms.tolist(), records.offset[first].tolist(), strict=True):
            self._first_offsets.setdefault(start_ms, offset)
        taken = Taken(
            found,
            self._is_new(records),
            np.zeros(len(records), bool),
            [None] * len(records.whos),
            {},
            self._policy.lookback_ms,
        )
        for who, numbers, parts in found.of_each(np.arange(len(records))):
            self._keep(taken, who, numbers, parts)
        self._until_sweep -= len(records)
        return taken

    def pass_by(self) -> None:
        """Forget what no window behind those that were taken looks back at."""
        self._narrow()
        if self._until_sweep <= 0:
            self._sweep()

    def resume_at(self) -> Beginning:
        """Return what another member must begin with, to deliver what is not processed here."""
        self._first_offsets = {start: at for start, at in self._first_offsets.items() if self._is_needed(start)}
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

    def _keep(self, taken: Taken, who: int, numbers: list[int], parts: list[Part]) -> None:
        namespace, pod, service = taken.found.records.whos[who]
        name = namespace, service if pod is None else pod
        history = self._pods.get(name)
        if history is None:
            history = self._pods[name] = PodHistory()
        taken.histories[who] = history
        if _are_later(parts, history.newest_ms):
            for part in parts:
                history.add(part, self._kept)
            return
        rows = (part.rows(at, at + 1) for part in parts for at in range(part.size))
        for number, row in zip(numbers, rows, strict=True):
            is_late = row.starts_ms[0] <= history.newest_ms
            if is_late and history.is_no_news(row):
                taken.is_delivered[number] = False
                continue
            history.add(row, self._kept)
            taken.snapshots[number] = history.snapshot()
            if is_late:
                taken.is_late[number] = True
                taken.is_delivered[number] &= self._policy.deliver_late

    def _is_new(self, records: Records) -> BoolArray:
        """Tell of each record whether it is to be delivered, for all that its offset and its time say."""
        begin = self._beginning
        is_before = (records.offset < begin.was_end) & (records.window_start_ms < begin.from_ms)
        return (records.offset >= self._processed) & ~is_before

    def _move_fronts(self, records: Records, written_ms: int) -> None:
        ahead = dict(self._ahead)
        for origin in np.unique(records.origin).tolist():
            job = records.origins[origin][2]
            mine = np.flatnonzero(records.origin == origin)
            starts_ms = records.window_start_ms[mine]
            latest = mine[np.argmax(starts_ms)]
            front = Front(int(records.window_start_ms[latest]), int(records.window_end_ms[latest]), written_ms)
            known = ahead.get(job)
            if known is not None and known.start_ms >= front.start_ms:
                front = known._replace(written_ms=max(known.written_ms, written_ms))
            ahead[job] = front
            # It is as long as it must be until all of these are delivered.
            from_ms, _ = self._stretches.get(job, (int(starts_ms.min()) - self._policy.lookback_ms, 0))
            self._stretches[job] = from_ms, front.start_ms
        self._ahead = ahead

    def _narrow(self) -> None:
        """Have each job's stretch end at its front; let go of jobs that seem to have ended."""
        lookback_ms = self._policy.lookback_ms
        newest_ms = max((front.written_ms for front in self._ahead.values()), default=0)
        alive_ms = newest_ms - max(lookback_ms, _SILENT_MS)
        self._fronts = self._ahead = {job: front for job, front in self._ahead.items() if front.written_ms >= alive_ms}
        self._stretches = {
            job: (min(front.end_ms - lookback_ms, front.start_ms), front.start_ms)
            for job, front in self._fronts.items()
        }

    def _kept(self) -> list[Stretch]:
        return list(self._stretches.values())

    def _is_needed(self, start_ms: int) -> bool:
        return any(first <= start_ms <= last for first, last in self._stretches.values())

    def _sweep(self) -> None:
        self._first_offsets = {start: at for start, at in self._first_offsets.items() if self._is_needed(start)}
        stretches = self._kept()
        self._pods = {name: history for name, history in self._pods.items() if not history.forget(stretches)}
        # As many records as it has pods to look at: a record costs the same, however many there are.
        self._until_sweep = max(_SWEEP_RECORDS, len(self._pods))


def _are_later(parts: list[Part], than_ms: int) -> bool:
    """Tell whether rows strictly rise, from a moment on."""
    for part in parts:
        starts_ms = part.starts_ms
        if starts_ms[0] <= than_ms or (part.size > 1 and not (starts_ms[1:] > starts_ms[:-1]).all()):
            return False
        than_ms = int(starts_ms[-1])
    return True
