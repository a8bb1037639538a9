"""One job's ranges on their way: due, being read, next to be published, always in order."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field

from ingestor import schedule
from ingestor.core.errors import TooManySamples
from ingestor.core.time_range import TimeRange
from ingestor.packing import PackedRange
from ingestor.positions import Position
from ingestor.reader import RANGES_AT_ONCE, RangeReader
from ingestor.schedule import SHORTEST_MS

_LOOK_EVERY_S = 0.5

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much a lane may do at once."""

    target_samples: int
    """What one range aims at."""
    in_flight_samples: int
    """What is being read, at most, beside the range that is being published; one range is always allowed."""
    poll_interval_ms: int = 0
    """Of a live job: how much must have come before it is read."""


@dataclass(slots=True)
class Lane:
    """Reads the ranges of one job ahead of their publication.

    Args:
        position: where the job stands.
        reader: who reads.
        bounds: how much at once.
        until_ms: up to where the job may be read now; its own end, or a moving one.
        length_ms: of the first range.
    """

    position: Position
    reader: RangeReader
    bounds: Bounds
    until_ms: Callable[[], int]
    length_ms: int
    rechecked_by: Position | None = None
    """The job that reads the same once more, from its start on."""
    _reading: deque[tuple[TimeRange, Future[PackedRange]]] = field(default_factory=deque)
    _samples_per_ms: float = 0.0
    _taken_to_ms: int = 0

    @property
    def least_due_ms(self) -> int:
        """How much must be due before it is read; ranges may have to be shorter than the poll interval."""
        return min(self.bounds.poll_interval_ms, self.length_ms)

    @property
    def in_flight(self) -> float:
        """How many samples are being read, about."""
        return sum(self._about(time_range) for time_range, _ in self._reading)

    def fill(self) -> bool:
        """Begin to read what is due, as far as the bounds allow; return whether anything is being read."""
        until_ms = 0
        while not self._reading or self._has_room():
            # What is taken is published before anything else is, though the position does not say so yet.
            published_ms = max(self.position.position_ms, self._taken_to_ms)
            from_ms = self._reading[-1][0].end_ms if self._reading else published_ms
            until_ms = until_ms or self.until_ms()
            due = schedule.due(from_ms, until_ms, self.length_ms)
            if due is None or until_ms - from_ms < self.least_due_ms:
                break
            # Until its first range is published, a job stands at its start.
            self._reading.append((due, self.reader.start(due, lookback=due.start_ms == self.position.start_ms)))
        return bool(self._reading)

    def oldest(self) -> Future[PackedRange]:
        """Return the range that is to be published next; `fill` has said that there is one."""
        return self._reading[0][1]

    def take(self) -> PackedRange | None:
        """Return the oldest range, which is read; None where it was too large and shorter ones must be read.

        Raises:
            SourceError: the backend cannot give it.
        """
        time_range, future = self._reading[0]
        try:
            packed = future.result()
        except TooManySamples as error:
            if time_range.length_ms <= SHORTEST_MS:
                raise
            self.length_ms = max(time_range.length_ms // 4, SHORTEST_MS)
            log.info("range holds too much; reading shorter ones", extra={"error": str(error), "ms": self.length_ms})
            futures = self.abandon()
            # Until they have ended, what they hold is in memory.
            while wait(futures, _LOOK_EVERY_S).not_done and not self.reader.is_stopped:
                pass
            return None
        self._reading.popleft()
        self._taken_to_ms = time_range.end_ms
        self._samples_per_ms = packed.samples / time_range.length_ms
        self.length_ms = schedule.next_length_ms(self.length_ms, time_range, packed.samples, self.bounds.target_samples)
        return packed

    def recheck_of(self, time_range: TimeRange) -> str:
        """Return the name of the job that will read a range once more; empty: none will."""
        again = self.rechecked_by
        return again.job if again is not None and time_range.end_ms > again.start_ms else ""

    def abandon(self) -> list[Future[PackedRange]]:
        """Forget what is being read; return what cannot be stopped any more."""
        futures = [future for _, future in self._reading if not future.cancel()]
        self._reading.clear()
        return futures

    def _about(self, time_range: TimeRange) -> float:
        return self._samples_per_ms * time_range.length_ms if self._samples_per_ms else self.bounds.target_samples

    def _has_room(self) -> bool:
        if len(self._reading) > RANGES_AT_ONCE:
            return False
        next_ms = TimeRange(0, self.length_ms)
        return self.in_flight + self._about(next_ms) <= self.bounds.in_flight_samples
