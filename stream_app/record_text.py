"""The JSON of many records, joined out of pieces that were written once: compiled by numba. No I/O."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stream_app.aggregations import Float64Array, Int64Array, compiled

Bytes = npt.NDArray[np.uint8]

_METRICS = np.frombuffer(b',"metrics":{', np.uint8)
_INFINITY, _MINUS_INFINITY = np.frombuffer(b'"+Inf"', np.uint8), np.frombuffer(b'"-Inf"', np.uint8)
_COMMA, _ZERO = ord(","), ord("0")
_MOST_DIGITS = 19


@compiled
def join_records(
    pieces: Bytes,
    bounds: Int64Array,
    heads: Int64Array,
    middles: Int64Array,
    tails: Int64Array,
    samples: Int64Array,
    starts: Int64Array,
    names: Int64Array,
    values: Float64Array,
    numbers: Bytes,
) -> tuple[Bytes, Int64Array]:
    """Write records one behind the other: head, middle, samples, a name and a number each metric, tail.

    Args:
        pieces: what records are made of; piece i is ``pieces[bounds[i]:bounds[i + 1]]``.
        bounds: shape (pieces + 1,).
        heads: the piece that each record begins with, shape (records,).
        middles: the piece before its number of samples.
        tails: the piece that it ends with, the bracket behind its metrics included.
        samples: its number of samples.
        starts: record i has the cells ``starts[i]:starts[i + 1]``, shape (records + 1,).
        names: the piece with each cell's metric, shape (cells,).
        values: the values of the cells: infinities are "+Inf" and "-Inf".
        numbers: the same as a JSON list, in which infinities may be anything without a comma.

    Returns:
        The text of all records, and where each ends in it, shape (records,).
    """
    records = len(heads)
    room = len(numbers) + records * (_MOST_DIGITS + len(_METRICS)) + len(values) * len(_INFINITY)
    for record in range(records):
        for piece in (heads[record], middles[record], tails[record]):
            room += bounds[piece + 1] - bounds[piece]
    for cell in range(len(names)):
        room += bounds[names[cell] + 1] - bounds[names[cell]]
    out, ends = np.empty(room, np.uint8), np.empty(records, np.int64)
    # Behind the list's bracket.
    at, number = 0, 1
    for record in range(records):
        at = _put(out, at, pieces, bounds[heads[record]], bounds[heads[record] + 1])
        at = _put(out, at, pieces, bounds[middles[record]], bounds[middles[record] + 1])
        at = _put_digits(out, at, samples[record])
        at = _put(out, at, _METRICS, 0, len(_METRICS))
        for cell in range(starts[record], starts[record + 1]):
            if cell > starts[record]:
                out[at] = _COMMA
                at += 1
            at = _put(out, at, pieces, bounds[names[cell]], bounds[names[cell] + 1])
            end = number
            while end < len(numbers) - 1 and numbers[np.uint64(end)] != _COMMA:
                end += 1
            if np.isinf(values[cell]):
                at = _put(out, at, _INFINITY if values[cell] > 0.0 else _MINUS_INFINITY, 0, len(_INFINITY))
            else:
                at = _put(out, at, numbers, number, end)
            number = end + 1
        at = _put(out, at, pieces, bounds[tails[record]], bounds[tails[record] + 1])
        ends[record] = at
    return out[:at], ends


@compiled
def _put(out: Bytes, at: int, text: Bytes, begin: int, end: int) -> int:
    """Copy ``text[begin:end]`` to ``out[at:]``; return where it ends."""
    # Unsigned: were numbers below zero possible, every byte would be looked at by itself.
    to, of = np.uint64(at), np.uint64(begin)
    for i in range(np.uint64(end - begin)):
        out[to + i] = text[of + i]
    return at + end - begin


@compiled
def _put_digits(out: Bytes, at: int, number: int) -> int:
    digits = 1
    rest = number // 10
    while rest:
        digits += 1
        rest //= 10
    for i in range(digits):
        out[at + digits - 1 - i] = _ZERO + number % 10
        number //= 10
    return at + digits
