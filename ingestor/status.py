"""Where all jobs stand, for people and for machines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ingestor.core.time_range import iso
from ingestor.positions import Position
from ingestor.progress import short

_ENDED = "ended"
_COLUMNS = ("JOB", "POSITION", "LAG", "SAMPLES", "RATE", "UPDATED")


def as_dict(position: Position, now_ms: int) -> dict[str, Any]:
    """Return one job's state; times as ISO 8601 UTC, ``lag_s`` seconds behind *now_ms* (None: the job has ended)."""
    return {
        "job": position.job,
        "revision": position.revision,
        "start": iso(position.start_ms),
        "end": None if position.end_ms is None else iso(position.end_ms),
        "position": iso(position.position_ms),
        "ended": position.ended,
        "lag_s": None if position.ended else round((now_ms - position.position_ms) / 1000, 3),
        "samples": position.samples,
        "samples_per_s": 0.0 if position.ended else round(position.samples_per_s, 1),
        "updated": iso(position.updated_ms),
        "updated_s_ago": round((now_ms - position.updated_ms) / 1000, 3),
        "last_error": position.last_error or None,
        "last_error_at": iso(position.last_error_ms) if position.last_error else None,
        "incomplete": list(position.incomplete),
    }


def as_text(positions: Iterable[Position], now_ms: int) -> Iterator[str]:
    """Yield the lines of a table, and below a job what went wrong with it."""
    jobs = sorted(positions, key=lambda position: (position.ended, position.start_ms, position.job))
    rows = [_COLUMNS, *(_row(position, now_ms) for position in jobs)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = [_line(row, widths) for row in rows]
    yield lines[0]
    for position, line in zip(jobs, lines[1:], strict=True):
        yield line
        if position.last_error:
            yield f"  last error, {ago(now_ms - position.last_error_ms)}: {position.last_error}"
        if position.incomplete:
            yield f"  incomplete, samples are missing of: {', '.join(position.incomplete)}"


def _row(position: Position, now_ms: int) -> tuple[str, ...]:
    return (
        position.job,
        iso(position.position_ms),
        _ENDED if position.ended else length(now_ms - position.position_ms),
        short(position.samples),
        "" if position.ended else f"{short(position.samples_per_s)}/s",
        ago(now_ms - position.updated_ms),
    )


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    cells = [row[0].ljust(widths[0]), row[1].ljust(widths[1])]
    cells += [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
    return "  ".join(cells).rstrip()


def ago(milliseconds: int) -> str:
    """Write how long ago something was."""
    return f"{length(milliseconds)} ago"


def length(milliseconds: int) -> str:
    """Write a length of time by its largest unit or two: ``45s``, ``12m``, ``3h05m``, ``9d04h``."""
    seconds = max(milliseconds, 0) // 1000
    if seconds < 120:
        return f"{seconds}s"
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86_400
    if minutes < 120:
        return f"{minutes}m"
    return f"{hours}h{minutes % 60:02d}m" if hours < 48 else f"{days}d{hours % 24:02d}h"
