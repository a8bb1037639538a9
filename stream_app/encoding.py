"""Closed windows, a column a field, into record messages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from ingestor.core.durations import ChunkSize
from stream_app.records import RECORD_VERSION, record_key
from stream_app.windows import Closed

_INFINITIES = {float("inf"): "+Inf", float("-inf"): "-Inf"}


@dataclass(frozen=True, slots=True)
class RecordContext:
    """What all records of an emission share; windows outside [whole_from, whole_to) are partial."""

    job: str
    chunk_size: ChunkSize
    method: str
    whole_from_ms: int
    whole_to_ms: int


def encode_records(cells: Closed, first: int, last: int, context: RecordContext) -> Iterator[tuple[bytes, bytes]]:
    """Yield key and value of one message a (window, group) of ``cells[first:last]``, which begin and end with one.

    Values are JSON as documented in DESIGN.md: NaN is null, infinities are "+Inf" and "-Inf".
    """
    if first == last:
        return
    window_ms, group = cells.window_ms[first:last], cells.group[first:last]
    changed = np.flatnonzero((group[1:] != group[:-1]) | (window_ms[1:] != window_ms[:-1])) + 1
    starts = np.concatenate(([0], changed))
    bounds = [*starts.tolist(), last - first]
    names = np.array(cells.metrics, object)[cells.metric[first:last]].tolist()
    values: list[Any] = cells.value[first:last].tolist()
    if np.isinf(cells.value[first:last]).any():
        values = [_INFINITIES.get(value, value) for value in values]
    samples = np.add.reduceat(cells.samples[first:last], starts).tolist()
    edges = context.chunk_size.edges_ms(int(window_ms[0]), int(window_ms[-1]) + 1)
    next_edge = dict(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
    windows, groups = window_ms[starts].tolist(), group[starts].tolist()
    chunk_size, method, job = str(context.chunk_size), context.method, context.job
    for i, (start_ms, number) in enumerate(zip(windows, groups, strict=True)):
        who, end_ms = cells.groups[number], next_edge[start_ms]
        at, to = bounds[i], bounds[i + 1]
        record = {
            "namespace": who.namespace,
            "pod": who.pod,
            "service": who.service,
            "window_start": start_ms,
            "window_end": end_ms,
            "chunk_size": chunk_size,
            "method": method,
            "job": job,
            "revision": 0,
            "partial": start_ms < context.whole_from_ms or end_ms > context.whole_to_ms,
            "version": RECORD_VERSION,
            "samples": samples[i],
            "metrics": dict(zip(names[at:to], values[at:to], strict=True)),
        }
        if who.pod is None:
            del record["pod"]
        yield record_key(who.namespace, who.pod, who.service), orjson.dumps(record)
