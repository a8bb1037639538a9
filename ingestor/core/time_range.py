"""Half-open intervals of event time, in integer milliseconds since the Unix epoch."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, order=True)
class TimeRange:
    """[start_ms, end_ms); never empty.

    Raises:
        ValueError: the end is not after the start.
    """

    start_ms: int
    end_ms: int

    def __post_init__(self) -> None:
        if self.end_ms <= self.start_ms:
            raise ValueError(f"the end ({iso(self.end_ms)}) is not after the start ({iso(self.start_ms)})")

    def __str__(self) -> str:
        return f"{iso(self.start_ms)}..{iso(self.end_ms)}"

    @property
    def length_ms(self) -> int:
        return self.end_ms - self.start_ms

    def halves(self) -> tuple[TimeRange, TimeRange]:
        """Cut in the middle, or at the whole second next to it that lies inside.

        Raises:
            ValueError: the range is a single millisecond.
        """
        middle = self.start_ms + self.length_ms // 2
        whole = floor_ms(middle + 500, 1000)
        if self.start_ms < whole < self.end_ms:
            middle = whole
        return TimeRange(self.start_ms, middle), TimeRange(middle, self.end_ms)


def floor_ms(time_ms: int, size_ms: int) -> int:
    """Return the last multiple of *size_ms* that is not after *time_ms*."""
    return time_ms - time_ms % size_ms


def iso(time_ms: int) -> str:
    """Write Unix milliseconds as ISO 8601 UTC; fractions only where there are any.

    Outside the years 1 to 9999 the number itself is written: error messages need this to never fail.
    """
    try:
        # Added to the epoch, not fromtimestamp(): a float of seconds can miss by a millisecond.
        moment = _EPOCH + timedelta(milliseconds=time_ms)
    except OverflowError:
        return f"{time_ms} ms"
    spec = "milliseconds" if time_ms % 1000 else "seconds"
    return moment.isoformat(timespec=spec).replace("+00:00", "Z")
