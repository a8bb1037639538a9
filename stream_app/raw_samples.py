"""Range chunks -> rows of samples by metric and day: labels as columns, sorted by series and time. Pure.

Nothing here is done for each sample or series by itself: series are rows of columns until
their samples' places are known, and then every column is made by one repeat.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ingestor.core.chunk import Float64Array, Int64Array, RangeChunk, UInt64Array
from stream_app.sinks.part_rows import TEXT, TIME, TIME_TYPE, Layout, Rows, merged
from stream_app.sinks.paths import column_name

SERIES = "series"
"""The column of fingerprints: what names a series within its metric, whatever its labels are."""

LAYOUT = Layout(
    pa.schema(
        [
            (TIME, TIME_TYPE),
            ("value", pa.float64()),
            ("namespace", TEXT),
            ("pod", TEXT),
            ("service", TEXT),
            ("type", TEXT),
            (SERIES, pa.uint64()),
        ]
    ),
    keys=("namespace", "pod", SERIES, TIME),
    extra=TEXT,
)

_NAMES = ("namespace", "pod", "service", "type")
_SAME = ("namespace", "pod")
"""Labels that mostly say what the columns of their names do: they are left out where they do."""

Int32Array = npt.NDArray[np.int32]
BoolArray = npt.NDArray[np.bool_]
_TAKEN = frozenset({*LAYOUT.fixed.names, "metric", "date"})
_DAY_MS = 86_400_000

# What `Splits.column` writes: a metric and a selector, or all of it in braces where the name is no plain one.
_SPLIT = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)\{.+\}|\{"((?:[^"\\]|\\.)*)",.+\}', re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class MetricDay:
    """The samples of one metric in one day of UTC."""

    metric: str
    date: str
    rows: Rows


def metric_days(
    chunks: Sequence[RangeChunk], wanted: Callable[[str], bool] = lambda _: True, from_ms: int = 0
) -> Iterator[MetricDay]:
    """Yield the samples of *chunks*, each series' once a timestamp: the higher revision's, then the later chunk's.

    Args:
        chunks: in the order in which they came.
        wanted: tells of a metric's name whether its samples are.
        from_ms: earlier samples are left out.
    """
    if not any(chunk.series.samples for chunk in chunks):
        return
    runs = _runs(chunks, from_ms)
    is_wanted = np.array([wanted(name) for name in runs.metrics], np.bool_)
    kept = np.flatnonzero(is_wanted[runs.metric] & (runs.first_ms >= from_ms))
    if not len(kept):
        return
    # Stable: of runs that begin at one moment, what came later comes last.
    keys = runs.first_ms, runs.series, runs.codes["pod"], runs.codes["namespace"], runs.day, runs.metric
    order = kept[np.lexsort([key[kept] for key in keys])]
    is_start = _differs(runs.metric[order]) | _differs(runs.day[order])
    is_series = is_start | _differs(runs.series[order])
    for name in ("namespace", "pod"):
        is_series |= _differs(runs.codes[name][order])
    labels = _labels_of(chunks, runs.row[order[is_series]])
    overlaps = ~is_series[1:] & (runs.first_ms[order[1:]] <= runs.last_ms[order[:-1]])
    series = np.cumsum(is_series) - 1
    for first, last in pairwise([*np.flatnonzero(is_start).tolist(), len(order)]):
        mine, of = order[first:last], series[first:last]
        if overlaps[first : last - 1].any():
            arrival = np.argsort(mine, kind="stable")
            rows = merged(LAYOUT, [_rows(runs, labels, mine[arrival], of[arrival])])
        else:
            rows = _rows(runs, labels, mine, of)
        yield MetricDay(runs.metrics[runs.metric[mine[0]]], str(np.datetime64(int(runs.day[mine[0]]), "D")), rows)


def name_of(column: str) -> str:
    """Return the metric's name of a column, which of a split metric is like ``http_requests_total{code="500"}``."""
    if not column.endswith("}") or not (found := _SPLIT.fullmatch(column)):
        return column
    plain, quoted = found.groups()
    return plain or _ESCAPED.sub(lambda escape: "\n" if escape[1] == "n" else escape[1], quoted)


@dataclass(frozen=True, slots=True)
class _Runs:
    """Neighbouring samples of one series and day, a run a row, in the order in which they came."""

    start: Int64Array
    """The place of the first sample in *times_ms* and *values*."""
    length: Int64Array
    first_ms: Int64Array
    last_ms: Int64Array
    day: Int64Array
    rank: Int64Array
    metric: Int32Array
    """Numbers in *metrics*."""
    codes: dict[str, Int32Array]
    """By column, numbers in *texts*; in the texts' order."""
    series: UInt64Array
    row: Int64Array
    """Which row of which chunk it comes from, as if chunks were one."""
    metrics: list[str]
    texts: dict[str, pa.Array]
    times_ms: Int64Array
    values: Float64Array


def _runs(chunks: Sequence[RangeChunk], from_ms: int) -> _Runs:
    columns = [chunk.series for chunk in chunks]
    # What lies outside a chunk's first and last offset is none of its samples.
    inside = [slice(int(one.offsets[0]), int(one.offsets[-1])) for one in columns]
    times = np.concatenate([one.timestamps_ms[part] for one, part in zip(columns, inside, strict=True)])
    ends = np.cumsum(np.concatenate([[0], *(np.diff(one.offsets) for one in columns)]))
    day = times // _DAY_MS
    is_start = _differs(day) | _differs(times >= from_ms)
    is_start[ends[:-1][np.diff(ends) > 0]] = True
    start = np.flatnonzero(is_start)
    length = np.diff(start, append=len(times))
    row = np.searchsorted(ends, start, side="right") - 1
    revisions = np.repeat([chunk.header.revision for chunk in chunks], [len(one) for one in columns])
    codes, texts = {}, {}
    for name in _NAMES:
        code, texts[name] = _coded([getattr(one, name) for one in columns])
        codes[name] = code[row]
    code, spelled = _coded([one.metric for one in columns])
    names = [name_of(name) for name in spelled.to_pylist()]
    metrics = sorted(set(names))
    number = {name: place for place, name in enumerate(metrics)}
    return _Runs(
        start=start,
        length=length,
        first_ms=times[start],
        last_ms=times[start + length - 1],
        day=day[start],
        rank=revisions[row],
        metric=np.array([number[name] for name in names], np.int32)[code[row]],
        codes=codes,
        series=np.concatenate([one.fingerprint for one in columns])[row],
        row=row,
        metrics=metrics,
        texts=texts,
        times_ms=times,
        values=np.concatenate([one.values[part] for one, part in zip(columns, inside, strict=True)]),
    )


@dataclass(frozen=True, slots=True)
class _Labels:
    """The labels of all series, one after another."""

    bounds: Int64Array
    """Series i has those at ``bounds[i]:bounds[i + 1]``."""
    name: Int32Array
    """Numbers in *names*."""
    value: Int32Array
    """Numbers in *values*."""
    names: list[str]
    values: pa.Array


def _labels_of(chunks: Sequence[RangeChunk], rows: Int64Array) -> _Labels:
    """Return the labels of series that stand in these *rows*."""
    order = np.argsort(rows, kind="stable")
    edges = np.cumsum([0, *(len(chunk.series) for chunk in chunks)])
    cuts = np.searchsorted(rows[order], edges)
    # Of a chunk's labels only what is needed: they are most of what it is.
    found = [
        chunk.series.labels.take(pa.array(rows[order[first:last]] - edge))
        for chunk, edge, (first, last) in zip(chunks, edges[:-1].tolist(), pairwise(cuts.tolist()), strict=True)
        if first < last
    ]
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    maps = pa.concat_arrays(found).take(pa.array(place))
    bounds = maps.offsets.to_numpy()
    inside = bounds[0], bounds[-1] - bounds[0]
    names, values = (texts.slice(*inside).dictionary_encode() for texts in (maps.keys, maps.items))
    return _Labels(
        (bounds - bounds[0]).astype(np.int64),
        names.indices.to_numpy(),
        values.indices.to_numpy(),
        names.dictionary.to_pylist(),
        values.dictionary,
    )


def _rows(runs: _Runs, labels: _Labels, mine: Int64Array, series: Int64Array) -> Rows:
    """Return the samples of runs of one metric, in the order of *mine*; *series* are their numbers in *labels*."""
    length = runs.length[mine]
    places = np.repeat(runs.start[mine] - (np.cumsum(length) - length), length) + np.arange(length.sum())
    table = {TIME: pa.array(runs.times_ms[places]).view(TIME_TYPE), "value": pa.array(runs.values[places])}
    for name in _NAMES:
        table[name] = _repeated(runs.codes[name][mine], runs.texts[name], length)
    table[SERIES] = pa.array(np.repeat(runs.series[mine], length))
    first, last = int(series.min()), int(series.max()) + 1
    begin, end = labels.bounds[first], labels.bounds[last]
    owner = np.repeat(np.arange(last - first), np.diff(labels.bounds[first : last + 1]))
    name_of_entry, value_of_entry = labels.name[begin:end], labels.value[begin:end]
    for number, name in enumerate(labels.names):
        entries = np.flatnonzero(name_of_entry == number)
        value = np.full(last - first, -1, np.int32)
        value[owner[entries]] = value_of_entry[entries]
        value = value[series - first]
        if name in _SAME:
            own = runs.texts[name].take(pa.array(runs.codes[name][mine]))
            value[_equal(own, labels.values.take(pa.array(value, mask=value < 0)))] = -1
        if (value >= 0).any():
            table[column_name(name, _TAKEN, "label")] = _repeated(value, labels.values, length)
    return Rows(pa.table(table), np.repeat(runs.rank[mine], length))


def _equal(texts: pa.Array, others: pa.Array) -> BoolArray:
    equal: BoolArray = pc.fill_null(pc.equal(texts, others), fill_value=False).to_numpy(zero_copy_only=False)
    return equal


def _repeated(code: Int32Array, texts: pa.Array, length: Int64Array) -> pa.DictionaryArray:
    """Return each text as often as *length* says, in a dictionary of those that are used; below 0 is null."""
    if len(texts) > len(code):
        used, place = np.unique(code, return_inverse=True)
    else:
        is_used = np.bincount(code + 1, minlength=len(texts) + 1) > 0
        used, place = np.flatnonzero(is_used).astype(np.int32) - 1, (np.cumsum(is_used) - 1)[code + 1]
    nulls = int(np.searchsorted(used, 0))
    indices = np.repeat((place - nulls).astype(np.int32), length)
    array = pa.array(indices, mask=indices < 0) if nulls else pa.array(indices)
    return pa.DictionaryArray.from_arrays(array, texts.take(pa.array(used[nulls:])), safe=False)


def _coded(arrays: Sequence[pa.DictionaryArray]) -> tuple[Int32Array, pa.Array]:
    """Return texts, sorted, and for each value its place among them."""
    whole = pa.chunked_array(arrays).unify_dictionaries()
    texts = whole.chunk(0).dictionary
    order = pc.sort_indices(texts).to_numpy()
    place = np.empty(len(order), np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    codes = np.concatenate([chunk.indices.to_numpy() for chunk in whole.chunks])
    return place[codes], texts.take(pa.array(order))


def _differs(values: npt.NDArray[Any]) -> BoolArray:
    """Tell of each value whether it is another than the one before; the first is."""
    differs = np.ones(len(values), np.bool_)
    differs[1:] = values[1:] != values[:-1]
    return differs
