"""PURE: messages into the records that are wanted, many at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ingestor.core.durations import LATEST_MS
from ingestor.core.errors import MalformedMessage
from stream_app.consumer.history import BoolArray, Int64Array, Part, ranks_of
from stream_app.consumer.views import View, ViewChoice
from stream_app.records import Names, Record, Records, decode_records, record_key
from stream_app.tail_filter import RecordFilter

_REMEMBERED = 100_000
"""Keys of pods of other services, which are not read again: about 20 MB at most."""


class Found(NamedTuple):
    """Records that are wanted, in their order."""

    records: Records
    columns: list[tuple[Names, list[int] | None]]
    """Of each of the records' layouts the metrics that are wanted, and where in it they are; None: all of them."""

    def record(self, number: int) -> Record:
        """Return one record with the metrics that are wanted."""
        record = self.records.record(number)
        names, places = self.columns[self.records.layout[number]]
        return record if places is None else replace(record, metrics={name: record.metrics[name] for name in names})

    def of_each(self, numbers: Int64Array) -> Iterator[tuple[int, list[int], list[Part]]]:
        """Yield some records by whose they are.

        Yields:
            The number of who it is; the numbers of the records, in the order of *numbers*; and
            these records, in parts that have the same metrics each.
        """
        if not len(numbers):
            return
        order = numbers[np.argsort(self.records.who[numbers], kind="stable")]
        records = self.records.take(order)
        ranks = ranks_of(records.revision, records.partial)
        cuts = np.flatnonzero((np.diff(records.who) != 0) | (np.diff(records.layout) != 0)) + 1
        edges = [0, *cuts.tolist(), len(records)]
        who, layout, bounds, number = (
            column.tolist() for column in (records.who, records.layout, records.bounds, order)
        )
        parts: list[Part] = []
        begin = 0
        for first, last in pairwise(edges):
            names, places = self.columns[layout[first]]
            values = records.values[bounds[first] : bounds[last]].reshape(last - first, -1)
            rows = slice(first, last)
            parts.append(
                Part(
                    last - first,
                    names,
                    records.window_start_ms[rows],
                    ranks[rows],
                    records.offset[rows],
                    values if places is None else values[:, places],
                )
            )
            if last == len(records) or who[last] != who[first]:
                yield who[first], number[begin:last], parts
                parts, begin = [], last


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
    ) -> tuple[Found, list[Fault]]:
        """Return the records that are wanted, and the messages that are none.

        Raises:
            ConfigError: there are records of a second view, and none was chosen.
        """
        records, faults = decode_records(values, offsets)
        places = np.delete(np.arange(len(values)), [place for place, _ in faults])
        no_records = self._no_records(records)
        faults += [(int(places[number]), error) for number, error in no_records.items()]
        is_wanted = np.array([self._wants(*who) for who in records.whos], bool)[records.who]
        for number in np.flatnonzero(~is_wanted).tolist():
            self._refuse(keys[places[number]], *records.whos[records.who[number]])
        is_wanted[list(no_records)] = False
        columns = [self._columns(names) for names in records.layouts]
        # A record without any says that all are missing, also those that are wanted.
        has_wanted = [bool(wanted) or not names for names, (wanted, _) in zip(records.layouts, columns, strict=True)]
        is_wanted &= np.array(has_wanted, bool)[records.layout]
        is_wanted &= self._is_of_view(records, is_wanted)
        chosen = records if is_wanted.all() else records.take(np.flatnonzero(is_wanted))
        return Found(chosen, columns), sorted(faults, key=lambda fault: fault[0])

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
        is_of_service = np.array([pod is None for _, pod, _ in records.whos], bool)[records.who]
        for number in np.flatnonzero(is_of_service != self._of_services).tolist():
            pod, kind = records.whos[records.who[number]][1], "services" if self._of_services else "pods"
            found[number] = MalformedMessage(f"a record's pod is {pod!r} in a topic of {kind}")
        starts_ms, ends_ms = records.window_start_ms, records.window_end_ms
        for number in np.flatnonzero((starts_ms < 0) | (ends_ms > LATEST_MS) | (ends_ms <= starts_ms)).tolist():
            window = f"[{starts_ms[number]}, {ends_ms[number]})"
            found[number] = MalformedMessage(f"a record's window is {window}, empty or outside the years 1970 to 2261")
        return found

    def _refuse(self, key: bytes | None, namespace: str, pod: str | None, service: str) -> None:
        # A key that does not fit may be another pod's.
        if key is None or (pod is None) != self._of_services or key != record_key(namespace, pod, service):
            return
        if len(self._unwanted) >= _REMEMBERED:
            self._unwanted.clear()
        self._unwanted.add(key)

    def _is_of_view(self, records: Records, is_wanted: BoolArray) -> BoolArray:
        ours = np.zeros(len(records.origins), bool)
        for origin in np.unique(records.origin[is_wanted]).tolist():
            ours[origin] = self._views.accepts(View(*records.origins[origin][:2]))
        return ours[records.origin]

    def _columns(self, names: Names) -> tuple[Names, list[int] | None]:
        wanted = self._filter.metrics(names)
        if len(wanted) == len(names):
            return names, None
        place = {name: at for at, name in enumerate(names)}
        return wanted, [place[name] for name in wanted]
