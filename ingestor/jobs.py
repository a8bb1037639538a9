"""Which jobs a command stands for: the stretches of time that no job has read, or, with ``--again``, all of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from ingestor.core.time_range import TimeRange
from ingestor.positions import FOREVER_MS, Position

_PART = "."
_RECHECK = "recheck"


@dataclass(frozen=True, slots=True)
class Stretch:
    """A job that is still to be begun; ``end_ms`` is None where it has no end."""

    job: str
    start_ms: int
    end_ms: int | None
    revision: int = 0


def command_of(job: str) -> str:
    """Return the name of the command that *job* is a part of: one process at a time runs all of its parts."""
    return job.partition(_PART)[0]


def recheck_name(command: str, earlier: int) -> str:
    """Return the name of the job that reads a command's ranges once more, where there were *earlier* such jobs."""
    return f"{command}{_PART}{_RECHECK}" + (f"-{earlier + 1}" if earlier else "")


def is_recheck(job: str) -> bool:
    """Tell whether *job* reads ranges of its command's own once more."""
    return job.partition(_PART)[2].startswith(_RECHECK)


def parts_of(command: str, positions: Iterable[Position]) -> list[Position]:
    """Return the jobs of a command, in the order of time."""
    return sorted((p for p in positions if command_of(p.job) == command), key=lambda p: (p.revision, p.start_ms))


def claiming(start_ms: int, end_ms: int | None, positions: Iterable[Position]) -> list[Position]:
    """Return the jobs that claim any of [start, end); a recheck claims nothing of its own."""
    edge_ms = FOREVER_MS if end_ms is None else end_ms
    return [
        p
        for p in positions
        if not is_recheck(p.job) and (c := p.claimed) is not None and c.start_ms < edge_ms and start_ms < c.end_ms
    ]


def uncovered(command: str, start_ms: int, end_ms: int | None, positions: Collection[Position]) -> list[Stretch]:
    """Return the stretches of [start, end) that no job claims, as jobs: the last one has the command's name."""
    edge_ms = FOREVER_MS if end_ms is None else end_ms
    free: list[tuple[int, int]] = []
    at_ms = start_ms
    for claim in sorted(c for p in claiming(start_ms, end_ms, positions) if (c := p.claimed) is not None):
        if claim.start_ms > at_ms:
            free.append((at_ms, claim.start_ms))
        at_ms = max(at_ms, claim.end_ms)
    if at_ms < edge_ms:
        free.append((at_ms, edge_ms))
    last = len(free)
    return [
        Stretch(
            command if number == last else f"{command}{_PART}{number}",
            begin_ms,
            None if end_ms is None and until_ms == edge_ms else until_ms,
        )
        for number, (begin_ms, until_ms) in enumerate(free, 1)
    ]


def again(command: str, time_range: TimeRange, positions: Collection[Position]) -> Stretch:
    """Return a job that reads all of *time_range* with a higher revision than what has read any of it.

    Its name is a new one, also where an earlier job of the command was cancelled before it read anything.
    """
    earlier = [*claiming(time_range.start_ms, time_range.end_ms, positions), *parts_of(command, positions)]
    rechecks = [p for p in positions if is_recheck(p.job)]
    revision = max((p.revision for p in [*earlier, *(rechecks if earlier else ())]), default=-1) + 1
    name = f"{command}{_PART}r{revision}" if revision else command
    return Stretch(name, time_range.start_ms, time_range.end_ms, revision)
