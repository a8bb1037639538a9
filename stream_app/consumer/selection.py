"""PURE: messages into the rows that are wanted, many at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ingestor.core.durations import LATEST_MS
from ingestor.core.errors import MalformedMessage
from stream_app.consumer.history import Row, rank_of
from stream_app.consumer.views import View, ViewChoice
from stream_app.records import Record, Records, decode_records, record_key
from stream_app.tail_filter import RecordFilter

_REMEMBERED = 100_000
"""Keys of pods of other services, which are not read again: about 20 MB at most."""


class Found(NamedTuple):
    """A record that is wanted."""

    who: tuple[str, str]
    """Namespace, and pod or service."""
    job: str
    end_ms: int
    row: Row
    records: Records
    number: int
    """Where in *records* it is."""

    def record(self) -> Record:
        """Return the whole record, of its metrics those that are wanted."""
        record, names = self.records.record(self.number), self.row.names
        if len(names) == len(record.metrics):
            return record
        return replace(record, metrics={name: record.metrics[name] for name in names})


Fault = tuple[int, MalformedMessage]
"""The number of a message among those that were given, and what is wrong with it."""


class Selection:
    """Says which records are wanted, by key, by view and by content."""

    def __init__(self, wanted: RecordFilter, views: ViewChoice, *, of_services: bool) -> None:
        self._filter, self._views, self._of_services = wanted, views, of_services
        self._unwanted: set[bytes] = set()

    def may_be_wanted(self, key: bytes | None) -> bool:
        """Tell from a key alone whether the message is worth reading: a pod never changes its service."""
        return key not in self._unwanted and self._filter.may_be_wanted(key, of_service=self._of_services)

    def read(
        self, keys: Sequence[bytes | None], values: Sequence[bytes | None], offsets: Sequence[int]
    ) -> tuple[Iterator[Found], list[Fault]]:
        """Return the records that are wanted, in their order; and the messages that are none.

        Raises:
            ConfigError: there are records of a second view, and none was chosen.
        """
        records, faults = decode_records(values, offsets)
        is_bad = np.zeros(len(values), bool)
        is_bad[[place for place, _ in faults]] = True
        places = np.flatnonzero(~is_bad)
        no_record = self._no_records(records)
        wrong = [(int(places[number]), error) for number, error in no_record.items()]
        wanted = [self._wants(*who) for who in records.whos]
        is_wanted = np.array(wanted, bool)[records.who] if len(records) else np.empty(0, bool)
        for number in np.flatnonzero(~is_wanted).tolist():
            self._refuse(keys[places[number]], *records.whos[records.who[number]])
        is_wanted[list(no_record)] = False
        is_wanted &= self._of_view(records, is_wanted)
        return self._found(records, np.flatnonzero(is_wanted).tolist()), sorted(faults + wrong, key=lambda f: f[0])

    def accepts(self, record: Record) -> bool:
        """Tell whether a record may be wanted, without a choice of its view."""
        return self._views.may_be(View(record.chunk_size, record.method)) and self._wants(
            record.namespace, record.pod, record.service
        )

    def _wants(self, namespace: str, pod: str | None, service: str) -> bool:
        return (pod is None) == self._of_services and self._filter.wants(namespace, pod, service)

    def _no_records(self, records: Records) -> dict[int, MalformedMessage]:
        """Return what is wrong with records that no history can hold, by their numbers."""
        found = {}
        is_of_service = np.array([pod is None for _, pod, _ in records.whos], bool)
        for number in np.flatnonzero(is_of_service[records.who] != self._of_services) if len(records) else ():
            pod, kind = records.whos[records.who[number]][1], "services" if self._of_services else "pods"
            found[int(number)] = MalformedMessage(f"a record's pod is {pod!r} in a topic of {kind}")
        for number in np.flatnonzero((records.window_start_ms < 0) | (records.window_start_ms > LATEST_MS)):
            start_ms = int(records.window_start_ms[number])
            found[int(number)] = MalformedMessage(
                f"a record's window_start is {start_ms}, outside the years 1970 to 2261"
            )
        return found

    def _refuse(self, key: bytes | None, namespace: str, pod: str | None, service: str) -> None:
        # A key that does not fit may be another pod's.
        if key is None or (pod is None) != self._of_services or key != record_key(namespace, pod, service):
            return
        if len(self._unwanted) >= _REMEMBERED:
            self._unwanted.clear()
        self._unwanted.add(key)

    def _of_view(self, records: Records, is_wanted: np.ndarray) -> np.ndarray:
        ours = np.zeros(len(records.origins), bool)
        for origin in np.unique(records.origin[is_wanted]).tolist():
            ours[origin] = self._views.accepts(View(*records.origins[origin][:2]))
        return ours[records.origin]

    def _found(self, records: Records, numbers: list[int]) -> Iterator[Found]:
        columns = [self._columns(names) for names in records.layouts]
        whos = [(namespace, service if pod is None else pod) for namespace, pod, service in records.whos]
        jobs = [job for _, _, job in records.origins]
        starts, ends, offsets = (
            column.tolist() for column in (records.window_start_ms, records.window_end_ms, records.offset)
        )
        revisions, partial = records.revision.tolist(), records.partial.tolist()
        who, origin, layout = records.who.tolist(), records.origin.tolist(), records.layout.tolist()
        bounds, values = records.bounds.tolist(), records.values
        for number in numbers:
            names, chosen = columns[layout[number]]
            if not names:
                continue
            own = values[bounds[number] : bounds[number + 1]]
            row = Row(
                starts[number],
                rank_of(revisions[number], partial=partial[number]),
                offsets[number],
                names,
                own if chosen is None else own[chosen],
            )
            yield Found(whos[who[number]], jobs[origin[number]], ends[number], row, records, number)

    def _columns(self, names: tuple[str, ...]) -> tuple[tuple[str, ...], list[int] | None]:
        """Return the metrics that are wanted, and where they are; None: all."""
        wanted = self._filter.metrics(names)
        if len(wanted) == len(names):
            return names, None
        place = {name: at for at, name in enumerate(names)}
        return wanted, [place[name] for name in wanted]
