"""Parts as CSV. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pc_csv

from stream_app.sinks.part_rows import TIME_TYPE, Layout, Rows, packed_ranks, unpacked_ranks

_TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
_SPELLED = {"nan": "NaN", "inf": "+Inf", "-inf": "-Inf"}


class CsvParts:
    """A ``PartFormat``: each file with a header of its own; what a series does not have is an empty cell.

    A NaN's payload has no spelling. The ranks of rows that have uncommon ones are kept beside the file.
    """

    suffix = ".csv"
    has_heads = False

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def encoded(self, rows: Rows, extras: Iterable[str]) -> tuple[pa.Buffer, str | None]:
        names = [*self.layout.fixed.names, *sorted(extras)]
        have = set(rows.table.column_names)
        cells = [_cells(rows.table[name]) if name in have else pa.nulls(len(rows), pa.string()) for name in names]
        sink = pa.BufferOutputStream()
        pc_csv.write_csv(pa.table(dict(zip(names, cells, strict=True))), sink)
        return sink.getvalue(), packed_ranks(rows.ranks)

    def decoded(self, data: bytes, ranks: str | None) -> Rows:
        names = _header(data)
        try:
            table = pc_csv.read_csv(
                pa.BufferReader(data),
                pc_csv.ReadOptions(use_threads=False),
                pc_csv.ParseOptions(newlines_in_values=True),
                pc_csv.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.string()),
                    null_values=[""],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=False,
                ),
            )
            types = {field.name: field.type for field in self.layout.fixed}
            columns = {name: _values(table[name], types.get(name, self.layout.extra)) for name in names}
        except pa.ArrowException as error:
            raise ValueError(str(error)) from error
        return Rows(pa.table(columns), unpacked_ranks(ranks, len(table)))

    def extras(self, data: bytes) -> frozenset[str]:
        return frozenset(_header(data)) - frozenset(self.layout.fixed.names)


def _header(data: bytes) -> list[str]:
    try:
        with pc_csv.open_csv(pa.BufferReader(data), parse_options=pc_csv.ParseOptions(newlines_in_values=True)) as file:
            names: list[str] = file.schema.names
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error
    return names


def _cells(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if column.type == TIME_TYPE:
        return pc.strftime(column, _TIME_FORMAT)
    if pa.types.is_dictionary(column.type):
        return column.cast(pa.string())
    if pa.types.is_floating(column.type) and not pc.all(pc.is_finite(column)).as_py():
        cells = column.cast(pa.string())
        for plain, spelled in _SPELLED.items():
            cells = pc.if_else(pc.equal(cells, plain), spelled, cells)
        return cells
    return column


def _values(cells: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if pa.types.is_floating(kind):
        for plain, spelled in _SPELLED.items():
            cells = pc.if_else(pc.equal(cells, spelled), plain, cells)
    return cells.dictionary_encode() if pa.types.is_dictionary(kind) else cells.cast(kind)
