"""Range chunks and markers as Kafka messages: Arrow IPC (zstd) and headers.

The schema of the value is documented in DESIGN.md; any language with Arrow reads it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import orjson
import pyarrow as pa

from ingestor.core.arrow import as_array, as_column
from ingestor.core.chunk import Header, Int64Array, Marker, RangeChunk, Refused, SeriesColumns
from ingestor.core.declared import declared_bytes
from ingestor.core.durations import LATEST_MS
from ingestor.core.errors import MalformedMessage, NewerVersion
from ingestor.core.time_range import TimeRange

Headers = Sequence[tuple[str, bytes]]

SCHEMA_NAME, SCHEMA_VERSION = "podstream.range-chunk", 1

_DICTIONARY = pa.dictionary(pa.int32(), pa.string())
_TIMESTAMP = pa.timestamp("ms", "UTC")
SCHEMA = pa.schema(
    [
        ("namespace", _DICTIONARY),
        ("pod", _DICTIONARY),
        ("service", _DICTIONARY),
        ("metric", _DICTIONARY),
        ("type", _DICTIONARY),
        ("labels", pa.map_(pa.string(), pa.string())),
        ("fingerprint", pa.uint64()),
        ("timestamps", pa.list_(_TIMESTAMP)),
        ("values", pa.list_(pa.float64())),
    ]
)
_LONGEST_CHUNK_MS = 366 * 86_400_000
"""Far above what a poller reads at once: windows of a second are counted one by one."""
MOST_UNPACKED_BYTES = 128 << 20
"""Of one chunk's value. A poller's have a few megabytes; who reads others must not be brought down by one of them."""
# Kafka allows None for a header's value.
_UNREADABLE = (AttributeError, KeyError, TypeError, ValueError)
# Its threads take more time than they save: a chunk is small, and whoever reads many has threads of their own.
_READ_OPTIONS = pa.ipc.IpcReadOptions(use_threads=False)
_WRITE_OPTIONS = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", 1))


def encode_series(series: SeriesColumns) -> bytes:
    """Return the value of a chunk message.

    *series.offsets* may start above zero: samples outside them are not written.
    """
    first, last = int(series.offsets[0]), int(series.offsets[-1])
    offsets = as_column((series.offsets - first).astype(np.int32), pa.int32())
    timestamps = as_column(series.timestamps_ms[first:last], _TIMESTAMP)
    columns = [
        series.namespace,
        series.pod,
        series.service,
        series.metric,
        series.type,
        series.labels,
        as_column(series.fingerprint, pa.uint64()),
        pa.ListArray.from_arrays(offsets, timestamps),
        pa.ListArray.from_arrays(offsets, as_column(series.values[first:last], pa.float64())),
    ]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SCHEMA, options=_WRITE_OPTIONS) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=SCHEMA))
    value: bytes = sink.getvalue().to_pybytes()
    return value


def decode_series(value: bytes) -> SeriesColumns:
    """Read the value of a chunk message without copying its samples.

    Raises:
        MalformedMessage: not such a value.
    """
    try:
        if (unpacked := declared_bytes(value)) > MOST_UNPACKED_BYTES:
            raise MalformedMessage(f"a range chunk of {len(value):,} bytes would unpack to {unpacked:,}")
        with pa.ipc.open_stream(value, options=_READ_OPTIONS) as reader:
            if reader.schema != SCHEMA:
                raise MalformedMessage(f"a range chunk has other columns: {reader.schema.names}")
            batch = reader.read_next_batch()
            if next(reader, None) is not None:
                raise MalformedMessage("a range chunk has more than one record batch")
        batch.validate(full=True)
        _check_nulls(batch)
        timestamps, values = batch.column("timestamps"), batch.column("values")
        offsets = as_array(timestamps.offsets)
        if not np.array_equal(offsets, as_array(values.offsets)):
            raise MalformedMessage("a range chunk has unequal numbers of timestamps and values")
        return SeriesColumns(
            namespace=batch.column("namespace"),
            pod=batch.column("pod"),
            service=batch.column("service"),
            metric=batch.column("metric"),
            type=batch.column("type"),
            labels=batch.column("labels"),
            fingerprint=as_array(batch.column("fingerprint")),
            offsets=offsets.astype(np.int64),
            timestamps_ms=as_array(timestamps.values.view(pa.int64())),
            values=as_array(values.values),
        )
    except (pa.ArrowException, StopIteration, OSError, ValueError) as error:
        raise MalformedMessage(f"a range chunk cannot be read: {error}") from error


def headers(kind: str, header: Header, incomplete: Sequence[Refused] = ()) -> list[tuple[str, bytes]]:
    """Return the headers of a message; numbers are decimal text.

    *kind* is ``lookback``, ``chunk``, ``marker`` or ``end``.

    ``recheck`` and ``incomplete`` (JSON, a list of [metric, start, end]) are there only where they say something.
    """
    fields = {
        "schema": f"{SCHEMA_NAME}/{SCHEMA_VERSION}",
        "kind": kind,
        "source": header.source,
        "job": header.job,
        "shard": "0/1",
        "revision": header.revision,
        "sequence": header.sequence,
        "start": header.time_range.start_ms,
        "end": header.time_range.end_ms,
    }
    encoded = [(name, str(value).encode()) for name, value in fields.items()]
    if header.recheck:
        encoded.append(("recheck", header.recheck.encode()))
    if incomplete:
        encoded.append(("incomplete", orjson.dumps([list(refused) for refused in incomplete])))
    return encoded


def decode(headers: Headers | None, value: bytes | None) -> RangeChunk | Marker:
    """Read one message of the range-chunk topic.

    Raises:
        NewerVersion: a newer podstream has written it.
        MalformedMessage: a header is missing or wrong, the schema is another one,
            or the value cannot be read.
    """
    fields = dict(headers or ())
    try:
        _check_schema(fields["schema"].decode())
        kind, header = fields["kind"].decode(), _header(fields)
        incomplete = _refused(fields.get("incomplete", b"[]"))
    except KeyError as error:
        raise MalformedMessage(f"a message has no header {error}: it is no range chunk") from error
    except _UNREADABLE as error:
        raise MalformedMessage(f"the headers of a message are not those of a range chunk: {error!r}") from error
    if kind in ("marker", "end"):
        return Marker(header, ends_job=kind == "end", incomplete=incomplete)
    if kind not in ("lookback", "chunk"):
        raise MalformedMessage(f"a message is of the unknown kind {kind!r}")
    if header.time_range.length_ms > _LONGEST_CHUNK_MS:
        raise MalformedMessage(f"a range chunk is longer than a year: {header.time_range}")
    series = decode_series(value or b"")
    _check_samples(series.offsets, series.timestamps_ms, header.time_range)
    return RangeChunk(header, series, is_lookback=kind == "lookback")


def header_of(headers: Headers | None) -> Header | None:
    """Return what a message that cannot be read says of itself; None where not even that can be read."""
    try:
        return _header(dict(headers or ()))
    except _UNREADABLE:
        return None


def _check_schema(schema: str) -> None:
    name, _, version = schema.partition("/")
    if name == SCHEMA_NAME and version.isdecimal() and int(version) > SCHEMA_VERSION:
        raise NewerVersion(f"schema {schema!r} is newer than {SCHEMA_NAME}/{SCHEMA_VERSION}: update podstream")
    if schema != f"{SCHEMA_NAME}/{SCHEMA_VERSION}":
        raise MalformedMessage(f"schema {schema!r} is not {SCHEMA_NAME}/{SCHEMA_VERSION}")


def _header(fields: dict[str, bytes]) -> Header:
    time_range = TimeRange(_int64(fields["start"]), _int64(fields["end"]))
    if not (time_range.start_ms >= 0 and time_range.end_ms <= LATEST_MS):
        raise ValueError(f"{time_range} is outside the years 1970 to 2261")
    return Header(
        job=fields["job"].decode(),
        time_range=time_range,
        sequence=_int64(fields["sequence"]),
        source=fields["source"].decode(),
        revision=_int64(fields["revision"]),
        recheck=fields.get("recheck", b"").decode(),
    )


def _refused(text: bytes) -> tuple[Refused, ...]:
    refused = tuple(Refused(*entry) for entry in orjson.loads(text))
    for metric, start_ms, end_ms in refused:
        if [type(part) for part in (metric, start_ms, end_ms)] != [str, int, int]:
            raise ValueError(f"{metric!r}, {start_ms!r}, {end_ms!r} does not name a metric and a range")
    return refused


def _int64(text: bytes) -> int:
    number = int(text)
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{number} does not fit into 64 bits")
    return number


def _check_nulls(batch: pa.RecordBatch) -> None:
    """Refuse rows without a name or samples; nulls among the samples fail on their way to numpy."""
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        inner = {"labels": "items"}.get(name, "dictionary")
        if column.null_count or getattr(getattr(column, inner, None), "null_count", 0):
            raise MalformedMessage(f"a range chunk has nulls in {name}")


def _check_samples(offsets: Int64Array, timestamps_ms: Int64Array, time_range: TimeRange) -> None:
    """Refuse samples outside their range: they would land in windows that are closed."""
    first, last = int(offsets[0]), int(offsets[-1])
    stamps = timestamps_ms[first:last]
    if len(stamps) and not (time_range.start_ms <= stamps.min() and stamps.max() < time_range.end_ms):
        raise MalformedMessage(f"a range chunk has samples outside its range {time_range}")
