"""Each stage of the data path by itself, one after the other in one process: where the time goes.

A program of its own: ``stages.py BOOTSTRAP_SERVERS URL START_MS END_MS FOLDER NUMBER``; it prints a JSON line, stage
by stage wall and CPU seconds. All stages run on a short stretch first, which loads the compiled kernels. Their wall
times do not add up to the pipeline's, whose stages overlap; that of consuming has Faust's start in it.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
import orjson
from confluent_kafka import Consumer
from floor import streamed

from ingestor.catalogue import Catalogue, Meaning
from ingestor.core import wire
from ingestor.core.chunk import Marker
from ingestor.core.durations import ChunkSize
from ingestor.core.time_range import TimeRange
from ingestor.core.topics import Topics
from ingestor.kafka import FOREVER_MS, Cluster, client_config, connect, ensure_topics, read_to_end
from ingestor.packing import FetchedSeries, PackedRange, pack
from ingestor.positions import Position
from ingestor.publisher import Publisher
from ingestor.sources.base import SeriesBlock, tidy
from ingestor.sources.frames import scan_frames
from ingestor.sources.xor import MOST_SAMPLES_A_CHUNK, PADDING_BYTES, decode_chunks
from ingestor.workloads import service_of
from stream_app.app import Worker, WorkerSettings
from stream_app.files import FilesSettings, run_files
from stream_app.pipeline import Emission, Pipeline
from stream_app.standing import Standing
from stream_app.telemetry import Telemetry
from stream_app.transactions import Transactions
from stream_app.view import View

PARTITIONS = 8
_RANGE_MS = 100 * 60_000
"""Of 5,000 series 2 million samples, which is what the poller aims at."""
_WARM_UP_MS = 10 * 60_000

Message = tuple[wire.Headers, bytes]


@dataclass(slots=True)
class Clock:
    """Adds up what stages take."""

    wall_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    cpu_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall_s[name] += time.perf_counter() - wall
        self.cpu_s[name] += time.process_time() - cpu


@dataclass(slots=True)
class Stages:
    """The data path, cut into pieces."""

    cluster: Cluster
    url: str
    whole: TimeRange
    folder: Path
    name: str
    clock: Clock = field(default_factory=Clock)
    samples: int = 0

    def run(self) -> None:
        """Take all samples through all stages."""
        topics = Topics(f"bench-stages-{self.name}")
        admin = connect(self.cluster)
        ensure_topics(admin, topics, PARTITIONS, retention_ms=FOREVER_MS)
        view = View(ChunkSize.parse("1m"), "mean", topics=topics)
        ranges = self._packed()
        with Publisher(self.cluster, topics, self.name) as publisher, self.clock.stage("produce"):
            position = Position(
                self.name, self.whole.start_ms, self.whole.end_ms, self.whole.start_ms, (0,) * PARTITIONS
            )
            for packed in ranges:
                position = publisher.publish(packed, position)
        del ranges
        values = self._values(topics.range_chunks)
        with self.clock.stage("consume"):
            asyncio.run(_Reading(self.cluster, view, sum(map(len, values))).run())
        self._send(view, self._emissions(view, values))
        for file_format in ("csv", "parquet"):
            storage = self.folder / f"{self.name}-{file_format}"
            with self.clock.stage(f"write {file_format}"):
                settings = FilesSettings(self.cluster, topics, storage, file_format, until_idle=True, idle_s=0.0)
                run_files(settings, threading.Event())

    def _packed(self) -> list[PackedRange]:
        catalogue = Catalogue(PARTITIONS, Meaning(dict), {})
        packed = []
        for start_ms in range(self.whole.start_ms, self.whole.end_ms, _RANGE_MS):
            time_range = TimeRange(start_ms, min(start_ms + _RANGE_MS, self.whole.end_ms))
            with self.clock.stage("fetch"):
                body = self._fetched(time_range)
            with self.clock.stage("unpack"):
                block = tidy(_unpacked(body, time_range), time_range)
            with self.clock.stage("encode"):
                ids = catalogue.ids(block.label_sets)
                catalogue.place({pod: service_of(pod.name) for pod in catalogue.unplaced()})
                fetched = FetchedSeries(ids, block.offsets, block.timestamps_ms, block.values)
                packed.append(pack(time_range, "stages", [fetched], catalogue, PARTITIONS))
            self.samples += block.samples
        return packed

    def _fetched(self, time_range: TimeRange) -> bytes:
        with streamed(self.url, time_range) as response:
            return response.read()

    def _values(self, topic: str) -> list[list[Message]]:
        """Read the messages of each partition, outside of any stage."""
        return [
            [(message.headers(), message.value()) for message in read_to_end(self.cluster, topic, number)]
            for number in range(PARTITIONS)
        ]

    def _emissions(self, view: View, values: Sequence[Sequence[Message]]) -> list[list[Emission]]:
        found: list[list[Emission]] = []
        for stream in values:
            pipeline = Pipeline(view, 0, "")
            of_partition = []
            for offset, (headers, value) in enumerate(stream):
                with self.clock.stage("decode"):
                    message = wire.decode(headers, value)
                with self.clock.stage("emit" if isinstance(message, Marker) else "window"):
                    of_partition += pipeline.feed(offset, message)
            found.append(of_partition)
        return found

    def _send(self, view: View, emissions: list[list[Emission]]) -> None:
        group = f"{view.group_id}.stages"
        transactions = Transactions(self.cluster, view.topics.range_chunks, group, 0)
        transactions.start()
        # Of a group that has no members.
        consumer = Consumer({**client_config(self.cluster), "group.id": group})
        membership = consumer.consumer_group_metadata()
        with self.clock.stage("send"):
            for partition, of_partition in enumerate(emissions):
                for emission in of_partition:
                    transactions.write([(partition, emission)], membership)
        consumer.close()


def _unpacked(body: bytes, time_range: TimeRange) -> SeriesBlock:
    data = np.concatenate((np.frombuffer(body, np.uint8), np.zeros(PADDING_BYTES, np.uint8)))
    frames = scan_frames(data, len(body))
    room = len(frames.starts) * MOST_SAMPLES_A_CHUNK
    timestamps_ms, values = np.empty(room, np.int64), np.empty(room)
    where = frames.starts, frames.ends, time_range.start_ms, time_range.end_ms
    kept = decode_chunks(data, *where, timestamps_ms, values)
    offsets = np.concatenate(([0], np.cumsum(kept)))[frames.first_chunks]
    full = int(kept.sum())
    return SeriesBlock(frames.label_sets, offsets, timestamps_ms[:full], values[:full])


class _Reading(Worker):
    """A worker that does nothing with its messages: what Faust itself takes."""

    def __init__(self, cluster: Cluster, view: View, messages: int) -> None:
        super().__init__(WorkerSettings(cluster, view), Telemetry(Standing()))
        self._left = messages
        self._done = asyncio.Event()

    async def run(self) -> None:  # type: ignore[override]
        """Return when all messages have come."""
        await self.app.start()
        await self._done.wait()
        await self.app.stop()

    async def _handle(self, messages: Sequence[object]) -> None:
        self._left -= len(messages)
        if not self._left:
            self._done.set()


def main() -> None:
    servers, url, start_ms, end_ms, folder, number = sys.argv[1:]
    whole = TimeRange(int(start_ms), int(end_ms))
    short = TimeRange(whole.start_ms, min(whole.start_ms + _WARM_UP_MS, whole.end_ms))
    for name, time_range in ((f"warm-{number}", short), (f"all-{number}", whole)):
        stages = Stages(Cluster(servers), url, time_range, Path(folder), name)
        stages.run()
    clock = stages.clock
    figures = {name: {"wall_s": clock.wall_s[name], "cpu_s": clock.cpu_s[name]} for name in clock.wall_s}
    click.echo(orjson.dumps({"samples": stages.samples, "stages": figures}))


if __name__ == "__main__":
    main()
