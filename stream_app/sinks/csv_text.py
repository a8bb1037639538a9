"""Rows as CSV text: how cells are written, and how rows are merged into a file that is there. Pure.

Cells hold what was reported and nothing else; only where the style says so are names that
spreadsheets would take for formulas (Kubernetes has none) escaped, so that they can be read
back. UTF-8 without a mark, lines end with a line feed.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from math import isnan

import numpy as np
import orjson

from stream_app.records import Records
from stream_app.sinks.csv_style import CsvStyle
from stream_app.sinks.paths import column_name, name_of_column

Key = tuple[int, str]
"""Window start in ms and pod ("" in service records): what a row is known by within its file."""

Rank = tuple[bool, int]
"""Complete, revision: of two records of one row the higher rank stays, of equals the later."""

COMMON_RANK: Rank = (True, 0)
"""Of rows whose rank is not written down."""

Arrival = tuple[Key, Rank, bytes]
"""A row that is to be merged into a file, and its line."""

_NEVER_MS = 2**63

_TAKEN = frozenset({"timestamp", "pod"})


class Table:
    """The columns of one file: ``timestamp``, ``pod`` unless these are service records, metrics.

    A metric with the name of one of the first two is called ``metric.…``, as in Parquet files.
    """

    __slots__ = ("_known", "_style", "metrics", "with_pod")

    def __init__(self, metrics: Sequence[str], style: CsvStyle, *, with_pod: bool) -> None:
        self.metrics = tuple(metrics)
        self.with_pod = with_pod
        self._style = style
        self._known = frozenset(metrics)

    @classmethod
    def read(cls, file: Iterator[bytes], style: CsvStyle, *, with_pod: bool) -> Table:
        """Read the header and leave *file* at the first row.

        Raises:
            ValueError: the file does not begin with such a header.
        """
        names = cells_of(next(logical_lines(file), b"\n"))
        fixed = ["timestamp", "pod"] if with_pod else ["timestamp"]
        if names[: len(fixed)] != fixed:
            raise ValueError(f"its first columns are {names[: len(fixed)]}, not {fixed}")
        metrics = [name_of_column(style.read(name), _TAKEN, "metric") for name in names[len(fixed) :]]
        return cls(metrics, style, with_pod=with_pod)

    def header(self) -> bytes:
        metrics = (self._style.written(column_name(metric, _TAKEN, "metric")) for metric in self.metrics)
        names = ("timestamp", "pod", *metrics) if self.with_pod else ("timestamp", *metrics)
        return ",".join(map(_quoted, names)).encode() + b"\n"

    def widened(self, metrics: Iterable[str]) -> Table:
        """Return a table with a column for all *metrics*, new ones at the end, by name."""
        new = set(metrics) - self._known
        return Table((*self.metrics, *sorted(new)), self._style, with_pod=self.with_pod) if new else self

    def with_metrics(self, metrics: Sequence[str]) -> Table:
        """Return a table with columns for these metrics, none of which has one, at the end."""
        return Table((*self.metrics, *metrics), self._style, with_pod=self.with_pod) if metrics else self

    def without(self, columns: Collection[int]) -> Table:
        """Return a table without the metrics of these numbers."""
        kept = [name for column, name in enumerate(self.metrics) if column not in columns]
        return Table(kept, self._style, with_pod=self.with_pod)

    def padded(self, narrower: Table, line: bytes) -> bytes:
        """Return a line of a table with only the first of these columns, with all of them."""
        missing = len(self.metrics) - len(narrower.metrics)
        return line[:-1] + b",%b" % self._style.absent.encode() * missing + b"\n" if missing else line

    def lines(self, records: Records) -> list[bytes]:
        """Return each record's line; metrics without a column are left out.

        NaN, +Inf and -Inf are spelled as Prometheus spells them; other numbers are as
        ``repr`` writes them, so all their digits survive.
        """
        write_time = self._style.time_writer()
        starts_ms, whos = records.window_start_ms.tolist(), records.who.tolist()
        times = {start_ms: write_time(start_ms).encode() for start_ms in set(starts_ms)}
        parts: list[Iterator[bytes]] = [map(times.__getitem__, starts_ms)]
        if self.with_pod:
            pods = {who: _quoted(self._style.written(records.whos[who][1] or "")).encode() for who in set(whos)}
            parts.append(map(pods.__getitem__, whos))
        if self.metrics:
            parts.append(iter(self._cells(records)))
        return [b",".join(row) + b"\n" for row in zip(*parts, strict=True)]

    def _cells(self, records: Records) -> list[bytes]:
        """Return the metrics' cells of each row."""
        values, present = records.matrix(self.metrics)
        # Many times as fast as repr for each cell, and the same text but for what follows.
        text = orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)[2:-2]
        may_differ = [mark for mark in (b"e", b"0.0000") if mark in text]
        rows: list[bytes] = text.split(b"],[") if len(records) else []
        for mark in may_differ:
            rows = [_respelled(row, mark) if mark in row else row for row in rows]
        absent = self._style.absent.encode()
        not_numbers = np.flatnonzero((present & ~np.isfinite(values)).any(axis=1)).tolist()
        for i in not_numbers:
            rows[i] = _with_gaps(rows[i], values[i].tolist(), present[i].tolist(), absent)
        return [row.replace(b"null", absent) for row in rows] if b"null" in text else rows


def merged(
    file: Iterator[bytes],
    old: Table,
    new: Table,
    style: CsvStyle,
    arrivals: Iterator[Arrival],
    ranks: Mapping[Key, Rank],
    noted: list[tuple[Key, Rank]],
) -> Iterator[bytes]:
    """Yield the lines of *file* and of *arrivals* as one table in the order of their keys.

    Args:
        file: sorted, at its first row.
        old: the columns of *file*.
        new: those of *arrivals*; *old*, and others behind.
        style: of both.
        arrivals: sorted, one a key; they came later than what is in *file*.
        ranks: of the rows of *file* that have another than ``COMMON_RANK``.
        noted: is filled with the ranks of those of *arrivals* that are in the result, where
            they are another than *ranks* says.

    Raises:
        ValueError: a line of *file* does not begin with a timestamp and a pod.
    """
    yield new.header()
    # No key is so high.
    none: Arrival = ((_NEVER_MS, ""), COMMON_RANK, b"")
    next_key, rank, text = next(arrivals, none)
    for key, line in keyed_lines(file, style, with_pod=old.with_pod):
        while next_key < key:
            if rank != COMMON_RANK:
                noted.append((next_key, rank))
            yield text
            next_key, rank, text = next(arrivals, none)
        if next_key == key:
            was = ranks.get(key, COMMON_RANK)
            if rank != was and rank >= was:
                noted.append((key, rank))
            yield text if rank >= was else new.padded(old, line)
            next_key, rank, text = next(arrivals, none)
        else:
            yield new.padded(old, line)
    while text:
        if rank != COMMON_RANK:
            noted.append((next_key, rank))
        yield text
        next_key, rank, text = next(arrivals, none)


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


def _with_gaps(text: bytes, values: list[float], present: list[bool], absent: bytes) -> bytes:
    """Tell absent cells from NaN and infinities: JSON has null for all of them."""
    return b",".join(
        number if number != b"null" else _non_finite(value) if is_present else absent
        for number, value, is_present in zip(text.split(b","), values, present, strict=True)
    )


def _non_finite(value: float) -> bytes:
    return b"NaN" if isnan(value) else b"+Inf" if value > 0 else b"-Inf"


def keyed_lines(file: Iterable[bytes], style: CsvStyle, *, with_pod: bool) -> Iterator[tuple[Key, bytes]]:
    """Yield rows as they are, each with its key.

    Raises:
        ValueError: a line does not begin with a timestamp and a pod.
    """
    read_time = style.time_reader()
    last, start_ms = b"", 0
    for line in logical_lines(file):
        if b'"' in line:
            cells = cells_of(line)
            timestamp, pod = cells[0].encode(), cells[1] if with_pod and len(cells) > 1 else ""
        else:
            parts = line[:-1].split(b",", 2)
            timestamp, pod = parts[0], parts[1].decode() if with_pod and len(parts) > 1 else ""
        if timestamp != last:
            last, start_ms = timestamp, read_time(timestamp)
        yield (start_ms, style.read(pod)), line


def logical_lines(file: Iterable[bytes]) -> Iterator[bytes]:
    """Yield rows with their line end; one with a line break inside quotes is several lines of the file."""
    lines = iter(file)
    for line in lines:
        whole = line
        while whole.count(b'"') % 2:
            whole += next(lines, b'"')
        yield whole


def cells_of(line: bytes) -> list[str]:
    """Return the cells of a row.

    Raises:
        ValueError: it is none.
    """
    try:
        return next(csv.reader(io.StringIO(line.decode(), newline="")), [])
    except csv.Error as error:
        raise ValueError(f"{line[:80]!r} is not a row of CSV") from error


def _quoted(text: str) -> str:
    # The csv module, told to end lines with \n, leaves \r without quotes, and then cannot read it.
    if any(character in text for character in ',"\r\n'):
        return '"' + text.replace('"', '""') + '"'
    return text
