"""The rows of parts in memory: what they are known by, sorted, one a key. Pure."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ingestor.core.chunk import Int64Array

TIME = "timestamp"
TIME_TYPE = pa.timestamp("ms", "UTC")
TEXT = pa.dictionary(pa.int32(), pa.string())

COMMON_RANK = 0
"""Of rows whose rank is not written down."""

_RUN = np.dtype([("rows", "<i8"), ("rank", "<i8")])


@dataclass(frozen=True, slots=True)
class Layout:
    """What the parts of a store have in common."""

    fixed: pa.Schema
    """The columns that all parts have; texts are `TEXT`, or plain where they come, one column is `TIME`."""
    keys: tuple[str, ...]
    """Those that name a row, in the order that rows are sorted by."""
    extra: pa.DataType
    """The type of all other columns, which come and stay."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one partition."""

    table: pa.Table
    ranks: Int64Array
    """Of two rows with one key the higher rank stays, of equals the later."""

    def __len__(self) -> int:
        return len(self.ranks)

    def times_ms(self) -> Int64Array:
        times: Int64Array = _numbers(self.table[TIME])
        return times

    def where(self, chosen: npt.NDArray[np.bool_]) -> Rows:
        return Rows(self.table.filter(pa.array(chosen)), self.ranks[chosen])

    def slice(self, start: int, length: int) -> Rows:
        return Rows(self.table.slice(start, length), self.ranks[start : start + length])

    def extras(self, layout: Layout) -> frozenset[str]:
        return frozenset(self.table.column_names) - frozenset(layout.fixed.names)


def merged(layout: Layout, pieces: Sequence[Rows]) -> Rows:
    """Return the rows of *pieces*, which came in this order, sorted and one a key."""
    rows = pieces[0] if len(pieces) == 1 else _joined(layout, pieces)
    keys = [_sortable(rows.table[name]) for name in layout.keys]
    if _rises(keys):
        return rows
    ranks = [] if _is_constant(rows.ranks) else [rows.ranks]
    # Stable: of equal keys and ranks the later comes last.
    order = np.lexsort([*ranks, *reversed(keys)])
    is_last = np.zeros(len(order), np.bool_)
    is_last[-1:] = True
    for key in keys:
        ordered = key[order]
        is_last[:-1] |= ordered[1:] != ordered[:-1]
    order = order[is_last]
    return Rows(rows.table.take(pa.array(order)), rows.ranks[order])


def no_rows(layout: Layout) -> Rows:
    return Rows(layout.fixed.empty_table(), np.empty(0, np.int64))


def cut(rows: Rows, most: int) -> list[Rows]:
    """Cut *rows* between moments into pieces of about *most* rows, each later than the one before."""
    if not len(rows):
        return []
    pieces = -(-len(rows) // most)
    if pieces == 1:
        return [rows]
    _, moment, counts = np.unique(rows.times_ms(), return_inverse=True, return_counts=True)
    rows_before = np.cumsum(counts) - counts
    piece = (rows_before * pieces // len(rows))[moment]
    return [rows.where(piece == number) for number in np.unique(piece).tolist()]


def _joined(layout: Layout, pieces: Sequence[Rows]) -> Rows:
    types = {field.name: field.type for field in layout.fixed}
    names = list(dict.fromkeys([*types, *(name for piece in pieces for name in piece.table.column_names)]))
    schema = pa.schema([(name, types.get(name, layout.extra)) for name in names])
    tables = []
    for piece in pieces:
        have = set(piece.table.column_names)
        columns = [
            _as_type(piece.table[name], kind) if name in have else pa.nulls(len(piece), kind)
            for name, kind in zip(names, schema.types, strict=True)
        ]
        tables.append(pa.table(columns, schema=schema))
    return Rows(pa.concat_tables(tables), np.concatenate([piece.ranks for piece in pieces]))


def _as_type(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    return column if column.type == kind else column.cast(kind)


def _numbers(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    numbers: npt.NDArray[Any]
    if pa.types.is_timestamp(column.type):
        chunks = [chunk.view(pa.int64()).to_numpy() for chunk in column.chunks]
        numbers = chunks[0] if len(chunks) == 1 else np.concatenate([np.empty(0, np.int64), *chunks])
    else:
        numbers = column.to_numpy()
    return numbers


def _sortable(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """Return numbers that are ordered as the values are."""
    if pa.types.is_string(column.type):
        column = column.dictionary_encode()
    if not pa.types.is_dictionary(column.type):
        return _numbers(column)
    whole = column.unify_dictionaries().combine_chunks()
    if isinstance(whole, pa.ChunkedArray):
        whole = whole.chunk(0) if whole.num_chunks else pa.array([], TEXT)
    order = pc.sort_indices(whole.dictionary).to_numpy()
    places = np.empty(len(order), np.int32)
    places[order] = np.arange(len(order), dtype=np.int32)
    sortable: npt.NDArray[Any] = places[whole.indices.to_numpy()]
    return sortable


def _rises(keys: Sequence[npt.NDArray[Any]]) -> bool:
    """Tell whether each row's key is above the one before."""
    is_above = np.zeros(max(len(keys[0]) - 1, 0), np.bool_)
    is_equal = ~is_above
    for key in keys:
        is_above |= is_equal & (key[1:] > key[:-1])
        is_equal &= key[1:] == key[:-1]
    return bool(is_above.all())


def _is_constant(ranks: Int64Array) -> bool:
    return bool((ranks[1:] == ranks[:-1]).all())


def packed_ranks(ranks: Int64Array) -> str | None:
    """Return *ranks* as a text, for some readers of metadata take it for UTF-8; None: all are common."""
    if (ranks == COMMON_RANK).all():
        return None
    starts = np.flatnonzero(np.diff(ranks, prepend=ranks[0] - 1))
    runs = np.empty(len(starts), _RUN)
    runs["rows"], runs["rank"] = np.diff(starts, append=len(ranks)), ranks[starts]
    plain = runs.tobytes()
    return f"{len(plain)}:{base64.b64encode(pa.Codec('zstd').compress(plain).to_pybytes()).decode()}"


def unpacked_ranks(text: str | None, rows: int) -> Int64Array:
    """Return the ranks of so many rows.

    Raises:
        ValueError: they are of another number of rows, or none at all.
    """
    if text is None:
        return np.full(rows, COMMON_RANK, np.int64)
    size, _, packed = text.partition(":")
    runs = np.frombuffer(pa.Codec("zstd").decompress(base64.b64decode(packed), int(size)).to_pybytes(), _RUN)
    if runs["rows"].sum() != rows:
        raise ValueError(f"it has {rows} rows and {runs['rows'].sum()} ranks")
    ranks: Int64Array = np.repeat(runs["rank"], runs["rows"])
    return ranks
