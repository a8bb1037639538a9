"""One CSV file a service: ``<storage>/<namespace>/<service>.csv``, exactly once.

Rows newer than a file's last one are appended; all else (history behind live data,
a record that is there already, a new metric) goes through one rewrite a commit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import orjson

from stream_app.records import Record
from stream_app.sinks.base import View
from stream_app.sinks.checkpoint import OWN_FOLDER, Storage
from stream_app.sinks.csv_text import Key, Rank, Row, Table, latest, merged, rank_of
from stream_app.sinks.paths import POD_SUFFIX, SERVICE_SUFFIX, file_path

FORMAT = "csv"

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
    """

    def __init__(self, storage: Storage, group_by: Sequence[str]) -> None:
        self._storage = storage
        self._service_suffix = SERVICE_SUFFIX if "pod" in group_by else POD_SUFFIX
        self._rows: defaultdict[_Owner, list[Row]] = defaultdict(list)
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

    def write(self, records: Sequence[tuple[int, Record]]) -> None:
        rows = self._rows
        for offset, record in records:
            pod = record.pod
            owner = record.namespace, record.service, pod is None
            rows[owner].append((record.window_start_ms, pod or "", offset, record))

    def commit(self, offsets: Mapping[str, Mapping[int, int]], view: View | None) -> None:
        for owner, rows in self._rows.items():
            self._plan(owner, latest(rows))
        self._storage.commit(offsets, view)
        self._rows.clear()

    def close(self) -> None:
        self._storage.close()

    def _plan(self, owner: _Owner, rows: list[Row]) -> None:
        """Hand a service's rows, sorted and one a key, to the storage: as an append, a new file or a rewrite."""
        name, last = self._path(owner), rows[-1][:2]
        state = self._storage.files.get(name)
        if state is None:
            table = self._tables[name] = Table((), with_pod=not owner[2]).widened(rows)
            self._storage.replace(name, [table.header(), *(table.lines(rows) or ())], last)
            self._note_ranks(name, rows, {})
            return
        was_last: Key = tuple(state.note)
        lines = self._table(name, owner).lines(rows) if rows[0][:2] > was_last else None
        if lines is not None:
            self._storage.append(name, b"".join(lines), last)
            self._note_ranks(name, rows, {})
            return
        self._merge(name, owner, rows, max(was_last, last))

    def _merge(self, name: str, owner: _Owner, rows: list[Row], last: Key) -> None:
        ranks, stayed = self._read_ranks(name), list[Row]()
        with self._storage.reading(name) as file:
            old = Table.read(file, with_pod=not owner[2])
            new = self._tables[name] = old.widened(rows)
            self._storage.replace(name, merged(file, old, new, rows, ranks, stayed), last)
        self._note_ranks(name, stayed, ranks)

    def _note_ranks(self, name: str, rows: list[Row], known: Mapping[Key, Rank]) -> None:
        """Write down the ranks that later records of the same *rows* are to be compared with."""
        lines = [
            orjson.dumps([*row[:2], *rank_of(row)]) + b"\n"
            for row in rows
            if row[3].partial or row[3].revision or row[:2] in known
        ]
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
                table = self._tables[name] = Table.read(file, with_pod=not owner[2])
        return table
