"""One CSV file a service: ``<storage>/<namespace>/<service>.csv``, exactly once.

Rows newer than a file's last one are appended. All else (history behind live data, a
record that is there already, a new metric) waits in a list beside the file, until it is
as long as half of the file, or until the files are to be complete: then both are merged
into a new file. So what is rewritten in all is a few times what is written.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from itertools import chain, pairwise
from typing import Any, BinaryIO

import numpy as np
import orjson

from ingestor.core.errors import ConfigError
from stream_app.records import BoolArray, Records, joined
from stream_app.sinks.base import View
from stream_app.sinks.checkpoint import OWN_FOLDER, Storage
from stream_app.sinks.csv_columns import idle_columns, without_columns
from stream_app.sinks.csv_style import CsvStyle
from stream_app.sinks.csv_text import Arrival, Key, Rank, Table, merged
from stream_app.sinks.csv_waiting import Waiting, one_a_key, waiting_lines
from stream_app.sinks.owners import Owner, owners_of
from stream_app.sinks.paths import POD_SUFFIX, SERVICE_SUFFIX, file_path

_RANKS_FOLDER = f"{OWN_FOLDER}/ranks"
"""A file cannot say which of its rows are partial or revised: a list beside it does, for the few that are."""

_WAITING_FOLDER = f"{OWN_FOLDER}/waiting"
"""Rows that a file of the same name does not have yet."""

_FINISHED = f"{OWN_FOLDER}/finished.json"
"""Which columns were dropped: nothing fits behind what is finished."""

_WAITING_SHARE = 2
"""A file is rewritten when what waits is longer than its length by this."""

_STAGED_BYTES = 256_000_000
"""Commit when so much was rewritten: until then it is on the disk twice."""


class CsvSink:
    """A ``Sink`` of CSV files; the storage must be open, and is closed with the sink.

    Args:
        storage: the folder, and nobody else's.
        group_by: ``pod``, ``service`` or both. Service records go to
            ``<service>.service.csv`` beside pod records, to ``<service>.csv`` alone.
        style: how cells are written.
        drop: which columns `finish` drops, ``empty`` or ``zero`` ones.
    """

    def __init__(
        self, storage: Storage, group_by: Sequence[str], style: CsvStyle, drop: Collection[str] = frozenset()
    ) -> None:
        self._storage = storage
        self._service_suffix = SERVICE_SUFFIX if "pod" in group_by else POD_SUFFIX
        self._style, self._drop = style, frozenset(drop)
        self._held: list[Records] = []
        self._paths: dict[Owner, str] = {}
        self._tables: dict[str, Table] = {}

    @property
    def offsets(self) -> Mapping[str, Mapping[int, int]]:
        return self._storage.offsets

    @property
    def view(self) -> View | None:
        return self._storage.view

    @property
    def file_count(self) -> int:
        """The number of CSV files as of the last commit."""
        return sum(not name.startswith(OWN_FOLDER) for name in self._storage.files)

    @property
    def is_behind(self) -> bool:
        return any(name.startswith(_WAITING_FOLDER) for name in self._storage.files)

    def write(self, records: Records) -> None:
        """Hold records for the next commit.

        Raises:
            ConfigError: the files are finished.
        """
        if len(records) and _FINISHED in self._storage.files:
            raise ConfigError(
                f"{self._storage.folder} is finished (columns were dropped), and there are more records: "
                "choose another --storage to write all that Kafka still has"
            )
        self._held.append(records)

    def commit(self, offsets: Mapping[str, Mapping[int, int]], view: View | None) -> None:
        for owner, rows in _of_owners(joined(self._held)) if self._held else ():
            self._plan(owner, rows)
        self._storage.commit(offsets, view)
        self._held.clear()

    def complete(self) -> None:
        staged = 0
        for waiting in [name for name in self._storage.files if name.startswith(_WAITING_FOLDER)]:
            name = waiting.removeprefix(f"{_WAITING_FOLDER}/")
            staged += self._storage.files[name].length
            self._merge(name, None)
            if staged > _STAGED_BYTES:
                self._storage.commit(self.offsets, self.view)
                staged = 0
        self._storage.commit(self.offsets, self.view)

    def finish(self) -> None:
        self.complete()
        state = self._storage.files.get(_FINISHED)
        dropped = self._drop.union(state.note if state else ())
        if not self._drop or (state and dropped == frozenset(state.note)):
            return
        # One commit: of a storage that is finished by half, nobody could say which columns are missing.
        for name in [name for name in self._storage.files if not name.startswith(OWN_FOLDER)]:
            self._drop_columns(name, dropped)
        note = sorted(dropped)
        self._storage.replace(_FINISHED, [orjson.dumps({"dropped": note})], note)
        self._storage.commit(self.offsets, self.view)

    def close(self) -> None:
        self._storage.close()

    def _plan(self, owner: Owner, rows: Records) -> None:
        """Hand a service's rows, sorted and one a key, to the storage: to be appended, to wait, or to be merged."""
        name = self._path(owner)
        state = self._storage.files.get(name)
        if state is None:
            table = self._tables[name] = Table((), self._style, with_pod=not owner[2]).widened(_metrics(rows))
            self._storage.replace(name, [table.header(), *table.lines(rows)], _last_key(rows))
            self._note_ranks(name, _other_ranks(rows))
            return
        waiting = self._storage.files.get(f"{_WAITING_FOLDER}/{name}")
        # Never before a row that waits: then what waits is later than what the file has of it.
        last = max(_key(state.note), _key(waiting.note)) if waiting else _key(state.note)
        table = self._table(name)
        is_fresh = _is_later(rows, last) & _has_columns(rows, table)
        fresh = rows if is_fresh.all() else rows.take(np.flatnonzero(is_fresh))
        if fresh is not rows:
            late = rows.take(np.flatnonzero(~is_fresh))
            wide = table if waiting is None else table.with_metrics(waiting.note[2])
            widened = wide.widened(_metrics(late))
            lines = list(waiting_lines(_arrivals(late, widened), None if waiting and widened is wide else widened))
            length = sum(map(len, lines)) + (waiting.length if waiting else 0)
            if length > state.length // _WAITING_SHARE:
                self._merge(name, rows)
                return
            note = (*max(last, _last_key(late)), widened.metrics[len(table.metrics) :])
            self._append(f"{_WAITING_FOLDER}/{name}", lines, note)
        if len(fresh):
            self._storage.append(name, b"".join(table.lines(fresh)), _last_key(fresh))
            self._note_ranks(name, _other_ranks(fresh))

    def _merge(self, name: str, rows: Records | None) -> None:
        """Let the next commit rewrite a file: what it has, what waits, and *rows*, which are sorted and one a key."""
        waiting_name, state = f"{_WAITING_FOLDER}/{name}", self._storage.files[name]
        last, ranks, noted = _key(state.note), self._read_ranks(name), list[tuple[Key, Rank]]()
        with ExitStack() as stack:
            file = stack.enter_context(self._storage.reading(name))
            old = new = self._read_header(name, file)
            runs: list[Iterable[Arrival]] = []
            if waiting_name in self._storage.files:
                last = max(last, _key(self._storage.files[waiting_name].note))
                waiting_file = stack.enter_context(self._storage.reading(waiting_name))
                waiting = stack.enter_context(
                    closing(Waiting(waiting_file, self._style, with_pod=self._with_pod(name)))
                )
                new = waiting.table
                if new.metrics[: len(old.metrics)] != old.metrics:
                    raise ValueError("its columns are not those that rows wait for")
            if rows is not None:
                last, new = max(last, _last_key(rows)), new.widened(_metrics(rows))
                runs.append(_arrivals(rows, new))
            if waiting_name in self._storage.files:
                runs = [*waiting.runs(new), *runs]
                self._storage.remove(waiting_name)
            parts = merged(file, old, new, self._style, one_a_key(runs), ranks, noted)
            self._storage.replace(name, parts, last)
        self._tables[name] = new
        self._note_ranks(name, noted)

    def _drop_columns(self, name: str, which: Collection[str]) -> None:
        """Let the next commit leave out the metrics of a file that say nothing."""
        with self._storage.reading(name) as file:
            table = self._read_header(name, file)
            first_row = file.tell()
            columns = idle_columns(file, table, self._style, which)
            if not columns:
                return
            file.seek(first_row)
            narrower = self._tables[name] = table.without(columns)
            parts = chain([narrower.header()], without_columns(file, table, columns))
            self._storage.replace(name, parts, self._storage.files[name].note)

    def _append(self, name: str, lines: list[bytes], note: Any) -> None:
        """Let the next commit add to a list of ours, or begin it."""
        if name in self._storage.files:
            self._storage.append(name, b"".join(lines), note)
        else:
            self._storage.replace(name, lines, note)

    def _note_ranks(self, name: str, ranks: Iterable[tuple[Key, Rank]]) -> None:
        """Write down the ranks that later records of the same rows are to be compared with."""
        if lines := [orjson.dumps([*key, *rank]) + b"\n" for key, rank in ranks]:
            self._append(f"{_RANKS_FOLDER}/{name}", lines, None)

    def _read_ranks(self, name: str) -> dict[Key, Rank]:
        list_name = f"{_RANKS_FOLDER}/{name}"
        if list_name not in self._storage.files:
            return {}
        with self._storage.reading(list_name) as file:
            lines = map(orjson.loads, file)
            return {(start_ms, pod): (complete, revision) for start_ms, pod, complete, revision in lines}

    def _path(self, owner: Owner) -> str:
        path = self._paths.get(owner)
        if path is None:
            namespace, service, of_service = owner
            path = file_path(namespace, service, self._service_suffix if of_service else POD_SUFFIX)
            self._paths[owner] = path
        return path

    def _table(self, name: str) -> Table:
        """Return the columns of a file that is there, read from its header the first time."""
        table = self._tables.get(name)
        if table is None:
            with self._storage.reading(name) as file:
                table = self._tables[name] = self._read_header(name, file)
        return table

    def _read_header(self, name: str, file: BinaryIO) -> Table:
        return Table.read(file, self._style, with_pod=self._with_pod(name))

    def _with_pod(self, name: str) -> bool:
        # No file of pods ends so: paths see to that.
        return not name.endswith(self._service_suffix)


def _of_owners(records: Records) -> Iterator[tuple[Owner, Records]]:
    """Yield each service's rows, sorted by key and one a key: that of the highest rank, then of the later offset."""
    names, owner, pod = owners_of(records)
    start = records.window_start_ms
    order = np.lexsort((records.offset, records.revision, ~records.partial, pod, start, owner))
    owner, pod, start = owner[order], pod[order], start[order]
    is_last = np.ones(len(order), bool)
    is_last[:-1] = (owner[1:] != owner[:-1]) | (start[1:] != start[:-1]) | (pod[1:] != pod[:-1])
    rows, owner = records.take(order[is_last]), owner[is_last]
    bounds = np.flatnonzero(np.diff(owner, prepend=-1, append=-1)).tolist()
    for first, last in pairwise(bounds):
        yield names[owner[first]], rows[first:last]


def _metrics(rows: Records) -> set[str]:
    return set().union(*(rows.layouts[number] for number in set(rows.layout.tolist())))


def _has_columns(rows: Records, table: Table) -> BoolArray:
    """Tell of which rows *table* has all metrics."""
    fits = np.zeros(len(rows.layouts), bool)
    for number in set(rows.layout.tolist()):
        fits[number] = table.widened(rows.layouts[number]) is table
    found: BoolArray = fits[rows.layout]
    return found


def _is_later(rows: Records, last: Key) -> BoolArray:
    """Tell which rows are later than *last*."""
    start_ms, pod = last
    is_later = rows.window_start_ms > start_ms
    for row in np.flatnonzero(rows.window_start_ms == start_ms).tolist():
        is_later[row] = _pod(rows, row) > pod
    return is_later


def _arrivals(rows: Records, table: Table) -> Iterator[Arrival]:
    return zip(_keys(rows), _ranks(rows), table.lines(rows), strict=True)


def _key(note: Sequence[Any]) -> Key:
    """Return the last key of a file, which its note begins with."""
    return note[0], note[1]


def _last_key(rows: Records) -> Key:
    return int(rows.window_start_ms[-1]), _pod(rows, -1)


def _pod(rows: Records, row: int) -> str:
    return rows.whos[rows.who[row]][1] or ""


def _keys(rows: Records) -> list[Key]:
    whos = rows.whos
    return [
        (start_ms, whos[who][1] or "")
        for start_ms, who in zip(rows.window_start_ms.tolist(), rows.who.tolist(), strict=True)
    ]


def _ranks(rows: Records) -> list[Rank]:
    return list(zip((~rows.partial).tolist(), rows.revision.tolist(), strict=True))


def _other_ranks(rows: Records) -> list[tuple[Key, Rank]]:
    """Return the keys and ranks of the few rows that have another than ``COMMON_RANK``."""
    is_other = rows.partial | (rows.revision != 0)
    if not is_other.any():
        return []
    few = rows.take(np.flatnonzero(is_other))
    return list(zip(_keys(few), _ranks(few), strict=True))
