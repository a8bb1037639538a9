"""The web server answers over real connections, whoever else hangs on it, and leaves nothing behind."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

import pytest
import requests
from commands import PATIENCE_S

from ingestor.core.errors import ConfigError
from ingestor.telemetry import Telemetry
from ingestor.web import listen_address, web_server

ANY_PORT = ("127.0.0.1", 0)
PATHS = ["/", "/metrics", "/-/healthy", "/-/ready"]


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


def connected(url: str) -> socket.socket:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout=10)


def answer_to(url: str, request: bytes) -> bytes:
    """Return all that comes back for some bytes."""
    with closing(connected(url)) as connection:
        connection.sendall(request)
        received = b""
        while piece := connection.recv(65_536):
            received += piece
    return received


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (":9420", ("", 9420)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("[::1]:9420", ("::1", 9420)),
        ("[::]:80", ("::", 80)),
        ("0.0.0.0:65535", ("0.0.0.0", 65535)),
        ("poller-0.poller:9420", ("poller-0.poller", 9420)),
        (" localhost:9420 ", ("localhost", 9420)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    """A host and a port; no host is all addresses."""
    assert listen_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        *("", "9420", ":", "localhost", "::1:9420", "::", "[::1]", "[::1:9420", "[localhost]:9420", "[]:9420"),
        *(":65536", ":-1", ":http", ":\u0669\u0664", "http://localhost:9420", "localhost:9420/metrics", "a b:1"),
        *("user@host:1", "a:1:2"),
    ],
)
def test_what_is_no_address(text: str) -> None:
    """The message shows the forms that are."""
    with pytest.raises(ValueError, match="is no address to listen on") as caught:
        listen_address(text)
    assert repr(text) in str(caught.value)
    assert "127.0.0.1:9420, [::1]:9420, :9420" in str(caught.value)


def test_pages(session: requests.Session) -> None:
    """Each page in its type; the first one links the others."""
    telemetry = Telemetry("live")
    telemetry.incomplete("huge")
    with web_server(ANY_PORT, telemetry, lambda: None) as url:
        index = session.get(f"{url}/")
        assert (index.status_code, index.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert all(f'href="{path[1:]}"' in index.text for path in PATHS[1:])
        for path, text in (("/-/healthy", "healthy\n"), ("/-/ready", "ready\n")):
            page = session.get(f"{url}{path}")
            assert (page.status_code, page.text) == (200, text)
            assert page.headers["Content-Type"] == "text/plain; charset=utf-8"
        plain = session.get(f"{url}/metrics?x=y")
        assert plain.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert 'podstream_poller_incomplete_ranges_total{metric="huge"} 1.0\n' in plain.text
        openmetrics = session.get(f"{url}/metrics", headers={"Accept": "application/openmetrics-text"})
        assert openmetrics.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
        assert openmetrics.text.endswith("# EOF\n")


def test_readiness_is_asked_at_each_request(session: requests.Session) -> None:
    """503 with the reason until there is none; healthy it is all the while."""
    reasons: list[str | None] = ["starting: nothing is published yet", None, "standing by"]
    with web_server(ANY_PORT, Telemetry("live"), lambda: reasons.pop(0)) as url:
        answers = [session.get(f"{url}/-/ready") for _ in range(3)]
        assert [(answer.status_code, answer.text) for answer in answers] == [
            (503, "starting: nothing is published yet\n"),
            (200, "ready\n"),
            (503, "standing by\n"),
        ]
        assert session.get(f"{url}/-/healthy").status_code == 200


@pytest.mark.parametrize("path", PATHS)
def test_methods(session: requests.Session, path: str) -> None:
    """HEAD is GET without its body; what would change something is refused, with what is allowed."""
    with web_server(ANY_PORT, Telemetry("live"), lambda: None) as url:
        head, got = session.head(f"{url}{path}"), session.get(f"{url}{path}")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["Content-Type"] == got.headers["Content-Type"]
        assert int(got.headers["Content-Length"]) == len(got.content) > 0
        for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
            refused = session.request(method, f"{url}{path}", data=b"x" * 50_000)
            assert (refused.status_code, refused.headers["Allow"]) == (405, "GET, HEAD")
        assert session.request("BREW", f"{url}{path}").status_code == 501


@pytest.mark.parametrize("path", ["/metric", "/metrics/", "/-/", "/-/ready/x", "//metrics//", "/<script>"])
def test_what_is_not_there(session: requests.Session, path: str) -> None:
    """404 for every method, in plain text, without the program's insides."""
    with web_server(ANY_PORT, Telemetry("live"), lambda: None) as url:
        for method in ("GET", "HEAD", "POST"):
            answer = session.request(method, f"{url}{path}")
            assert answer.status_code == 404
            assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
            assert "script" not in answer.text
            assert answer.headers["Server"].strip() == "podstream"


def test_a_page_that_fails_is_told(session: requests.Session, caplog: pytest.LogCaptureFixture) -> None:
    """500 without the reason, which is in the log; the server goes on."""

    def broken() -> str | None:
        raise KeyError("a secret")

    with web_server(ANY_PORT, Telemetry("live"), broken) as url:
        answer = session.get(f"{url}/-/ready")
        assert answer.status_code == 500
        assert "secret" not in answer.text
        assert session.get(f"{url}/-/healthy").status_code == 200
    assert "a web page failed" in caplog.text


@pytest.mark.parametrize(
    "request_bytes", [b"\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\n\n"]
)
def test_no_http(session: requests.Session, request_bytes: bytes) -> None:
    """What is no HTTP (TLS, say) gets an error or nothing, and harms no other."""
    with web_server(ANY_PORT, Telemetry("live"), lambda: None) as url:
        assert b" 200 " not in answer_to(url, request_bytes)
        assert session.get(f"{url}/-/healthy").status_code == 200


def test_a_taken_port_is_told() -> None:
    """In a line that says what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(ConfigError, match=f"--web-listen-address 127.0.0.1:{port}: the port is taken: .* another"),
            web_server(("127.0.0.1", port), Telemetry("live"), lambda: None),
        ):
            pass


@pytest.mark.parametrize(
    ("host", "hint"),
    [("192.0.2.1", "this machine does not have the address"), ("no-such-host.invalid", "the host is not known")],
)
def test_an_address_that_is_not_ours_is_told(host: str, hint: str) -> None:
    """Nothing listens where it cannot be reached."""
    with (
        pytest.raises(ConfigError, match=hint),
        web_server((host, 9420), Telemetry("live"), lambda: None),
    ):
        pass


def test_ipv6(session: requests.Session) -> None:
    """The URL is spelt so that it can be opened."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback: the address [::1] is not tested")
    with web_server(("::1", 0), Telemetry("live"), lambda: None) as url:
        assert url.startswith("http://[::1]:")
        assert session.get(f"{url}/-/healthy").status_code == 200


def test_all_addresses(session: requests.Session) -> None:
    """No host: the loopback too, of both families where there are two."""
    with web_server(("", 0), Telemetry("live"), lambda: None) as url:
        assert session.get(f"{url}/-/healthy").status_code == 200
        if socket.has_dualstack_ipv6():
            assert session.get(f"{url.replace('127.0.0.1', '[::1]')}/-/healthy").status_code == 200


HOUR_S = 3_600.0


def test_hanging_clients_block_nobody(session: requests.Session) -> None:
    """Whoever connects and says nothing, or reads nothing, nobody waits for them."""
    with (
        web_server(ANY_PORT, Telemetry("live"), lambda: None, most_connections=8, longest_connection_s=HOUR_S) as url,
        ExitStack() as stack,
    ):
        for started in (
            b"",
            b"GET /met",
            b"GET /metrics HTTP/1.1\r\nHost",
            b"POST / HTTP/1.0\r\nContent-Length: 9\r\n\r\n",
        ):
            stack.enter_context(closing(connected(url))).sendall(started)
        for path in PATHS:
            assert session.get(f"{url}{path}", timeout=PATIENCE_S).status_code == 200


def test_connections_are_bounded_in_number_and_time(session: requests.Session) -> None:
    """One too many is told at once; who hangs is cut off, and there is room again."""
    with (
        web_server(ANY_PORT, Telemetry("live"), lambda: None, most_connections=3, longest_connection_s=HOUR_S) as url,
        ExitStack() as stack,
    ):
        for _ in range(3):
            stack.enter_context(closing(connected(url)))
        assert answer_to(url, b"").startswith(b"HTTP/1.0 503 ")
    with (
        web_server(ANY_PORT, Telemetry("live"), lambda: None, most_connections=3, longest_connection_s=2.0) as url,
        ExitStack() as stack,
    ):
        hanging = [stack.enter_context(closing(connected(url))) for _ in range(3)]
        for connection in hanging:
            connection.settimeout(PATIENCE_S)
        assert [connection.recv(1) for connection in hanging] == [b""] * 3
        # Whoever is cut off may be told a moment before there is room.
        while (status := session.get(f"{url}/-/healthy").status_code) != 200:
            assert status == 503


def own_threads() -> set[threading.Thread]:
    """Return the threads of web servers; other tests' servers may still be ending theirs."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("web")}


def wait_for_threads(before: set[threading.Thread]) -> None:
    """Wait until none is left but those that were there before."""
    deadline = time.monotonic() + PATIENCE_S
    while not own_threads() <= before:
        assert time.monotonic() < deadline, own_threads()
        time.sleep(0.01)


@pytest.mark.parametrize("clients", [0, 5])
def test_the_end_is_quick_and_leaves_nothing(session: requests.Session, clients: int) -> None:
    """No thread and no listener is left, and nobody who hangs is waited for; the port can be had again at once."""
    before = own_threads()
    with ExitStack() as stack:
        with web_server(ANY_PORT, Telemetry("live"), lambda: None, longest_connection_s=HOUR_S) as url:
            hanging = [stack.enter_context(closing(connected(url))) for _ in range(clients)]
            assert session.get(f"{url}/-/healthy").status_code == 200
        wait_for_threads(before)
        assert [connection.recv(1) for connection in hanging] == [b""] * clients
        with web_server(listen_address(url.removeprefix("http://")), Telemetry("live"), lambda: None) as again:
            assert again == url


def test_the_server_ends_with_an_error_of_its_block() -> None:
    """An exception passes through, and leaves no thread either."""
    before = own_threads()
    with pytest.raises(KeyError), web_server(ANY_PORT, Telemetry("live"), lambda: None):
        raise KeyError("x")
    wait_for_threads(before)


def test_many_scrapes_at_once() -> None:
    """Each gets a whole answer."""
    telemetry = Telemetry("live")
    with web_server(ANY_PORT, telemetry, lambda: None) as url, ThreadPoolExecutor(8) as pool:

        def scrape(_: int) -> bytes:
            telemetry.split("range")
            return answer_to(url, b"GET /metrics HTTP/1.0\r\nAccept: application/openmetrics-text\r\n\r\n")

        answers = list(pool.map(scrape, range(200)))
    assert all(answer.startswith(b"HTTP/1.0 200 ") and answer.endswith(b"# EOF\n") for answer in answers)
    assert b'splits_total{of="range"} 200.0\n' in telemetry.exposition("")[0]
