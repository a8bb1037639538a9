"""Columns of a finished CSV file that say nothing: found, and left out. Pure.

Metrics' cells hold numbers only, never a comma or a quote: so a row is cut from its end.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import BinaryIO

from stream_app.sinks.csv_style import CsvStyle
from stream_app.sinks.csv_text import Table, logical_lines

EMPTY, ZERO = "empty", "zero"

_ZEROS = (b"0.0", b"-0.0")


def idle_columns(file: BinaryIO, table: Table, style: CsvStyle, which: Collection[str]) -> set[int]:
    """Return the numbers of the metrics that say nothing.

    Args:
        file: at its first row.
        table: its columns.
        style: how its cells are written.
        which: ``empty``: no row has a value, or only NaN; ``zero``: some have 0, and no row another value.
    """
    nothing = (style.absent.encode(), b"NaN")
    silent, zero = set(range(len(table.metrics))), set[int]()
    for line in logical_lines(file):
        if not silent:
            break
        cells = _cells(line, table)
        for column in [column for column in silent if cells[column] not in nothing]:
            if cells[column] in _ZEROS:
                zero.add(column)
            else:
                silent.remove(column)
    return {column for column in silent if (ZERO if column in zero else EMPTY) in which}


def without_columns(file: Iterable[bytes], table: Table, columns: Collection[int]) -> Iterator[bytes]:
    """Yield the rows of *file* without these metrics."""
    kept = [column for column in range(len(table.metrics)) if column not in columns]
    for line in logical_lines(file):
        cells = _cells(line, table)
        yield b",".join([line[: -1 - sum(map(len, cells)) - len(cells)], *(cells[column] for column in kept)]) + b"\n"


def _cells(line: bytes, table: Table) -> list[bytes]:
    """Return the metrics' cells of a row.

    Raises:
        ValueError: it has fewer.
    """
    fixed, *cells = line[:-1].rsplit(b",", len(table.metrics))
    if len(cells) != len(table.metrics) or not fixed:
        raise ValueError(f"{line[:80]!r} has fewer cells than the header")
    return cells
