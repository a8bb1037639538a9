"""Streamed remote read: frames, and every way in which a server can fail in the middle of them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_xor import encode, float_bits

from ingestor.core.errors import ConfigError, IngestorError, QueryRejected, SourceUnavailable, TooManySamples
from ingestor.core.time_range import TimeRange
from ingestor.selector import Selector
from ingestor.sources import remote_read
from ingestor.sources.base import STALE_MARKER_BITS, canonical_labels
from ingestor.sources.frames import UnknownEncodingError, crc32c, scan_frames
from ingestor.sources.remote_read import RemoteReadSource, RemoteReadUnsupported

START = 1_700_000_000_000
RANGE = TimeRange(START, START + 3_600_000)
PODS = Selector.parse('{pod!="",zone=~"a|b"}')
STREAMED = "application/x-streamed-protobuf; proto=prometheus.ChunkedReadResponse"

XOR, HISTOGRAM, FLOAT_HISTOGRAM = 1, 2, 3


def varint(number: int) -> bytes:
    encoded = b""
    while number > 127:
        encoded, number = encoded + bytes([number & 127 | 128]), number >> 7
    return encoded + bytes([number])


def field(number: int, content: int | bytes) -> bytes:
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def label_fields(labels: dict[str, str]) -> bytes:
    # As Go writes it: what is empty is not written.
    return b"".join(
        field(1, (field(1, name.encode()) if name else b"") + (field(2, value.encode()) if value else b""))
        for name, value in labels.items()
    )


def chunk_field(data: bytes, encoding: int = XOR) -> bytes:
    return field(2, field(1, START) + field(2, START + 9) + field(3, encoding) + field(4, data))


def series(labels: dict[str, str], *chunks: bytes) -> bytes:
    return field(1, label_fields(labels) + b"".join(chunks))


def frame(message: bytes) -> bytes:
    crc = crc32c(np.frombuffer(message or b"\0", np.uint8), 0, len(message))  # type: ignore[arg-type]
    return varint(len(message)) + crc.to_bytes(4, "big") + message


def scan(body: bytes, without: dict[str, str] | None = None) -> Any:
    return scan_frames(np.frombuffer(body or b"\0", np.uint8), len(body), without)  # type: ignore[arg-type]


def spelt(labels: dict[str, str]) -> bytes:
    return canonical_labels(json.dumps(labels).encode())


FLOATS = chunk_field(encode([(START + i * 15_000, float_bits(i / 7)) for i in range(5)]))
ONE = frame(series({"__name__": "up", "pod": "a"}, FLOATS))
TWO = frame(series({"__name__": "up", "pod": "b"}, FLOATS, chunk_field(encode([(START + 90_000, 0)]))))


def test_the_checksum_is_castagnolis() -> None:
    """The check value of the CRC catalogue, and RFC 3720's examples (B.4)."""
    for data, crc in [
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ]:
        assert crc32c(np.frombuffer(b"x" + data, np.uint8), 1, len(data) + 1) == crc  # type: ignore[arg-type]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=5), st.lists(st.binary(min_size=2))
        ),
        max_size=6,
    ),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
def test_every_series_and_chunk_is_found(
    described: list[tuple[dict[str, str], list[bytes]]], a_frame: int, rng: random.Random
) -> None:
    """Whatever labels are made of and in whatever order they come, they are spelt as one JSON object."""
    messages = [series(labels, *map(chunk_field, chunks)) for labels, chunks in described]
    unknown = [
        field(2, 7),
        field(15, b"new"),
        field(16, 1 << 63),
        varint(17 << 3 | 1) + bytes(8),
        varint(18 << 3 | 5) + bytes(4),
    ]
    body = b"".join(
        frame(b"".join([*messages[i : i + a_frame], rng.choice(unknown)])) for i in range(0, len(messages), a_frame)
    )
    found = scan(body + ONE[:-1])
    with_chunks = [(labels, chunks) for labels, chunks in described if chunks]
    assert found.consumed == len(body)
    assert found.label_sets == [spelt(labels) for labels, _ in with_chunks]
    assert np.diff(found.first_chunks).tolist() == [len(chunks) for _, chunks in with_chunks]
    whole = body + ONE
    assert [whole[a:b] for a, b in zip(found.starts.tolist(), found.ends.tolist(), strict=True)] == [
        chunk for _, chunks in with_chunks for chunk in chunks
    ]


def test_external_labels_are_left_out_where_the_pair_is_equal() -> None:
    """Only name and value together make a label the server's own."""
    body = frame(
        series({"a": "x", "cluster": "p\t", "pod": "1"}, FLOATS)
        + series({"cluster": "other", "clusters": "p\t", "pod": "2", "replica": "0"}, FLOATS)
        + series({"cluster": "p\t"}, FLOATS)
    )
    assert scan(body, {"cluster": "p\t", "replica": "0"}).label_sets == [
        b'{"a":"x","pod":"1"}',
        b'{"cluster":"other","clusters":"p\\t","pod":"2"}',
        b"{}",
    ]


def test_bytes_that_are_no_text_are_replaced() -> None:
    """A label that is not UTF-8 must not stop everything else."""
    message = field(1, field(1, field(1, b"a") + field(2, b"\xffz")) + FLOATS)
    assert scan(frame(message)).label_sets == ['{"a":"\ufffdz"}'.encode()]


def test_native_histograms_are_counted_and_never_decoded() -> None:
    """Chunks of both histogram encodings are left out; a third encoding stops the reading."""
    histogram = (7).to_bytes(2, "big") + bytes(50)
    body = frame(
        series({"a": "1"}, chunk_field(histogram, HISTOGRAM), chunk_field(histogram, FLOAT_HISTOGRAM))
        + series({"a": "2"}, FLOATS, chunk_field(histogram, HISTOGRAM))
    )
    found = scan(body)
    assert (found.label_sets, found.histograms, len(found.starts)) == ([b'{"a":"2"}'], 21, 1)
    for encoding in (0, 4, 250):
        with pytest.raises(UnknownEncodingError, match=str(encoding)):
            scan(frame(series({}, chunk_field(histogram, encoding))))


@pytest.mark.parametrize(
    "message",
    [
        *(b"\x0a", b"\x0a\x05abc", b"\x00", b"\x0b", b"\x0c", b"\x09\1", b"\x0d\1", b"\x80" * 11, b"\x10"),
        *(field(1, b"\x0a\x09"), field(1, field(2, b"")), field(1, field(2, field(3, 1) + field(4, b"\0")))),
        *(field(1, field(1, b"\x0a\x50a") + FLOATS), b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\1"),
    ],
)
def test_a_malformed_message_is_refused(message: bytes) -> None:
    """Lengths beyond the end, groups, fields without a number, chunks without data."""
    with pytest.raises((SourceUnavailable, UnknownEncodingError)):
        scan(ONE + frame(message))


def test_every_flipped_bit_is_noticed() -> None:
    """In the message the checksum sees it; in the length what follows is no frame or not yet whole."""
    for bit in range(len(ONE) * 8):
        broken = bytearray(ONE)
        broken[bit // 8] ^= 1 << bit % 8
        with contextlib.suppress(SourceUnavailable):
            assert scan(bytes(broken)).label_sets == []


# A program, so that numba can be told to check every index: it is decided at compilation.
FUZZ = """
import random, sys
import numpy as np
from ingestor.core.errors import IngestorError
from ingestor.sources.frames import UnknownEncodingError, crc32c, scan_frames
rng = random.Random(int(sys.argv[1]))
message = sys.stdin.buffer.read()
read = 0
for _ in range(30_000):
    mutant = bytearray(message)
    for _ in range(rng.randint(0, 4)):
        at = rng.randrange(len(mutant))
        what = rng.random()
        if what < 0.4:
            mutant[at] ^= 1 << rng.randrange(8)
        elif what < 0.6:
            mutant[at] = rng.choice((0, 1, 10, 18, 26, 34, 127, 128, 255))
        elif what < 0.7:
            other = rng.choice((b"", b"\\xff" * 9 + b"\\1", b"\\x0a\\0" * 9, rng.randbytes(5)))
            mutant[at:at + rng.randint(0, 9)] = other
        else:
            other = rng.randrange(len(mutant))
            mutant[at:at] = mutant[other:other + rng.randint(1, 90)]
    if rng.random() < 0.1:
        empty = rng.choice((b"\\x0a\\0", b"\\x0a\\2\\x0a\\0", b"\\x0a\\4\\x0a\\2\\x0a\\0"))
        mutant = bytearray(empty * rng.randint(0, 200))
    n, size = len(mutant), b""
    while n > 127:
        size, n = size + bytes([n & 127 | 128]), n >> 7
    crc = crc32c(np.frombuffer(bytes(mutant) or b"0", np.uint8), 0, len(mutant))
    body = size + bytes([n]) + crc.to_bytes(4, "big") + bytes(mutant)
    body = body * rng.randint(1, 2)
    body = body[: rng.choice((len(body), len(body), rng.randrange(len(body) + 1)))]
    try:
        found = scan_frames(np.frombuffer(body or b"0", np.uint8), len(body), {"pod": "a"})
        assert 0 <= found.consumed <= len(body)
        assert len(found.first_chunks) == len(found.label_sets) + 1
        assert found.first_chunks[-1] == len(found.starts) == len(found.ends)
        assert (found.starts + 2 <= found.ends).all() and (found.ends <= len(body)).all()
        read += bool(found.label_sets)
    except (IngestorError, UnknownEncodingError):
        pass
print(read)
"""


def test_no_bytes_break_the_scanner(tmp_path: Any) -> None:
    """Mutations whose checksum is right give an answer or an error, and no index is ever out of bounds."""
    message = (
        series({"__name__": "up", "pod": 'a\\"\x01'}, FLOATS)
        + series({"": "", "pod": "a"}, FLOATS, chunk_field(bytes(9), HISTOGRAM))
        + series({}, FLOATS)
        + field(2, 300)
    )
    checking = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, "11"], input=message, env=checking, capture_output=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr.decode()
    assert int(done.stdout) > 3000, "the mutations are too wild to say anything"


Answer = Callable[[BaseHTTPRequestHandler], None]


class Backend:
    """A real HTTP server on the loopback that answers remote reads as it is told."""

    def __init__(self) -> None:
        self.answer: Answer = stream(ONE, TWO)
        self.configuration: tuple[int, str] = (200, "global:\n  scrape_interval: 1m\nscrape_configs: []\n")
        self.query_result: Any = {"resultType": "scalar", "result": [1.5, "1700000000"]}
        self.names: list[str] = []
        self.asked: list[str] = []
        self.requests: list[bytes] = []
        backend = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/api/v1/query":
                    backend.json(backend.query_result, self)
                else:
                    backend.requests.append(body)
                    backend.answer(self)

            def do_GET(self) -> None:
                backend.asked.append(self.path)
                if self.path.startswith("/api/v1/status/config"):
                    status, text = backend.configuration
                    backend.json({"yaml": text}, self, status)
                else:
                    backend.json(backend.names, self)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        # A client that hangs up is what some tests are about.
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @staticmethod
    def json(data: Any, handler: BaseHTTPRequestHandler, status: int = 200) -> None:
        reply(status, json.dumps({"status": "success", "data": data}).encode(), "application/json")(handler)


def reply(status: int, body: bytes | str, kind: str = "text/plain", **headers: str) -> Answer:
    content = body.encode() if isinstance(body, str) else body

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def stream(*pieces: bytes, whole: bool = True, wait: threading.Event | None = None) -> Answer:
    """Answer in HTTP chunks; without the last, empty one if not *whole*."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", STREAMED)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for piece in pieces:
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        if wait:
            wait.wait()
        if whole:
            handler.wfile.write(b"0\r\n\r\n")
        else:
            handler.close_connection = True

    return answer


def without_end(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", STREAMED)
    handler.end_headers()
    handler.wfile.write(ONE)
    handler.close_connection = True


def cut_body(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", STREAMED)
    handler.send_header("Content-Length", str(len(ONE + TWO)))
    handler.end_headers()
    handler.wfile.write(ONE)
    handler.close_connection = True


@pytest.fixture
def backend() -> Iterator[Backend]:
    backend = Backend()
    yield backend
    backend.server.shutdown()
    backend.server.server_close()


def corrupted(body: bytes, at: int) -> bytes:
    return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]


BROKEN_CHUNK = frame(series({"pod": "a"}, chunk_field(encode([(START, 1), (START + 1, 2), (START + 2, 3)])[:-3])))


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (stream(ONE, TWO[:-1]), SourceUnavailable, "cut short in the middle of a frame"),
        (stream(ONE, TWO[:1]), SourceUnavailable, "cut short in the middle of a frame"),
        (stream(ONE, b"storage is gone\n"), SourceUnavailable, "cut short in the middle of a frame: storage is gone"),
        (stream(ONE, b"storage is gone\n" * 20), SourceUnavailable, "checksum is wrong"),
        (stream(ONE, whole=False), SourceUnavailable, "cut short"),
        (cut_body, SourceUnavailable, "cut short"),
        (stream(corrupted(ONE, 4)), SourceUnavailable, "checksum is wrong"),
        (stream(corrupted(ONE, 40)), SourceUnavailable, "checksum is wrong"),
        (stream(b"\xff" * 30), SourceUnavailable, "not a stream of frames"),
        (stream(varint(1 << 40) + bytes(99)), SourceUnavailable, "not a stream of frames"),
        (stream(frame(b"\x0a\x63a")), SourceUnavailable, "malformed"),
        (stream(BROKEN_CHUNK), SourceUnavailable, "a chunk is cut or malformed"),
        (stream(frame(series({"pod": "a"}, chunk_field(bytes(9), 9)))), RemoteReadUnsupported, "unknown encoding 9"),
        (without_end, RemoteReadUnsupported, "an answer without an end"),
        (reply(200, "", "application/x-protobuf"), RemoteReadUnsupported, "content type 'application/x-protobuf'"),
        (reply(200, "<html>", "text/html"), RemoteReadUnsupported, "content type 'text/html'"),
        (reply(400, 'unsupported path requested: "/api/v1/read"'), RemoteReadUnsupported, "unsupported path"),
        (reply(404, "404 page not found"), RemoteReadUnsupported, "404 Not Found"),
        (reply(500, "error parsing regexp: missing closing )"), QueryRejected, "error parsing regexp"),
        (reply(500, "storage is broken"), SourceUnavailable, "storage is broken"),
        (reply(500, "exceeded sample limit (50000000)"), TooManySamples, "exceeded"),
        (reply(413, ""), TooManySamples, "413"),
        (reply(504, "<html>"), TooManySamples, "504"),
        (reply(503, "", Retry_After="3"), SourceUnavailable, "503"),
        (reply(429, ""), SourceUnavailable, "429"),
        (reply(401, ""), ConfigError, "give --bearer-token-file"),
        (
            reply(302, "", Location="https://me:pw@sso.example/login?state=pw"),
            ConfigError,
            "https://sso.example/login:",
        ),
    ],
)
def test_each_failure_has_its_error(backend: Backend, answer: Answer, kind: type[IngestorError], message: str) -> None:
    """No answer that is cut or broken is ever taken for a shorter history."""
    backend.answer = answer
    with pytest.raises(IngestorError) as caught:
        RemoteReadSource(backend.url).fetch(PODS, "up", RANGE)
    assert type(caught.value) is kind
    assert message in str(caught.value)
    assert str(caught.value).startswith(backend.url)
    assert "pw" not in str(caught.value)


def test_an_answer_cut_anywhere_is_unavailable(backend: Backend) -> None:
    """Even if the HTTP part of it looks whole."""
    body = ONE + TWO
    source = RemoteReadSource(backend.url)
    for length in set(range(1, len(body))) - {len(ONE)}:
        backend.answer = stream(body[:length])
        with pytest.raises(SourceUnavailable):
            source.fetch(PODS, "up", RANGE)


def test_a_stream_that_stalls_is_too_much(backend: Backend) -> None:
    """Asked for less, the server may be in time."""
    stalled = threading.Event()
    backend.answer = stream(ONE, wait=stalled)
    with pytest.raises(TooManySamples, match=r"did not answer within 1 s"):
        RemoteReadSource(backend.url, timeout_s=1.0).fetch(PODS, "up", RANGE)
    stalled.set()


def test_however_the_stream_is_cut_into_pieces(backend: Backend) -> None:
    """Frames end where they want, and a frame may be longer than what is read at once."""
    long = encode([(START + i, i * 0x9E3779B97F4A7C15 % 2**64) for i in range(4_000)])
    body = ONE + frame(series({"__name__": "up", "pod": "c"}, *[chunk_field(long)] * 300)) + TWO
    assert len(body) > 9 << 20
    for size in (7_919, 1 << 20, len(body)):
        backend.answer = stream(*(body[i : i + size] for i in range(0, len(body), size)))
        block = RemoteReadSource(backend.url).fetch(PODS, "up", RANGE)
        assert [json.loads(labels)["pod"] for labels in block.label_sets] == ["a", "c", "b"]
        assert np.diff(block.offsets).tolist() == [5, 4_000, 6]


def test_parts_of_a_series_are_put_together_and_overlaps_are_merged(backend: Backend) -> None:
    """Chunks that overlap, come in disorder or in several frames give each timestamp once, the first that came."""

    def part(pod: str, *times_and_values: tuple[int, int]) -> bytes:
        return frame(
            series({"__name__": "up", "pod": pod}, chunk_field(encode([(START + t, v) for t, v in times_and_values])))
        )

    backend.answer = stream(
        part("a", (10, 1), (20, 2)),
        part("a", (15, 3), (20, 4), (30, STALE_MARKER_BITS)),
        part("b", (5, 5), (-1, 6)),
        part("a", (3_600_000, 7), (3_599_999, 8)),
        part("c", (1, STALE_MARKER_BITS)),
    )
    block = RemoteReadSource(backend.url).fetch(PODS, "up", RANGE)
    assert [json.loads(labels)["pod"] for labels in block.label_sets] == ["a", "b"]
    assert block.offsets.tolist() == [0, 4, 5]
    assert (block.timestamps_ms - START).tolist() == [10, 15, 20, 3_599_999, 5]
    assert block.values.view(np.int64).tolist() == [1, 3, 2, 8, 5]
    assert block.source == "remote-read"


def test_more_samples_than_allowed_are_too_many(backend: Backend) -> None:
    """Memory is bounded, whatever the server sends."""
    chunk = chunk_field(encode([(START + i, i) for i in range(4_000)]))
    backend.answer = stream(*[frame(series({"pod": "a"}, *[chunk] * 10))] * 20)
    with pytest.raises(TooManySamples, match="more than 100000 samples at once"):
        RemoteReadSource(backend.url, most_samples=100_000).fetch(PODS, "up", RANGE)
    with pytest.raises(TooManySamples, match="more than 200000 samples at once"):
        RemoteReadSource(backend.url).fetch_together(PODS, ["down", "up"], RANGE, 200_000)


@pytest.mark.parametrize(("metrics", "matcher"), [(["up"], (0, b"up")), (["a.b", "up"], (2, rb"a\.b|up"))])
def test_the_request_is_as_documented(backend: Backend, metrics: list[str], matcher: tuple[int, bytes]) -> None:
    """The metrics and the matchers, both ends inclusive, and nothing but streamed chunks accepted."""
    RemoteReadSource(backend.url).fetch_together(PODS, metrics, RANGE, 100)
    (sent,) = backend.requests
    request = field(
        1,
        field(1, RANGE.start_ms)
        + field(2, RANGE.end_ms - 1)
        + field(3, field(1, matcher[0]) + field(2, b"__name__") + field(3, matcher[1]))
        + field(3, field(1, 1) + field(2, b"pod") + field(3, b""))
        + field(3, field(1, 2) + field(2, b"zone") + field(3, b"a|b")),
    ) + field(2, 1)
    assert pa.decompress(sent, len(request), "snappy", asbytes=True) == request


@pytest.mark.parametrize(
    ("configuration", "refusal"),
    [
        ((403, ""), "does not tell its external labels"),
        ((200, "global:\n  external_labels:\n    - x\n"), "cannot be read"),
        ((200, "global: [\n"), "cannot be read"),
    ],
)
def test_unknown_external_labels_forbid_remote_read(
    backend: Backend, configuration: tuple[int, str], refusal: str
) -> None:
    """They would be taken for labels of the series."""
    backend.configuration = configuration
    with pytest.raises(RemoteReadUnsupported, match=refusal):
        RemoteReadSource(backend.url).fetch(PODS, "up", RANGE)


def test_external_labels_are_not_forgotten_for_an_error_page(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken for none, they would make other series of the same ones."""
    monkeypatch.setattr(remote_read, "_EXTERNAL_LABELS_S", -1.0)
    backend.configuration = (200, "global:\n  external_labels:\n    pod: a\n")
    source = RemoteReadSource(backend.url)
    assert {b'{"__name__":"up"}'} < set(source.fetch(PODS, "up", RANGE).label_sets)
    backend.configuration = (404, "default backend - 404")
    with pytest.raises(SourceUnavailable, match="does not tell its external labels any longer"):
        source.fetch(PODS, "up", RANGE)
    backend.configuration = (200, "global: {}\n")
    assert source.fetch(PODS, "up", RANGE).samples == 11


def test_a_backend_without_a_configuration_has_no_external_labels(backend: Backend) -> None:
    """Mimir, for one."""
    backend.configuration = (404, "")
    assert RemoteReadSource(backend.url).fetch(PODS, "up", RANGE).samples == 11


def test_support_is_found_by_asking(backend: Backend) -> None:
    """A refusal is an answer; an overloaded server has not told."""
    source = RemoteReadSource(backend.url)
    assert source.is_supported()
    for answer in (reply(404, ""), reply(400, "no"), reply(403, ""), reply(200, "", "text/html"), reply(422, "no")):
        backend.answer = answer
        assert not source.is_supported()
    backend.answer = reply(503, "")
    with pytest.raises(SourceUnavailable):
        source.is_supported()
