"""Reads the demo's CSV files while they grow."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

TAIL_BYTES = 256 * 1024
"""Hundreds of windows of one service: more than come between two looks."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Table:
    """Some rows of one file, as text, in the file's order."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def starts_ms(self) -> list[int]:
        """Return the window start of each row."""
        return [time_ms(row[0]) for row in self.rows]

    def metrics(self) -> tuple[str, ...]:
        return self.columns[2:]

    def pods(self) -> set[str]:
        return {row[1] for row in self.rows}


def time_ms(timestamp: str) -> int:
    """Return a row's timestamp in Unix milliseconds."""
    # Whole numbers all the way: a float of seconds can miss by a millisecond.
    return (datetime.fromisoformat(timestamp) - _EPOCH) // timedelta(milliseconds=1)


def clock(start_ms: int) -> str:
    """Write a point of time as ``21:05:10``, UTC."""
    return f"{_EPOCH + timedelta(milliseconds=start_ms):%H:%M:%S}"


def read(path: Path, tail_bytes: int | None = None) -> Table | None:
    """Read the rows of a file, or of its last *tail_bytes* bytes; None while there is no such file.

    A last line that is still being written is left out.
    """
    try:
        with path.open("rb") as file:
            header = file.readline()
            size = file.seek(0, io.SEEK_END)
            start = len(header) if tail_bytes is None else max(len(header), size - tail_bytes)
            file.seek(start)
            body = file.read()
    except FileNotFoundError:
        return None
    if not header.endswith(b"\n"):
        return None
    if start > len(header):
        body = body[body.find(b"\n") + 1 :]
    body = body[: body.rfind(b"\n") + 1]
    columns = next(csv.reader([header.decode()]))
    rows = [tuple(row) for row in csv.reader(io.StringIO(body.decode(), newline=""))]
    return Table(tuple(columns), rows)


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Return lines with the cells in columns: the first *left* to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *rows)
    ]


def fitting_columns(table: Table, width: int) -> list[int]:
    """Return which columns fit *width* characters: timestamp, pod, and metrics, narrow ones first."""
    widths = [max(map(len, column)) for column in zip(table.columns, *table.rows, strict=True)]
    shown, room = [0, 1], width - widths[0] - widths[1] - 2
    for i in sorted(range(2, len(widths)), key=lambda i: widths[i]):
        if widths[i] + 2 <= room:
            shown.append(i)
            room -= widths[i] + 2
    return sorted(shown)
