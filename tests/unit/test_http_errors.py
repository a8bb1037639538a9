"""Every way in which a backend fails becomes the error that says what helps, in one line, without a secret."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from hypothesis import given
from hypothesis import strategies as st
from misbehaving import WEB_PAGE, Answer, HurriedEvent, api_error, hang_up, reply

from ingestor.access import Access
from ingestor.core.errors import (
    ConfigError,
    IngestorError,
    QueryRejected,
    SourceUnavailable,
    TooManySamples,
    TooManySeries,
)
from ingestor.core.time_range import TimeRange
from ingestor.selector import Selector
from ingestor.sources.http import instant
from ingestor.sources.http_query import HttpQuerySource
from ingestor.sources.retrying import RetryingSource

RANGE = TimeRange(1_700_000_000_000, 1_700_000_060_000)
PODS = Selector.parse('{pod!=""}')
CLOCK = json.dumps({"status": "success", "data": {"resultType": "scalar", "result": [1.5, "1700000000.123"]}}).encode()
MATRIX = (
    b'{"status":"success","data":{"resultType":"matrix","result":[{"metric":{"a":"b"},"values":[[1700000000,"1"]]}]}}'
)


class Backend:
    """A real HTTP server on the loopback that answers as it is told."""

    def __init__(self) -> None:
        self.answer: Answer = reply(200, MATRIX)
        self.clock: Answer = reply(200, CLOCK)
        self.headers: list[dict[str, str]] = []
        self.forms: list[dict[str, list[str]]] = []
        backend = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                backend.headers.append(dict(self.headers))
                backend.forms.append(form)
                (backend.clock if form.get("query") == ["time()"] else backend.answer)(self)

            def do_GET(self) -> None:
                backend.headers.append(dict(self.headers))
                backend.answer(self)

            def log_message(self, *_args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


TIMEOUT_S = 2.0
"""Short for a test, and long for a server that answers at once on a busy machine."""


def silence(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(6)
    handler.close_connection = True


def stall_in_the_body(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(MATRIX[:40])
    silence(handler)


def cut_body(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "9999")
    handler.end_headers()
    handler.wfile.write(MATRIX[:60])
    handler.close_connection = True


def cut_chunk(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"%x\r\n" % len(MATRIX) + MATRIX[:30])
    handler.close_connection = True


@pytest.fixture
def backend() -> Iterator[Backend]:
    backend = Backend()
    yield backend
    backend.server.shutdown()
    backend.server.server_close()


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (reply(401, "no"), ConfigError, "(401 Unauthorized): give --bearer-token-file or --basic-auth-file"),
        (reply(403, WEB_PAGE), ConfigError, "(403 Forbidden): give --bearer-token-file or --basic-auth-file"),
        (
            api_error(422, "query processing would load too many samples into memory"),
            TooManySamples,
            "too many samples",
        ),
        (api_error(422, "the query exceeded the maximum number of chunks"), TooManySamples, "exceeded"),
        (api_error(422, "cannot select more than -search.maxSamplesPerQuery=1 samples"), TooManySamples, "more than"),
        (api_error(503, "query timed out in expression evaluation", "timeout"), TooManySamples, "timed out"),
        (api_error(503, "query timed out in query queue", "timeout"), SourceUnavailable, "query queue"),
        (reply(503, "too many concurrent requests"), SourceUnavailable, "too many concurrent"),
        (reply(500, "too many outstanding requests"), SourceUnavailable, "too many outstanding"),
        (api_error(503, "rate limit exceeded"), SourceUnavailable, "rate limit"),
        (api_error(422, "the number of matching timeseries exceeds 10"), TooManySeries, "exceeds 10"),
        (reply(413, ""), TooManySamples, "413"),
        (reply(504, WEB_PAGE), TooManySamples, "504 Gateway Timeout"),
        (api_error(422, "multiple matches for labels"), QueryRejected, "multiple matches for labels"),
        (api_error(400, 'invalid parameter "query": 1:5: parse error'), QueryRejected, "parse error"),
        (reply(400, "bad query, sorry"), QueryRejected, "bad query, sorry"),
        (api_error(500, "storage is broken", "internal"), SourceUnavailable, "storage is broken"),
        (reply(502, WEB_PAGE), SourceUnavailable, "502 Bad Gateway"),
        (reply(503, "Service Unavailable"), SourceUnavailable, "503 Service Unavailable"),
        (reply(429, ""), SourceUnavailable, "429 Too Many Requests"),
        (reply(404, "404 page not found\n"), ConfigError, "got 404 Not Found, the text '404 page not found'"),
        (reply(400, WEB_PAGE), ConfigError, "a web page"),
        (reply(200, WEB_PAGE), ConfigError, "got a web page): give its address with --url"),
        (reply(200, "OK"), ConfigError, "got the text 'OK'"),
        (reply(200, '{"hello": 1}'), ConfigError, "got JSON without a status"),
        (reply(200, '{"status":"error","error":"no such tenant"}'), QueryRejected, "no such tenant"),
        (reply(200, CLOCK), QueryRejected, "a scalar, not a matrix"),
        (
            reply(302, "", Location="https://me:pw@sso.example/login?state=pw"),
            ConfigError,
            "https://sso.example/login:",
        ),
        (reply(200, MATRIX[:60]), SourceUnavailable, "cut short"),
        (cut_body, SourceUnavailable, "cut short"),
        (cut_chunk, SourceUnavailable, "cut short"),
        (reply(200, ""), SourceUnavailable, "cut short"),
        (hang_up, SourceUnavailable, "it closed the connection without an answer"),
        (silence, TooManySamples, f"did not answer within {TIMEOUT_S:g} s"),
        (stall_in_the_body, TooManySamples, f"did not answer within {TIMEOUT_S:g} s"),
        (reply(200, MATRIX[:-1] + b',"isPartial":true}'), SourceUnavailable, "partial"),
        (reply(200, MATRIX[:-1] + b',"warnings":["store x is gone"]}'), SourceUnavailable, "store x is gone"),
    ],
)
def test_each_failure_has_its_error(backend: Backend, answer: Answer, kind: type[IngestorError], message: str) -> None:
    """Wait, ask for less, or give up: the class says which, and the message names the address."""
    backend.answer = answer
    with pytest.raises(IngestorError) as caught:
        HttpQuerySource(backend.url, timeout_s=TIMEOUT_S).fetch(PODS, "up", RANGE)
    assert type(caught.value) is kind or (kind is SourceUnavailable and isinstance(caught.value, kind))
    assert message in str(caught.value)
    assert str(caught.value).startswith(backend.url)
    assert "\n" not in str(caught.value)
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize("answer", [silence, reply(504, "")])
def test_a_backend_that_hangs_is_not_taken_for_a_query_too_large(backend: Backend, answer: Answer) -> None:
    """Halving the range would not help, and would end in giving the metric up."""
    backend.answer = backend.clock = answer
    with pytest.raises(SourceUnavailable, match=r"does not answer time\(\) either"):
        HttpQuerySource(backend.url, timeout_s=TIMEOUT_S).fetch(PODS, "up", RANGE)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", (7, 7)), ("Fri, 01 Jan 2100 00:00:00 GMT", (1e8, 1e10)), ("Sat, 01 Jan 2000 00:00:00 GMT", (0, 0))],
)
def test_retry_after_is_handed_on(backend: Backend, header: str, seconds: tuple[float, float]) -> None:
    """Seconds or a date."""
    for status in (429, 503):
        backend.answer = reply(status, "", Retry_After=header)
        with pytest.raises(SourceUnavailable) as caught:
            HttpQuerySource(backend.url).fetch(PODS, "up", RANGE)
        assert caught.value.retry_after_s is not None
        assert seconds[0] <= caught.value.retry_after_s <= seconds[1]
    backend.answer = reply(503, "", Retry_After="soon")
    with pytest.raises(SourceUnavailable) as caught:
        HttpQuerySource(backend.url).fetch(PODS, "up", RANGE)
    assert caught.value.retry_after_s is None


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_nobody_there() -> None:
    """At the start it is the address that is wrong; later it is the server that is away."""
    url = f"http://127.0.0.1:{closed_port()}"
    source = HttpQuerySource(url)
    with pytest.raises(ConfigError) as caught:
        source.check()
    assert str(caught.value) == f"{url}: cannot connect (connection refused): is Prometheus running there? give --url"
    with pytest.raises(SourceUnavailable, match="connection refused"):
        source.fetch(PODS, "up", RANGE)


def test_an_unknown_host_is_told() -> None:
    """A misspelt name is what people type most."""
    with pytest.raises(ConfigError, match="cannot connect"):
        HttpQuerySource("http://no-such-host.invalid:9090").check()


@pytest.mark.parametrize(
    "url", ["prom:9090", "127.0.0.1:9090", "ftp://x", "http://", "http://x:99999", "", "http://[", "me:pw@x"]
)
def test_a_malformed_url_is_told(url: str) -> None:
    """With an example of a good one."""
    with pytest.raises(ConfigError, match=r"write it like http://127\.0\.0\.1:9090") as caught:
        HttpQuerySource(url)
    assert "pw" not in str(caught.value)


def test_check_gives_the_clock_and_lets_overload_pass(backend: Backend) -> None:
    """A server that is still starting is there: that is no wrong address."""
    source = HttpQuerySource(backend.url + "/")
    assert source.check() == 1_700_000_000_123
    backend.clock = reply(503, "")
    with pytest.raises(SourceUnavailable):
        source.check()
    backend.clock = reply(200, WEB_PAGE)
    with pytest.raises(ConfigError, match="a web page"):
        source.check()


@given(st.integers(0, 4_102_444_800_000))
def test_a_time_is_the_same_to_every_backend(time_ms: int) -> None:
    """Prometheus cuts whole nanoseconds, VictoriaMetrics 1.79 cuts a float of seconds, newer ones round."""
    seconds, _, fraction = instant(time_ms).removesuffix("Z").partition(".")
    whole_s = int(datetime.fromisoformat(f"{seconds}+00:00").timestamp())
    nanoseconds = whole_s * 10**9 + int(fraction.ljust(9, "0"))
    assert nanoseconds // 10**6 == time_ms
    assert int(float(nanoseconds) / 1e9 * 1e3) == time_ms
    assert round(float(nanoseconds) / 1e6) == time_ms


def test_the_query_is_asked_as_documented(backend: Backend) -> None:
    """A form with selector and exact time, no compression, and no answers with holes."""
    block = HttpQuerySource(backend.url, access=Access(headers={"X-Scope-OrgID": "team-a"})).fetch(PODS, "up", RANGE)
    assert block.samples == 1
    (form,), (headers,) = backend.forms, backend.headers
    assert form["query"] == ['{__name__="up",pod!=""}[60000ms]']
    assert form["time"] == ["2023-11-14T22:14:19.99925Z"]
    assert form["partial_response"] == ["false"]
    assert headers["Accept-Encoding"] == "identity"
    assert headers["X-Scope-OrgID"] == "team-a"
    assert "Authorization" not in headers


def test_credentials_are_read_at_each_request(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rotated token is taken up, and ~/.netrc does not take its place."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login other password other\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    token, basic = tmp_path / "token", tmp_path / "basic"
    token.write_text("first\n")
    basic.write_text("me:s3cr:t\n")
    source = HttpQuerySource(backend.url, access=Access(bearer_token_file=token))
    source.now_ms()
    token.write_text("second\n")
    source.now_ms()
    HttpQuerySource(backend.url, access=Access(basic_auth_file=basic)).now_ms()
    HttpQuerySource(backend.url.replace("://", "://me:p%40w@")).now_ms()
    HttpQuerySource(backend.url).now_ms()
    assert [headers.get("Authorization") for headers in backend.headers] == [
        "Bearer first",
        "Bearer second",
        "Basic " + base64.b64encode(b"me:s3cr:t").decode(),
        "Basic " + base64.b64encode(b"me:p@w").decode(),
        None,
    ]


@pytest.mark.parametrize("content", [None, b"", b"s3cret\nmore", b"s3cret\xff", "s3crét".encode()])
def test_a_bad_credentials_file_is_told_without_its_content(
    backend: Backend, tmp_path: Path, content: bytes | None
) -> None:
    """The message names the file and never the secret."""
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        HttpQuerySource(backend.url, access=Access(bearer_token_file=path)).now_ms()
    assert str(path) in str(caught.value)
    assert "s3cr" not in str(caught.value)
    assert backend.headers == []


def test_credentials_in_the_url_are_never_shown(backend: Backend) -> None:
    """Every message has the address without them."""
    backend.answer = backend.clock = reply(401, "")
    source = HttpQuerySource(backend.url.replace("://", "://me:s3cret@"))
    for ask in (source.check, source.metric_types, lambda: source.fetch(PODS, "up", RANGE)):
        with pytest.raises(ConfigError) as caught:
            ask()
        assert "s3cret" not in str(caught.value)
        assert backend.url in str(caught.value)


def test_settings_that_contradict_are_told(tmp_path: Path) -> None:
    """At construction, not at the first request."""
    with pytest.raises(ConfigError, match="not both"):
        Access(bearer_token_file=tmp_path, basic_auth_file=tmp_path)
    with pytest.raises(ConfigError, match="the header 'X-A'") as caught:
        Access(headers={"X-A": "s3cret\r\nHost: y"})
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "body"), [(404, "404 page not found"), (400, ""), (200, '{"status":"success","data":{}}')]
)
def test_a_backend_without_metadata_has_no_types(backend: Backend, status: int, body: str) -> None:
    """VictoriaMetrics answers with nothing, others not at all."""
    backend.answer = reply(status, body)
    assert HttpQuerySource(backend.url).metric_types() == {}


def test_the_first_known_type_counts(backend: Backend) -> None:
    """Targets may differ in what they say about a metric, and some say nothing that helps."""
    useless = [{"type": kind} for kind in ("unknown", "untyped", "info", "stateset", "", None, 7, ["gauge"])]
    data = {"a": [*useless, {"type": "counter"}, {"type": "gauge"}], "b": useless, "c": []}
    backend.answer = reply(200, json.dumps({"status": "success", "data": data}))
    assert HttpQuerySource(backend.url).metric_types() == {"a": "counter"}


@pytest.mark.parametrize("data", [{}, ["up"], None])
def test_label_sets_that_are_none_are_told(backend: Backend, data: object) -> None:
    """A list of labels is all that may come."""
    backend.answer = reply(200, json.dumps({"status": "success", "data": data}))
    with pytest.raises(ConfigError, match="without a list of series"):
        HttpQuerySource(backend.url).label_sets(["up"], RANGE)


def test_label_sets_are_asked_for_as_documented(backend: Backend) -> None:
    """As a form, with both ends, and errors as elsewhere."""
    backend.answer = reply(200, json.dumps({"status": "success", "data": [{"__name__": "up"}]}))
    assert HttpQuerySource(backend.url).label_sets(["up", 'down{pod=~"a|b"}'], RANGE) == [{"__name__": "up"}]
    (form,) = backend.forms
    assert form["match[]"] == ["up", 'down{pod=~"a|b"}']
    assert (form["start"], form["end"]) == (["2023-11-14T22:13:20Z"], ["2023-11-14T22:14:19.999Z"])
    backend.answer = reply(429, "")
    with pytest.raises(SourceUnavailable):
        HttpQuerySource(backend.url).label_sets(["up"], RANGE)


def test_label_sets_are_asked_for_again(backend: Backend) -> None:
    """As samples are, while the backend is away."""
    answers = iter([reply(503, ""), reply(200, '{"status":"success","data":[{"pod":"a"}]}')])

    def answer(handler: BaseHTTPRequestHandler) -> None:
        next(answers)(handler)

    backend.answer = answer
    source = RetryingSource(HttpQuerySource(backend.url), threading.Event(), None)
    assert source.label_sets(["up"], RANGE) == [{"pod": "a"}]
    assert len(backend.forms) == 2


def test_a_question_for_several_metrics_waits_as_it_is_asked_to(backend: Backend) -> None:
    """It is not asked again itself, but those for each of them would follow at once."""
    backend.answer = reply(429, "", Retry_After="7")
    stop = HurriedEvent()
    with pytest.raises(SourceUnavailable):
        RetryingSource(HttpQuerySource(backend.url), stop, None).fetch_together(PODS, ["up", "down"], RANGE, 1000)
    assert stop.waits_s == [7.0]
    assert len(backend.forms) == 1


def test_a_wait_that_is_asked_for_has_a_bound(backend: Backend) -> None:
    """A gateway's clock may be years ahead, and a number of seconds larger than any timer takes."""
    answers = iter([reply(429, "", Retry_After="9" * 30), reply(503, "", Retry_After="Fri, 01 Jan 2100 00:00:00 GMT")])

    def answer(handler: BaseHTTPRequestHandler) -> None:
        next(answers, reply(200, MATRIX))(handler)

    backend.answer = answer
    stop = HurriedEvent()
    assert RetryingSource(HttpQuerySource(backend.url), stop, None).fetch(PODS, "up", RANGE).samples == 1
    assert [round(wait_s) for wait_s in stop.waits_s] == [300, 300]
