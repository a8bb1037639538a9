"""Faust's web server has our pages only, and goes on after what a client or a page does wrong."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from http import HTTPStatus

import pytest
import requests

from ingestor.web import Answer, Pages, listening, url_of
from stream_app.faust_transport import App
from stream_app.web import add_pages


def served(pages: Pages, client: Callable[[str], None]) -> None:
    """Run *client* against a web server with these pages."""

    async def serve() -> None:
        app = App("pages")
        app.listener = listening(("127.0.0.1", 0))
        url = url_of(app.listener)
        add_pages(app, pages)
        app.web.init_server()
        await app.web.start_server()
        try:
            await asyncio.to_thread(client, url)
        finally:
            await app.web.stop_server()

    asyncio.run(serve())


def get(url: str, **headers: str) -> requests.Response:
    with requests.Session() as session:
        session.trust_env = False
        return session.get(url, headers=headers, timeout=10)


def echo(accept: str) -> Answer:
    return HTTPStatus.ACCEPTED, "text/x-accept", accept.encode()


def broken(_: str) -> Answer:
    raise KeyError("a secret")


def test_a_page_answers_as_it_says() -> None:
    """Status, type and body are the page's; it knows what its client accepts, and nothing else is there."""

    def client(url: str) -> None:
        answer = get(f"{url}/echo", Accept="text/plain")
        assert (answer.status_code, answer.headers["Content-Type"], answer.text) == (
            202,
            "text/x-accept",
            "text/plain",
        )
        for path in ("/", "/stats/", "/router/", "/table/", "/graph/"):
            assert get(url + path).status_code == 404

    served({"/echo": echo}, client)


def test_a_page_that_fails_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """500 without the reason, which is in the log; the server goes on."""

    def client(url: str) -> None:
        answer = get(f"{url}/broken")
        assert answer.status_code == 500
        assert "secret" not in answer.text
        assert get(f"{url}/echo").status_code == 202

    served({"/broken": broken, "/echo": echo}, client)
    assert "a web page failed" in caplog.text


@pytest.mark.parametrize("request_bytes", [b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\n\n"])
def test_no_http(request_bytes: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """What is no HTTP (TLS, say) is refused without a line in the log."""

    def client(url: str) -> None:
        host, _, port = url.removeprefix("http://").rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(request_bytes)
            assert b" 400 " in connection.recv(1000)
        assert get(f"{url}/echo").status_code == 202

    served({"/echo": echo}, client)
    assert "Traceback" not in caplog.text
