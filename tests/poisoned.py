"""A program that feeds spoiled bytes to one decoder, with little memory to spare.

``python tests/poisoned.py DECODER SEED [ROUNDS]`` prints how many of them were read, refused with an error of
ours, and ends with 1 at the first that is neither. The same seed gives the same bytes.
"""

from __future__ import annotations

import random
import resource
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import orjson
import pyarrow as pa

from ingestor.cli import cli
from ingestor.config_file import read_config
from ingestor.core import wire
from ingestor.core.chunk import Header, Refused
from ingestor.core.durations import ChunkSize, parse_duration_ms, parse_time
from ingestor.core.errors import IngestorError
from ingestor.core.time_range import TimeRange
from ingestor.placements import decode
from ingestor.positions import Position
from ingestor.sources.remote_read import external_labels
from stream_app.consumer import commits
from stream_app.pipeline import Pipeline
from stream_app.records import decode_record, decode_records
from stream_app.view import View

SPARE_BYTES = 1 << 30
"""Of address space, on top of what the libraries have taken: a chunk may unpack to an eighth of it."""

ZSTD = b"\x28\xb5\x2f\xfd"
SIZES = [0, 1, -1, -2, 127 << 20, 1 << 31, 1 << 40, 2**62, 2**63 - 1, -(2**63)]


@dataclass(frozen=True, slots=True)
class Decoder:
    """What is fed, with what, and how it may refuse."""

    bodies: list[bytes]
    read: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...]
    tokens: list[bytes]


def chunk(rows: int = 3, samples: int = 40) -> bytes:
    """Return the value of a chunk."""
    names = [pa.array([f"{name}-{i}" for i in range(rows)]).dictionary_encode() for name in "abcde"]
    labels = pa.array([[("series", str(i))] for i in range(rows)], pa.map_(pa.string(), pa.string()))
    offsets, times = np.arange(rows + 1) * samples, np.tile(np.arange(samples) * 1000, rows)
    columns = wire.SeriesColumns(*names, labels, np.arange(rows, dtype=np.uint64), offsets, times, np.sqrt(times))
    return wire.encode_series(columns)


HEADER = Header("job", TimeRange(0, 60_000), 0, "query", recheck="job.recheck")


def message_of(body: bytes) -> object:
    """Read a message whose headers and value stand in one text, and let a pipeline count it."""
    size = int.from_bytes(body[:2], "little")
    lines = [line.partition(b"=") for line in body[2 : 2 + size].split(b"\n")]
    headers = [(name.decode("latin-1"), value) for name, _, value in lines]
    message = wire.decode(headers, body[2 + size :])
    pipeline = Pipeline(SECONDS, 0, "")
    ended = wire.decode(wire.headers("end", Header(message.header.job, TimeRange(0, 1), 2**62, "query")), None)
    return [*pipeline.feed(0, message), *pipeline.feed(1, ended)]


def message(kind: str) -> bytes:
    refused = [Refused("cpu", 0, 1)] if kind in ("marker", "end") else []
    headers = b"\n".join(name.encode() + b"=" + value for name, value in wire.headers(kind, HEADER, refused))
    return len(headers).to_bytes(2, "little") + headers + (b"" if refused else chunk())


SECONDS = View(ChunkSize.parse("1s"), "mean")

RECORD = orjson.dumps(
    {
        "namespace": "shop", "pod": "api-0", "service": "api", "window_start": 0, "window_end": 60_000,
        "chunk_size": "1m", "method": "mean", "job": "live", "revision": 0, "partial": False, "version": 1,
        "samples": 4, "metrics": {"cpu": 0.5, "memory": None, "up": "+Inf"}, "incomplete": ["cpu"],
    }
)  # fmt: skip
POSITION = Position("live", 0, None, 60_000, (1, 2), arguments={"url": "x"}, incomplete=("cpu",)).to_json()
SETTINGS = b"defaults: &a\n  topic-prefix: shop\nrun:\n  <<: *a\n  url: http://127.0.0.1:9090\n  settle: 30s\n"
RULES = b"- action: replace\n  source_labels: [a, b]\n  regex: '(a|b{1,3})(.*)'\n  target_label: c\n  replacement: $1\n"
SERVER = (
    b"global:\n  scrape_interval: 15s\n  external_labels: &a\n    cluster: one\n    zone: 'b'\nscrape_configs: []\n"
)
YAML = [
    b"&a ",
    b"*a",
    b"<<: *a",
    b"{",
    b"}",
    b"[" * 300,
    b"]",
    b": ",
    b"- ",
    b"\n",
    b"!!int ",
    b"!!binary ",
    b"? ",
    b"~",
]
YAML += [b"2026-13-45", b"9" * 5000, b"'", b'"', b"\x00", b"\xff", b"(" * 200, b"{9999}", b"1:99:99", b"|\n", b"---\n"]
JSON = [
    b"[",
    b"]",
    b"{",
    b"}",
    b'"',
    b",",
    b":",
    b"-",
    b"1e999",
    b"9" * 40,
    b"null",
    b"true",
    b"\xff",
    b"\\ud800",
    b"[" * 2000,
]
JSON += [b'"version":2', b'"NaN"', b"9223372036854775807", b"-9223372036854775808", b"1.5", b"\\u0000"]


def settings_of(body: bytes) -> object:
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(body)
        return read_config(Path(file.name), cli.commands, click.Context(cli))


def rules_of(body: bytes) -> object:
    relabel = next(option for option in cli.commands["run"].params if option.name == "relabel")
    return relabel.type.convert("\n" + body.decode("utf-8", "replace"), relabel, None)


def durations_of(body: bytes) -> object:
    text = body.decode("utf-8", "surrogateescape")
    read = 0
    for parse in (parse_duration_ms, lambda text: parse_time(text, 10**12), ChunkSize.parse):
        try:
            parse(text)
            read += 1
        except ValueError:
            pass
    if not read:
        raise ValueError(text)
    return read


def commit_of(body: bytes) -> object:
    return Pipeline(SECONDS, 0, body.decode("latin-1") or "x")


def consumer_commit_of(body: bytes) -> object:
    return commits.decode(commits.Commit(1, body.decode("latin-1")))


def placement_of(body: bytes) -> object:
    key, _, value = body.partition(b"=")
    pod, service = decode(key, value)
    assert pod.name
    assert service
    return pod


def columns_of(body: bytes) -> object:
    """Read a record between two others, which must come out as they are."""
    records, malformed = decode_records([RECORD, body, RECORD], [0, 1, 2])
    assert len(records) + len(malformed) == 3
    values, _ = records.matrix(["cpu"])
    assert values[0] == values[-1] == 0.5
    if malformed:
        raise malformed[0][1]
    return records


def labels_of(body: bytes) -> object:
    return external_labels(body.decode("utf-8", "replace"))


OURS = (IngestorError,)
LOST = {"from": 0, "to": 1, "next": 1, "recheck": ["a", 1], "holes": [[0, 1]]}
COMMIT = orjson.dumps({"view": SECONDS.identity, "jobs": {"live": LOST}, "read": 1})
CONSUMER = b'{"topic":"a","view":["1m","mean"],"processed":1,"from":1,"was_end":2,"jobs":{"live":[0,1]}}'
TIMES = [b"1h30m", b"10d", b"1mo@Europe/Berlin", b"2026-11-23T12:00:00Z", b"1795435200.5", b"now"]
MESSAGES = [message(kind) for kind in ("chunk", "lookback", "marker", "end")]
MESSAGE_PARTS = [b"=", b"\n", b"-", b"9" * 5000, b"9214646400000", b"chunk", b"end", b"\xff", b"[" * 2000, b"/2"]
TIME_PARTS = [b"9" * 400, b"w", b"ms", b"@", b"../", b"\xff", b"\xd9\xa3", b"+23:59", b"0001", b"\0", b"-"]
DECODERS = {
    "chunks": Decoder([chunk(), chunk(1, 1), chunk(200, 1)], wire.decode_series, OURS, [ZSTD, b"\xff" * 4, bytes(8)]),
    "messages": Decoder(MESSAGES, message_of, OURS, MESSAGE_PARTS),
    "records": Decoder([RECORD], decode_record, OURS, JSON),
    "record-columns": Decoder([RECORD], columns_of, OURS, JSON),
    "positions": Decoder([POSITION], Position.from_json, OURS, JSON),
    "placements": Decoder([b"shop/cart-7d9f8b6c5-x2x4z=cart"], placement_of, OURS, MESSAGE_PARTS),
    "commits": Decoder([COMMIT], commit_of, OURS, [*JSON, b"AAAA", b"eJy"]),
    "consumer-commits": Decoder([CONSUMER], consumer_commit_of, (), JSON),
    "external-labels": Decoder([SERVER], labels_of, OURS, YAML),
    "settings": Decoder([SETTINGS], settings_of, (click.BadParameter,), YAML),
    "rules": Decoder([RULES], rules_of, (click.BadParameter,), YAML),
    "durations": Decoder(TIMES, durations_of, (ValueError,), TIME_PARTS),
}
"""Those that numba compiles are fed in test_query_json.py, test_remote_read.py and test_xor.py, every index checked."""


def spoiled(body: bytes, tokens: list[bytes], rng: random.Random) -> bytes:
    """Return *body* with flipped bits, cuts, repetitions, foreign pieces and lengths that are lies."""
    changed = bytearray(body)
    for _ in range(rng.randint(1, 4)):
        at, what = rng.randrange(len(changed) + 1), rng.random()
        if what < 0.35 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif what < 0.45:
            del changed[at:]
        elif what < 0.55:
            del changed[at : at + rng.randint(1, 40)]
        elif what < 0.75:
            changed[at : at + rng.choice((0, 0, 1, 8))] = rng.choice(tokens)
        elif what < 0.85:
            other = rng.randrange(len(changed) + 1)
            changed[at:at] = changed[other : other + rng.randint(1, 90)]
        else:
            at -= at % 8
            changed[at : at + 8] = struct.pack("<q", rng.choice(SIZES))
    return bytes(changed)


def spoiled_chunks(count: int, start_ms: int, rng: random.Random) -> list[tuple[list[tuple[str, bytes]], bytes]]:
    """Return headers and values of so many messages of a job of their own, most of which cannot be read."""
    whole = wire.headers("chunk", Header("spoiled", TimeRange(start_ms, start_ms + 60_000), 0, "query"))
    messages = []
    for number in range(count):
        value = spoiled(chunk(), [b"\xff" * 8, ZSTD], rng)
        headers = [
            (name, spoiled(content, [b"9" * 30], rng) if name != "job" and rng.random() < 0.1 else content)
            for name, content in whole
        ]
        headers = [(n, b"%d" % number if n == "sequence" and rng.random() < 0.5 else c) for n, c in headers]
        # What a newer podstream has written stops a worker, and is no poison.
        messages.append(([(n, c) for n, c in headers if n != "schema"] + [whole[0]], value))
    return messages


def lying(body: bytes, size: int) -> list[bytes]:
    """Return *body* so often as it has compressed buffers, each time with another uncompressed length."""
    lies, at = [], body.find(ZSTD)
    while at >= 0:
        lies.append(body[: at - 8] + struct.pack("<q", size) + body[at:])
        at = body.find(ZSTD, at + 1)
    return lies


def limit_memory() -> None:
    """Take no more address space than there is now and SPARE_BYTES; what is over raises MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main(name: str, seed: int, rounds: int = 2000) -> None:
    decoder, rng = DECODERS[name], random.Random(seed)
    for body in decoder.bodies:
        decoder.read(body)
    limit_memory()
    counts: Counter[str] = Counter()
    lies = [lie for body in decoder.bodies for size in SIZES for lie in lying(body, size)] if name == "chunks" else []
    for number in range(rounds + len(lies)):
        body = lies[number] if number < len(lies) else spoiled(rng.choice(decoder.bodies), decoder.tokens, rng)
        try:
            decoder.read(body)
            counts["read"] += 1
        except decoder.refusals:
            counts["refused"] += 1
        except BaseException:
            sys.stderr.write(f"{name}, seed {seed}, number {number}: {body[:2000]!r}\n")
            raise
    sys.stdout.write(f"{counts['read']} {counts['refused']}\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *map(int, sys.argv[3:]))
