"""One CSV file a service: ``<storage>/<namespace>/<service>.csv``, exactly once.

Rows newer than a file's last one are appended; all else (history behind live data,
a record that is there already, a new metric) goes through one rewrite a commit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
import orjson

from stream_app.records import Records, joined
from stream_app.sinks.base import View
from stream_app.sinks.checkpoint import OWN_FOLDER, Storage
from stream_app.sinks.csv_style import CsvStyle
from stream_app.sinks.csv_text import COMMON_RANK, Arrival, Key, Rank, Table, merged
from stream_app.sinks.paths import POD_SUFFIX, SERVICE_SUFFIX, file_path

_RANKS_FOLDER = f"{OWN_FOLDER}/ranks"
"""A file cannot say which of its rows are partial or revised: a list beside it does, for the few that are."""

_Owner = tuple[str, str, bool]
"""Namespace, service, whether these are service records."""


class CsvSink:
    """A ``Sink`` of CSV files; the storage must be open, and is closed with the sink.

    Args:
        storage: the folder, and nobody else's.
        group_by: ``pod``, ``service`` or both. Service records go to
            ``<service>.service.csv`` beside pod records, to ``<service>.csv`` alone.
        style: how cells are written.
    """

    def __init__(self, storage: Storage, group_by: Sequence[str], style: CsvStyle) -> None:
        self._storage = storage
        self._service_suffix = SERVICE_SUFFIX if "pod" in group_by else POD_SUFFIX
        self._style = style
        self._held: list[Records] = []
        self._paths: dict[_Owner, str] = {}
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

    def write(self, records: Records) -> None:
        self._held.append(records)

    def commit(self, offsets: Mapping[str, Mapping[int, int]], view: View | None) -> None:
        for owner, rows in _of_owners(joined(self._held)) if self._held else ():
            self._plan(owner, rows)
        self._storage.commit(offsets, view)
        self._held.clear()

    def close(self) -> None:
        self._storage.close()

    def _plan(self, owner: _Owner, rows: Records) -> None:
        """Hand a service's rows, sorted and one a key, to the storage: as an append, a new file or a rewrite."""
        name, last = self._path(owner), _key(rows, len(rows) - 1)
        state = self._storage.files.get(name)
        if state is None:
            table = Table((), self._style, with_pod=not owner[2]).widened(_metrics(rows))
            self._tables[name] = table
            self._storage.replace(name, [table.header(), *table.lines(rows)], last)
            self._note_ranks(name, zip(_keys(rows), _ranks(rows), strict=True), {})
            return
        was_last: Key = tuple(state.note)
        table = self._table(name, owner)
        if _key(rows, 0) > was_last and table.widened(_metrics(rows)) is table:
            self._storage.append(name, b"".join(table.lines(rows)), last)
            self._note_ranks(name, zip(_keys(rows), _ranks(rows), strict=True), {})
            return
        self._merge(name, owner, rows, max(was_last, last))

    def _merge(self, name: str, owner: _Owner, rows: Records, last: Key) -> None:
        ranks, stayed = self._read_ranks(name), list[tuple[Key, Rank]]()
        with self._storage.reading(name) as file:
            old = Table.read(file, self._style, with_pod=not owner[2])
            new = self._tables[name] = old.widened(_metrics(rows))
            arrivals: Iterator[Arrival] = zip(_keys(rows), _ranks(rows), new.lines(rows), strict=True)
            self._storage.replace(name, merged(file, old, new, self._style, arrivals, ranks, stayed), last)
        self._note_ranks(name, stayed, ranks)

    def _note_ranks(self, name: str, rows: Iterable[tuple[Key, Rank]], known: Mapping[Key, Rank]) -> None:
        """Write down the ranks that later records of the same *rows* are to be compared with."""
        lines = [orjson.dumps([*key, *rank]) + b"\n" for key, rank in rows if rank != COMMON_RANK or key in known]
        if lines:
            list_name = f"{_RANKS_FOLDER}/{name}"
            if list_name in self._storage.files:
                self._storage.append(list_name, b"".join(lines), None)
            else:
                self._storage.replace(list_name, lines, None)

    def _read_ranks(self, name: str) -> dict[Key, Rank]:
        list_name = f"{_RANKS_FOLDER}/{name}"
        if list_name not in self._storage.files:
            return {}
        with self._storage.reading(list_name) as file:
            lines = map(orjson.loads, file)
            return {(start_ms, pod): (complete, revision) for start_ms, pod, complete, revision in lines}

    def _path(self, owner: _Owner) -> str:
        path = self._paths.get(owner)
        if path is None:
            namespace, service, of_service = owner
            path = file_path(namespace, service, self._service_suffix if of_service else POD_SUFFIX)
            self._paths[owner] = path
        return path

    def _table(self, name: str, owner: _Owner) -> Table:
        """Return the columns of a file that is there, read from its header the first time."""
        table = self._tables.get(name)
        if table is None:
            with self._storage.reading(name) as file:
                table = self._tables[name] = Table.read(file, self._style, with_pod=not owner[2])
        return table


def _of_owners(records: Records) -> Iterator[tuple[_Owner, Records]]:
    """Yield each service's rows, sorted by key and one a key: that of the highest rank, then of the later offset."""
    owners: dict[_Owner, int] = {}
    owner_of = np.array(
        [owners.setdefault((namespace, service, pod is None), len(owners)) for namespace, pod, service in records.whos]
    )
    pods = {pod: number for number, pod in enumerate(sorted({who[1] or "" for who in records.whos}))}
    pod_of = np.array([pods[who[1] or ""] for who in records.whos])
    owner, pod, start = owner_of[records.who], pod_of[records.who], records.window_start_ms
    order = np.lexsort((records.offset, records.revision, ~records.partial, pod, start, owner))
    owner, pod, start = owner[order], pod[order], start[order]
    is_last = np.ones(len(order), bool)
    is_last[:-1] = (owner[1:] != owner[:-1]) | (start[1:] != start[:-1]) | (pod[1:] != pod[:-1])
    rows, owner = records.take(order[is_last]), owner[is_last]
    bounds = np.flatnonzero(np.diff(owner, prepend=-1, append=-1)).tolist()
    names = list(owners)
    for first, last in pairwise(bounds):
        yield names[owner[first]], rows[first:last]


def _metrics(rows: Records) -> set[str]:
    return set().union(*(rows.layouts[number] for number in np.unique(rows.layout).tolist()))


def _key(rows: Records, row: int) -> Key:
    return int(rows.window_start_ms[row]), rows.whos[rows.who[row]][1] or ""


def _keys(rows: Records) -> list[Key]:
    whos = rows.whos
    return [
        (start, whos[who][1] or "") for start, who in zip(rows.window_start_ms.tolist(), rows.who.tolist(), strict=True)
    ]


def _ranks(rows: Records) -> list[Rank]:
    return list(zip((~rows.partial).tolist(), rows.revision.tolist(), strict=True))
