"""What stands on the range-chunk topic, and whether it is as it must be."""

from __future__ import annotations

from itertools import pairwise

import pandas as pd

from ingestor.core import wire
from ingestor.core.chunk import Marker, RangeChunk
from ingestor.core.time_range import TimeRange
from ingestor.core.topics import Topics
from ingestor.kafka import Cluster, connect, partition_counts, read_to_end

Stream = list[RangeChunk | Marker]

ORACLE_COLUMNS = ["namespace", "pod", "metric", "series", "timestamp", "value"]
_COLUMNS = ["job", "revision", "partition", "service", "type", "labels", *ORACLE_COLUMNS]


def read(cluster: Cluster, topics: Topics) -> list[Stream]:
    """Return the committed messages of each partition, in order."""
    partitions = partition_counts(connect(cluster))[topics.range_chunks]
    return [
        [wire.decode(message.headers(), message.value()) for message in read_to_end(cluster, topics.range_chunks, p)]
        for p in range(partitions)
    ]


def published(cluster: Cluster, prefix: str) -> pd.DataFrame:
    """Return all samples of all jobs, whose sequences and ranges are checked."""
    streams = read(cluster, Topics(prefix))
    for job in {message.header.job for stream in streams for message in stream}:
        assert_adjoining(streams, job)
    return samples(streams)


def assert_adjoining(streams: list[Stream], job: str) -> TimeRange:
    """Check sequences and markers of a job; return the time that they cover in every partition."""
    covered = set()
    for stream in streams:
        mine = [message for message in stream if message.header.job == job]
        assert [message.header.sequence for message in mine] == list(range(len(mine))), "a hole or a double"
        looks_back = [isinstance(message, RangeChunk) and message.is_lookback for message in mine]
        assert looks_back == sorted(looks_back, reverse=True), "what was before the job comes before all else of it"
        ranges = [m.header.time_range for m in mine if isinstance(m, Marker) and not m.ends_job]
        assert all(a.end_ms == b.start_ms for a, b in pairwise(ranges)), "ranges must adjoin"
        covered |= {TimeRange(ranges[0].start_ms, ranges[-1].end_ms)} if ranges else set()
    # A job that was cancelled before it read anything covers nothing.
    return covered.pop() if len(covered) == 1 else _not_alike(covered)


def _not_alike(covered: set[TimeRange]) -> TimeRange:
    assert not covered, f"partitions cover different times: {covered}"
    return TimeRange(0, 1)


def samples(streams: list[Stream]) -> pd.DataFrame:
    """Return all samples as they stand, a row each; those before their jobs' starts are none of them."""
    return _rows(streams, lookback=False)


def lookbacks(streams: list[Stream]) -> pd.DataFrame:
    """Return the samples before their jobs' starts as they stand, a row each."""
    return _rows(streams, lookback=True)


def _rows(streams: list[Stream], *, lookback: bool) -> pd.DataFrame:
    rows = []
    for partition, stream in enumerate(streams):
        chunks = (message for message in stream if isinstance(message, RangeChunk))
        for chunk in (chunk for chunk in chunks if chunk.is_lookback == lookback):
            series, job = chunk.series, (chunk.header.job, chunk.header.revision, partition)
            names = ("service", "type", "labels", "namespace", "pod", "metric")
            columns = [getattr(series, name).to_pylist() for name in names]
            for row, (service, kind, labels, *identity) in enumerate(zip(*columns, strict=True)):
                inside = slice(series.offsets[row], series.offsets[row + 1])
                fields = (*job, service, kind, dict(labels), *identity, series_name(dict(labels)))
                stamps, values = series.timestamps_ms[inside].tolist(), series.values[inside].tolist()
                rows += [(*fields, timestamp, value) for timestamp, value in zip(stamps, values, strict=True)]
    return pd.DataFrame(rows, columns=_COLUMNS)


def series_name(labels: dict[str, str]) -> str:
    """Return one spelling of a series' labels; the metric's name is none of them."""
    return ",".join(f"{name}={value}" for name, value in sorted(labels.items()) if name != "__name__")


def frame(rows: list[tuple[str, str, str, str, int, float]]) -> pd.DataFrame:
    """Return rows as `oracle.windows` takes them."""
    return pd.DataFrame(rows, columns=ORACLE_COLUMNS)
