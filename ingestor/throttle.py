"""A speed limit in samples a second, shared by all requests of a poller."""

from __future__ import annotations

import threading
import time


class Throttle:
    """Lets on average so many samples a second through; None: no limit."""

    def __init__(self, samples_per_second: float | None, stop: threading.Event) -> None:
        self._rate = samples_per_second
        self._stop = stop
        self._lock = threading.Lock()
        self._free_at = 0.0

    def spend(self, samples: int) -> None:
        """Account for *samples* that were read, and wait until the rate is kept again (or *stop* is set)."""
        if self._rate is None or not samples:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + samples / self._rate
            wait_s = self._free_at - now
        self._stop.wait(wait_s)
