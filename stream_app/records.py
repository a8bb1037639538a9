"""One pod's (or service's) aggregated metrics in one window: what the sink topics carry, as JSON.

`decode_record` reads one message, `decode_records` many of them into columns.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import orjson

from ingestor.core.errors import MalformedMessage
from ingestor.core.topics import message_key

RECORD_VERSION = 1

_INFINITIES = {"+Inf": float("inf"), "-Inf": float("-inf")}
_FIELDS = {
    "namespace": str,
    "service": str,
    "window_start": int,
    "window_end": int,
    "chunk_size": str,
    "method": str,
    "job": str,
    "revision": int,
    "partial": bool,
    "version": int,
    "samples": int,
    "metrics": dict,
}


_INTEGERS = ("window_start", "window_end", "revision", "samples")
_END_OF_INT64 = 2**63

_BLOCK = 256
"""Records that are objects at a time: of more, the garbage collector takes notice, and needs as long as the parser."""

Int64Array = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]
Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

Who = tuple[str, str | None, str]
"""Namespace, pod (None in service records), service."""

Origin = tuple[str, str, str]
"""Chunk size, method, job."""

Names = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """A record as read; *pod* is None in service records.

    *metrics* has a value for each metric with samples in the window: NaN is NaN here,
    infinities are infinities; a metric without samples is absent.
    """

    namespace: str
    pod: str | None
    service: str
    window_start_ms: int
    window_end_ms: int
    chunk_size: str
    method: str
    job: str
    revision: int
    partial: bool
    samples: int
    metrics: dict[str, float]
    incomplete: tuple[str, ...] = ()
    """Metrics that samples of the window are missing of; ``*``: of any."""


def record_key(namespace: str, pod: str | None, service: str) -> bytes:
    """Return the message key: ``namespace/pod``, or ``namespace/service`` of a service record."""
    return message_key(namespace, service if pod is None else pod)


def decode_record(value: bytes | None) -> Record:
    """Read one record; fields that are not known are ignored, for later releases may have more.

    Raises:
        MalformedMessage: not JSON, a field is missing or of another type, or another version.
    """
    try:
        fields: dict[str, Any] = orjson.loads(value or b"")
        if fields["version"] != RECORD_VERSION:
            raise MalformedMessage(f"a record has version {fields['version']}: update podstream")
        for name, kind in _FIELDS.items():
            if type(fields[name]) is not kind:
                raise MalformedMessage(f"a record's {name} is {fields[name]!r}, not of type {kind.__name__}")
        for name in _INTEGERS:
            if fields[name] >= _END_OF_INT64:
                raise MalformedMessage(f"a record's {name} is {fields[name]}, more than 64 bits hold")
        pod = fields.get("pod")
        if not (pod is None or isinstance(pod, str)):
            raise MalformedMessage(f"a record's pod is {pod!r}, not of type str")
        return Record(
            namespace=fields["namespace"],
            pod=pod,
            service=fields["service"],
            window_start_ms=fields["window_start"],
            window_end_ms=fields["window_end"],
            chunk_size=fields["chunk_size"],
            method=fields["method"],
            job=fields["job"],
            revision=fields["revision"],
            partial=fields["partial"],
            samples=fields["samples"],
            metrics=_numbers(fields["metrics"]),
            incomplete=_texts("incomplete", fields.get("incomplete", [])),
        )
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise MalformedMessage(f"not a record: {error!r}") from error


@dataclass(frozen=True, slots=True)
class Records:
    """Many records as columns: row i of each belongs to record i. Nothing here is changed once it is made.

    What is repeated stands once in a table, and rows have its number there. Tables
    hold nothing twice, but may hold what no row has.
    """

    offset: Int64Array
    """Shape (n,): where each message stands in its partition."""
    window_start_ms: Int64Array
    """Shape (n,)."""
    window_end_ms: Int64Array
    """Shape (n,)."""
    revision: Int64Array
    """Shape (n,)."""
    samples: Int64Array
    """Shape (n,)."""
    partial: BoolArray
    """Shape (n,)."""
    who: Int32Array
    """Shape (n,): numbers in *whos*."""
    origin: Int32Array
    """Shape (n,): numbers in *origins*."""
    incomplete: Int32Array
    """Shape (n,): numbers in *incompletes*."""
    layout: Int32Array
    """Shape (n,): numbers in *layouts*, which metrics a record has and in which order."""
    values: Float64Array
    """Shape (m,): the values of all records one after another, each record's in the order of its layout.

    NaN is a value that a pod reported; a metric that a record does not have is not in its layout.
    """
    bounds: Int64Array
    """Shape (n + 1,): record i has ``values[bounds[i]:bounds[i + 1]]``."""
    whos: tuple[Who, ...]
    origins: tuple[Origin, ...]
    incompletes: tuple[Names, ...]
    layouts: tuple[Names, ...]

    def __len__(self) -> int:
        return len(self.offset)

    def __getitem__(self, rows: slice) -> Records:
        """Return neighbouring rows, without a copy of anything that is as long as they are many."""
        start, stop, _ = rows.indices(len(self))
        stop = max(start, stop)
        first, last = int(self.bounds[start]), int(self.bounds[stop])
        return self._with(slice(start, stop), self.values[first:last], self.bounds[start : stop + 1] - first)

    def take(self, rows: Int64Array) -> Records:
        """Return the rows of these numbers, in their order."""
        widths = np.diff(self.bounds)[rows]
        bounds = np.concatenate(([0], np.cumsum(widths)))
        places = np.repeat(self.bounds[:-1][rows] - bounds[:-1], widths) + np.arange(bounds[-1])
        return self._with(rows, self.values[places], bounds)

    def matrix(self, metrics: Sequence[str]) -> tuple[Float64Array, BoolArray]:
        """Return the values of *metrics*, and which of them records have.

        Returns:
            Both of shape (n, number of metrics). What a record does not have is NaN there, and False here.
        """
        values = np.full((len(self), len(metrics)), np.nan)
        present = np.zeros(values.shape, bool)
        column_of = {name: column for column, name in enumerate(metrics)}
        for number in set(self.layout.tolist()):
            names = self.layouts[number]
            rows = np.flatnonzero(self.layout == number)
            mine = self.values[self.bounds[rows][:, None] + np.arange(len(names))]
            if names == tuple(metrics):
                values[rows], present[rows] = mine, True
                continue
            asked = [(at, column_of[name]) for at, name in enumerate(names) if name in column_of]
            at, columns = [at for at, _ in asked], [column for _, column in asked]
            values[rows[:, None], columns], present[rows[:, None], columns] = mine[:, at], True
        return values, present

    def record(self, row: int) -> Record:
        """Return one row as `decode_record` does."""
        namespace, pod, service = self.whos[self.who[row]]
        chunk_size, method, job = self.origins[self.origin[row]]
        values = self.values[self.bounds[row] : self.bounds[row + 1]].tolist()
        return Record(
            namespace=namespace,
            pod=pod,
            service=service,
            window_start_ms=int(self.window_start_ms[row]),
            window_end_ms=int(self.window_end_ms[row]),
            chunk_size=chunk_size,
            method=method,
            job=job,
            revision=int(self.revision[row]),
            partial=bool(self.partial[row]),
            samples=int(self.samples[row]),
            metrics=dict(zip(self.layouts[self.layout[row]], values, strict=True)),
            incomplete=self.incompletes[self.incomplete[row]],
        )

    def _with(self, rows: slice | Int64Array, values: Float64Array, bounds: Int64Array) -> Records:
        return Records(
            self.offset[rows],
            self.window_start_ms[rows],
            self.window_end_ms[rows],
            self.revision[rows],
            self.samples[rows],
            self.partial[rows],
            self.who[rows],
            self.origin[rows],
            self.incomplete[rows],
            self.layout[rows],
            values,
            bounds,
            self.whos,
            self.origins,
            self.incompletes,
            self.layouts,
        )


def decode_records(
    values: Sequence[bytes | None], offsets: Sequence[int]
) -> tuple[Records, list[tuple[int, MalformedMessage]]]:
    """Read many messages into columns, several times as fast as one by one.

    Args:
        values: the messages.
        offsets: of each message; what its row has as *offset*.

    Returns:
        The rows of all messages that `decode_record` reads, in their order and with the same
        content; and for each of the others its place in *values* and what `decode_record` raises.
    """
    columns, malformed = _Columns(), list[tuple[int, MalformedMessage]]()
    for first in range(0, len(values), _BLOCK):
        block = slice(first, first + _BLOCK)
        try:
            columns.add(offsets[block], _fields_of_all(values[block]))
        except (orjson.JSONDecodeError, KeyError, TypeError, MalformedMessage):
            for place, value in enumerate(values[block], first):
                try:
                    decode_record(value)
                    columns.add(offsets[place : place + 1], _fields_of_all([value]))
                except MalformedMessage as error:
                    malformed.append((place, error))
    return columns.records(), malformed


def joined(parts: Sequence[Records]) -> Records:
    """Return the rows of all *parts*, one after another."""
    if len(parts) == 1:
        return parts[0]
    columns = _Columns()
    for part in parts:
        columns.join(part)
    return columns.records()


_Key = TypeVar("_Key", bound=Hashable)

_Fields = tuple[Sequence[Any], ...]

_READ = itemgetter(*_FIELDS)


def _fields_of_all(values: Sequence[bytes | None]) -> _Fields:
    """Return a column for each of ``_FIELDS``, then pods and lists of what is incomplete.

    Raises:
        JSONDecodeError, KeyError, TypeError, MalformedMessage: not every value is a record.
    """
    objects = [orjson.loads(value or b"") for value in values]
    columns: _Fields = tuple(zip(*map(_READ, objects), strict=True))
    for (name, kind), column in zip(_FIELDS.items(), columns, strict=True):
        if set(map(type, column)) != {kind}:
            raise MalformedMessage(f"not every {name} is of type {kind.__name__}")
    fields = dict(zip(_FIELDS, columns, strict=True))
    if set(fields["version"]) != {RECORD_VERSION}:
        raise MalformedMessage("not every record has our version")
    if any(max(fields[name]) >= _END_OF_INT64 for name in _INTEGERS):
        raise MalformedMessage("not every number has 64 bits")
    pods = [record.get("pod") for record in objects]
    if not set(map(type, pods)) <= {str, type(None)}:
        raise MalformedMessage("not every pod is a text")
    none: Names = ()
    incompletes = [_texts("incomplete", record["incomplete"]) if "incomplete" in record else none for record in objects]
    return (*columns, pods, incompletes)


class _Columns:
    """What `Records` is made of, while it grows."""

    def __init__(self) -> None:
        self._whos: dict[Who, int] = {}
        self._origins: dict[Origin, int] = {}
        self._incompletes: dict[Names, int] = {}
        self._layouts: dict[Names, int] = {}
        self._parts: list[tuple[Any, ...]] = []

    def add(self, offsets: Sequence[int], columns: _Fields) -> None:
        """Add a row for each record.

        Raises:
            KeyError, TypeError: not every metric's value is a number.
        """
        fields = dict(zip((*_FIELDS, "pod", "incomplete"), columns, strict=True))
        metrics: Sequence[dict[str, Any]] = fields["metrics"]
        values = list(chain.from_iterable(map(dict.values, metrics)))
        if not set(map(type, values)) <= {float}:
            values = list(map(_number, values))
        whos = zip(fields["namespace"], fields["pod"], fields["service"], strict=True)
        origins = zip(fields["chunk_size"], fields["method"], fields["job"], strict=True)
        self._parts.append(
            (
                np.array(offsets, np.int64),
                *(np.array(fields[name], np.int64) for name in _INTEGERS),
                np.array(fields["partial"], bool),
                _numbers_in(self._whos, whos),
                _numbers_in(self._origins, origins),
                _numbers_in(self._incompletes, fields["incomplete"]),
                _numbers_in(self._layouts, map(tuple, metrics)),
                np.fromiter(values, np.float64, len(values)),
                np.array(list(map(len, metrics)), np.int64),
            )
        )

    def join(self, records: Records) -> None:
        def renumbered(table: dict[_Key, int], keys: Iterable[_Key], numbers: Int32Array) -> Int32Array:
            return _numbers_in(table, keys)[numbers] if len(numbers) else numbers

        self._parts.append(
            (
                records.offset,
                records.window_start_ms,
                records.window_end_ms,
                records.revision,
                records.samples,
                records.partial,
                renumbered(self._whos, records.whos, records.who),
                renumbered(self._origins, records.origins, records.origin),
                renumbered(self._incompletes, records.incompletes, records.incomplete),
                renumbered(self._layouts, records.layouts, records.layout),
                records.values,
                np.diff(records.bounds),
            )
        )

    def records(self) -> Records:
        kinds = (*[np.int64] * 5, bool, *[np.int32] * 4, np.float64, np.int64)
        empty = tuple(np.empty(0, kind) for kind in kinds)
        *columns, widths = (np.concatenate(column) for column in zip(empty, *self._parts, strict=True))
        tables = self._whos, self._origins, self._incompletes, self._layouts
        bounds = np.concatenate((np.zeros(1, np.int64), np.cumsum(widths)))
        fields: list[Any] = [*columns, bounds, *(tuple(table) for table in tables)]
        return Records(*fields)


def _numbers_in(table: dict[_Key, int], keys: Iterable[_Key]) -> Int32Array:
    """Return the number of each key in *table*, which grows by those that are new."""
    return np.array([table.setdefault(key, len(table)) for key in keys], np.int32)


def _texts(name: str, values: Any) -> tuple[str, ...]:
    if type(values) is not list or not set(map(type, values)) <= {str}:
        raise MalformedMessage(f"a record's {name} is {values!r}, not a list of texts")
    return tuple(values)


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    if set(map(type, metrics.values())) <= {float}:
        return metrics
    return {name: _number(value) for name, value in metrics.items()}


def _number(value: Any) -> float:
    if value is None:
        return float("nan")
    if isinstance(value, str):
        return _INFINITIES[value]
    if isinstance(value, bool):
        raise TypeError(f"{value!r} is not a number")
    return float(value)
