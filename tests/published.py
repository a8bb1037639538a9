"""What lies on the range-chunk topic, as plain rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import pandas as pd

from ingestor.core import wire
from ingestor.core.chunk import Marker, RangeChunk
from ingestor.kafka import Cluster, connect, partition_counts, read_to_end

COLUMNS = [
    "job",
    "revision",
    "partition",
    "namespace",
    "pod",
    "service",
    "metric",
    "type",
    "labels",
    "timestamp",
    "value",
]


@dataclass(frozen=True, slots=True)
class Published:
    """All samples, a row each (labels as a dict), and all markers by partition, in the order of the topic."""

    samples: pd.DataFrame
    markers: list[list[Marker]] = field(default_factory=list)


def read(cluster: Cluster, topic: str) -> Published:
    """Return what is committed by now, checked: no sequence number is missing or doubled, ranges adjoin."""
    rows, markers = [], []
    for partition in range(partition_counts(connect(cluster))[topic]):
        next_sequence: dict[str, int] = {}
        markers.append([])
        for message in read_to_end(cluster, topic, partition):
            item = wire.decode(message.headers(), message.value())
            job = item.header.job
            assert item.header.sequence == next_sequence.get(job, 0), "a message is missing or doubled"
            next_sequence[job] = item.header.sequence + 1
            if isinstance(item, RangeChunk):
                rows += _rows(item, partition)
            else:
                markers[-1].append(item)
        for job in next_sequence:
            ranges = [m.header.time_range for m in markers[-1] if m.header.job == job and not m.ends_job]
            assert all(a.end_ms == b.start_ms for a, b in pairwise(ranges)), "ranges must adjoin"
    return Published(pd.DataFrame(rows, columns=COLUMNS), markers)


def _rows(chunk: RangeChunk, partition: int) -> list[tuple]:
    series, header = chunk.series, chunk.header
    names = [getattr(series, name).to_pylist() for name in ("namespace", "pod", "service", "metric", "type", "labels")]
    return [
        (
            header.job,
            header.revision,
            partition,
            *(column[i] for column in names[:5]),
            dict(names[5][i]),
            int(t),
            float(v),
        )
        for i in range(len(series))
        for t, v in zip(
            series.timestamps_ms[series.offsets[i] : series.offsets[i + 1]],
            series.values[series.offsets[i] : series.offsets[i + 1]],
            strict=True,
        )
    ]
