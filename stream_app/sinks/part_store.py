"""Sorted files in partition folders, of which readers take any folder for one table.

A *partition* is a path of Hive's ``key=value`` folders, the date last. It holds *parts*
whose stretches of time are apart, so rows that lie in none of them are a new part, and no
other file is touched. The rest is paid for in a bounded way:

- **Rows that overlap parts** are merged with those by key. Where that would rewrite far
  more than has come, they are *late*: kept aside (``.stream-app/late``), as durable as all
  else, and merged once enough has come, or nothing else does.
- **Small parts** that adjoin are merged when the result is at least twice as large as each
  of them: a row is rewritten as often as the size of its part can double, and once more
  when a partition comes after its own, which then is over.
- **A new column** is added to all parts of its partition, and no further: parts of a
  partition have the same columns, partitions may differ.
- **Heads** (Parquet): pandas takes the columns of the first file for those of all, and so do others
  that are told to fill in what is missing. So a folder of partitions that differ has a file
  without rows and with all columns, which comes first whoever sorts the names: it lies in
  another spelling of the first partition's folder (``service=%61pi`` is ``service=api``).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from stream_app.sinks.checkpoint import OWN_FOLDER, Storage
from stream_app.sinks.part_rows import Layout, Rows, cut, merged, no_rows

PartitionPath = tuple[str, ...]
"""Names of folders, like ``namespace=shop``, ``service=cart``, ``date=2026-11-23``."""

_LATE_FOLDER, _LATE_SUFFIX = f"{OWN_FOLDER}/late", ".late"
"""Of another name, for readers that look for Parquet look into all folders."""

_HEAD = "columns-"
"""Sorts before ``part-``, for the head of a folder of dates lies beside the first date's parts."""

_FEWEST_MERGED, _MOST_MERGED = 4, 8
"""Small parts that are merged at a time."""

_ENOUGH = 8
"""A part of one in so many of the largest one's rows is large enough to stay when its day is over."""

_FIRST_PLAIN = re.compile(r"([^=]+=(?:%[0-9A-F]{2})*)([^%])(.*)", re.DOTALL)


class PartFormat(Protocol):
    """How a part is written."""

    layout: Layout
    suffix: str
    has_heads: bool
    """Whether readers take folders of such files for one table."""

    def encoded(self, rows: Rows, extras: Iterable[str]) -> tuple[pa.Buffer, str | None]:
        """Return the bytes of a file with the columns of the layout and *extras*, and what to remember of it."""

    def decoded(self, data: bytes, remembered: str | None) -> Rows:
        """Read the bytes of a file.

        Raises:
            ValueError: they are not as `encoded` returns them.
        """

    def extras(self, data: bytes) -> frozenset[str]:
        """Return the names of a file's columns beside those of the layout.

        Raises:
            ValueError: it has no columns.
        """


@dataclass(frozen=True, slots=True)
class Limits:
    """How large parts get, and how much is written anew."""

    part_cells: int = 16_000_000
    """Rows by columns of one part, which is one row group: 128 MB in memory."""

    rewritten_per_row: int = 4
    """Merges with what is there may write so many rows anew for each one that comes ..."""

    rewritten_per_commit: int = 250_000
    """... and so many for each commit, about half a second of work."""


@dataclass(slots=True)
class _Part:
    """A file, or what is going to be one."""

    first_ms: int
    last_ms: int
    rows: int
    widens: bool = False
    """Of late rows: they have columns that their partition does not have."""
    name: str = ""
    """Empty: not written yet."""
    remembered: str | None = None
    """What its format has to know."""
    fresh: Rows | None = None
    """Its rows, where they are in memory."""

    @classmethod
    def of(cls, rows: Rows) -> _Part:
        times = rows.times_ms()
        return cls(int(times.min()), int(times.max()), len(rows), fresh=rows)

    @classmethod
    def there(cls, name: str, note: list[Any]) -> _Part:
        first_ms, last_ms, rows, widens, *remembered = note
        return cls(first_ms, last_ms, rows, widens, name, *remembered)

    @property
    def note(self) -> list[Any]:
        """What the checkpoint remembers of the file."""
        known = [self.first_ms, self.last_ms, self.rows, self.widens]
        return known if self.remembered is None else [*known, self.remembered]

    def overlaps(self, other: _Part) -> bool:
        return self.first_ms <= other.last_ms and other.first_ms <= self.last_ms

    def has_rows_in(self, other: _Part) -> bool:
        """Tell whether rows are in the time of *other*; of a file that is told by its first and last."""
        if self.fresh is None or not self.overlaps(other):
            return self.overlaps(other)
        times = self.fresh.times_ms()
        return bool(((times >= other.first_ms) & (times <= other.last_ms)).any())


@dataclass(slots=True)
class _Partition:
    path: PartitionPath
    parts: list[_Part] = field(default_factory=list)
    """In time order, apart from one another."""
    late: list[_Part] = field(default_factory=list)
    """In the order in which they came."""
    columns: frozenset[str] | None = None
    """Of the parts, beside those of the layout; None: not looked up since the start."""

    @property
    def folder(self) -> str:
        return "/".join(self.path)


@dataclass(slots=True)
class _Node:
    """A folder of partitions."""

    first: PartitionPath
    """The partition whose path comes first."""
    columns: frozenset[str] | None = None
    """Those of all partitions together; None: not looked up since the start."""
    head: str = ""
    """The file that has all columns; empty: all partitions have the same ones."""


class PartStore:
    """The parts below one folder of a storage, which must be open, and is committed by the caller after each `plan`.

    After an error neither is of use.

    Args:
        storage: the whole.
        part_format: what all parts have in common, and how they are written.
        root: the folder; empty: the storage's own.
        limits: how much is done.
    """

    def __init__(
        self,
        storage: Storage,
        part_format: PartFormat,
        root: PartitionPath = (),
        limits: Limits | None = None,
    ) -> None:
        self._storage, self._layout, self._format = storage, part_format.layout, part_format
        self._root, self._limits = root, limits or Limits()
        self._partitions: dict[PartitionPath, _Partition] = {}
        self._nodes: dict[PartitionPath, _Node] = {}
        self._pieces: defaultdict[PartitionPath, list[Rows]] = defaultdict(list)
        self._with_late: dict[PartitionPath, None] = {}
        self._loose: defaultdict[PartitionPath, dict[PartitionPath, None]] = defaultdict(dict)
        """Partitions with small parts that adjoin, by the folder that they are in."""
        self._over: dict[PartitionPath, None] = {}
        """Those of them that others came after, or beside."""
        self._changed_nodes: set[PartitionPath] = set()
        self._credit_rows = 0
        self._written = 0
        self.part_count = 0
        """As of the last plan; late rows are no parts."""
        self._restore()

    @property
    def is_behind(self) -> bool:
        """Whether rows are kept aside, where no reader finds them."""
        return bool(self._with_late)

    @property
    def is_tidy(self) -> bool:
        """Whether that is not so, and partitions that are over are in few parts."""
        return not self._with_late and not self._over

    def add(self, path: PartitionPath, rows: Rows) -> None:
        """Take rows of one partition, sorted and one a key; its *path* begins below the root."""
        if len(rows):
            self._pieces[(*self._root, *path)].append(rows)

    def plan(self, more_rows: int = 0) -> None:
        """Tell the storage what its next commit is to write and to remove.

        Args:
            more_rows: may be written anew, beside what is allowed anyway: again and again, it makes the store tidy.

        Raises:
            SinkError: there is no space, or a file was changed by something else.
        """
        self._written = 0
        pieces, self._pieces = self._pieces, defaultdict(list)
        arrived = sum(len(piece) for of_one in pieces.values() for piece in of_one)
        self._credit_rows += self._limits.rewritten_per_commit + self._limits.rewritten_per_row * arrived + more_rows
        self._take(pieces)
        for path in [path for path in self._over if path not in pieces]:
            partition = self._partitions[path]
            if self._affords(sum(part.rows for part in partition.parts)):
                self._write(partition, self._packed(partition), self._columns(partition))
                del self._over[path]
        self._renew_heads()
        if self.is_tidy:
            self._credit_rows = 0

    def _take(self, pieces: Mapping[PartitionPath, list[Rows]]) -> None:
        """Bring rows to where they belong, those first that rewrite the least."""
        waiting: list[tuple[int, PartitionPath, _Part | None]] = []
        for path, found in pieces.items():
            rows = found[0] if len(found) == 1 else merged(self._layout, found)
            partition = self._partitions.get(path) or self._new_partition(path, pieces.keys())
            new = _Part.of(rows)
            new.widens = bool(partition.parts) and not rows.extras(self._layout) <= self._columns(partition)
            if not self._cost(partition, [new]) and not any(new.overlaps(late) for late in partition.late):
                self._merge(partition, new, rows)
            else:
                waiting.append((self._cost(partition, [*partition.late, new]), path, new))
        for path in self._with_late.keys() - pieces.keys():
            partition = self._partitions[path]
            waiting.append((self._cost(partition, partition.late), path, None))
        for cost, path, rest in sorted(waiting, key=lambda one: one[:2]):
            partition = self._partitions[path]
            if self._affords(cost):
                self._merge_late(partition, rest)
            elif rest is not None:
                self._put_aside(partition, rest)

    def _affords(self, cost: int) -> bool:
        affords = cost <= self._credit_rows
        if affords:
            self._credit_rows -= cost
        return affords

    @staticmethod
    def _cost(partition: _Partition, news: Sequence[_Part]) -> int:
        """Return how many rows of parts must be written anew to take in *news*."""
        if any(new.widens for new in news):
            return sum(part.rows for part in partition.parts)
        return sum(part.rows for part in partition.parts if any(new.has_rows_in(part) for new in news))

    def _merge_late(self, partition: _Partition, new: _Part | None) -> None:
        found = partition.late if new is None else [*partition.late, new]
        rows = merged(self._layout, [self._rows(part) for part in found])
        self._merge(partition, _Part.of(rows), rows)
        for part in partition.late:
            self._storage.remove(part.name)
        partition.late = []
        self._with_late.pop(partition.path, None)

    def _put_aside(self, partition: _Partition, new: _Part) -> None:
        new.name = f"{_LATE_FOLDER}/{partition.folder}/{self._next_name()}{_LATE_SUFFIX}"
        self._store(new, self._rows(new).extras(self._layout))
        partition.late.append(new)
        self._with_late[partition.path] = None

    def _merge(self, partition: _Partition, new: _Part, rows: Rows) -> None:
        """Make *new*, which has *rows*, part of *partition*: on its own, or merged with the parts that it meets."""
        had = self._columns(partition)
        columns = had | rows.extras(self._layout)
        most = self._most_rows(columns)
        ends_ms = partition.parts[-1].last_ms if partition.parts else None
        if ends_ms is None or (columns == had and ends_ms < new.first_ms):
            news = [new] if new.rows <= most else [_Part.of(piece) for piece in cut(rows, most)]
            parts = [*partition.parts, *news]
        else:
            parts = self._among(partition, rows, columns, most)
        while (run := _small_run([part.rows for part in parts], most)) is not None:
            parts[slice(*run)] = [self._joined(parts[slice(*run)])]
        self._write(partition, parts, columns)

    def _among(self, partition: _Partition, rows: Rows, columns: frozenset[str], most: int) -> list[_Part]:
        """Return the parts of *partition* with *rows* among them; all are new where there are more *columns*."""
        parts: list[_Part] = []
        # A row belongs to the first part that does not end before it.
        belongs_to = np.searchsorted([part.last_ms for part in partition.parts], rows.times_ms())
        for number, there in enumerate([*partition.parts, None]):
            mine = rows.where(belongs_to == number)
            meets = there is not None and len(mine) > 0 and _Part.of(mine).overlaps(there)
            if there is not None and meets:
                mine = merged(self._layout, [self._rows(there), mine])
            parts += [_Part.of(piece) for piece in cut(mine, most)]
            if there is not None and not meets:
                parts.append(there if columns == partition.columns else _Part.of(self._rows(there)))
            for part in parts:
                # No other part can be merged with it: let its rows go.
                if part.rows > most / 2:
                    self._give_file(partition, part, columns)
        return parts

    def _packed(self, partition: _Partition) -> list[_Part]:
        """Return the parts of *partition*, small ones that adjoin as few larger ones."""
        most = self._most_rows(self._columns(partition))
        runs = [partition.parts[:1]]
        for before, part in pairwise(partition.parts):
            if self._are_small(before, part, most) and sum(one.rows for one in runs[-1]) + part.rows <= most:
                runs[-1].append(part)
            else:
                runs.append([part])
        return [run[0] if len(run) == 1 else self._joined(run) for run in runs]

    @staticmethod
    def _are_small(part: _Part, other: _Part, most: int) -> bool:
        """Tell whether two neighbours are worth being one when nothing more comes."""
        return max(part.rows, other.rows) * _ENOUGH <= most

    def _most_rows(self, columns: frozenset[str]) -> int:
        return max(1, self._limits.part_cells // (len(columns) + len(self._layout.fixed)))

    def _joined(self, parts: Sequence[_Part]) -> _Part:
        return _Part.of(merged(self._layout, [self._rows(part) for part in parts]))

    def _write(self, partition: _Partition, parts: list[_Part], columns: frozenset[str]) -> None:
        """Let *parts* be those of *partition*; those that have no name yet are written."""
        stay = {part.name for part in parts if part.name}
        for part in partition.parts:
            if part.name not in stay:
                self._storage.remove(part.name)
        for part in parts:
            self._give_file(partition, part, columns)
        self.part_count += len(parts) - len(partition.parts)
        if columns != partition.columns or not partition.parts:
            partition.columns = columns
            self._note_columns(partition)
        partition.parts = parts
        self._note_looseness(partition)

    def _give_file(self, partition: _Partition, part: _Part, columns: frozenset[str]) -> None:
        if not part.name:
            part.name, part.widens = f"{partition.folder}/part-{self._next_name()}{self._format.suffix}", False
            self._store(part, columns)

    def _store(self, part: _Part, columns: frozenset[str]) -> None:
        if part.fresh is not None:
            content, part.remembered = self._format.encoded(part.fresh, columns)
            self._storage.replace(part.name, [content], part.note)
        part.fresh = None

    def _rows(self, part: _Part) -> Rows:
        if part.fresh is not None:
            return part.fresh
        with self._storage.reading(part.name) as file:
            return self._format.decoded(file.read(), part.remembered)

    def _next_name(self) -> str:
        self._written += 1
        return f"{self._storage.generation + 1:08}-{self._written:04}"

    def _columns(self, partition: _Partition) -> frozenset[str]:
        if partition.columns is None:
            partition.columns = self._columns_of(partition.parts[0].name)
        return partition.columns

    def _columns_of(self, name: str) -> frozenset[str]:
        with self._storage.reading(name) as file:
            return self._format.extras(file.read())

    def _new_partition(self, path: PartitionPath, busy: Container[PartitionPath]) -> _Partition:
        self._over.update(dict.fromkeys(other for other in self._loose[path[:-1]] if other not in busy))
        partition = self._partitions[path] = _Partition(path, columns=frozenset())
        return partition

    def _note_looseness(self, partition: _Partition) -> None:
        loose = self._loose[partition.path[:-1]]
        most = self._limits.part_cells // (len(partition.columns or ()) + len(self._layout.fixed))
        if any(self._are_small(*two, most) for two in pairwise(partition.parts)):
            loose[partition.path] = None
        else:
            loose.pop(partition.path, None)

    def _note_columns(self, partition: _Partition) -> None:
        """Tell the folders that *partition* is in of its columns."""
        path, columns = partition.path, self._columns(partition)
        for depth in range(len(self._root), len(path)):
            node = self._nodes.get(path[:depth])
            if node is None:
                self._nodes[path[:depth]] = _Node(path, columns)
                continue
            if node.columns is None:
                node.columns = self._columns_of(node.head) if node.head else self._columns(self._partitions[node.first])
            if path < node.first or node.columns != columns:
                node.first, node.columns = min(path, node.first), node.columns | columns
                self._changed_nodes.add(path[:depth])

    def _renew_heads(self) -> None:
        """Write the heads of folders that have other columns, or another first partition, than before."""
        if not self._format.has_heads:
            self._changed_nodes.clear()
        for path in sorted(self._changed_nodes):
            node = self._nodes[path]
            head = _head_name(node.first, len(path)) + self._format.suffix
            if node.head not in ("", head):
                self._storage.remove(node.head)
            content, _ = self._format.encoded(no_rows(self._layout), node.columns or ())
            self._storage.replace(head, [content], "/".join(path))
            node.head = head
        self._changed_nodes.clear()

    def _restore(self) -> None:
        """Find out what there is from the notes of the storage's files."""
        heads: dict[PartitionPath, str] = {}
        for name, state in self._storage.files.items():
            if not name.endswith((self._format.suffix, _LATE_SUFFIX)):
                continue
            folder, _, last = name.rpartition("/")
            is_late = folder.startswith(f"{_LATE_FOLDER}/")
            is_head = last.startswith(_HEAD)
            place = state.note if is_head else folder.removeprefix(f"{_LATE_FOLDER}/")
            path = tuple(place.split("/")) if place else ()
            if path[: len(self._root)] != self._root:
                continue
            if is_head:
                heads[path] = name
                continue
            partition = self._partitions.setdefault(path, _Partition(path))
            (partition.late if is_late else partition.parts).append(_Part.there(name, state.note))
        last_of: dict[PartitionPath, PartitionPath] = {}
        for path, partition in self._partitions.items():
            partition.parts.sort(key=lambda part: part.first_ms)
            partition.late.sort(key=lambda part: part.name)
            self.part_count += len(partition.parts)
            if partition.late:
                self._with_late[path] = None
            self._note_looseness(partition)
            last_of[path[:-1]] = max(path, last_of.get(path[:-1], path))
            for depth in range(len(self._root), len(path)):
                node = self._nodes.setdefault(path[:depth], _Node(path, head=heads.get(path[:depth], "")))
                node.first = min(node.first, path)
        self._over.update(
            (path, None) for loose in self._loose.values() for path in loose if path != last_of[path[:-1]]
        )


def _small_run(rows: Sequence[int], most: int) -> tuple[int, int] | None:
    """Return which adjoining parts to merge: the fewest rows that all end in a part twice as large as their own."""
    best: tuple[int, int, int] | None = None
    for first in range(len(rows) - _FEWEST_MERGED + 1):
        for last in range(first + _FEWEST_MERGED, min(first + _MOST_MERGED, len(rows)) + 1):
            total = sum(rows[first:last])
            if 2 * max(rows[first:last]) <= total <= most and (best is None or total < best[0]):
                best = total, first, last
    return best and best[1:]


def _head_name(first: PartitionPath, depth: int) -> str:
    """Return a file's name that comes before all others of the folder that the first *depth* names of *first* are.

    The name of a folder below it is spelled with an escape more: so it comes before those of the others, and
    means the same. A date is not, for DuckDB would take it for a text.
    """
    folders = list(first)
    for level in range(depth, len(folders) - 1):
        if plain := _FIRST_PLAIN.fullmatch(folders[level]):
            before, character, after = plain.groups()
            folders[level] = f"{before}%{ord(character):02X}{after}"
            break
    return f"{'/'.join(folders)}/{_HEAD}{depth}"
