"""Closed windows, a column a field, into record messages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np
import orjson

from ingestor.core.chunk import EVERY_METRIC, Float64Array, Int64Array, Refused
from ingestor.core.durations import ChunkSize
from stream_app.record_text import join_records
from stream_app.records import RECORD_VERSION, record_key
from stream_app.windows import Closed, Group

MAX_RECORD_BYTES = 2_000_000
"""Key and value, before compression: what does not compress must fit into a topic's ``max.message.bytes`` too."""

_Entry = TypeVar("_Entry")


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


class Encoded(NamedTuple):
    """Messages of records, in their order."""

    keys: list[bytes]
    values: list[bytes]
    too_large: dict[int, int]
    """Those that stand there without their metrics, by their place: how many bytes each would have."""


def encode_records(
    cells: Closed, first: int, last: int, context: RecordContext, most_bytes: int = MAX_RECORD_BYTES
) -> Encoded:
    """Return one message a (window, group) of ``cells[first:last]``, which begin and end with one.

    Values are JSON as documented in DESIGN.md: NaN is null, infinities are "+Inf" and "-Inf". A record that takes more
    than *most_bytes* is written as if a hole had taken all of its metrics.
    """
    if first == last:
        return Encoded([], [], {})
    starts = record_starts(cells, first, last)
    groups, group = _used(cells.groups, cells.group[first:last][starts])
    metrics, metric = _used(cells.metrics, cells.metric[first:last])
    windows_ms, window = _rising(cells.window_ms[first:last][starts])
    ends_ms = context.chunk_size.ends_ms(windows_ms)
    windows = list(zip(windows_ms.tolist(), ends_ms.tolist(), strict=True))
    pieces = [
        *map(_head, groups),
        *_middles(context, windows),
        *(_tail(context.missing(start_ms, end_ms)) for start_ms, end_ms in windows),
        *(orjson.dumps(name) + b":" for name in metrics),
    ]
    middle, numbers = window + len(groups), cells.value[first:last]
    samples = np.add.reduceat(cells.samples[first:last], starts)
    text, ends = join_records(
        np.frombuffer(b"".join(pieces), np.uint8),
        np.cumsum([0, *map(len, pieces)]),
        group,
        middle,
        middle + len(windows),
        samples,
        np.append(starts, last - first),
        metric + (len(groups) + 2 * len(windows)),
        numbers,
        np.frombuffer(orjson.dumps(numbers, option=orjson.OPT_SERIALIZE_NUMPY), np.uint8),
    )
    names = [record_key(who.namespace, who.pod, who.service) for who in groups]
    records, bounds = text.data, [0, *ends.tolist()]
    keys = [names[at] for at in group.tolist()]
    values = [records[begin:end].tobytes() for begin, end in pairwise(bounds)]
    sizes = np.diff(ends, prepend=0) + np.array([*map(len, names)])[group]
    too_large: dict[int, int] = {}
    for place in np.flatnonzero(sizes > most_bytes).tolist():
        too_large[place] = int(sizes[place])
        values[place] = _emptied(context, groups[group[place]], windows[window[place]], int(samples[place]))
    return Encoded(keys, values, too_large)


def _emptied(context: RecordContext, who: Group, window: tuple[int, int], samples: int) -> bytes:
    """Return the record of a window all of which lies in a hole."""
    lost = replace(context, holes=[*context.holes, window])
    (middle,) = _middles(lost, [window])
    return b'%b%b%d,"metrics":{%b' % (_head(who), middle, samples, _tail(lost.missing(*window)))


def _used(table: Sequence[_Entry], numbers: Int64Array) -> tuple[list[_Entry], Int64Array]:
    """Return the entries that *numbers* name, and the place of each number's entry among them."""
    is_used = np.zeros(len(table), bool)
    is_used[numbers] = True
    places = np.cumsum(is_used) - 1
    return [table[number] for number in np.flatnonzero(is_used).tolist()], places[numbers]


def _rising(times_ms: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Return the distinct times of *times_ms*, which rise, and the place of each one among them."""
    is_new = np.append(True, times_ms[1:] != times_ms[:-1])
    return times_ms[is_new], np.cumsum(is_new) - 1


def _head(who: Group) -> bytes:
    pod = {} if who.pod is None else {"pod": who.pod}
    return orjson.dumps({"namespace": who.namespace, **pod, "service": who.service})[:-1]


def _middles(context: RecordContext, windows: Sequence[tuple[int, int]]) -> Iterator[bytes]:
    """Yield what stands between group and number of samples in the records of each window."""
    common = {
        "chunk_size": str(context.chunk_size),
        "method": context.method,
        "job": context.job,
        "revision": context.revision,
    }
    before = b"," + orjson.dumps(common)[1:-1] + b',"partial":'
    behind = b"," + orjson.dumps({"version": RECORD_VERSION})[1:-1] + b',"samples":'
    for start_ms, end_ms in windows:
        partial = b"true" if context.is_partial(start_ms, end_ms) else b"false"
        yield b',"window_start":%d,"window_end":%d%b%b%b' % (start_ms, end_ms, before, partial, behind)


def _tail(missing: list[str]) -> bytes:
    return b'},"incomplete":' + orjson.dumps(missing) + b"}" if missing else b"}}"
