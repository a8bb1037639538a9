"""Rows as CSV text: how cells are written, and how rows are merged into a file that is there."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from itertools import pairwise
from math import isnan
from typing import BinaryIO

import orjson

from ingestor.core.time_range import iso
from stream_app.records import Record

Key = tuple[int, str]
"""Window start in ms and pod ("" in service records): what a row is known by within its file."""

Row = tuple[int, str, int, Record]
"""Window start in ms, pod, offset, record."""

Rank = tuple[bool, int]
"""Complete, revision: of two records of one row the higher rank stays, of equals the later."""

COMMON_RANK: Rank = (True, 0)
"""Of rows whose rank is not written down."""

_NO_MORE: tuple[Row | None, bytes] = (None, b"")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Table:
    """The columns of one file: ``timestamp``, ``pod`` unless these are service records, metrics."""

    __slots__ = ("_known", "metrics", "with_pod")

    def __init__(self, metrics: Sequence[str], *, with_pod: bool) -> None:
        self.metrics = tuple(metrics)
        self.with_pod = with_pod
        self._known = frozenset(metrics)

    @classmethod
    def read(cls, file: BinaryIO, *, with_pod: bool) -> Table:
        """Read the header and leave *file* at the first row.

        Raises:
            ValueError: the file does not begin with such a header.
        """
        names = _cells(next(_logical_lines(file), b"\n"))
        fixed = ["timestamp", "pod"] if with_pod else ["timestamp"]
        if names[: len(fixed)] != fixed:
            raise ValueError(f"its first columns are {names[: len(fixed)]}, not {fixed}")
        return cls(names[len(fixed) :], with_pod=with_pod)

    def header(self) -> bytes:
        names = ("timestamp", "pod", *self.metrics) if self.with_pod else ("timestamp", *self.metrics)
        return ",".join(map(_quoted, names)).encode() + b"\n"

    def widened(self, rows: Iterable[Row]) -> Table:
        """Return a table with a column for every metric of *rows*, new ones at the end, by name."""
        new = set().union(*(row[3].metrics for row in rows)) - self._known
        return Table((*self.metrics, *sorted(new)), with_pod=self.with_pod) if new else self

    def lines(self, rows: Iterable[Row]) -> list[bytes] | None:
        """Return each row's line, or None when a metric has no column.

        An absent metric is an empty cell; NaN, +Inf and -Inf are spelled as Prometheus
        spells them; other numbers are as ``repr`` writes them, so all their digits survive.
        """
        lines, names, width, with_pod = [], self.metrics, len(self.metrics), self.with_pod
        for start_ms, pod, _, record in rows:
            metrics = record.metrics
            cells = list(map(metrics.get, names))
            absent = cells.count(None)
            if width - absent != len(metrics):
                return None
            # Ten times as fast as repr for each cell, and the same text but for what follows.
            text = orjson.dumps(cells)[1:-1]
            nulls = text.count(b"null")
            if nulls:
                text = _with_gaps(cells, text) if nulls > absent else text.replace(b"null", b"")
            if b"e" in text:
                text = _respelled(text, b"e")
            if b"0.0000" in text:
                text = _respelled(text, b"0.0000")
            parts = [_timestamp(start_ms)]
            if with_pod:
                parts.append(_pod(pod))
            if width:
                parts.append(text)
            lines.append(b",".join(parts) + b"\n")
        return lines


def latest(rows: list[Row]) -> list[Row]:
    """Return one row a key, sorted by key: that of the highest rank, then of the later offset."""
    if all(a[0] < b[0] or (a[0] == b[0] and a[1] < b[1]) for a, b in pairwise(rows)):
        return rows
    best: dict[Key, Row] = {}
    for row in rows:
        key = row[0], row[1]
        other = best.get(key)
        if other is None or (*rank_of(row), row[2]) > (*rank_of(other), other[2]):
            best[key] = row
    return [best[key] for key in sorted(best)]


def rank_of(row: Row) -> Rank:
    return not row[3].partial, row[3].revision


def merged(
    file: BinaryIO, old: Table, new: Table, rows: Sequence[Row], ranks: Mapping[Key, Rank], stayed: list[Row]
) -> Iterator[bytes]:
    """Yield the lines of *file* and *rows* as one table in the order of their keys.

    Args:
        file: sorted, at its first row.
        old: the columns of *file*.
        new: *old*, and every metric of *rows*.
        rows: sorted, one a key.
        ranks: of the rows of *file* that have another than ``COMMON_RANK``.
        stayed: is filled with those of *rows* that are in the result.

    Raises:
        ValueError: a line of *file* does not begin with a timestamp and a pod.
    """
    yield new.header()
    arriving = zip(rows, new.lines(rows) or (), strict=True)
    row, text = next(arriving, _NO_MORE)
    padding = b"," * (len(new.metrics) - len(old.metrics)) + b"\n"
    for key, line in _keyed_lines(file, with_pod=old.with_pod):
        while row and row[:2] < key:
            stayed.append(row)
            yield text
            row, text = next(arriving, _NO_MORE)
        if row and row[:2] == key:
            wins = rank_of(row) >= ranks.get(key, COMMON_RANK)
            if wins:
                stayed.append(row)
                yield text
            row, text = next(arriving, _NO_MORE)
            if wins:
                continue
        yield line if len(padding) == 1 else line[:-1] + padding
    while row:
        stayed.append(row)
        yield text
        row, text = next(arriving, _NO_MORE)


def _respelled(text: bytes, mark: bytes) -> bytes:
    """Write the numbers that have *mark* as ``repr`` does: JSON has 1e-7 and 0.00001 for its 1e-07 and 1e-05."""
    parts: list[bytes] = []
    done, at = 0, text.find(mark)
    while at >= 0:
        start, end = text.rfind(b",", 0, at) + 1, text.find(b",", at)
        if end < 0:
            end = len(text)
        parts += (text[done:start], repr(float(text[start:end])).encode())
        done, at = end, text.find(mark, end)
    return b"".join((*parts, text[done:]))


def _with_gaps(cells: list[float | None], text: bytes) -> bytes:
    """Tell absent cells from NaN and infinities: JSON has null for all of them."""
    return b",".join(
        number if number != b"null" else b"" if cell is None else _non_finite(cell)
        for cell, number in zip(cells, text.split(b","), strict=True)
    )


def _non_finite(value: float) -> bytes:
    return b"NaN" if isnan(value) else b"+Inf" if value > 0 else b"-Inf"


def _keyed_lines(file: BinaryIO, *, with_pod: bool) -> Iterator[tuple[Key, bytes]]:
    last, start_ms = b"", 0
    for line in _logical_lines(file):
        if b'"' in line:
            cells = _cells(line)
            timestamp, pod = cells[0].encode(), cells[1] if with_pod and len(cells) > 1 else ""
        else:
            parts = line[:-1].split(b",", 2)
            timestamp, pod = parts[0], parts[1].decode() if with_pod and len(parts) > 1 else ""
        if timestamp != last:
            last, start_ms = timestamp, _parse_ms(timestamp)
        yield (start_ms, pod), line


def _logical_lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield rows with their line end; one with a line break inside quotes is several lines of the file."""
    lines = iter(file)
    for line in lines:
        whole = line
        while whole.count(b'"') % 2:
            whole += next(lines, b'"')
        yield whole


def _cells(line: bytes) -> list[str]:
    try:
        return next(csv.reader(io.StringIO(line.decode(), newline="")), [])
    except csv.Error as error:
        raise ValueError(f"{line[:80]!r} is not a row of CSV") from error


def _parse_ms(timestamp: bytes) -> int:
    moment = datetime.fromisoformat(timestamp.decode())
    if moment.tzinfo is None:
        raise ValueError(f"{timestamp!r} is not a time in UTC")
    delta = moment - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1000 + delta.microseconds // 1000


@lru_cache(maxsize=4_096)
def _timestamp(start_ms: int) -> bytes:
    return iso(start_ms).encode()


@lru_cache(maxsize=65_536)
def _pod(pod: str) -> bytes:
    return _quoted(pod).encode()


def _quoted(text: str) -> str:
    # The csv module, told to end lines with \n, leaves \r without quotes, and then cannot read it.
    if any(character in text for character in ',"\r\n'):
        return '"' + text.replace('"', '""') + '"'
    return text
