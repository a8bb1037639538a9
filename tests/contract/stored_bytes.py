"""A program that writes what this release leaves behind.

``PYTHONPATH=tests python tests/contract/stored_bytes.py FOLDER``

It is run once a release, into a new folder below ``tests/data``; later releases read every one of them.
"""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from sink_scenario import SINKS, play, record

from ingestor.core import wire
from ingestor.core.chunk import Header, Refused, SeriesColumns
from ingestor.core.durations import ChunkSize
from ingestor.core.time_range import TimeRange
from ingestor.positions import Position
from stream_app.consumer import commits
from stream_app.consumer.views import View as ConsumerView
from stream_app.pipeline import Pipeline
from stream_app.sinks.checkpoint import OWN_FOLDER
from stream_app.view import View

START_MS = 1_795_435_200_000
VIEW = View(ChunkSize.parse("1m"), "mean")
RANGE = TimeRange(START_MS, START_MS + 90_000)
REFUSED = Refused("cpu", START_MS + 1_000, START_MS + 2_000)
POSITION = Position(
    "live", START_MS, None, START_MS + 90_000, (3, 2), samples=4, arguments={"start": "10d"}, incomplete=("cpu",),
    updated_ms=START_MS + 95_000, samples_per_s=1.5, last_error="away", last_error_ms=START_MS,
)  # fmt: skip
RECORDS = [
    record(0, cpu=0.5, memory=3379200.0),
    record(1, "api-2", cpu=1e-07),
    record(2, service="cart", cpu=-2.5),
    record(0, "api-3", partial=True, cpu=1.0),
    record(1, revision=1, up=1.0),
]


def series() -> SeriesColumns:
    """Return two series, one of them without a pod."""
    texts = [["shop", ""], ["api-0", ""], ["api", "node"], ["cpu", "up"], ["counter", "gauge"]]
    names = [pa.array(text).dictionary_encode() for text in texts]
    labels = pa.array([[("code", "500"), ("pod", "api-0")], []], pa.map_(pa.string(), pa.string()))
    times = START_MS + np.array([0, 15_000, 60_000, 30_000])
    bits = np.array([1 << 63, 0x7FF8000000000001, 0x3FD5555555555555, 0x7FF << 52], np.uint64)
    return SeriesColumns(
        *names, labels, np.array([7, 2**64 - 1], np.uint64), np.array([0, 3, 4]), times, bits.view(float)
    )


def messages() -> list[tuple[list[tuple[str, bytes]], bytes]]:
    """Return a job's first chunk, a marker that says what is missing, and its end."""
    first, *others = (Header("live", RANGE, sequence, "query", 1, "live.recheck") for sequence in range(3))
    return [
        (wire.headers("chunk", first), wire.encode_series(series())),
        (wire.headers("marker", others[0], [REFUSED]), b""),
        (wire.headers("end", others[1]), b""),
    ]


def commit() -> tuple[int, str]:
    """Return where a worker stands after the marker: offset and metadata."""
    pipeline = Pipeline(VIEW, 0, "")
    for offset, (headers, value) in enumerate(messages()[:2]):
        emissions = pipeline.feed(offset, wire.decode(headers, value))
    return emissions[-1].offset, emissions[-1].metadata


def packed_commit() -> str:
    """Return the metadata of so many open jobs that it is packed."""
    pipeline = Pipeline(VIEW, 0, "")
    for offset in range(100):
        header = Header(f"backfill-{offset:010}", RANGE, 0, "query")
        pipeline.feed(offset, wire.decode(wire.headers("marker", header), None))
    return pipeline.idle_emission().metadata


BEGINNING = commits.Beginning(5, 9, START_MS, 12, {"live": commits.Front(START_MS, START_MS + 60_000, START_MS)})


def text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    offset, metadata = commit()
    consumer = commits.encode("topic-id", ConsumerView("1m", "mean"), BEGINNING)
    stored: dict[str, Any] = {
        "messages": [{"headers": {n: text(v) for n, v in headers}, "value": text(v)} for headers, v in messages()],
        "position": text(POSITION.to_json()),
        "commit": [offset, metadata],
        "packed_commit": packed_commit(),
        "consumer_commit": [consumer.offset, consumer.metadata],
    }
    (folder / "kafka.json").write_bytes(orjson.dumps(stored, option=orjson.OPT_INDENT_2))
    for name, opened in SINKS.items():
        sink = opened(folder / name)
        # Not to its end: what waits beside the files is a part of what is stored.
        play(sink, RECORDS, 2, complete=False)
        sink.close()
        # It names the process, which is gone.
        (folder / name / OWN_FOLDER / "lock").unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
