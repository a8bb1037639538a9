"""What stands on a sink topic under read_committed, compared with the oracle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import oracle
import pandas as pd

from ingestor.core.durations import ChunkSize
from ingestor.core.time_range import TimeRange
from ingestor.kafka import DEFAULT_PARTITIONS, Cluster, read_to_end
from ingestor.workloads import service_of
from stream_app.records import Record, decode_record

Key = tuple[str, str, int]
"""Namespace, pod or service, window start."""


@dataclass(frozen=True, slots=True)
class Compared:
    """What is not as it must be, by key."""

    expected: int
    found: int
    missing: list[Key] = field(default_factory=list)
    doubled: list[Key] = field(default_factory=list)
    wrong: list[tuple[Any, ...]] = field(default_factory=list)
    """With what of it is wrong."""
    extra: list[Key] = field(default_factory=list)

    @property
    def is_right(self) -> bool:
        return not (self.missing or self.doubled or self.wrong or self.extra)

    def __str__(self) -> str:
        faults = {name: getattr(self, name) for name in ("missing", "doubled", "wrong", "extra")}
        shown = ", ".join(f"{name} {len(keys)} {keys[:2] or ''}".strip() for name, keys in faults.items())
        return f"{self.expected:,} expected, {self.found:,} found: {shown}"


def read(cluster: Cluster, topic: str, partitions: int = DEFAULT_PARTITIONS) -> list[Record]:
    """Return all committed records of a sink topic."""
    return [decode_record(message.value()) for p in range(partitions) for message in read_to_end(cluster, topic, p)]


def key(record: Record) -> Key:
    return record.namespace, record.service if record.pod is None else record.pod, record.window_start_ms


def contents(records: Iterable[Record]) -> Counter[tuple[Any, ...]]:
    """Count what records say, apart from which job said it."""
    return Counter(
        (
            *(r.namespace, r.pod, r.service, r.window_start_ms, r.window_end_ms, r.chunk_size, r.method),
            *(r.partial, r.samples, r.incomplete, repr(sorted(r.metrics.items()))),
        )
        for r in records
    )


def compare(
    records: Sequence[Record],
    samples: pd.DataFrame,
    chunk_size: str,
    method: str,
    group_by: str,
    job: TimeRange | None = None,
) -> Compared:
    """Compare all that records say, but for which job and revision says it, with what the oracle makes of the samples.

    A record must have its window's end, as many samples as there are in the window, and nothing that is `incomplete`:
    nothing was refused, and no message is missing.

    Args:
        records: all of a sink topic, or of a part of it.
        samples: what Prometheus holds there.
        job: the time that was read. Records of windows that its start or its end cuts must be `partial`, and no
            others; None: it begins and ends where windows do, and no record is.
    """
    expected = oracle.windows(samples, chunk_size, method, group_by)
    held = oracle.counts(samples, chunk_size, group_by)
    size = ChunkSize.parse(chunk_size)
    counts = Counter(map(key, records))

    def faults(record: Record) -> Iterator[str]:
        start_ms, end_ms = size.edges_ms(record.window_start_ms, record.window_start_ms + 1).tolist()
        is_cut = job is not None and (start_ms < job.start_ms or end_ms > job.end_ms)
        service = record.service if record.pod is None else service_of(record.pod)
        must = {
            "window_start_ms": start_ms,
            "window_end_ms": end_ms,
            "chunk_size": chunk_size,
            "method": method,
            "service": service,
            "partial": is_cut,
            "samples": held[key(record)],
            "incomplete": (),
        }
        yield from (name for name, value in must.items() if getattr(record, name) != value)
        if not _same(record.metrics, expected[key(record)]):
            yield "metrics"

    return Compared(
        len(expected),
        len(records),
        missing=sorted(expected.keys() - counts.keys()),
        doubled=sorted(name for name, count in counts.items() if count > 1),
        wrong=sorted({(*key(r), what) for r in records if key(r) in expected for what in faults(r)}),
        extra=sorted(counts.keys() - expected.keys()),
    )


def compare_cells(cells: Mapping[Key, dict[str, float]], expected: Mapping[Key, dict[str, float]]) -> Compared:
    """Compare rows of files, each of which is there once, with what the oracle makes."""
    return Compared(
        len(expected),
        len(cells),
        missing=sorted(expected.keys() - cells.keys()),
        wrong=sorted(name for name in cells.keys() & expected.keys() if not _same(cells[name], expected[name])),
        extra=sorted(cells.keys() - expected.keys()),
    )


def _same(metrics: dict[str, float], expected: dict[str, float]) -> bool:
    return metrics.keys() == expected.keys() and all(oracle.same(metrics[m], value) for m, value in expected.items())
