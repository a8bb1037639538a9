"""The compiled decoder reads what Gorilla's encoding says, bit for bit, and nothing breaks it."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingestor.sources.base import STALE_MARKER_BITS
from ingestor.sources.xor import MALFORMED, NO_ROOM, PADDING_BYTES, decode_chunks

Sample = tuple[int, int]
"""A timestamp, and a value's bits."""

EVER = (-(2**63), 2**63 - 1)


class Bits:
    """A stream of bits, as a number."""

    def __init__(self) -> None:
        self.number, self.length = 0, 0

    def write(self, number: int, width: int) -> None:
        self.number = self.number << width | number & (1 << width) - 1
        self.length += width

    def write_varint(self, number: int) -> None:
        while number > 127:
            self.write(number & 127 | 128, 8)
            number >>= 7
        self.write(number, 8)

    def whole(self) -> bytes:
        padding = -self.length % 8
        return (self.number << padding).to_bytes((self.length + padding) // 8, "big")


def encode(samples: list[Sample]) -> bytes:
    """Write a chunk as Prometheus' appender does (tsdb/chunkenc/xor.go), slowly."""
    out = Bits()
    out.write(len(samples), 16)
    time = delta = value = 0
    window: tuple[int, int] | None = None
    for i, (t, bits) in enumerate(samples):
        if i == 0:
            out.write_varint((t << 1 ^ t >> 63) & (1 << 64) - 1)
            out.write(bits, 64)
        else:
            new_delta = t - time
            if i == 1:
                out.write_varint(new_delta & (1 << 64) - 1)
            else:
                write_delta_of_delta(out, new_delta - delta)
            window = write_xor(out, bits ^ value, window)
            delta = new_delta
        time, value = t, bits
    return out.whole()


def write_delta_of_delta(out: Bits, change: int) -> None:
    if change == 0:
        out.write(0, 1)
        return
    for prefix, width, size in ((0b10, 2, 14), (0b110, 3, 17), (0b1110, 4, 20)):
        if -(1 << size - 1) < change <= 1 << size - 1:
            out.write(prefix, width)
            out.write(change, size)
            return
    out.write(0b1111, 4)
    out.write(change, 64)


def write_xor(out: Bits, change: int, window: tuple[int, int] | None) -> tuple[int, int] | None:
    if change == 0:
        out.write(0, 1)
        return window
    leading, trailing = min(64 - change.bit_length(), 31), (change & -change).bit_length() - 1
    if window and leading >= window[0] and trailing >= window[1]:
        leading, trailing = window
        out.write(0b10, 2)
    else:
        out.write(0b11, 2)
        out.write(leading, 5)
        out.write(64 - leading - trailing, 6)
    out.write(change >> trailing, 64 - leading - trailing)
    return leading, trailing


def decode(
    chunks: list[bytes], time_range: tuple[int, int] = EVER, room: int | None = None
) -> tuple[list[int], list[Sample]]:
    """Return how many samples of each chunk were kept, and all of them."""
    data = np.frombuffer(b"".join(chunks) + b"\xff" * PADDING_BYTES, np.uint8)
    ends = np.cumsum(np.array([len(chunk) for chunk in chunks], np.int64))
    starts = ends - np.array([len(chunk) for chunk in chunks], np.int64)
    room = sum(int.from_bytes(chunk[:2], "big") for chunk in chunks) if room is None else room
    timestamps_ms, values = np.zeros(room, np.int64), np.zeros(room, np.float64)
    kept = decode_chunks(data, starts, ends, *time_range, timestamps_ms, values).tolist()  # type: ignore[arg-type]
    full = sum(n for n in kept if n > 0)
    samples = zip(timestamps_ms[:full].tolist(), values[:full].view(np.uint64).tolist(), strict=True)
    return kept, list(samples)


def float_bits(value: float) -> int:
    return struct.unpack(">Q", struct.pack(">d", value))[0]


DELTAS = st.one_of(
    st.sampled_from([0, 1, 15_000]),
    st.integers(14_000, 16_000),
    st.sampled_from([2**13, 2**13 + 1, -(2**13), 2**16, 2**16 + 1, 2**19, 2**19 + 1, -(2**19), 2**40]),
    st.integers(-(2**40), 2**40),
)
VALUES = st.one_of(
    st.integers(0, 2**64 - 1),
    st.sampled_from([0, 1, 2**63, 2**64 - 1, 0x7FF8000000000001, float_bits(1.0), float_bits(-0.0)]),
    st.integers(0, 10**6).map(lambda n: float_bits(float(n))),
)
CHUNKS = st.lists(st.tuples(DELTAS, VALUES.filter(lambda bits: bits != STALE_MARKER_BITS)), max_size=40)


def samples_of(steps: list[tuple[int, int]], start: int = 1_700_000_000_000) -> list[Sample]:
    samples = []
    for delta, bits in steps:
        start += delta
        samples.append((start, bits))
    return samples


@settings(max_examples=300, deadline=None)
@given(st.lists(CHUNKS, max_size=4), st.integers(-(2**50), 2**50))
def test_what_was_encoded_comes_back(chunks: list[list[tuple[int, int]]], start: int) -> None:
    """Every timestamp and every bit of every value, at all the widths that the encoding has."""
    samples = [samples_of(steps, start) for steps in chunks]
    kept, found = decode([encode(part) for part in samples])
    assert kept == [len(part) for part in samples]
    assert found == [sample for part in samples for sample in part]


def test_the_borders_of_the_widths() -> None:
    """Each width's largest and smallest change of the delta, where Prometheus' reading is one-sided."""
    changes = [s * (1 << bits) + d for bits in (13, 16, 19) for s in (1, -1) for d in (-1, 0, 1)]
    for change in changes:
        samples = [(0, 1), (2**20, 1), (2**21 + change, 1), (2**22 + change, 1)]
        assert decode([encode(samples)]) == ([4], samples)


@settings(max_examples=100, deadline=None)
@given(CHUNKS, st.integers(0, 10**6), st.integers(0, 10**6))
def test_only_the_range_is_kept(steps: list[tuple[int, int]], start: int, length: int) -> None:
    """From the first millisecond on, and without the last."""
    samples = samples_of([(abs(delta) % 20_000, bits) for delta, bits in steps], start=0)
    kept, found = decode([encode(samples)], (start, start + length))
    assert found == [(t, bits) for t, bits in samples if start <= t < start + length]
    assert kept == [len(found)]


def test_stale_markers_go_and_other_nans_stay() -> None:
    """There is one NaN that is no sample; the others keep their bits."""
    nan = 0x7FF8000000000001
    samples = [(1, STALE_MARKER_BITS), (2, nan), (3, STALE_MARKER_BITS), (4, float_bits(1.5)), (5, 0xFFF0000000000002)]
    assert decode([encode(samples)]) == ([3], [samples[1], samples[3], samples[4]])


def test_a_chunk_cut_anywhere_is_malformed_and_the_others_are_read() -> None:
    """Its error is its own."""
    rng = random.Random(3)
    samples = samples_of([(rng.randrange(10**6), float_bits(rng.random())) for _ in range(20)])
    chunk, other = encode(samples), encode([(7, 8), (9, 10)])
    for length in range(len(chunk)):
        kept, found = decode([other, chunk[:length], other], room=100)
        assert kept == [2, MALFORMED, 2]
        assert found == [(7, 8), (9, 10)] * 2


def test_more_samples_than_there_is_room_for_are_told() -> None:
    """Nothing is written beyond the room, and nothing after the chunk that did not fit."""
    chunk = encode([(1, 2), (3, 4), (5, 6)])
    assert decode([chunk] * 3, room=8) == ([3, 3, NO_ROOM], [(1, 2), (3, 4), (5, 6)] * 2)
    assert decode([chunk] * 3, room=2)[0] == [NO_ROOM] * 3


@pytest.mark.parametrize(
    "chunk",
    [
        *(b"", b"\0", b"\0\1", b"\0\1\0", b"\0\1" + b"\x80" * 10 + bytes(20), b"\0\1" + b"\xff" * 9 + b"\2" + bytes(9)),
        # A window of leading zeros and width that is more than 64 bits.
        b"\0\2\0" + bytes(8) + b"\0" + b"\xff" * 20,
    ],
)
def test_what_is_impossible_is_malformed(chunk: bytes) -> None:
    """Numbers that are too long, windows that are too wide."""
    assert decode([chunk], room=10) == ([MALFORMED], [])


# A program, so that numba can be told to check every index: it is decided at compilation.
FUZZ = """
import random, sys
import numpy as np
from ingestor.sources.xor import PADDING_BYTES, decode_chunks
rng = random.Random(int(sys.argv[1]))
body = sys.stdin.buffer.read()
timestamps_ms, values = np.zeros(2000, np.int64), np.zeros(2000, np.float64)
seen = set()
for round in range(40_000):
    mutant = bytearray(body)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(mutant))
        if rng.random() < 0.5:
            mutant[at] ^= 1 << rng.randrange(8)
        elif rng.random() < 0.5:
            mutant[at:at + rng.randint(1, 9)] = rng.randbytes(rng.randint(0, 9))
        else:
            mutant[:2] = rng.randrange(3000).to_bytes(2, "big")
    if rng.random() < 0.2:
        mutant = bytearray(rng.randbytes(rng.randint(0, 60)))
    end = rng.randrange(len(mutant) + 1) if rng.random() < 0.5 else len(mutant)
    # No byte more than is promised.
    data = np.frombuffer(bytes(mutant[:end]) + rng.randbytes(PADDING_BYTES), np.uint8)
    room = rng.choice((0, 5, 2000))
    kept = decode_chunks(data, np.array([0]), np.array([end]), -2**62, 2**62, timestamps_ms[:room], values[:room])
    assert -2 <= kept[0] <= room
    seen.add(min(int(kept[0]), 1))
assert seen == {-2, -1, 0, 1}, seen
for start, end in ((5, 2), (-4, 3), (0, 10**9), (10**9, 2 * 10**9), (-2**63, 2**63 - 1), (0, len(data)), (-9, -3)):
    decode_chunks(data, np.array([start]), np.array([end]), 0, 1, timestamps_ms, values)
"""


def test_no_bytes_break_the_decoder(tmp_path: Any) -> None:
    """Whatever the bytes and their length are, no index is ever out of bounds."""
    rng = random.Random(5)
    steps = [(rng.choice([15_000, 10**5, 10**6, 10**12]), float_bits(rng.random())) for _ in range(30)]
    body = encode(samples_of(steps))
    checking = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, "11"], input=body, env=checking, capture_output=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr.decode()
