"""Where a worker stands in its partitions: whether it has caught up, and whether it goes on. No I/O.

Offsets alone don't say what is left to read: transactions' ends and what was aborted take
offsets and are no messages. So a partition is read up to where its last message was handled,
and, when all that was handed on is handled, up to where the consumer stands.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

STUCK_AFTER_S = 60.0
"""Longer than one message and its transaction take: both have ends to their patience below it."""


@dataclass(frozen=True, slots=True)
class Read:
    """How far the consumer has read a partition since it was assigned; offsets, None where there is none yet."""

    first: int | None
    """The first message that was handed on."""
    handed_to: int | None
    """Behind the last message that was handed on."""
    position: int | None
    """Where reading goes on."""


@dataclass(slots=True)
class _Partition:
    end: int | None = None
    """Behind the last committed message, as of the last look."""
    must_reach: int | None = None
    """The end at the first look."""
    caught_up: bool = False


class Standing:
    """Where one worker stands. All calls from one thread.

    Args:
        stuck_after_s: without progress, though there is something to read.
        monotonic: a clock in seconds that never steps.
    """

    def __init__(self, stuck_after_s: float = STUCK_AFTER_S, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.reads: Callable[[], Mapping[int, Read]] = dict
        """Asked for how far the consumer has read each partition."""
        self._stuck_after_s, self._monotonic = stuck_after_s, monotonic
        self._partitions: dict[int, _Partition] | None = None
        self._handled_to: dict[int, int] = {}
        self._assignment = 0
        self._went_on_at = monotonic()

    @property
    def partitions(self) -> Collection[int]:
        """What is assigned."""
        return self._partitions or ()

    @property
    def assignment(self) -> int:
        """A number that is another after each change of what is assigned."""
        return self._assignment

    def assigned(self, partitions: Collection[int]) -> None:
        """Note what this worker has from now on; it may be nothing."""
        self._partitions = {partition: _Partition() for partition in partitions}
        self._assignment += 1
        self.went_on()

    def revoked(self) -> None:
        """Note that the group shares its partitions out anew: all of them are read again from their commits."""
        self._partitions = None
        self._handled_to = {}
        self._assignment += 1
        self.went_on()

    def looked(self, assignment: int, ends: Mapping[int, int]) -> None:
        """Take over the partitions' ends as they were read; of an earlier *assignment* they say nothing any more."""
        if self._partitions is None or assignment != self._assignment:
            return
        for number, end in ends.items():
            partition = self._partitions[number]
            partition.end = end
            if partition.must_reach is None:
                partition.must_reach = end
        self.not_healthy()

    def handled(self, partition: int, offset: int) -> None:
        """Note that the message at *offset* was handled; it may be told before the assignment is."""
        self._handled_to[partition] = offset + 1
        self.went_on()

    def went_on(self) -> None:
        """Note progress of any kind."""
        self._went_on_at = self._monotonic()

    def lag(self) -> dict[int, int]:
        """Return how many offsets each partition is behind its end; without those of which it is not known yet."""
        read_to = self._read_to()
        return {
            number: max(partition.end - at, 0)
            for number, partition in (self._partitions or {}).items()
            if partition.end is not None and (at := read_to[number]) is not None
        }

    def replay_left(self) -> int | None:
        """Return how many offsets are left to the ends as they were at the assignment; None: not known yet."""
        self._note_caught_up()
        read_to, left = self._read_to(), 0
        for number, partition in (self._partitions or {}).items():
            if not partition.caught_up:
                at = read_to[number]
                if partition.must_reach is None or at is None:
                    return None
                left += partition.must_reach - at
        return None if self._partitions is None else left

    def not_ready(self) -> str | None:
        """Return in a line why the worker is not ready; None where it has read all that was there at assignment."""
        if self._partitions is None:
            return "starting: the group has not shared out its partitions yet"
        self._note_caught_up()
        behind = [partition for partition in self._partitions.values() if not partition.caught_up]
        if not behind:
            return None
        of = f"{len(behind)} of {len(self._partitions)} partitions"
        if left := self.replay_left():
            return f"replaying: {left} messages left in {of}"
        return f"replaying: how much is left is not known yet in {of}"

    def not_healthy(self) -> str | None:
        """Return in a line why the worker should be started again; None while it goes on, or has nothing to read."""
        lag = self.lag()
        unknown = [
            partition for number, partition in (self._partitions or {}).items() if number not in lag and partition.end
        ]
        if not unknown and not any(lag.values()):
            self.went_on()
        still_s = self._monotonic() - self._went_on_at
        if still_s <= self._stuck_after_s:
            return None
        return f"nothing was processed for {still_s:.0f} s, and {sum(lag.values())} messages wait"

    def _note_caught_up(self) -> None:
        read_to = self._read_to()
        for number, partition in (self._partitions or {}).items():
            at = read_to[number]
            if partition.must_reach is not None and at is not None and at >= partition.must_reach:
                partition.caught_up = True

    def _read_to(self) -> dict[int, int | None]:
        """Return up to where each partition is read."""
        if not self._partitions:
            return {}
        reads = self.reads()
        return {number: _read_to(self._handled_to.get(number), reads.get(number)) for number in self._partitions}


def _read_to(handled_to: int | None, read: Read | None) -> int | None:
    if read is None:
        return handled_to
    if read.handed_to is None:
        return read.position
    if handled_to is None:
        return read.first
    if handled_to < read.handed_to or read.position is None:
        return handled_to
    return max(handled_to, read.position)
