"""Prometheus' float chunks (Gorilla's delta-of-delta times and XORed values) into columns, compiled by numba.

Source: Pelkonen et al., Gorilla, VLDB 2015, with the widths of prometheus/prometheus
tsdb/chunkenc/xor.go (its Go iterator is the reading that this one repeats).
"""

from __future__ import annotations

from collections.abc import Callable, MutableSequence
from typing import Any, TypeVar, cast

import numba
import numpy as np

from ingestor.core.chunk import Float64Array, Int64Array, UInt64Array
from ingestor.sources.base import STALE_MARKER_BITS

Bytes = MutableSequence[int]
"""An array of uint8 as compiled code sees it."""
_Function = TypeVar("_Function", bound=Callable[..., object])

PADDING_BYTES = 32
"""So many bytes must follow the last chunk. Bits are read eight bytes at once, and whether a chunk
has ended is looked at once a sample: one sample's reads reach 19 bytes past the end at most."""

MOST_SAMPLES_A_CHUNK = 65_535
"""Their number is written in two bytes."""

MALFORMED = -1
NO_ROOM = -2


def decode_chunks(
    data: Bytes,
    starts: Int64Array,
    ends: Int64Array,
    start_ms: int,
    end_ms: int,
    timestamps_ms: Int64Array,
    values: Float64Array,
) -> Int64Array:
    """Decode chunks, and keep the samples in [start_ms, end_ms) that are no stale markers.

    Args:
        data: holds the chunks, and at least `PADDING_BYTES` more behind each.
        starts: shape (chunks,), where each begins in *data*.
        ends: shape (chunks,), where each ends.
        start_ms: the first millisecond that is kept.
        end_ms: the first that is not.
        timestamps_ms: filled from its start, in the order of the chunks.
        values: filled as *timestamps_ms*; every bit as it was written, that of NaNs too.

    Returns:
        Shape (chunks,): how many samples of each chunk were kept; or `MALFORMED` where a chunk is cut
        or impossible (it keeps nothing); or `NO_ROOM` from the first on whose samples, all counted,
        might not fit.
    """
    kept = np.empty(len(starts), np.int64)
    _decode(data, starts, ends, start_ms, end_ms, timestamps_ms, values.view(np.uint64), kept)
    return kept


def compiled(function: _Function) -> _Function:
    """Compile without the interpreter lock (several metrics are fetched at once), cached on disk."""
    return cast("_Function", numba.njit(nogil=True, cache=True, error_model="numpy")(function))


def _inlined(function: _Function) -> _Function:
    # A call with an array costs numba two atomic reference counts.
    return cast("_Function", numba.njit(nogil=True, cache=True, error_model="numpy", inline="always")(function))


_U = np.uint64
_ONE, _STALE = _U(1), _U(STALE_MARKER_BITS)
_TOP_BIT = _U(1 << 63)
_PREFIX_110, _PREFIX_1110, _PREFIX_1111 = _U(0b110 << 61), _U(0b1110 << 60), _U(0b1111 << 60)


@_inlined
def _word(data: Any, at: Any) -> Any:
    """Return eight bytes as a big-endian number: LLVM makes one load of it. An unsigned index is not wrapped."""
    return (
        (_U(data[at]) << _U(56))
        | (_U(data[at + _U(1)]) << _U(48))
        | (_U(data[at + _U(2)]) << _U(40))
        | (_U(data[at + _U(3)]) << _U(32))
        | (_U(data[at + _U(4)]) << _U(24))
        | (_U(data[at + _U(5)]) << _U(16))
        | (_U(data[at + _U(6)]) << _U(8))
        | _U(data[at + _U(7)])
    )


@compiled
def _decode(  # noqa: C901, PLR0912, PLR0915 - the hot loop: calls, and states kept in arrays, would cost
    data: Any,
    starts: Int64Array,
    ends: Int64Array,
    start_ms: int,
    end_ms: int,
    timestamps_ms: Int64Array,
    values: UInt64Array,
    kept: Int64Array,
) -> None:
    room = _U(len(timestamps_ms))
    full = _U(0)
    for chunk in range(len(starts)):
        kept[chunk] = MALFORMED
        if starts[chunk] < 0 or ends[chunk] > len(data) - PADDING_BYTES or starts[chunk] > ends[chunk] - 2:
            continue
        at, end = _U(starts[chunk]), _U(ends[chunk])
        samples = (_U(data[at]) << _U(8)) | _U(data[at + _U(1)])
        if full + samples > room:
            for rest in range(chunk, len(starts)):
                kept[rest] = NO_ROOM
            return
        if samples == 0:
            kept[chunk] = 0
            continue
        at += _U(2)
        zigzag, size = _varint(data, at, end)
        at += size
        if size == 0 or at + _U(8) > end:
            continue
        time = np.int64(zigzag >> _ONE) ^ -np.int64(zigzag & _ONE)
        value = _word(data, at)
        at += _U(8)
        n = full
        timestamps_ms[n], values[n] = time, value
        n += _U(time >= start_ms and time < end_ms and value != _STALE)
        delta = np.int64(0)
        if samples > 1:
            unsigned, size = _varint(data, at, end)
            at += size
            if size == 0:
                continue
            delta = np.int64(unsigned)
        bit, end_bit = at << _U(3), end << _U(3)
        leading, width, trailing = _U(0), _U(64), _U(0)
        sound = True
        for sample in range(_U(1), samples):
            byte = bit >> _U(3)
            word = _word(data, byte) << (bit & _U(7))  # At least 57 bits of the stream, at the top.
            used = _U(0)
            if sample > 1:
                if word < _TOP_BIT:
                    used = _U(1)
                elif word < _PREFIX_110:
                    delta += _signed((word << _U(2)) >> _U(50), 14)
                    used = _U(16)
                elif word < _PREFIX_1110:
                    delta += _signed((word << _U(3)) >> _U(47), 17)
                    used = _U(20)
                elif word < _PREFIX_1111:
                    delta += _signed((word << _U(4)) >> _U(44), 20)
                    used = _U(24)
                else:
                    bit += _U(4)
                    byte = bit >> _U(3)
                    shift = bit & _U(7)
                    delta += np.int64((_word(data, byte) << shift) | (_U(data[byte + _U(8)]) >> (_U(8) - shift)))
                    bit += _U(64)
                    word = _word(data, bit >> _U(3)) << (bit & _U(7))
                word <<= used
            time += delta
            if word < _TOP_BIT:
                bit += used + _ONE
            else:
                if word < _PREFIX_110:
                    bit += used + _U(2)
                else:
                    leading = (word << _U(2)) >> _U(59)
                    width = (word << _U(7)) >> _U(58)
                    if width == 0:
                        width = _U(64)
                    if leading + width > 64:
                        sound = False
                        break
                    trailing = _U(64) - leading - width
                    bit += used + _U(13)
                byte = bit >> _U(3)
                shift = bit & _U(7)
                word = (_word(data, byte) << shift) | (_U(data[byte + _U(8)]) >> (_U(8) - shift))
                value ^= (word >> (_U(64) - width)) << trailing
                bit += width
            if bit > end_bit:
                sound = False
                break
            timestamps_ms[n], values[n] = time, value
            n += _U(time >= start_ms and time < end_ms and value != _STALE)
        if sound:
            kept[chunk] = np.int64(n - full)
            full = n


@_inlined
def _signed(raw: Any, width: Any) -> Any:
    # Prometheus' own reading: the lowest negative number of the width is a positive one here.
    return np.int64(raw) - (np.int64(1) << width) * (raw > _U(1 << (width - 1)))


@compiled
def _varint(data: Any, at: Any, end: Any) -> Any:
    """Return a base-128 number and its bytes; none if it is cut or longer than 64 bits."""
    number, size = _U(0), _U(0)
    while size < _U(10) and at + size < end:
        byte = _U(data[at + size])
        if size == _U(9) and byte > _ONE:
            return number, _U(0)
        number |= (byte & _U(127)) << (_U(7) * size)
        size += _ONE
        if byte < _U(128):
            return number, size
    return number, _U(0)
