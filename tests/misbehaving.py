"""A real HTTP server before a real Prometheus, which spoils its answers as a test says."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qs, urlsplit

import numpy as np
import orjson
import pyarrow as pa
import urllib3

from ingestor.core.durations import parse_time
from ingestor.core.time_range import TimeRange
from ingestor.local.processes import free_port
from ingestor.re2 import compile_re2
from ingestor.selector import Matcher, Selector
from ingestor.sources.frames import Frames, scan_frames

Answer = Callable[[BaseHTTPRequestHandler], None]
"""Writes an answer."""

WEB_PAGE = "<!DOCTYPE html><html><body>login</body></html>"

STREAMED = "application/x-streamed-protobuf"

_MATCHER_OPERATORS = ["=", "!=", "=~", "!~"]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request; *kind* is ``samples``, ``series``, ``names``, ``count``, ``clock``, or the API's own word."""

    kind: str
    way: str
    """The API's path."""
    metric: str = ""
    selector: Selector = field(default_factory=lambda: Selector(()))
    """Of a request for samples, the metric among its matchers."""
    time_range: TimeRange = TimeRange(0, 1)  # noqa: RUF009 - frozen


@dataclass(frozen=True, slots=True)
class Given:
    """What Prometheus answered."""

    status: int
    content_type: str
    body: bytes
    chunked: bool


Behaviour = Callable[[Asked, Given], Answer | None]
"""Decides what is sent in place of an answer; None: the answer itself. Called from several threads, one at a time."""


class MisbehavingProxy:
    """Passes requests on to a Prometheus, and spoils the answers.

    Args:
        url: of the Prometheus.
    """

    def __init__(self, url: str) -> None:
        self.behaviour: Behaviour = lambda _asked, _given: None
        self.asked: list[Asked] = []
        self.spoilt = 0
        self.ended = threading.Event()
        self._backend = urllib3.connection_from_url(url, maxsize=16)
        self._lock = threading.Lock()
        self._port = free_port()
        self._server: ThreadingHTTPServer | None = None
        self.url = f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self.come()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.go()
        self._backend.close()

    def come(self) -> None:
        """Listen."""
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                proxy._answer(self, self.rfile.read(int(self.headers["Content-Length"])))

            def do_GET(self) -> None:
                proxy._answer(self, b"")

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._server.daemon_threads = True
        # A client that hangs up is what some tests are about.
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def go(self) -> None:
        """Refuse connections; those that are open end with their next request."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def count(self, metric: str) -> int:
        """Return how many requests concerned one metric alone: for its samples, or its series."""
        return sum(asked.metric == metric for asked in self.asked)

    def _answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        if self._server is None:
            hang_up(handler)
            return
        headers = {
            name: handler.headers[name] for name in handler.headers if name.lower() not in ("host", "connection")
        }
        response = self._backend.urlopen(
            handler.command, handler.path, body, headers, retries=False, decode_content=False
        )
        given = Given(
            response.status,
            response.headers.get("Content-Type", ""),
            response.data,
            "Transfer-Encoding" in response.headers,
        )
        asked = _read_request(handler.path, body)
        with self._lock:
            self.asked.append(asked)
            answer = self.behaviour(asked, given)
            self.spoilt += answer is not None
        (answer or whole(given))(handler)


class HurriedEvent(threading.Event):
    """An event that is waited for a moment only, and that knows for how long it should have been."""

    def __init__(self, moment_s: float = 0.02) -> None:
        super().__init__()
        self._moment_s = moment_s
        self.waits_s: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        if timeout is not None:
            self.waits_s.append(timeout)
        return super().wait(None if timeout is None else min(timeout, self._moment_s))


def reply(status: int, body: bytes | str, **headers: str) -> Answer:
    """Answer with *body*, whatever was asked."""
    data = body.encode() if isinstance(body, str) else body

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in ({"Content-Length": str(len(data)), "Connection": "close"} | headers).items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def api_error(status: int, text: str, kind: str = "execution", **headers: str) -> Answer:
    """Answer with an error as the API has them."""
    return reply(status, json.dumps({"status": "error", "errorType": kind, "error": text}), **headers)


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    """Close the connection without an answer."""
    handler.close_connection = True


def reset(handler: BaseHTTPRequestHandler) -> None:
    """Drop the connection as a machine that fails does."""
    handler.close_connection = True
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(handler.connection.detach())


def silence(seconds: float, ended: threading.Event) -> Answer:
    """Answer nothing for so long, then hang up."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        ended.wait(seconds)
        handler.close_connection = True

    return answer


def whole(given: Given) -> Answer:
    """Answer as Prometheus did."""
    return _sent(given, len(given.body))


def cut_off(given: Given, share: float) -> Answer:
    """Send a part of the answer; the connection ends before it does."""
    return _sent(given, int(len(given.body) * share), is_whole=False)


def without_last_chunk(given: Given) -> Answer:
    """Send all of the answer, but not that it has ended."""
    return _sent(given, len(given.body), is_whole=False)


def cut_within(given: Given, share: float) -> Answer:
    """Send a part of the answer as if it were all; of a stream one that ends within a frame, or nobody could tell."""
    size = int(len(given.body) * share)
    if given.content_type.startswith(STREAMED) and _frames(given.body[:size]).consumed == size:
        size -= 1
    return whole(Given(given.status, given.content_type, given.body[:size], given.chunked))


def with_a_bit_flipped(given: Given, place: float) -> Answer:
    """Send an answer with one bit wrong."""
    body = bytearray(given.body)
    bit = int(place * len(body) * 8)
    body[bit // 8] ^= 1 << bit % 8
    return whole(Given(given.status, given.content_type, bytes(body), given.chunked))


def as_type(given: Given, content_type: str) -> Answer:
    """Send an answer as something else."""
    return whole(Given(given.status, content_type, given.body, given.chunked))


def stalled(given: Given, seconds: float, ended: threading.Event) -> Answer:
    """Send half of the answer, and no more for so long."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        _sent(given, len(given.body) // 2, is_whole=False)(handler)
        handler.wfile.flush()
        ended.wait(seconds)

    return answer


def samples_in(asked: Asked, given: Given) -> int:
    """Return how many samples an answer holds."""
    if given.status != 200:
        return 0
    if asked.way == "read":
        # A chunk begins with the number of its samples.
        return sum(
            int.from_bytes(given.body[start : start + 2], "big") for start in _frames(given.body).starts.tolist()
        )
    return sum(len(series["values"]) for series in orjson.loads(given.body)["data"]["result"])


def series_in(asked: Asked, given: Given) -> int:
    """Return how many series an answer for samples holds."""
    if given.status != 200:
        return 0
    if asked.way == "read":
        return len(set(_frames(given.body).label_sets))
    return len(orjson.loads(given.body)["data"]["result"])


def _frames(body: bytes) -> Frames:
    return scan_frames(np.frombuffer(body or b"\0", np.uint8), len(body))  # type: ignore[arg-type]


def _sent(given: Given, size: int, *, is_whole: bool = True) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(given.status)
        handler.send_header("Content-Type", given.content_type)
        if given.chunked:
            handler.send_header("Transfer-Encoding", "chunked")
        else:
            handler.send_header("Content-Length", str(len(given.body)))
        handler.end_headers()
        body = given.body[:size]
        if given.chunked:
            for piece in filter(None, (body[: size // 3], body[size // 3 :])):
                handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            handler.wfile.write(b"0\r\n\r\n" if is_whole else b"")
        else:
            handler.wfile.write(body)
        handler.close_connection = handler.close_connection or not is_whole

    return answer


def _read_request(path: str, body: bytes) -> Asked:
    parts = urlsplit(path)
    way = parts.path.removeprefix("/api/v1/")
    if way == "read":
        return _read_remote_read(body)
    form = parse_qs(parts.query or body.decode())
    if way == "query":
        return _read_query(form)
    kind = {"label/__name__/values": "names"}.get(way, way)
    if "start" not in form:
        return Asked(kind, way)
    selector = Selector.parse(form["match[]"][0])
    time_range = TimeRange(_milliseconds(form["start"][0]), _milliseconds(form["end"][0]) + 1)
    return Asked(kind, way, _metric(selector) if kind == "series" else "", selector, time_range)


def _read_query(form: Mapping[str, list[str]]) -> Asked:
    query = form["query"][0]
    if query == "time()":
        return Asked("clock", "query")
    found = re.fullmatch(r"(\{.*\})\[(\d+)ms\]", query, re.DOTALL)
    if not found:
        return Asked("count", "query")
    selector, end_ms = Selector.parse(found[1]), _milliseconds(form["time"][0]) + 1
    return Asked("samples", "query", _metric(selector), selector, TimeRange(end_ms - int(found[2]), end_ms))


def _read_remote_read(body: bytes) -> Asked:
    size, _ = _varint(body, 0)
    request = pa.decompress(body, size, "snappy", asbytes=True)
    query = dict(_fields(request))[1]
    assert isinstance(query, bytes)
    found = list(_fields(query))
    matchers = [dict(_fields(content)) for number, content in found if number == 3 and isinstance(content, bytes)]
    selector = Selector(
        tuple(
            Matcher(str(m[2], "utf-8"), _MATCHER_OPERATORS[int(m[1])], str(m.get(3, b""), "utf-8"))  # type: ignore[arg-type]
            for m in matchers
        )
    )
    bounds = {number: content for number, content in found if isinstance(content, int)}
    return Asked("samples", "read", _metric(selector), selector, TimeRange(bounds.get(1, 0), bounds.get(2, 0) + 1))


def _metric(selector: Selector) -> str:
    return next((m.value for m in selector.matchers if m.name == "__name__" and m.op == "="), "")


def _milliseconds(text: str) -> int:
    return parse_time(text, 0).time_ms


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the fields of a protobuf message that has numbers and bytes only."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, at = _varint(message, at)
        if tag & 7 == 2:
            yield tag >> 3, message[at : at + number]
            at += number
        else:
            yield tag >> 3, number


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number, at


def finds(selector: Selector, labels: Mapping[str, str]) -> bool:
    """Tell whether a selector finds a series, as Prometheus would: a label that is not there is empty."""
    return all(_holds(matcher, labels.get(matcher.name, "")) for matcher in selector.matchers)


def _holds(matcher: Matcher, value: str) -> bool:
    if matcher.op in ("=", "!="):
        return (value == matcher.value) == (matcher.op == "=")
    return (compile_re2(matcher.value).fullmatch(value) is not None) == (matcher.op == "=~")
