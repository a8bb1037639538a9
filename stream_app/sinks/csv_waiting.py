"""Rows that wait beside a CSV file until it is worth rewriting: a list of sorted runs. Pure.

A list is only ever appended to. A line is ``#`` and a table's header, for what follows;
or a row's rank, ``complete,revision,``, and its line in that table. What is appended at
once is sorted; rows that go on where those before them ended are one run with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import merge
from mmap import ACCESS_READ, mmap
from operator import itemgetter
from typing import BinaryIO

from stream_app.sinks.csv_style import CsvStyle
from stream_app.sinks.csv_text import Arrival, Key, Table, keyed_lines

_HEADER = b"#"


def waiting_lines(arrivals: Iterable[Arrival], table: Table | None) -> Iterator[bytes]:
    """Yield what is appended for sorted rows; *table*: the columns of them, where they are other than before."""
    if table is not None:
        yield _HEADER + table.header()
    for _, (complete, revision), line in arrivals:
        yield b"%d,%d,%b" % (complete, revision, line)


def one_a_key(runs: Iterable[Iterable[Arrival]]) -> Iterator[Arrival]:
    """Merge sorted runs, earlier ones first: of equal keys the higher rank stays, of equal ranks the later."""
    best: Arrival | None = None
    for row in merge(*runs, key=itemgetter(0)):
        if best is not None and best[0] == row[0]:
            if row[1] >= best[1]:
                best = row
            continue
        if best is not None:
            yield best
        best = row
    if best is not None:
        yield best


class Waiting:
    """A list as it is read: a table that has room for all rows, and the runs."""

    def __init__(self, file: BinaryIO, style: CsvStyle, *, with_pod: bool) -> None:
        """Look through the list.

        Raises:
            ValueError: it is none.
        """
        self._style, self._with_pod = style, with_pod
        self._content = mmap(file.fileno(), 0, access=ACCESS_READ)
        self._runs: list[tuple[int, int, Table]] = []
        self.table = Table((), style, with_pod=with_pod)
        first = at = 0
        last: Key = (-1, "")
        for line in _lines_between(self._content, 0, len(self._content)):
            end = at + len(line)
            if line.startswith(_HEADER):
                self._add_run(first, at)
                self.table, first = Table.read(iter([line[1:]]), style, with_pod=with_pod), end
                last = (-1, "")
            elif (key := self._arrival(line)[0]) < last:
                self._add_run(first, at)
                first, last = at, key
            else:
                last = key
            at = end
        self._add_run(first, at)

    def runs(self, table: Table) -> list[Iterator[Arrival]]:
        """Return the runs, in the order in which they came; lines are those of *table*, which has all columns."""
        return [self._run(first, end, own, table) for first, end, own in self._runs]

    def close(self) -> None:
        self._content.close()

    def _add_run(self, first: int, end: int) -> None:
        if end > first:
            self._runs.append((first, end, self.table))

    def _run(self, first: int, end: int, own: Table, table: Table) -> Iterator[Arrival]:
        for line in _lines_between(self._content, first, end):
            key, rank, row = self._arrival(line)
            yield key, rank, table.padded(own, row)

    def _arrival(self, line: bytes) -> Arrival:
        complete, revision, row = line.split(b",", 2)
        ((key, row),) = keyed_lines([row], self._style, with_pod=self._with_pod)
        return key, (complete == b"1", int(revision)), row


def _lines_between(content: mmap, first: int, end: int) -> Iterator[bytes]:
    """Yield whole rows: a line break inside quotes ends none."""
    at = first
    while at < end:
        stop = content.find(b"\n", at, end) + 1
        while content[at:stop].count(b'"') % 2 and stop < end:
            stop = content.find(b"\n", stop, end) + 1
        if not stop:
            raise ValueError("its last line has no end")
        yield content[at:stop]
        at = stop
