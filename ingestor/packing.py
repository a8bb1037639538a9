"""The samples of one range, routed by service and packed into messages. No I/O."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numba
import numpy as np

from ingestor.catalogue import Catalogue
from ingestor.core import wire
from ingestor.core.chunk import EVERY_METRIC, Float64Array, Int64Array, Refused, SeriesColumns
from ingestor.core.declared import declared_bytes
from ingestor.core.time_range import TimeRange
from ingestor.core.topics import NO_NAMESPACE

_MAX_VALUE_BYTES = 900_000
"""Kafka's default limits are 1,048,588 B a message on the broker and 1,000,000 B in clients."""

_CHUNK_SAMPLES = 150_000
_CHUNK_ROWS = 12_000
"""At 4.7 B a sample (zstd, measured), and 50 B a series' labels, a chunk is then below the limit; others are halved."""


_LONGEST_NAME = 1_000
"""Markers and records have to hold the name of a metric that is incomplete."""

_SHOWN_CHARS = 200


class LeftOut(NamedTuple):
    """A series that fits into no message, because its labels are too long."""

    metric: str
    namespace: str
    pod: str
    needed_bytes: int
    """For one of its samples."""

    def __str__(self) -> str:
        metric, namespace, pod = (name[:_SHOWN_CHARS] for name in (self.metric, self.namespace, self.pod))
        of = f" of the pod {namespace or NO_NAMESPACE}/{pod}" if pod else ""
        return (
            f"a series of {metric}{of} is left out: with its labels a sample needs {self.needed_bytes:,} bytes, more "
            "than a Kafka message may have; shorten them with --relabel"
        )

    @property
    def told_as(self) -> str:
        """What is incomplete without it."""
        return self.metric if len(self.metric) <= _LONGEST_NAME else EVERY_METRIC


@dataclass(frozen=True, slots=True)
class FetchedSeries:
    """What a range's queries brought: row i is series ``ids[i]`` of the catalogue.

    Its samples are ``offsets[i]:offsets[i + 1]``. Rows may repeat a series, not its samples.
    """

    ids: Int64Array
    offsets: Int64Array
    timestamps_ms: Int64Array
    values: Float64Array


@dataclass(frozen=True, slots=True)
class PackedRange:
    """A range ready to be sent: the values of each partition's chunk messages."""

    time_range: TimeRange
    source: str
    samples: int
    series: int
    partitions: list[list[bytes]]
    incomplete: tuple[Refused, ...] = ()
    """What the backend refused for good, and what fits into no message."""
    left_out: tuple[LeftOut, ...] = ()
    """What fits into no message; none of their samples counts among *samples*."""
    lookback: PackedRange | None = None
    """Of a job's first range: each series' last sample before it; none of them counts among *samples*."""

    @property
    def size_bytes(self) -> int:
        before = self.lookback.size_bytes if self.lookback else 0
        return before + sum(len(value) for chunks in self.partitions for value in chunks)


def pack(
    time_range: TimeRange, source: str, fetched: list[FetchedSeries], catalogue: Catalogue, partitions: int
) -> PackedRange:
    """Route and pack the samples of *time_range*; a series that fits into no message is left out, and named."""
    rows = _Rows.of(fetched, catalogue)
    most = int(np.bincount(rows.partition, rows.length, partitions).max())
    # One after the other uses the same memory: what is new, the system has to clear.
    stamps, floats = np.empty(most, np.int64), np.empty(most, np.float64)
    packed = []
    unfit: list[_Unfit] = []
    for number in range(partitions):
        chosen = np.flatnonzero(rows.partition == number)
        offsets = rows.gather(chosen, fetched, stamps, floats)
        packed.append(list(_chunks(rows.id[chosen], offsets, stamps, floats, catalogue, unfit)))
    left_out = _left_out(unfit, catalogue)
    return PackedRange(
        time_range,
        source,
        int(rows.length.sum()) - sum(one.samples for one in unfit),
        len(np.unique(rows.id)) - len(left_out),
        packed,
        tuple(sorted({Refused(one.told_as, time_range.start_ms, time_range.end_ms) for one in left_out})),
        left_out,
    )


class _Unfit(NamedTuple):
    """Samples of a series that do not fit into a message even one by one."""

    id: int
    samples: int
    needed_bytes: int


def _left_out(unfit: list[_Unfit], catalogue: Catalogue) -> tuple[LeftOut, ...]:
    if not unfit:
        return ()
    needed = {one.id: one.needed_bytes for one in unfit}
    columns = catalogue.columns(np.array(list(needed), np.int64))
    names = (columns[field].to_pylist() for field in ("metric", "namespace", "pod"))
    return tuple(LeftOut(*named) for named in zip(*names, needed.values(), strict=True))


def only_lasts(fetched: list[FetchedSeries], catalogue: Catalogue) -> list[FetchedSeries]:
    """Return the last sample of each series, where each row has one sample.

    Rows are of one series also where only the catalogue's rewriting has made them so.
    """
    nothing = [np.empty(0, np.int64)]
    ids = np.concatenate(nothing + [part.ids for part in fetched])
    stamps = np.concatenate(nothing + [part.timestamps_ms for part in fetched])
    floats = np.concatenate([np.empty(0), *(part.values for part in fetched)])
    routed = np.flatnonzero(ids >= 0)
    # Namespace and pod are among the labels that a fingerprint is made of.
    names = catalogue.fingerprint(ids[routed])
    order = np.lexsort((stamps[routed], names))
    is_last = np.ones(len(order), np.bool_)
    is_last[:-1] = np.diff(names[order]) != 0
    kept = np.sort(routed[order[is_last]])
    return [FetchedSeries(ids[kept], np.arange(len(kept) + 1), stamps[kept], floats[kept])]


@dataclass(frozen=True, slots=True)
class _Rows:
    """All rows of a range that are routed anywhere: which part each is in, and where its samples begin there."""

    part: Int64Array
    begin: Int64Array
    length: Int64Array
    id: Int64Array
    partition: Int64Array

    @classmethod
    def of(cls, fetched: list[FetchedSeries], catalogue: Catalogue) -> _Rows:
        nothing = [np.empty(0, np.int64)]
        lengths = np.concatenate(nothing + [np.diff(part.offsets) for part in fetched])
        ids = np.concatenate(nothing + [part.ids for part in fetched])
        parts = np.repeat(np.arange(len(fetched)), [len(part.ids) for part in fetched])
        begins = np.concatenate(nothing + [part.offsets[:-1] for part in fetched])
        kept = np.flatnonzero((ids >= 0) & (lengths > 0))
        return cls(parts[kept], begins[kept], lengths[kept], ids[kept], catalogue.partition(ids[kept]))

    def gather(
        self, rows: Int64Array, fetched: list[FetchedSeries], stamps: Int64Array, floats: Float64Array
    ) -> Int64Array:
        """Lay the samples of some rows one behind the other; return where each row's begin, and where all end."""
        offsets: Int64Array = np.concatenate(([0], np.cumsum(self.length[rows])))
        # Part by part, out of where it was decoded: all of a range in one piece would be memory for nothing.
        edges = np.searchsorted(self.part[rows], np.arange(len(fetched) + 1))
        for part, first, last in zip(fetched, edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            begins = self.begin[rows[first:last]]
            _gather(begins, offsets[first : last + 1], part.timestamps_ms, part.values, stamps, floats)
        return offsets


@numba.njit(cache=True, nogil=True)
def _gather(
    begins: Int64Array,
    offsets: Int64Array,
    timestamps_ms: Int64Array,
    values: Float64Array,
    stamps: Int64Array,
    floats: Float64Array,
) -> None:
    """Copy the samples of rows: row i comes from ``begins[i]`` and goes to ``offsets[i]``."""
    for row in range(len(begins)):
        shift = begins[row] - offsets[row]
        for i in range(offsets[row], offsets[row + 1]):
            stamps[i], floats[i] = timestamps_ms[i + shift], values[i + shift]


def _chunks(
    ids: Int64Array,
    offsets: Int64Array,
    timestamps_ms: Int64Array,
    values: Float64Array,
    catalogue: Catalogue,
    unfit: list[_Unfit],
) -> Iterator[bytes]:
    """Yield message values, cutting rows where a message is full; note what does not fit into any."""
    rows = _PartitionRows(ids, offsets, timestamps_ms, values, catalogue)
    first, end = 0, len(ids)
    while first < offsets[end]:
        row = int(np.searchsorted(offsets, first, "right")) - 1
        last = min(first + _CHUNK_SAMPLES, int(offsets[min(row + _CHUNK_ROWS, end)]))
        yield from rows.encoded(first, last, unfit)
        first = last


def _unpacked_bytes(columns: dict[str, Any], samples: int) -> int:
    """Return how large a chunk of these series is, but for padding and offsets."""
    return sum(int(column.nbytes) for column in columns.values()) + 16 * samples


@dataclass(frozen=True, slots=True)
class _PartitionRows:
    """The rows of one partition, their samples one behind the other."""

    ids: Int64Array
    offsets: Int64Array
    timestamps_ms: Int64Array
    values: Float64Array
    catalogue: Catalogue

    def encoded(self, first: int, last: int, unfit: list[_Unfit]) -> Iterator[bytes]:
        """Encode the samples [first, last), in halves where they do not fit into one message."""
        value, fits = self._message(first, last)
        if fits:
            yield value
            return
        row, end_row = self._rows(first, last)
        if end_row - row == 1:
            # It is the labels, unless there is room for a sample of them.
            value, fits = self._message(first, first + 1)
            if not fits:
                unfit.append(_Unfit(int(self.ids[row]), last - first, len(value)))
                return
        middle = (first + last) // 2
        yield from self.encoded(first, middle, unfit)
        yield from self.encoded(middle, last, unfit)

    def _rows(self, first: int, last: int) -> tuple[int, int]:
        """Return the rows that the samples [first, last) lie in: the first one, and the one behind the last."""
        return (
            int(np.searchsorted(self.offsets, first, "right")) - 1,
            int(np.searchsorted(self.offsets, last, "left")),
        )

    def _message(self, first: int, last: int) -> tuple[bytes, bool]:
        """Return the samples [first, last) as a message's value, and whether it may be sent."""
        row, end_row = self._rows(first, last)
        cut = np.clip(self.offsets[row : end_row + 1], first, last)
        columns = self.catalogue.columns(self.ids[row:end_row])
        series = SeriesColumns(**columns, offsets=cut, timestamps_ms=self.timestamps_ms, values=self.values)
        value = wire.encode_series(series)
        fits = len(value) <= _MAX_VALUE_BYTES and (
            # Padding is the rest of it: few chunks are so large that a look at all of their buffers is needed.
            2 * _unpacked_bytes(columns, last - first) <= wire.MOST_UNPACKED_BYTES
            or declared_bytes(value) <= wire.MOST_UNPACKED_BYTES
        )
        return value, fits
