"""The least that any pipeline must do: one streamed remote read of all samples, and decoding them.

A program of its own: ``floor.py URL START_MS END_MS SAMPLES``. It prints a JSON line with the second of two
passes; the first has loaded the compiled kernels.
"""

from __future__ import annotations

import http.client
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import click
import numpy as np
import orjson
import pyarrow as pa

from ingestor.core.time_range import TimeRange
from ingestor.selector import Matcher, Selector
from ingestor.sources.frames import scan_frames
from ingestor.sources.remote_read import _HEADERS, _request
from ingestor.sources.xor import MOST_SAMPLES_A_CHUNK, PADDING_BYTES, decode_chunks

_PIECE_BYTES = 4 << 20


@contextmanager
def streamed(url: str, time_range: TimeRange) -> Iterator[http.client.HTTPResponse]:
    """Ask for every sample of every pod; the answer's frames are still to be read."""
    request = _request(Selector((Matcher("pod", "!=", ""),)), time_range, {})
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    try:
        connection.request("POST", "/api/v1/read", pa.compress(request, codec="snappy", asbytes=True), _HEADERS)
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            raise click.ClickException(f"{url} refuses: {response.read().decode()}")
        yield response
    finally:
        connection.close()


def read_all(url: str, time_range: TimeRange, timestamps_ms: np.ndarray, values: np.ndarray) -> int:
    """Fill two arrays with every sample of every pod; return how many there are."""
    buffer = np.empty(2 * _PIECE_BYTES + PADDING_BYTES, np.uint8)
    view = memoryview(buffer)
    held = full = 0
    with streamed(url, time_range) as response:
        while got := response.readinto(view[held : held + _PIECE_BYTES]):
            held += got
            frames = scan_frames(buffer, held)
            kept = decode_chunks(
                buffer,
                frames.starts,
                frames.ends,
                time_range.start_ms,
                time_range.end_ms,
                timestamps_ms[full:],
                values[full:],
            )
            full += int(kept.sum())
            rest = held - frames.consumed
            buffer[:rest] = buffer[frames.consumed : held]
            held = rest
    return full


def main() -> None:
    url, time_range = sys.argv[1], TimeRange(int(sys.argv[2]), int(sys.argv[3]))
    room = int(sys.argv[4]) + MOST_SAMPLES_A_CHUNK
    # Touched before: what the kernel takes to give memory is not the work's.
    timestamps_ms, values = np.full(room, 1), np.full(room, 1.0)
    told = {}
    for _ in range(2):
        wall, cpu = time.perf_counter(), time.process_time()
        samples = read_all(url, time_range, timestamps_ms, values)
        told = {
            "samples": samples,
            "wall_s": time.perf_counter() - wall,
            "cpu_s": time.process_time() - cpu,
        }
    click.echo(orjson.dumps(told))


if __name__ == "__main__":
    main()
