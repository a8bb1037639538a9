"""What earlier releases left behind is read by this one; ``stored_bytes.py`` beside it has written it."""

from __future__ import annotations

import base64
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import sink_scenario
import stored_bytes
from sink_scenario import SINKS, expected, found, play, record

from ingestor.core import wire
from ingestor.core.chunk import Marker, RangeChunk
from ingestor.positions import Position
from stream_app.consumer import commits
from stream_app.pipeline import Pipeline

RELEASES = sorted(path for path in (Path(__file__).parents[1] / "data").iterdir() if path.is_dir())


@pytest.fixture(params=RELEASES, ids=lambda path: path.name)
def release(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def stored(release: Path) -> dict[str, Any]:
    return orjson.loads((release / "kafka.json").read_bytes())


def messages(stored: dict[str, Any]) -> list[RangeChunk | Marker]:
    return [
        wire.decode([(n, base64.b64decode(v)) for n, v in m["headers"].items()], base64.b64decode(m["value"]))
        for m in stored["messages"]
    ]


def test_a_chunk_is_read(stored: dict[str, Any]) -> None:
    """Names, labels and samples come back bit by bit, and headers with them; so do markers."""
    chunk, marker, end = messages(stored)
    written = stored_bytes.series()
    assert isinstance(chunk, RangeChunk)
    for name in written.__slots__:
        was, now = getattr(written, name), getattr(chunk.series, name)
        same = (
            np.array_equal(was.view(np.uint8), now.view(np.uint8)) if isinstance(was, np.ndarray) else was.equals(now)
        )
        assert same, name
    assert (chunk.header.time_range, chunk.header.job, chunk.header.recheck) == (
        stored_bytes.RANGE, "live", "live.recheck",
    )  # fmt: skip
    assert isinstance(marker, Marker)
    assert marker.incomplete == (stored_bytes.REFUSED,)
    assert isinstance(end, Marker)
    assert (marker.ends_job, end.ends_job) == (False, True)


def test_a_position_is_read(stored: dict[str, Any]) -> None:
    """A poller goes on where the earlier one stopped."""
    assert Position.from_json(base64.b64decode(stored["position"])) == stored_bytes.POSITION


def test_a_worker_goes_on(stored: dict[str, Any]) -> None:
    """From an earlier worker's commit only what that one had not emitted comes: the window that the end cuts."""
    offset, metadata = stored["commit"]
    pipeline, windows = Pipeline(stored_bytes.VIEW, offset, metadata), []
    for number, message in list(enumerate(messages(stored)))[offset:]:
        for emission in pipeline.feed(number, message):
            windows += [orjson.loads(output.value)["window_start"] for output in emission.outputs]
    assert windows == [stored_bytes.START_MS + 60_000]
    packed = Pipeline(stored_bytes.VIEW, 100, stored["packed_commit"])
    assert len(orjson.loads(_unpacked(packed.idle_emission().metadata))["jobs"]) == 100


def _unpacked(metadata: str) -> bytes:
    return zlib.decompress(base64.b64decode(metadata))


def test_a_consumer_goes_on(stored: dict[str, Any]) -> None:
    """A member begins where an earlier release's member has committed."""
    committed = commits.decode(commits.Commit(*stored["consumer_commit"]))
    assert committed is not None
    assert committed.beginning == stored_bytes.BEGINNING
    assert (committed.topic_id, tuple(committed.view or ())) == ("topic-id", ("1m", "mean"))


@pytest.mark.parametrize("file_format", SINKS)
def test_a_storage_goes_on(release: Path, file_format: str, tmp_path: Path) -> None:
    """Files, checkpoint and what waits beside them are taken over, and later records are added and merged."""
    folder = tmp_path / "data"
    shutil.copytree(release / file_format, folder)
    more = [*stored_bytes.RECORDS, record(0, "api-3", cpu=2.0), record(3, cpu=3.0), record(1, "new", disk=4.0)]
    sink = SINKS[file_format](folder)
    assert sink.offsets == {sink_scenario.TOPIC: {sink_scenario.PARTITION: len(stored_bytes.RECORDS)}}
    play(sink, more, 2)
    sink.close()
    assert found(folder) == expected(more)
