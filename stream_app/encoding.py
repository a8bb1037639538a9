"""Closed windows, a column a field, into record messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import orjson

from ingestor.core.chunk import Float64Array, Int64Array, Refused
from ingestor.core.durations import ChunkSize
from stream_app.records import RECORD_VERSION, record_key
from stream_app.windows import Closed

EVERY_METRIC = "*"
"""In ``incomplete``: messages were missing or unreadable, which may have held any metric."""

_INFINITIES = {float("inf"): "+Inf", float("-inf"): "-Inf"}


@dataclass(frozen=True, slots=True)
class RecordContext:
    """What all records of an emission share."""

    job: str
    chunk_size: ChunkSize
    method: str
    whole_from_ms: int
    whole_to_ms: int
    revision: int = 0
    incomplete: Sequence[Refused] = ()
    holes: Sequence[tuple[int, int]] = ()
    lookback_ms: int = 0
    """So far before a window lie samples that may count for it."""

    def is_partial(self, start_ms: int, end_ms: int) -> bool:
        """Tell whether the job has read only a part of a window."""
        return start_ms < self.whole_from_ms or end_ms > self.whole_to_ms or self._has_hole(start_ms, end_ms)

    def missing(self, start_ms: int, end_ms: int) -> list[str]:
        """Name the metrics that samples of a window are missing of; EVERY_METRIC: of any."""
        seen_from_ms = start_ms - self.lookback_ms
        missing = {r.metric for r in self.incomplete if r.start_ms < end_ms and seen_from_ms < r.end_ms}
        return sorted(missing | ({EVERY_METRIC} if self._has_hole(start_ms, end_ms) else set()))

    def is_whole(self, start_ms: int, end_ms: int) -> bool:
        """Tell whether nothing of a window is missing."""
        return not self.is_partial(start_ms, end_ms) and not self.missing(start_ms, end_ms)

    def _has_hole(self, start_ms: int, end_ms: int) -> bool:
        seen_from_ms = start_ms - self.lookback_ms
        return any(hole_start < end_ms and seen_from_ms < hole_end for hole_start, hole_end in self.holes)


def record_starts(cells: Closed, first: int, last: int) -> Int64Array:
    """Return where each record of ``cells[first:last]`` begins, counted from *first*."""
    window_ms, group = cells.window_ms[first:last], cells.group[first:last]
    begins = np.ones(last - first, bool)
    begins[1:] = (group[1:] != group[:-1]) | (window_ms[1:] != window_ms[:-1])
    starts: Int64Array = np.flatnonzero(begins)
    return starts


def record_results(cells: Closed, first: int, last: int) -> list[int]:
    """Return a hash for each record of ``cells[first:last]``, as `result_hash` gives it."""
    starts = record_starts(cells, first, last)
    bounds = [*starts.tolist(), last - first]
    names = np.array(cells.metrics, object)[cells.metric[first:last]].tolist()
    values = cells.value[first:last]
    samples = np.add.reduceat(cells.samples[first:last], starts).tolist() if len(starts) else []
    return [
        result_hash(names[at:to], values[at:to], count)
        for (at, to), count in zip(pairwise(bounds), samples, strict=True)
    ]


def result_hash(names: Sequence[str], values: Float64Array, samples: int) -> int:
    """Return a hash that is equal, in this process, where metrics, values and number of samples are; never 0."""
    # NaN has many spellings, a record has one.
    same = np.where(np.isnan(values), np.nan, values)
    return hash((tuple(names), same.tobytes(), samples)) or 1


def encode_records(cells: Closed, first: int, last: int, context: RecordContext) -> tuple[list[bytes], list[bytes]]:
    """Return key and value of one message a (window, group) of ``cells[first:last]``, which begin and end with one.

    Values are JSON as documented in DESIGN.md: NaN is null, infinities are "+Inf" and "-Inf".
    """
    keys, encoded = list[bytes](), list[bytes]()
    if first == last:
        return keys, encoded
    window_ms, group, value = cells.window_ms[first:last], cells.group[first:last], cells.value[first:last]
    starts = record_starts(cells, first, last)
    bounds = [*starts.tolist(), last - first]
    names = np.array(cells.metrics, object)[cells.metric[first:last]].tolist()
    values: list[Any] = value.tolist()
    if np.isinf(value).any():
        values = [_INFINITIES.get(value, value) for value in values]
    samples = np.add.reduceat(cells.samples[first:last], starts).tolist()
    windows, groups = window_ms[starts].tolist(), group[starts].tolist()
    ends_ms = context.chunk_size.ends_ms(window_ms[starts]).tolist()
    chunk_size, method, job = str(context.chunk_size), context.method, context.job
    seen_ms, partial, missing = -1, False, list[str]()
    for i, (start_ms, end_ms, number) in enumerate(zip(windows, ends_ms, groups, strict=True)):
        who = cells.groups[number]
        at, to = bounds[i], bounds[i + 1]
        if start_ms != seen_ms:
            # Windows rise: this is asked once for each, not for each of its records.
            seen_ms, partial, missing = (
                start_ms,
                context.is_partial(start_ms, end_ms),
                context.missing(start_ms, end_ms),
            )
        record = {
            "namespace": who.namespace,
            "pod": who.pod,
            "service": who.service,
            "window_start": start_ms,
            "window_end": end_ms,
            "chunk_size": chunk_size,
            "method": method,
            "job": job,
            "revision": context.revision,
            "partial": partial,
            "version": RECORD_VERSION,
            "samples": samples[i],
            "metrics": dict(zip(names[at:to], values[at:to], strict=True)),
        }
        if who.pod is None:
            del record["pod"]
        if missing:
            record["incomplete"] = missing
        keys.append(record_key(who.namespace, who.pod, who.service))
        encoded.append(orjson.dumps(record))
    return keys, encoded
