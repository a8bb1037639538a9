"""What a user of ``stream-app files`` sees: a bar on a terminal, a line a minute elsewhere, JSON for machines."""

from __future__ import annotations

import logging
import time
from types import TracebackType
from typing import Protocol, Self

import click
import orjson

from ingestor.command_line import Presence
from stream_app.files import FilesProgress

log = logging.getLogger(__name__)

_LINE_S = 60.0


class Display(Protocol):
    """Shows progress while it is entered."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def written(self, progress: FilesProgress) -> None:
        """Show what a commit came to."""


def display(presence: Presence, *, until_idle: bool, messages: str = "records", rows: str = "rows") -> Display:
    """Return the display for *presence*; *messages* and *rows* are what they are called."""
    if presence == "terminal":
        return _Bar(messages, rows, until_idle=until_idle)
    return _Json(rows) if presence == "json" else _Lines(rows)


class _Lines:
    """What was written since the line before; the first line at once, to show that all is well."""

    def __init__(self, rows: str) -> None:
        self._name = rows
        self._told_at: float | None = None
        self._told_rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def written(self, progress: FilesProgress) -> None:
        now = time.monotonic()
        if self._told_at is not None and (progress.rows == self._told_rows or now - self._told_at < _LINE_S):
            return
        rows, self._told_at, self._told_rows = progress.rows - self._told_rows, now, progress.rows
        fields = {self._name: rows, "files": progress.files, "behind": progress.behind}
        log.info("%s written", self._name, extra=fields)


class _Json(_Lines):
    """An object a commit."""

    def written(self, progress: FilesProgress) -> None:
        fields = {self._name: progress.rows, "files": progress.files, "behind": progress.behind}
        click.echo(orjson.dumps({"event": "written", **fields}))


class _Bar(_Lines):
    """How much of what was there is written, rows, files, and how many messages are left."""

    def __init__(self, messages: str, rows: str, *, until_idle: bool) -> None:
        super().__init__(rows)
        from rich.console import Console  # noqa: PLC0415 - only where there is a terminal
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn  # noqa: PLC0415

        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn(
                "{task.fields[rows]:,} " + rows + "  {task.fields[files]:,} files  {task.fields[behind]:,} behind"
            ),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task(f"waiting for {messages}", total=None, rows=0, files=0, behind=0)
        self._end = "to the end" if until_idle else "live"

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def written(self, progress: FilesProgress) -> None:
        done = progress.messages
        self._bar.update(
            self._task,
            description="catching up" if progress.behind else self._end,
            total=done + progress.behind,
            completed=done,
            rows=progress.rows,
            files=progress.files,
            behind=progress.behind,
        )
