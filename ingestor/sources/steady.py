"""A backend's clock as we go by it: what jumps is told, and believed only once it has stayed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from ingestor.backend_clock import HOLDS_S, BackendClock, News, Reading
from ingestor.core.time_range import iso

log = logging.getLogger(__name__)

_LOOK = "look at the time (NTP) of the backend's machines, and whether several of them answer at --url"
_MINUTES = f"{HOLDS_S / 60:.0f} minutes"
_TOLD: dict[News, str] = {
    "ahead": "the backend's clock has jumped ahead and is not believed; going on by the time that was expected, "
    f"for {_MINUTES} if it stays so: {_LOOK}",
    "behind": "the backend's clock has jumped back; nothing is read until it comes to where the job stands: " + _LOOK,
    "held": f"the backend's clock has stayed for {_MINUTES} where it jumped to, and is believed",
}


def uninterrupted_s() -> float:
    """Return a clock of ours that is never set, and where there is one goes on while the machine sleeps."""
    boot_time = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot_time is None else time.clock_gettime(boot_time)


class SteadyClock:
    """Asks for a backend's clock.

    Args:
        own_s: a clock in seconds that is never set.
    """

    def __init__(self, own_s: Callable[[], float] = uninterrupted_s) -> None:
        self._own_s = own_s
        self._clock = BackendClock()

    def ask(self, now_ms: Callable[[], int]) -> int:
        """Return what time to go by, Unix milliseconds; *now_ms* asks the backend."""
        asked_s = self._own_s()
        said_ms = now_ms()
        judged = self._clock.judge(Reading(said_ms, asked_s, self._own_s()))
        if judged.news:
            log.warning(_TOLD[judged.news], extra={"backend": iso(said_ms), "expected": iso(judged.expected_ms)})
        return judged.now_ms
