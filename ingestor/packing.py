"""The samples of one range, routed by service and packed into messages. No I/O."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numba
import numpy as np

from ingestor.catalogue import Catalogue
from ingestor.core import wire
from ingestor.core.chunk import Float64Array, Int64Array, Refused, SeriesColumns
from ingestor.core.errors import PublishError
from ingestor.core.time_range import TimeRange

_MAX_VALUE_BYTES = 900_000
"""Kafka's default limits are 1,048,588 B a message on the broker and 1,000,000 B in clients."""

_CHUNK_SAMPLES = 150_000
"""At 4.7 B a sample (zstd, measured) a chunk is then below the limit; others are halved."""


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
    """What the backend refused for good."""

    @property
    def size_bytes(self) -> int:
        return sum(len(value) for chunks in self.partitions for value in chunks)


def pack(
    time_range: TimeRange, source: str, fetched: list[FetchedSeries], catalogue: Catalogue, partitions: int
) -> PackedRange:
    """Route and pack the samples of *time_range*."""
    ids, begins, lengths, timestamps_ms, values = _joined(fetched)
    routed = np.flatnonzero((ids >= 0) & (lengths > 0))
    partition = catalogue.partition(ids[routed])
    packed: list[list[bytes]] = []
    for number in range(partitions):
        rows = routed[partition == number]
        offsets = np.concatenate(([0], np.cumsum(lengths[rows])))
        stamps, floats = _gather(begins[rows], offsets, timestamps_ms, values)
        packed.append(list(_chunks(ids[rows], offsets, stamps, floats, catalogue)))
    return PackedRange(time_range, source, int(lengths[routed].sum()), len(np.unique(ids[routed])), packed)


def _joined(fetched: list[FetchedSeries]) -> tuple[Int64Array, Int64Array, Int64Array, Int64Array, Float64Array]:
    """Return ids, first samples and lengths of all rows, and all samples."""
    if not fetched:
        empty = np.empty(0, np.int64)
        return empty, empty, empty, empty, np.empty(0)
    shifts = np.cumsum([0] + [len(part.values) for part in fetched[:-1]])
    return (
        np.concatenate([part.ids for part in fetched]),
        np.concatenate([part.offsets[:-1] + shift for part, shift in zip(fetched, shifts, strict=True)]),
        np.concatenate([np.diff(part.offsets) for part in fetched]),
        np.concatenate([part.timestamps_ms for part in fetched]),
        np.concatenate([part.values for part in fetched]),
    )


@numba.njit(cache=True, nogil=True)
def _gather(
    begins: Int64Array, offsets: Int64Array, timestamps_ms: Int64Array, values: Float64Array
) -> tuple[Int64Array, Float64Array]:
    """Lay the samples of rows one behind the other: row i comes from ``begins[i]`` and goes to ``offsets[i]``."""
    stamps, floats = np.empty(offsets[-1], np.int64), np.empty(offsets[-1], np.float64)
    for row in range(len(begins)):
        shift = begins[row] - offsets[row]
        for i in range(offsets[row], offsets[row + 1]):
            stamps[i], floats[i] = timestamps_ms[i + shift], values[i + shift]
    return stamps, floats


def _chunks(
    ids: Int64Array, offsets: Int64Array, timestamps_ms: Int64Array, values: Float64Array, catalogue: Catalogue
) -> Iterator[bytes]:
    """Yield message values, cutting rows where a message is full."""
    total = len(values)
    for first in range(0, total, _CHUNK_SAMPLES):
        yield from _encoded(ids, offsets, timestamps_ms, values, catalogue, first, min(first + _CHUNK_SAMPLES, total))


def _encoded(
    ids: Int64Array,
    offsets: Int64Array,
    timestamps_ms: Int64Array,
    values: Float64Array,
    catalogue: Catalogue,
    first: int,
    last: int,
) -> Iterator[bytes]:
    """Encode the samples [first, last), in halves where they do not fit into one message."""
    row, end_row = int(np.searchsorted(offsets, first, "right")) - 1, int(np.searchsorted(offsets, last, "left"))
    cut = np.clip(offsets[row : end_row + 1], first, last)
    columns = catalogue.columns(ids[row:end_row])
    series = SeriesColumns(**columns, offsets=cut, timestamps_ms=timestamps_ms, values=values)
    value = wire.encode_series(series)
    if len(value) <= _MAX_VALUE_BYTES:
        yield value
    elif last - first == 1:
        raise PublishError(f"one sample's labels need {len(value)} bytes, more than a Kafka message may have")
    else:
        middle = (first + last) // 2
        yield from _encoded(ids, offsets, timestamps_ms, values, catalogue, first, middle)
        yield from _encoded(ids, offsets, timestamps_ms, values, catalogue, middle, last)
