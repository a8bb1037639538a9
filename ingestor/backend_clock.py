"""How far a backend's clock is believed: one that jumps for a moment would have a time published that has not come.

No clock, no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

TOLERANCE_MS = 60_000
"""Clocks of several machines behind one address may differ, and ours goes a little faster or slower."""

HOLDS_S = 300.0
"""What one querier of several says comes and goes with the questions that it gets; a clock that was set stays."""

News = Literal["", "ahead", "behind", "held"]
"""What is worth a line of log: it jumped either way, or has stayed there for so long that it is believed."""


class Reading(NamedTuple):
    """What the backend's clock said, between two times by a clock of ours that is never set."""

    now_ms: int
    asked_s: float
    answered_s: float

    def agrees_with(self, later: Reading) -> bool:
        """Tell whether a later reading is what a clock says that was not set in between."""
        latest_ms = self.now_ms + (later.answered_s - self.asked_s) * 1000
        return self.carried_on(later) - TOLERANCE_MS <= later.now_ms <= latest_ms + TOLERANCE_MS

    def carried_on(self, later: Reading) -> int:
        """Return what the clock has come to at least, when a later question was asked."""
        return self.now_ms + int((later.asked_s - self.answered_s) * 1000)


class Judged(NamedTuple):
    """What time it is."""

    now_ms: int
    expected_ms: int
    news: News = ""


@dataclass(slots=True)
class BackendClock:
    """What a backend's clock has said so far.

    The first reading is believed. One that does not follow from what was believed before is so
    once the readings have stayed with it; until then the earlier one of both times counts, for
    what is read later is not lost.
    """

    _believed: Reading | None = None
    _doubted: Reading | None = None
    """The first of the last readings, which agree with one another and not with what was believed."""
    _jumped_s: float | None = None
    """When a reading was doubted last."""

    def judge(self, reading: Reading) -> Judged:
        """Return what time to go by; readings come in the order in which they were made."""
        believed, doubted = self._believed, self._doubted
        if believed is None or believed.agrees_with(reading):
            self._believed, self._doubted = reading, None
            return Judged(reading.now_ms, reading.now_ms)
        expected_ms = believed.carried_on(reading)
        if doubted is None or not doubted.agrees_with(reading):
            self._doubted = doubted = reading
        if reading.asked_s - doubted.answered_s >= HOLDS_S:
            self._believed, self._doubted, self._jumped_s = reading, None, None
            return Judged(reading.now_ms, expected_ms, "held")
        # Where two clocks answer in turn, each answer of one of them would be news.
        is_old = self._jumped_s is not None and reading.asked_s - self._jumped_s < HOLDS_S
        self._jumped_s = reading.answered_s
        news: News = "ahead" if reading.now_ms > expected_ms else "behind"
        return Judged(min(reading.now_ms, expected_ms), expected_ms, "" if is_old else news)
