"""How much memory an Arrow stream asks for, read from its own headers before anything is unpacked.

A compressed buffer begins with its uncompressed length. Whoever writes a message chooses it: 50 kB can ask
for gigabytes, and give them.
Source: Apache Arrow, Columnar Format: Message.fbs, Schema.fbs, "Body compression"; FlatBuffers, Internals.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pyarrow as pa

_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3
_NOT_COMPRESSED = -1


def declared_bytes(value: bytes) -> int:
    """Return how many bytes the compressed buffers of an Arrow stream unpack to; the others are views of *value*.

    Raises:
        ValueError: a header points outside of its message, or a length is negative.
        pa.ArrowException: it is no Arrow stream.
    """
    return sum(_buffers_bytes(message) for message in pa.ipc.MessageReader.open_stream(value))


def _buffers_bytes(message: pa.ipc.Message) -> int:
    total, body = 0, memoryview(message.body or b"")
    try:
        for offset, length in _compressed(memoryview(message.metadata)):
            if not length:
                continue
            (unpacked,) = struct.unpack_from("<q", body, offset)
            if unpacked < _NOT_COMPRESSED:
                raise ValueError(f"a buffer says that it unpacks to {unpacked} bytes")
            total += max(unpacked, 0)
    except struct.error as error:
        raise ValueError(f"a header points outside of its message: {error}") from error
    return total


def _compressed(header: memoryview) -> Iterator[tuple[int, int]]:
    """Yield where in the message's body each compressed buffer lies."""
    message = _target(header, 0)
    kind_at, batch = _field(header, message, 1), _field(header, message, 2)
    kind = header[kind_at] if kind_at else 0
    if not batch or kind not in (_DICTIONARY_BATCH, _RECORD_BATCH):
        return
    batch = _target(header, batch)
    if kind == _DICTIONARY_BATCH:
        inner = _field(header, batch, 1)
        if not inner:
            return
        batch = _target(header, inner)
    buffers = _field(header, batch, 2)
    if buffers and _field(header, batch, 3):
        vector = _target(header, buffers)
        (count,) = struct.unpack_from("<I", header, vector)
        yield from struct.iter_unpack("<qq", header[vector + 4 : vector + 4 + 16 * count])


def _target(header: memoryview, at: int) -> int:
    """Return where the table or vector begins that *at* refers to."""
    return at + int(struct.unpack_from("<I", header, at)[0])


def _field(header: memoryview, table: int, number: int) -> int:
    """Return where a field of a table lies; 0: the table does not have it."""
    vtable = table - int(struct.unpack_from("<i", header, table)[0])
    if vtable < 0:
        raise ValueError("a header's table begins before it")
    if 4 + 2 * number >= struct.unpack_from("<H", header, vtable)[0]:
        return 0
    (offset,) = struct.unpack_from("<H", header, vtable + 4 + 2 * number)
    return table + int(offset) if offset else 0
