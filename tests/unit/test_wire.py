"""Range chunks and markers as bytes and headers."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingestor.core import wire
from ingestor.core.chunk import Header, Marker, RangeChunk, Refused, SeriesColumns
from ingestor.core.durations import LATEST_MS
from ingestor.core.errors import MalformedMessage, NewerVersion
from ingestor.core.time_range import TimeRange
from ingestor.core.wire import SCHEMA, decode, decode_series, encode_series

NAMES = ["namespace", "pod", "service", "metric", "type", "labels"]
BITS = st.one_of(
    st.floats(width=64).map(lambda value: int(np.float64(value).view(np.uint64))),
    st.sampled_from([0x7FF0000000000002, 0x7FF8000000000001, 0xFFF8000000000000, 1 << 63, 0x7FF << 52, 0xFFF << 52]),
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
LABELS = st.dictionaries(TEXT, TEXT, max_size=3).map(lambda labels: sorted(labels.items()))


def dictionary(texts: list[str]) -> pa.DictionaryArray:
    return pa.array(texts, pa.string()).dictionary_encode()


def columns(rows, first: int = 0, tail: int = 0) -> SeriesColumns:
    """Build columns from (texts, labels, fingerprint, times, bits) rows, with *first* and *tail* unused samples."""
    texts = [dictionary([row[0][i] for row in rows]) for i in range(5)]
    counts = [len(row[3]) for row in rows]
    times = [0] * first + [t for row in rows for t in row[3]] + [0] * tail
    bits = [0] * first + [b for row in rows for b in row[4]] + [0] * tail
    return SeriesColumns(
        *texts,
        pa.array([row[1] for row in rows], pa.map_(pa.string(), pa.string())),
        np.array([row[2] for row in rows], np.uint64),
        np.cumsum([first, *counts]).astype(np.int64),
        np.array(times, np.int64),
        np.array(bits, np.uint64).view(np.float64),
    )


@st.composite
def rows(draw):
    times = draw(st.lists(st.integers(0, 3 * 10**10), unique=True, max_size=5).map(sorted))
    bits = draw(st.lists(BITS, min_size=len(times), max_size=len(times)))
    texts = draw(st.tuples(*[TEXT] * 5))
    return texts, draw(LABELS), draw(st.integers(0, 2**64 - 1)), times, bits


def content(series: SeriesColumns) -> list:
    """Write columns as plain rows, values as their 64 bits."""
    bits = series.values.view(np.uint64)
    spans = [slice(series.offsets[i], series.offsets[i + 1]) for i in range(len(series))]
    names = [getattr(series, name).to_pylist() for name in NAMES]
    return [
        (*(name[i] for name in names), int(series.fingerprint[i]), series.timestamps_ms[s].tolist(), bits[s].tolist())
        for i, s in enumerate(spans)
    ]


ROW = (("prod", "web-0", "web", "cpu", "gauge"), [("code", "500")], 7, [1000, 2000], [1, 2])
RANGE = TimeRange(1000, 3000)


def message() -> tuple[dict[str, bytes], bytes]:
    series = columns([ROW])
    return dict(wire.headers("chunk", Header("live", RANGE, 5, "query"))), encode_series(series)


@given(st.lists(rows(), max_size=6), st.integers(0, 3), st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_series_come_back_bit_by_bit(series_rows, first, tail):
    """Any series come back: NaN payloads, -0.0, infinities, empty rows and labels, offsets that start late."""
    series = columns(series_rows, first, tail)
    decoded = decode_series(encode_series(series))
    assert content(decoded) == content(series)
    assert decoded.offsets[0] == 0
    assert len(decoded.values) == len(decoded.timestamps_ms) == series.samples == decoded.samples
    assert decoded.offsets.dtype == decoded.timestamps_ms.dtype == np.int64
    assert decoded.fingerprint.dtype == np.uint64


@given(st.lists(rows(), min_size=1, max_size=6), st.data())
@settings(max_examples=30, deadline=None)
def test_rows_can_be_cut_out(series_rows, data):
    """A slice of the rows is written as these rows alone, and a series may be cut between two rows."""
    series = columns(series_rows)
    low = data.draw(st.integers(0, len(series)))
    high = data.draw(st.integers(low, len(series)))
    sliced = SeriesColumns(
        *(getattr(series, name)[low:high] for name in NAMES),
        series.fingerprint[low:high],
        series.offsets[low : high + 1],
        series.timestamps_ms,
        series.values,
    )
    assert content(decode_series(encode_series(sliced))) == content(series)[low:high]

    at = series.offsets[0] + data.draw(st.integers(0, int(series.offsets[1] - series.offsets[0])))
    twice = columns([series_rows[0], *series_rows])
    split = replace(
        twice,
        offsets=np.array([0, at, *series.offsets[1:]], np.int64),
        timestamps_ms=series.timestamps_ms,
        values=series.values,
    )
    first, second, *others = content(decode_series(encode_series(split)))
    whole = content(series)
    assert (*first[:7], first[7] + second[7], first[8] + second[8]) == whole[0]
    assert others == whole[1:]


def test_samples_are_not_copied():
    """Values are views on Arrow's memory, for speed."""
    decoded = decode_series(encode_series(columns([ROW])))
    assert not decoded.values.flags.owndata
    assert not decoded.timestamps_ms.flags.owndata


INT64 = st.integers(-(2**63), 2**63 - 1)
TIMES = st.integers(0, LATEST_MS)
RANGES = st.tuples(TIMES, TIMES).filter(lambda pair: pair[0] < pair[1]).map(lambda pair: TimeRange(*pair))
YEAR_MS = 366 * 86_400_000


HEADERS = st.builds(Header, TEXT, RANGES, INT64, TEXT, INT64, TEXT)
REFUSED = st.lists(st.builds(Refused, TEXT, INT64, INT64), max_size=3).map(tuple)


@given(HEADERS, REFUSED, st.booleans())
@settings(max_examples=50, deadline=None)
def test_markers_come_back(header, incomplete, ends_job):
    """Headers alone carry a marker, with any job's name and any range, in any order."""
    headers = wire.headers("end" if ends_job else "marker", header, incomplete)
    marker = Marker(header, ends_job, incomplete)
    assert decode(headers, None) == marker
    assert decode(tuple(reversed(headers)), b"") == marker


@given(TEXT, st.integers(0, 2**63 - 1), TEXT, st.lists(rows(), max_size=4), st.booleans())
@settings(max_examples=30, deadline=None)
def test_chunks_come_back(job, sequence, source, series_rows, is_lookback):
    """Headers and value together carry a chunk, and what came before a job's start is told from what is in it."""
    chunk = RangeChunk(Header(job, TimeRange(0, YEAR_MS), sequence, source), columns(series_rows), is_lookback)
    headers = wire.headers("lookback" if is_lookback else "chunk", chunk.header)
    decoded = decode(headers, encode_series(chunk.series))
    assert isinstance(decoded, RangeChunk)
    assert content(decoded.series) == content(chunk.series)
    assert replace(decoded, series=chunk.series) == chunk


@pytest.mark.parametrize(
    "text", [b"x", b"{}x", b"[1]", b'[["cpu"]]', b'[["cpu",1,"2"]]', b"[[1,1,2]]", b'[["cpu",1,true]]']
)
def test_a_wrong_list_of_what_is_incomplete_is_malformed(text):
    """What is missing must be readable, or it would be missing in silence."""
    headers = [*wire.headers("marker", Header("live", RANGE, 5, "query")), ("incomplete", text)]
    with pytest.raises(MalformedMessage):
        decode(headers, b"")


@pytest.mark.parametrize("name", [name for name in message()[0] if name != "shard"])
@pytest.mark.parametrize("value", [None, b"", b"\xff", b"x", b"1.5", b"9" * 30, b"9" * 5000, "missing"])
def test_wrong_headers_are_malformed(name, value):
    """A header that is missing, null or of another kind raises MalformedMessage and nothing else."""
    headers, body = message()
    if value == "missing":
        del headers[name]
    else:
        headers[name] = value
    if name in ("job", "source") and isinstance(value, bytes) and value != b"\xff":
        assert isinstance(decode(list(headers.items()), body), RangeChunk)
        return
    with pytest.raises(MalformedMessage):
        decode(list(headers.items()), body)


@pytest.mark.parametrize("headers", [None, [], [("other", b"1")]])
def test_no_headers_are_malformed(headers):
    """A message of somebody else is malformed, not a crash."""
    with pytest.raises(MalformedMessage, match="no header 'schema'"):
        decode(headers, b"")


def test_another_version_says_what_to_do():
    """A newer schema asks for an update."""
    headers, body = message()
    with pytest.raises(NewerVersion, match="update podstream"):
        decode(list((headers | {"schema": b"podstream.range-chunk/2"}).items()), body)


@pytest.mark.parametrize(("start", "end"), [(b"3000", b"1000"), (b"5", b"5"), (b"9" * 20, b"9" * 20)])
def test_an_empty_range_is_malformed(start, end):
    """A range that ends before it starts is malformed, even where no calendar reaches."""
    headers, body = message()
    with pytest.raises(MalformedMessage):
        decode(list((headers | {"start": start, "end": end}).items()), body)


@pytest.mark.parametrize("kind", [b"chunk", b"lookback"])
@pytest.mark.parametrize(("start", "end"), [(1001, 3000), (1000, 2000), (0, 1000), (2001, 2**34)])
def test_samples_outside_the_range_are_malformed(start, end, kind):
    """The start is inside, the end is not; a sample beyond either would land in a closed window, or in none."""
    headers, body = message()
    headers |= {"kind": kind}
    assert isinstance(decode(list((headers | {"start": b"1000", "end": b"2001"}).items()), body), RangeChunk)
    headers |= {"start": b"%d" % start, "end": b"%d" % end}
    with pytest.raises(MalformedMessage, match="outside its range"):
        decode(list(headers.items()), body)


@pytest.mark.parametrize(("start", "end"), [(-1, 1000), (0, 2**62), (2**55, 2**55 + 1)])
def test_times_that_no_calendar_has_are_malformed(start, end):
    """A message from the year 58865 is set aside: no window of any calendar holds it."""
    headers, body = message()
    headers |= {"start": b"%d" % start, "end": b"%d" % end}
    with pytest.raises(MalformedMessage, match="outside the years"):
        decode(list(headers.items()), body)
    assert wire.header_of(list(headers.items())) is None


def test_a_chunk_of_more_than_a_year_is_malformed():
    """Windows of a second are counted one by one: a job's end may name a long time, a chunk may not."""
    headers, body = message()
    headers |= {"start": b"0", "end": b"%d" % (YEAR_MS + 1)}
    with pytest.raises(MalformedMessage, match="longer than a year"):
        decode(list(headers.items()), body)
    assert isinstance(decode(list((headers | {"kind": b"end"}).items()), b""), Marker)


def test_cut_bytes_are_malformed():
    """A value cut anywhere is refused, but where only the stream's end mark is gone, as Arrow allows."""
    body = encode_series(columns([ROW]))
    for length in range(len(body) - 8):
        with pytest.raises(MalformedMessage):
            decode_series(body[:length])
    assert content(decode_series(body[:-8])) == content(columns([ROW]))


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_changed_bytes_never_crash(data):
    """Damaged bytes give MalformedMessage, or columns that can be read."""
    body = bytearray(encode_series(columns([ROW, ROW])))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        series = decode_series(bytes(body))
    except MalformedMessage:
        return
    assert len(content(series)) == len(series)


@given(st.binary(max_size=100))
@settings(max_examples=30, deadline=None)
def test_other_bytes_are_malformed(body):
    """Bytes that are no Arrow stream are malformed."""
    with pytest.raises(MalformedMessage):
        decode_series(body)


def stream(*batches: pa.RecordBatch, schema: pa.Schema = SCHEMA) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def batch(**changed: list) -> pa.RecordBatch:
    row = dict(zip(NAMES, [["a"]] * 5 + [[[("x", "y")]]], strict=True))
    row |= {"fingerprint": [1], "timestamps": [[1, 2]], "values": [[1.0, 2.0]]} | changed
    plain = {"type": pa.string(), "timestamps": pa.list_(pa.timestamp("ms", "UTC"))}
    arrays = [
        pa.array(row[field.name], plain.get(field.name, pa.string())).dictionary_encode()
        if pa.types.is_dictionary(field.type)
        else pa.array(row[field.name], field.type)
        for field in SCHEMA
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def test_a_stream_of_another_writer_is_read():
    """Any Arrow writer's uncompressed stream of the schema is a value."""
    assert decode_series(stream(batch())).values.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("batches", [0, 2])
def test_one_record_batch_a_message(batches):
    """No batch, or a second one whose samples would be lost in silence, is malformed."""
    with pytest.raises(MalformedMessage):
        decode_series(stream(*[batch()] * batches))


@pytest.mark.parametrize(
    "changed",
    [
        *({name: [None]} for name in SCHEMA.names),
        {"labels": [[("x", None)]]},
        {"timestamps": [[1, None]]},
        {"values": [[1.0, None]]},
        {"values": [[1.0]]},
        {"values": [[]]},
        {"timestamps": [[]]},
    ],
)
def test_nulls_and_unequal_lists_are_malformed(changed):
    """A row without a name, a sample without time or value: refused before anyone computes with it."""
    with pytest.raises(MalformedMessage):
        decode_series(stream(batch(**changed)))


def test_other_columns_are_malformed():
    """An Arrow stream with other columns names them."""
    schema = pa.schema([("pod", pa.string())])
    other = pa.RecordBatch.from_arrays([pa.array(["a"])], schema=schema)
    with pytest.raises(MalformedMessage, match=r"other columns: \['pod'\]"):
        decode_series(stream(other, schema=schema))


def test_an_unknown_kind_is_malformed():
    """A kind of a later version is not taken for a chunk."""
    headers, body = message()
    with pytest.raises(MalformedMessage, match="unknown kind 'pause'"):
        decode(list((headers | {"kind": b"pause"}).items()), body)
