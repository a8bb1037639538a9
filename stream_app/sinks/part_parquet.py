"""Parts as Parquet. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from stream_app.sinks.part_rows import Layout, Rows, packed_ranks, unpacked_ranks

_RANKS = b"podstream.ranks"
"""Columns do not tell which rows are partial or revised: a file's metadata does, where any are."""


_MANY_ROWS = 10_000


class ParquetParts:
    """A ``PartFormat``: one row group a file, zstd, statistics of what rows are sorted by and of numbers."""

    suffix = ".parquet"
    has_heads = True

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def encoded(self, rows: Rows, extras: Iterable[str]) -> tuple[pa.Buffer, str | None]:
        names = [*self.layout.fixed.names, *sorted(extras)]
        have = set(rows.table.column_names)
        columns = [rows.table[name] if name in have else pa.nulls(len(rows), self.layout.extra) for name in names]
        table = pa.table(dict(zip(names, columns, strict=True)))
        texts = [field.name for field in table.schema if not pa.types.is_floating(field.type)]
        # Rows are not in the order of other texts, which are in every row group: what their limits are helps nobody.
        limited = [name for name in names if name in self.layout.fixed.names or name not in texts]
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(
            sink,
            table.schema,
            compression="zstd",
            compression_level=1,
            # zstd finds repeated numbers too, in half of the time and less.
            use_dictionary=texts,
            write_statistics=limited,
            write_page_checksum=True,
            # Else readers would be told of our dictionaries, and make categories of texts.
            store_schema=False,
        ) as writer:
            writer.write_table(table, row_group_size=max(len(rows), 1))
            if ranks := packed_ranks(rows.ranks):
                writer.add_key_value_metadata({_RANKS: ranks.encode()})
        return sink.getvalue(), None

    def decoded(self, data: bytes, _: str | None) -> Rows:
        try:
            metadata = pq.read_metadata(pa.BufferReader(data))
            # Where texts are few, dictionaries cost more than they save.
            texts = _texts(metadata) if metadata.num_rows >= _MANY_ROWS else None
            options = {"metadata": metadata, "read_dictionary": texts, "page_checksum_verification": True}
            with pq.ParquetFile(pa.BufferReader(data), **options) as file:
                table = file.read(use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(str(error)) from error
        ranks = (metadata.metadata or {}).get(_RANKS)
        return Rows(table.replace_schema_metadata(None), unpacked_ranks(ranks and ranks.decode(), len(table)))

    def extras(self, data: bytes) -> frozenset[str]:
        try:
            names = pq.read_metadata(pa.BufferReader(data)).schema.names
        except (pa.ArrowException, OSError) as error:
            raise ValueError(str(error)) from error
        return frozenset(names) - frozenset(self.layout.fixed.names)


def _texts(metadata: pq.FileMetaData) -> list[str]:
    return [field.name for field in metadata.schema.to_arrow_schema() if pa.types.is_string(field.type)]
