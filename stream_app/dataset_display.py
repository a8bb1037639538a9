"""What a dataset's maker sees: one bar on a terminal, log lines elsewhere, JSON lines for machines."""

from __future__ import annotations

import logging
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import click
import orjson

from ingestor.command_line import Presence
from stream_app.files import FilesProgress

log = logging.getLogger(__name__)


class Display(Protocol):
    """Shows progress while it is entered."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def plan(self, text: str) -> None:
        """Say what will be read."""

    def step(self, what: str) -> None:
        """Say what is being done."""

    def published(self, event: dict[str, Any]) -> None:
        """Show an event of the poller, as ``ingestor backfill --json`` prints it."""

    def written(self, progress: FilesProgress) -> None:
        """Show how far the files are."""

    def finish(self, rows: int, files: int, storage: Path, seconds: float) -> None:
        """Say what came of it."""


def display(presence: Presence) -> Display:
    """Return the display for *presence*."""
    return {"terminal": _Bar, "log": _Lines, "json": _Json}[presence]()


class _Lines:
    def __init__(self) -> None:
        self._samples = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def plan(self, text: str) -> None:
        click.echo(text, err=True)

    def step(self, what: str) -> None:
        log.info(what)

    def published(self, event: dict[str, Any]) -> None:
        self._samples = event["total_samples"]
        if event["event"] == "range":
            shown = {key: event[key] for key in ("start", "end", "samples", "series")}
            log.info("range published", extra=shown)

    def written(self, progress: FilesProgress) -> None:
        log.info("rows written", extra={"rows": progress.rows, "files": progress.files})

    def finish(self, rows: int, files: int, storage: Path, seconds: float) -> None:
        click.echo(
            f"{storage}: {files:,} files, {rows:,} rows from {self._samples:,} samples in {seconds:.1f} s", err=True
        )


class _Json(_Lines):
    def plan(self, text: str) -> None:
        click.echo(orjson.dumps({"event": "plan", "text": text}))

    def step(self, what: str) -> None:
        click.echo(orjson.dumps({"event": "step", "what": what}))

    def published(self, event: dict[str, Any]) -> None:
        self._samples = event["total_samples"]
        click.echo(orjson.dumps(event))

    def written(self, progress: FilesProgress) -> None:
        click.echo(orjson.dumps({"event": "written", "rows": progress.rows, "files": progress.files}))

    def finish(self, rows: int, files: int, storage: Path, seconds: float) -> None:
        done = {"storage": str(storage), "files": files, "rows": rows, "samples": self._samples}
        click.echo(orjson.dumps({"event": "finished", **done, "seconds": round(seconds, 3)}))


class _Bar(_Lines):
    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console  # noqa: PLC0415 - only where there is a terminal
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn  # noqa: PLC0415

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[samples]:,} samples  {task.fields[rows]:,} rows"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task("starting", total=None, samples=0, rows=0)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def plan(self, text: str) -> None:
        self._bar.console.print(text, highlight=False, markup=False)

    def step(self, what: str) -> None:
        self._bar.update(self._task, description=what)

    def published(self, event: dict[str, Any]) -> None:
        self._samples = event["total_samples"]
        self._bar.update(self._task, samples=self._samples)
        if event["event"] == "range":
            total, done = event["job_end_ms"] - event["job_start_ms"], event["end_ms"] - event["job_start_ms"]
            self._bar.update(self._task, description="reading", total=total, completed=done)

    def written(self, progress: FilesProgress) -> None:
        self._bar.update(self._task, rows=progress.rows)

    def finish(self, rows: int, files: int, storage: Path, seconds: float) -> None:
        self._bar.update(self._task, description="finished")
        super().finish(rows, files, storage, seconds)
