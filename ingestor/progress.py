"""How a poller shows where it is: a bar on a terminal, a log line a range elsewhere, JSON lines for machines."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Protocol, Self

import click
import orjson

from ingestor.command_line import Presence, say
from ingestor.core.time_range import iso
from ingestor.poller import Progress
from ingestor.positions import Position

log = logging.getLogger(__name__)


class Display(Protocol):
    """Shows progress while it is entered."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def show(self, progress: Progress) -> None: ...
    def summary(self, position: Position) -> None: ...


def display(job: str, presence: Presence) -> Display:
    """Return the display for *presence*."""
    return {"terminal": _Bar, "log": _Lines, "json": _Json}[presence](job)


class _Lines:
    """A log line a range."""

    def __init__(self, job: str) -> None:
        self._job = job

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, progress: Progress) -> None:
        log.info(
            "range published",
            extra={
                "job": progress.job,
                "start": iso(progress.time_range.start_ms),
                "end": iso(progress.time_range.end_ms),
                "samples": progress.samples,
                "series": progress.series,
                "bytes": progress.size_bytes,
                "ms": round(progress.seconds * 1000),
            },
        )

    def summary(self, position: Position) -> None:
        state = "ended" if position.ended else "stopped, and will go on from here"
        say(f"{position.job}: {state} at {iso(position.position_ms)}, {position.samples:,} samples")


class _Json(_Lines):
    """An object a range on standard output, and one at the end."""

    def show(self, progress: Progress) -> None:
        click.echo(orjson.dumps(progress.as_dict()))

    def summary(self, position: Position) -> None:
        click.echo(
            orjson.dumps(
                {
                    "event": "ended" if position.ended else "stopped",
                    "job": position.job,
                    "position": iso(position.position_ms),
                    "position_ms": position.position_ms,
                    "total_samples": position.samples,
                }
            )
        )


class _Bar(_Lines):
    """A progress bar with ranges, samples, rate and time left."""

    def __init__(self, job: str) -> None:
        super().__init__(job)
        from rich.console import Console  # noqa: PLC0415 - only where there is a terminal
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn  # noqa: PLC0415
        from rich.progress import Progress as Bar  # noqa: PLC0415

        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[ranges]} ranges  {task.fields[samples]} samples  {task.fields[rate]}/s"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task(job, total=None, ranges=0, samples="0", rate="0")
        self._ranges = self._samples = 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, progress: Progress) -> None:
        self._ranges += 1
        self._samples += progress.samples
        elapsed_s = self._bar.tasks[0].elapsed or 0.001
        done = progress.time_range.end_ms - progress.job_range.start_ms if progress.job_range else 0
        self._bar.update(
            self._task,
            total=progress.job_range.length_ms if progress.job_range else None,
            completed=done,
            ranges=self._ranges,
            samples=short(self._samples),
            rate=short(self._samples / elapsed_s),
        )


def short(number: float) -> str:
    """Write a count in a few characters: ``7.2M``."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{suffix}"
    return f"{number:.0f}"
