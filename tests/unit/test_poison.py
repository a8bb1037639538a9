"""Spoiled bytes: every decoder refuses them with an error of ours, in little memory, and what is around them stays.

``PODSTREAM_SEED`` chooses other bytes; what fails says which seed it was.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import orjson
import pandas as pd
import poisoned
import pyarrow as pa
import pytest
import yaml
from builders import messages

from ingestor.core import wire
from ingestor.core.chunk import Header, RangeChunk
from ingestor.core.declared import declared_bytes
from ingestor.core.durations import LATEST_MS, ChunkSize
from ingestor.core.errors import ConfigError, MalformedMessage
from ingestor.core.time_range import TimeRange
from ingestor.sources.remote_read import RemoteReadUnsupported, external_labels
from ingestor.yaml_text import loaded
from stream_app.dead_letters import dead_letter
from stream_app.pipeline import Pipeline, Unreadable
from stream_app.view import View

SEED = int(os.environ.get("PODSTREAM_SEED", "11"))
TESTS = Path(__file__).parent.parent
T0 = 1_795_435_200_000


@pytest.mark.parametrize("decoder", poisoned.DECODERS)
def test_spoiled_bytes_are_read_or_refused(decoder: str) -> None:
    """Two thousand bodies a decoder: no foreign exception, no crash, and no more than a gigabyte to spare."""
    command = [sys.executable, str(TESTS / "poisoned.py"), decoder, str(SEED)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    read, refused = map(int, done.stdout.split())
    assert read + refused >= 2000
    assert read > 10, "the bytes are too wild to say anything"


def bomb(samples: int) -> bytes:
    """Return a chunk of one series, all of whose samples are alike."""
    names = [pa.array(["a"]).dictionary_encode()] * 5
    labels = pa.array([[]], pa.map_(pa.string(), pa.string()))
    zeros = np.zeros(samples, np.int64)
    columns = (labels, np.zeros(1, np.uint64), np.array([0, samples]), zeros, zeros.astype(float))
    return wire.encode_series(wire.SeriesColumns(*names, *columns))


def test_what_would_fill_the_memory_is_not_unpacked() -> None:
    """A message that Kafka takes, a hundred times as large as any chunk of ours, is refused unread."""
    largest, value = bomb(8_000_000), bomb(9_000_000)
    assert wire.decode_series(largest).samples == 8_000_000
    assert len(value) < 100_000
    assert declared_bytes(value) > wire.MOST_UNPACKED_BYTES
    before = pa.total_allocated_bytes()
    with pytest.raises(MalformedMessage, match="would unpack to 144,"):
        wire.decode_series(value)
    assert pa.total_allocated_bytes() == before


def records(view: View, stream: list, spoiled: list) -> list[tuple[bytes, bytes]]:
    """Feed a stream with spoiled messages between its own; return the records of its job, which must be all."""
    rng = random.Random(SEED)
    both = [*[(True, m) for m in stream], *[(False, m) for m in spoiled]]
    places = sorted(rng.sample(range(len(both)), len(stream)))
    order: list = [None] * len(both)
    for place, item in zip(places, both[: len(stream)], strict=True):
        order[place] = item
    rest = iter(both[len(stream) :])
    order = [item or next(rest) for item in order]
    pipeline, found = Pipeline(view, 0, ""), []
    for offset, (_, (headers, value)) in enumerate(order):
        try:
            item = wire.decode(headers, value)
        except MalformedMessage as error:
            letter = dead_letter("d", None, value, headers, topic="t", partition=0, offset=offset, error=error)
            item = Unreadable(wire.header_of(headers), letter)
        for emission in pipeline.feed(offset, item):
            found += [(o.key, o.value) for o in emission.outputs if o.topic != "d" and b'"job":"sound"' in o.value]
    return found


def test_what_is_around_the_poison_stays() -> None:
    """Among 2,000 spoiled chunks of another job, each of a job's records is byte for byte what it is without them."""
    rng = random.Random(SEED)
    minutes, pods = 30, ["api-0", "api-1", "db-0"]
    frame = pd.DataFrame(
        [
            {"namespace": "shop", "pod": pod, "metric": "cpu", "series": 0, "timestamp": T0 + t, "value": rng.random()}
            for pod in pods
            for t in range(0, minutes * 60_000, 15_000)
        ]
    )
    ranges = [TimeRange(T0 + m * 60_000, T0 + (m + 1) * 60_000) for m in range(minutes)]
    stream = max(messages(frame, ranges, "sound"), key=lambda one: sum(len(value or b"") for _, value in one))
    spoiled = poisoned.spoiled_chunks(2000, T0, rng)
    view = View(ChunkSize.parse("1m"), "mean")
    alone = records(view, stream, [])
    assert len(alone) >= minutes
    assert records(view, stream, spoiled) == alone


@pytest.mark.parametrize("recheck", ["", "far.recheck"])
def test_windows_centuries_apart_cost_what_windows_side_by_side_do(recheck: str) -> None:
    """Two well-formed chunks from both ends of the calendar make two windows, not nine billion between them."""
    pipeline, outputs = Pipeline(View(ChunkSize.parse("1s"), "mean"), 0, ""), []
    for number, start_ms in enumerate((0, LATEST_MS - 1_000)):
        names = [pa.array(["a"]).dictionary_encode()] * 5
        labels = pa.array([[]], pa.map_(pa.string(), pa.string()))
        columns = (labels, np.zeros(1, np.uint64), np.array([0, 1]), np.array([start_ms]), np.ones(1))
        header = Header("far", TimeRange(start_ms, start_ms + 1_000), number, "query", recheck=recheck)
        pipeline.feed(number, RangeChunk(header, wire.SeriesColumns(*names, *columns)))
    end = Header("far", TimeRange(0, LATEST_MS), 2, "query", recheck=recheck)
    for emission in pipeline.feed(2, wire.decode(wire.headers("end", end), None)):
        outputs += [orjson.loads(output.value)["window_end"] for output in emission.outputs]
    assert outputs == [1_000, LATEST_MS]


@pytest.mark.parametrize("metadata", ["x", "AAAA", "{}", "[]", "{", "é", '{"view":1,"read":1,"jobs":{}}'])
def test_another_programs_commit_is_refused(metadata: str) -> None:
    """What some other member of the group has committed is told in one line, before anything is read."""
    with pytest.raises(ConfigError, match="not written by stream-app worker"):
        Pipeline(View(ChunkSize.parse("1m"), "mean"), 0, metadata)


NINE = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (NINE, "too large"),
        ("a: &a [*a]", "holds itself"),
        ("[" * 20_000, "nested too deeply"),
        ("2026-13-45", "month"),
        ("!!int ''", "type"),
    ],
)
def test_yaml_that_grows_is_refused(text: str, words: str) -> None:
    """Ten lines that mean a billion values, or have no end, are refused before they are spelled out."""
    with pytest.raises(yaml.YAMLError, match=words):
        loaded(text)


@pytest.mark.parametrize(
    "labels", ["{k: *j}", "[" * 20_000, "{a: [b]}", "{[a]: b}", "{a: !!binary x}}", "just text", "[a]"]
)
def test_a_server_whose_labels_are_no_texts_is_asked_otherwise(labels: str) -> None:
    """A server's configuration is somebody else's: whatever it holds, the query API remains."""
    nested = "".join(f"  {line}\n" for line in NINE.splitlines())
    with pytest.raises(RemoteReadUnsupported):
        external_labels(f"global:\n{nested}  external_labels: {labels}\n")


def test_labels_are_what_is_written() -> None:
    """External labels are texts as Prometheus writes them: 1.0, yes and a date stay what they are."""
    text = "global:\n  external_labels:\n    a: 1.0\n    b: yes\n    c: 2026-11-29\n    d: 'x'\nscrape_configs: []\n"
    assert external_labels(text) == {"a": "1.0", "b": "yes", "c": "2026-11-29", "d": "x"}
    assert external_labels("global:\n  external_labels:\n") == external_labels("global:\n") == external_labels("") == {}
