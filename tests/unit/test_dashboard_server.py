"""The dashboard's web server: nothing from elsewhere, GET only, for this machine only unless told otherwise."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

import stream_app.dashboard
from ingestor.core.durations import ChunkSize
from ingestor.kafka import Cluster
from ingestor.web import listening, url_of
from stream_app.dashboard.server import HEADERS, PAGES, Dashboard
from stream_app.faust_transport import App
from stream_app.standing import Standing
from stream_app.telemetry import Telemetry
from stream_app.view import View

STATIC = Path(stream_app.dashboard.__file__).parent / "static"
NOWHERE = Cluster("127.0.0.1:1")


def served(client: Callable[[str], None], *, is_local: bool = True) -> None:
    """Run *client* against a dashboard whose Kafka is away."""

    async def serve() -> None:
        app = App("dashboard")
        app.listener = listening(("127.0.0.1", 0))
        url = url_of(app.listener)
        view = View(ChunkSize.parse("1m"), "mean")
        Dashboard(NOWHERE, view, Telemetry(Standing()), lambda: "me", is_local=is_local).add_to(app)
        app.web.init_server()
        await app.web.start_server()
        try:
            await asyncio.to_thread(client, url)
        finally:
            await app.web.stop_server()

    asyncio.run(serve())


def get(url: str, method: str = "GET", **headers: str) -> requests.Response:
    with requests.Session() as session:
        session.trust_env = False
        return session.request(method, url, headers=headers, timeout=10)


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "dashboard-reader"]


def test_pages_and_their_files() -> None:
    """Pages, scripts and styles are served with their types, are asked for again each time, and read nothing."""
    before = readers()

    def client(url: str) -> None:
        for path in [*PAGES, *(f"/static/{file.name}" for file in STATIC.iterdir() if file.suffix != ".html")]:
            answer, head = get(url + path), get(url + path, "HEAD")
            kind = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}.get(path.rpartition(".")[2])
            assert answer.headers["Content-Type"] == f"{kind or 'text/html'}; charset=utf-8"
            assert (answer.status_code, head.status_code, head.content) == (200, 200, b"")
            assert answer.headers["Cache-Control"] == "no-cache"
            assert HEADERS.items() <= answer.headers.items()
            again = get(url + path, **{"If-None-Match": answer.headers["ETag"]})
            assert (again.status_code, again.content) == (304, b"")
        assert [get(f"{url}/static/{name}").status_code for name in ("index.html", "none.js", "..%2fserver.py")] == [
            404
        ] * 3
        assert set(readers()) <= set(before)

    served(client)


def test_nothing_from_elsewhere() -> None:
    """No file names another host, and the policy allows no script or style but these files."""
    for file in STATIC.iterdir():
        addresses = set(re.findall(r"https?://[\w.-]+", file.read_text()))
        assert addresses <= {"http://www.w3.org", "http://YOUR-PROMETHEUS"}, file
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|\son\w+=", file.read_text()
        ), file
    for file in STATIC.glob("*.html"):
        assert not re.search(r"<style|style=|<script(?! type=\"module\" src=)", file.read_text()), file
    policy = HEADERS["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_errors_are_json() -> None:
    """Whatever is wrong with a request, the API says so as JSON."""

    def client(url: str) -> None:
        for path, method, status in [
            ("/api/none", "GET", 404),
            ("/api/", "GET", 404),
            ("/api/pods/shop", "GET", 404),
            ("/api/services", "POST", 405),
            ("/api/stream", "DELETE", 405),
            ("/api/services?page=x", "GET", 400),
            ("/api/pods/shop/none", "GET", 404),
        ]:
            answer = get(url + path, method)
            assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/json"), path
            assert answer.json().keys() == {"error"}
            assert HEADERS.items() <= answer.headers.items()

    served(client)


def test_names_of_others() -> None:
    """On the loopback, a page from elsewhere that leads its own name here is refused; else all names are good."""

    def refused(url: str) -> None:
        port = url.rpartition(":")[2]
        for host in (f"127.0.0.1:{port}", "localhost", f"localhost:{port}", f"[::1]:{port}", "127.8.9.1"):
            assert get(f"{url}/", Host=host).status_code == 200, host
        for host in (
            f"evil.example:{port}",
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "[",
            "10.0.0.1",
        ):
            for path in ("/", "/api/services", "/api/stream", "/static/dom.js"):
                assert get(url + path, Host=host).status_code == 421, host

    def taken(url: str) -> None:
        assert get(f"{url}/", Host="worker-0.podstream.svc:6066").status_code == 200

    served(refused)
    served(taken, is_local=False)


def test_kafka_is_away(caplog: pytest.LogCaptureFixture) -> None:
    """The pages say why nothing is read, the worker's log too, and reading ends with the server."""

    def client(url: str) -> None:
        assert get(f"{url}/api/services").json()["reading"] == {"is_live": False, "share": 1.0, "problem": ""}
        with requests.Session() as session:
            session.trust_env = False
            with session.get(f"{url}/api/stream", stream=True, timeout=60) as stream:
                for line in stream.iter_lines(chunk_size=1):
                    if b"no Kafka broker answers at 127.0.0.1:1" in line:
                        break
        assert "no Kafka broker answers" in get(f"{url}/api/pipeline").json()["reading"]["problem"]

    served(client)
    assert "the dashboard cannot read" in caplog.text
    for thread in readers():
        thread.join(30)
    assert readers() == []
