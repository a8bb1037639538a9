"""Which range is due next, and how long it should be. No clock, no I/O."""

from __future__ import annotations

from ingestor.core.time_range import TimeRange

TARGET_SAMPLES = 2_000_000
"""Large enough that requests and transactions cost little beside the samples, small enough for memory."""

_SCRAPE_INTERVAL_MS = 15_000
"""Assumed for the first range only; the next ones go by what was found."""

SHORTEST_MS = 1_000
"""No range is cut shorter, whatever it holds."""

_LONGEST_MS = 10 * 86_400_000
_STEP = 4


def first_length_ms(series: int, target_samples: int = TARGET_SAMPLES) -> int:
    """Guess the length of a range that holds about *target_samples* of *series* series."""
    return _bounded(target_samples * _SCRAPE_INTERVAL_MS // max(series, 1))


def next_length_ms(length_ms: int, found: TimeRange, samples: int, target_samples: int = TARGET_SAMPLES) -> int:
    """Lengthen or shorten ranges toward *target_samples*, at most fourfold at once.

    Args:
        length_ms: the length in use.
        found: the range that was read; it may be shorter, where little was due.
        samples: how many it held.
        target_samples: how many it should hold.
    """
    if samples == 0:
        return _bounded(length_ms * _STEP) if found.length_ms >= length_ms else length_ms
    wanted = found.length_ms * target_samples // samples
    if found.length_ms < length_ms:
        # A short range says little about long ones; it may only shorten.
        return _bounded(min(length_ms, max(wanted, length_ms // _STEP)))
    return _bounded(min(max(wanted, length_ms // _STEP), length_ms * _STEP))


def due(position_ms: int, until_ms: int, length_ms: int) -> TimeRange | None:
    """Return the next range of a job that has read up to *position_ms* and may read up to *until_ms*."""
    if position_ms >= until_ms:
        return None
    return TimeRange(position_ms, min(position_ms + length_ms, until_ms))


def _bounded(length_ms: int) -> int:
    return min(max(length_ms, SHORTEST_MS), _LONGEST_MS)
