"""The frames of a streamed remote read into label sets and the places of chunks, compiled by numba.

One pass: it checks each frame's CRC, walks the protobuf message, writes each series' labels as
the JSON object that the query API would give, and notes where the float chunks lie. There is
no Python step a frame or a chunk, and it never looks outside the bytes it was given.

Source: prometheus/prometheus storage/remote/chunked.go (a frame is its length as a varint, its
CRC-32C in four bytes, big-endian, and the message) and prompb/{remote,types}.proto.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import orjson

from ingestor.core.chunk import Int64Array
from ingestor.core.errors import SourceUnavailable
from ingestor.sources.base import canonical_labels
from ingestor.sources.xor import Bytes, compiled

LARGEST_FRAME_BYTES = 64 << 20
"""The server's default limit is 1 MiB; a length beyond this one is taken for garbage, not for memory to reserve."""

# The shortest that a chunk with its two bytes of data can be, with the lengths and types around it.
# A series is noted only if it has a chunk. Rooms are never too small, and untouched pages cost nothing.
_SHORTEST_CHUNK_BYTES = 8
# A control character becomes \u001f.
_LONGEST_ESCAPE_BYTES = 6

# What the scanner notes, and how it ends.
_CONSUMED, _SERIES, _CHUNKS, _TEXT, _SAMPLES, _HISTOGRAMS, _ENCODING, _NOTES = range(8)
_FINE, _MALFORMED, _WRONG_CRC, _TOO_LARGE, _UNKNOWN_ENCODING = range(5)
_COMPLAINTS = {
    _MALFORMED: "a frame is malformed",
    _WRONG_CRC: "a frame's checksum is wrong",
    _TOO_LARGE: "the answer is cut or is not a stream of frames",
}


class UnknownEncodingError(Exception):
    """A chunk is neither XOR-encoded floats nor native histograms; the message is its encoding's number."""


@dataclass(frozen=True, slots=True)
class Frames:
    """What was found in a piece of a stream."""

    consumed: int
    """Bytes of whole frames; those behind them are the beginning of the next one."""
    label_sets: list[bytes]
    """Of each series with chunks, in the order of the stream: a series whose chunks are
    spread over frames comes once for each."""
    first_chunks: Int64Array
    """Shape (series + 1,): series i has the chunks ``first_chunks[i]:first_chunks[i + 1]``, one at least."""
    starts: Int64Array
    """Shape (chunks,), where each chunk of floats begins in the piece."""
    ends: Int64Array
    samples: int
    """As many as the chunks of floats say that they hold."""
    histograms: int
    """Samples in chunks of native histograms, which are left out."""


def scan_frames(data: Bytes, size: int, without: dict[str, str] | None = None) -> Frames:
    """Read all whole frames of ``data[:size]``.

    Args:
        data: an array of uint8.
        size: how much of it is the stream's.
        without: labels that are left out of the label sets where name and value are these.

    Raises:
        SourceUnavailable: a frame is malformed, or its checksum is wrong.
        UnknownEncodingError: a chunk cannot be read here.
    """
    room = size // _SHORTEST_CHUNK_BYTES + 1
    text = np.empty(size * _LONGEST_ESCAPE_BYTES + 2, np.uint8)
    texts, first_chunks = np.empty((room, 3), np.int64), np.zeros(room + 1, np.int64)
    starts, ends = np.empty(room, np.int64), np.empty(room, np.int64)
    notes = np.zeros(_NOTES, np.int64)
    left_out, left_out_ends = _pairs(without or {})

    problem = _scan(data, size, left_out, left_out_ends, text, texts, first_chunks, starts, ends, notes)
    if problem == _UNKNOWN_ENCODING:
        raise UnknownEncodingError(str(notes[_ENCODING]))
    if problem:
        raise SourceUnavailable(_COMPLAINTS[problem])
    series, chunks = int(notes[_SERIES]), int(notes[_CHUNKS])
    return Frames(
        int(notes[_CONSUMED]),
        _label_sets(text[: notes[_TEXT]].tobytes(), texts[:series]),
        first_chunks[: series + 1],
        starts[:chunks],
        ends[:chunks],
        int(notes[_SAMPLES]),
        int(notes[_HISTOGRAMS]),
    )


def crc32c(data: Bytes, start: int, end: int) -> int:
    """Return the CRC-32C (Castagnoli) of ``data[start:end]``."""
    return int(_crc32c(data, start, end))


def _label_sets(text: bytes, texts: Int64Array) -> list[bytes]:
    label_sets = [text[start:end] for start, end, _ in texts.tolist()]
    if not text.isascii():
        label_sets = [_valid(labels) for labels in label_sets]
    for i in np.flatnonzero(texts[:, 2]).tolist():
        label_sets[i] = canonical_labels(label_sets[i])
    return label_sets


def _valid(labels: bytes) -> bytes:
    """Replace what is not UTF-8, which no label should hold, as the query API does."""
    return labels.decode(errors="replace").encode()


def _pairs(labels: dict[str, str]) -> tuple[Bytes, Int64Array]:
    """Return labels as the scanner writes them, one behind the other, and where each ends."""
    pairs = [orjson.dumps(name) + b":" + orjson.dumps(value) + b"," for name, value in labels.items()]
    data = np.frombuffer(b"".join(pairs) or b"\0", np.uint8)
    return cast("Bytes", data), np.cumsum(np.array(list(map(len, pairs)), np.int64))


# --- compiled: a position that is -1 says that what was to be read there is malformed ---

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_XOR, _HISTOGRAM, _FLOAT_HISTOGRAM = 1, 2, 3
_QUOTE, _BACKSLASH, _COMMA, _COLON, _OPEN, _CLOSE = b'"\\,:{}'
_BEFORE_SPACE = 0x20
_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)


def _short_escapes() -> Any:
    table = np.zeros(_BEFORE_SPACE, np.uint8)
    for char, letter in zip(b"\b\t\n\f\r", b"btnfr", strict=True):
        table[char] = letter
    return table


_SHORT_ESCAPES = _short_escapes()


def _crc_tables() -> Any:
    """Return the tables of slicing-by-8: one step takes eight bytes.

    Source: Kounavis and Berry, A Systematic Approach to Building High Performance Software-based CRC Generators, 2005.
    """
    reversed_polynomial = np.uint32(0x82F63B78)
    tables = np.zeros((8, 256), np.uint32)
    row = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        row = np.where(row & 1, (row >> 1) ^ reversed_polynomial, row >> 1)
    tables[0] = row
    for i in range(1, 8):
        tables[i] = (tables[i - 1] >> 8) ^ row[tables[i - 1] & 255]
    return tables.astype(np.uint64).reshape(-1)


_CRC = _crc_tables()
_U = np.uint64
_LOW_BYTE = _U(255)


@compiled
def _crc32c(data: Any, start: int, end: int) -> Any:
    crc = _U(0xFFFFFFFF)
    at, stop = _U(start), _U(end)
    while at + _U(8) <= stop:
        crc = (
            _CRC[_U(0x700) + ((crc ^ _U(data[at])) & _LOW_BYTE)]
            ^ _CRC[_U(0x600) + (((crc >> _U(8)) ^ _U(data[at + _U(1)])) & _LOW_BYTE)]
            ^ _CRC[_U(0x500) + (((crc >> _U(16)) ^ _U(data[at + _U(2)])) & _LOW_BYTE)]
            ^ _CRC[_U(0x400) + (((crc >> _U(24)) ^ _U(data[at + _U(3)])) & _LOW_BYTE)]
            ^ _CRC[_U(0x300) + _U(data[at + _U(4)])]
            ^ _CRC[_U(0x200) + _U(data[at + _U(5)])]
            ^ _CRC[_U(0x100) + _U(data[at + _U(6)])]
            ^ _CRC[_U(data[at + _U(7)])]
        )
        at += _U(8)
    while at < stop:
        crc = _CRC[(crc ^ _U(data[at])) & _LOW_BYTE] ^ (crc >> _U(8))
        at += _U(1)
    return crc ^ _U(0xFFFFFFFF)


@compiled
def _scan(
    data: Any,
    size: int,
    left_out: Any,
    left_out_ends: Int64Array,
    text: Any,
    texts: Int64Array,
    first_chunks: Int64Array,
    starts: Int64Array,
    ends: Int64Array,
    notes: Int64Array,
) -> int:
    """Fill the arrays from whole frames; give how it went.

    Args:
        data: the stream.
        size: where it ends.
        left_out: pairs of labels, see `_pairs`.
        left_out_ends: where each of them ends.
        text: room for the label sets as JSON.
        texts: start and end of each label set in *text*, and whether it must be put in order.
        first_chunks: of each series, and one more.
        starts: of each chunk.
        ends: of each chunk.
        notes: counts and places, by the names ``_CONSUMED`` to ``_ENCODING``.
    """
    while True:
        at, length = _number(data, notes[_CONSUMED], size)
        if at < 0:
            # Ten bytes hold any length: if so many are there, it is none.
            return _FINE if size - notes[_CONSUMED] < 10 else _TOO_LARGE
        if length < 0 or length > LARGEST_FRAME_BYTES:
            return _TOO_LARGE
        end = at + 4 + length
        if end > size:
            return _FINE
        crc = (_U(data[at]) << _U(24)) | (_U(data[at + 1]) << _U(16)) | (_U(data[at + 2]) << _U(8)) | _U(data[at + 3])
        at += 4
        if _crc32c(data, at, end) != crc:
            return _WRONG_CRC
        while at < end:
            at, field, kind, length = _field(data, at, end)
            if at < 0:
                return _MALFORMED
            if field == 1 and kind == _BYTES:
                problem = _series(
                    data, at, at + length, left_out, left_out_ends, text, texts, first_chunks, starts, ends, notes
                )
                if problem != _FINE:
                    return problem
            at += length
        notes[_CONSUMED] = end


@compiled
def _series(  # noqa: C901 - one walk over a message
    data: Any,
    at: int,
    end: int,
    left_out: Any,
    left_out_ends: Int64Array,
    text: Any,
    texts: Int64Array,
    first_chunks: Int64Array,
    starts: Int64Array,
    ends: Int64Array,
    notes: Int64Array,
) -> int:
    begin = notes[_TEXT]
    chunks_before = notes[_CHUNKS]
    text[begin] = _OPEN
    written = begin + 1
    last_name, last_name_end, disorder = 0, -1, 0
    while at < end:
        at, field, kind, length = _field(data, at, end)
        if at < 0:
            return _MALFORMED
        if field == 1 and kind == _BYTES:
            name, name_end, value, value_end = _label(data, at, at + length)
            if name < 0:
                return _MALFORMED
            if last_name_end >= 0 and not _rises(data, last_name, last_name_end, name, name_end):
                disorder = 1
            last_name, last_name_end = name, name_end
            pair = written
            written = _write_string(data, name, name_end, text, written)
            text[written] = _COLON
            written = _write_string(data, value, value_end, text, written + 1)
            text[written] = _COMMA
            written += 1
            if _is_left_out(text, pair, written, left_out, left_out_ends):
                written = pair
        elif field == 2 and kind == _BYTES:
            problem = _chunk(data, at, at + length, starts, ends, notes)
            if problem != _FINE:
                return problem
        at += length
    if notes[_CHUNKS] == chunks_before:
        return _FINE
    # The brace takes the place of the last comma.
    if written > begin + 1:
        written -= 1
    text[written] = _CLOSE
    notes[_TEXT] = written + 1
    series = notes[_SERIES]
    texts[series, 0], texts[series, 1], texts[series, 2] = begin, written + 1, disorder
    notes[_SERIES] = series + 1
    first_chunks[series + 1] = notes[_CHUNKS]
    return _FINE


@compiled
def _label(data: Any, at: int, end: int) -> tuple[int, int, int, int]:
    """Return start and end of name and value; an empty one is not written at all."""
    name, name_end, value, value_end = at, at, at, at
    while at < end:
        at, field, kind, length = _field(data, at, end)
        if at < 0:
            return -1, -1, -1, -1
        if field == 1 and kind == _BYTES:
            name, name_end = at, at + length
        elif field == 2 and kind == _BYTES:
            value, value_end = at, at + length
        at += length
    return name, name_end, value, value_end


@compiled
def _chunk(data: Any, at: int, end: int, starts: Int64Array, ends: Int64Array, notes: Int64Array) -> int:
    encoding, start, stop = 0, 0, 0
    while at < end:
        at, field, kind, length = _field(data, at, end)
        if at < 0:
            return _MALFORMED
        if field == 3 and kind == _VARINT:
            _, encoding = _number(data, at, end)
        elif field == 4 and kind == _BYTES:
            start, stop = at, at + length
        at += length
    if encoding != _XOR and encoding != _HISTOGRAM and encoding != _FLOAT_HISTOGRAM:  # noqa: PLR1714 - for numba a tuple is slower
        notes[_ENCODING] = encoding
        return _UNKNOWN_ENCODING
    if stop - start < 2:
        return _MALFORMED
    samples = np.int64(data[start]) << 8 | np.int64(data[start + 1])
    if encoding == _XOR:
        chunk = notes[_CHUNKS]
        starts[chunk], ends[chunk] = start, stop
        notes[_CHUNKS] = chunk + 1
        notes[_SAMPLES] += samples
    else:
        notes[_HISTOGRAMS] += samples
    return _FINE


@compiled
def _field(data: Any, at: int, end: int) -> tuple[int, int, int, int]:
    """Return where a field's content begins, its number, its wire type and its content's length."""
    at, tag = _number(data, at, end)
    if at < 0 or tag < 8:
        return -1, 0, 0, 0
    kind, length = tag & 7, 0
    if kind == _BYTES:
        at, length = _number(data, at, end)
    elif kind == _VARINT:
        behind, _ = _number(data, at, end)
        length = behind - at if behind >= 0 else -1
    elif kind == _FIXED64:
        length = 8
    elif kind == _FIXED32:
        length = 4
    else:
        return -1, 0, 0, 0
    if at < 0 or length < 0 or length > end - at:
        return -1, 0, 0, 0
    return at, tag >> 3, kind, length


@compiled
def _number(data: Any, at: int, end: int) -> tuple[int, Any]:
    """Return the place behind a varint, or -1 if it is cut or too long, and its 64 bits as a signed number."""
    number, shift = _U(0), 0
    while at < end and shift < 70:
        byte = _U(data[at])
        at += 1
        number |= (byte & _U(127)) << _U(shift)
        shift += 7
        if byte < _U(128):
            return at, np.int64(number)
    return -1, 0


@compiled
def _rises(data: Any, a: int, a_end: int, b: int, b_end: int) -> bool:
    """Tell whether one name stands before the other."""
    for i in range(min(a_end - a, b_end - b)):
        if data[a + i] != data[b + i]:
            return bool(data[a + i] < data[b + i])
    return a_end - a < b_end - b


@compiled
def _write_string(data: Any, at: int, end: int, text: Any, written: int) -> int:
    """Write a JSON string as orjson does; give the place behind it."""
    text[written] = _QUOTE
    written += 1
    for i in range(at, end):
        char = data[i]
        if char == _QUOTE or char == _BACKSLASH:  # noqa: PLR1714, SIM109 - for numba a tuple is slower
            text[written] = _BACKSLASH
            text[written + 1] = char
            written += 2
        elif char >= _BEFORE_SPACE:
            text[written] = char
            written += 1
        elif _SHORT_ESCAPES[char]:
            text[written] = _BACKSLASH
            text[written + 1] = _SHORT_ESCAPES[char]
            written += 2
        else:
            text[written] = _BACKSLASH
            text[written + 1] = ord("u")
            text[written + 2] = ord("0")
            text[written + 3] = ord("0")
            text[written + 4] = _HEX[char >> 4]
            text[written + 5] = _HEX[char & 15]
            written += 6
    text[written] = _QUOTE
    return written + 1


@compiled
def _is_left_out(text: Any, start: int, end: int, left_out: Any, left_out_ends: Int64Array) -> bool:
    first = 0
    for last in left_out_ends:
        if last - first == end - start:
            same = True
            for i in range(end - start):
                if text[start + i] != left_out[first + i]:
                    same = False
                    break
            if same:
                return True
        first = last
    return False
