"""The dashboard's pages and its JSON API, on the worker's web server: GET only, and nothing from elsewhere.

| path | answers |
| --- | --- |
| ``/``, ``/pod``, ``/pipeline``, ``/anomalies`` | the pages |
| ``/static/…`` | their scripts and styles |
| ``/api/services`` | a page of services and their pods (`answers.services`) |
| ``/api/pods/{namespace}/{pod}`` | one pod's windows (`answers.pod`); an empty namespace is ``_`` |
| ``/api/pipeline`` | jobs, workers, partitions, dead letters, and this worker's own state (`answers.pipeline`) |
| ``/api/anomalies`` | what a model has found (`answers.anomalies`) |
| ``/api/stream`` | server-sent events: ``changed`` whenever any of these has something new (`answers.changed`) |

Errors are ``{"error": "…"}``. Reading from Kafka begins with the first visit and ends when nobody has
looked for ten minutes. Nothing here runs in the threads of the worker's own work.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from http import HTTPStatus
from importlib import resources
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import faust
import orjson
from aiohttp.web import Application, HTTPException, Request, Response, StreamResponse

from ingestor.kafka import Cluster
from stream_app.telemetry import CELLS, RECORDS, VALUES, WINDOWS_OPEN, Telemetry
from stream_app.view import View

if TYPE_CHECKING:
    # Imported at the first visit: pandas takes half a second and 40 MB.
    from stream_app.dashboard.board import Board
    from stream_app.dashboard.group import GroupLook, Member

log = logging.getLogger(__name__)

PAGES = {"/": "index.html", "/pod": "pod.html", "/pipeline": "pipeline.html", "/anomalies": "anomalies.html"}

_KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}

MOST_STREAMS = 50
_MOST_WAITING = 20
"""Answers that are being made, or wait for it."""
_THREADS = 2

IDLE_S = 600.0
"""Without a visit for so long, reading ends and what was read is forgotten."""

_TICK_S = 0.5
"""How late a change may be told, and how often at most."""
_HEARTBEAT_S = 15.0
"""Proxies end what is silent, and the browser notices that the worker is gone."""
_GROUP_S = 3.0
"""So long is an answer about the group good."""


class Dashboard:
    """The dashboard of one worker.

    Args:
        cluster: where to read.
        view: what the worker makes.
        telemetry: its own state; asked on the event loop only.
        member_id: returns how the group calls this worker.
        is_local: listens on the loopback only, so that whoever asks by another host's name is a page from elsewhere.
        idle_s: when reading ends without a visit.
    """

    def __init__(
        self,
        cluster: Cluster,
        view: View,
        telemetry: Telemetry,
        member_id: Callable[[], str],
        *,
        is_local: bool,
        idle_s: float = IDLE_S,
    ) -> None:
        self._cluster, self._view, self._telemetry, self._member_id = cluster, view, telemetry, member_id
        self._is_local, self._idle_s = is_local, idle_s
        # Of our own: the event loop's threads are for the worker's work.
        self._threads = ThreadPoolExecutor(_THREADS, "dashboard")
        self._begin_lock = threading.Lock()
        self._board: Board | None = None
        self._visited_at = 0.0
        self._streams = self._waiting = 0
        self._is_closing = False
        self._look: GroupLook | None = None
        self._group: tuple[float, list[Member], str] = -_GROUP_S, [], ""

    def add_to(self, faust_app: faust.App) -> None:
        """Add the routes to the app's web server."""
        web: Any = faust_app.web
        app: Application = web.web_app
        for path in PAGES:
            app.router.add_get(path, self._guarded(self._page))
        app.router.add_get("/static/{name}", self._guarded(self._static))
        api: dict[str, Callable[[Request], Awaitable[StreamResponse]]] = {
            "/api/services": self._services,
            "/api/pods/{namespace}/{pod}": self._pod,
            "/api/pipeline": self._pipeline,
            "/api/anomalies": self._anomalies,
        }
        for path, answer in api.items():
            app.router.add_get(path, self._guarded(answer))
        app.router.add_get("/api/stream", self._guarded(self._stream), allow_head=False)
        app.router.add_route("*", "/api/{rest:.*}", self._guarded(self._nowhere))
        app.on_shutdown.append(self._close)

    async def _close(self, _: Application) -> None:
        # Streams would hold the server for a minute.
        self._is_closing = True
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _guarded(
        self, answer: Callable[[Request], Awaitable[StreamResponse]]
    ) -> Callable[[Request], Awaitable[StreamResponse]]:
        async def guarded(request: Request) -> StreamResponse:
            try:
                if self._is_local and not _is_loopback(request.host):
                    return _error(
                        HTTPStatus.MISDIRECTED_REQUEST,
                        "this worker listens on the loopback: ask for 127.0.0.1 or localhost, or give it another "
                        "--web-listen-address",
                    )
                response = await answer(request)
            except (HTTPException, ConnectionError, asyncio.CancelledError):
                raise
            except Exception:
                log.exception("the dashboard failed", extra={"path": request.rel_url.path})
                return _error(HTTPStatus.INTERNAL_SERVER_ERROR, "a defect: the worker's log says more")
            if not response.prepared:
                response.headers.update(HEADERS)
            return response

        return guarded

    async def _page(self, request: Request) -> StreamResponse:
        return _file_answer(request, PAGES[request.path])

    async def _static(self, request: Request) -> StreamResponse:
        name = request.match_info["name"]
        if name not in _files() or name in PAGES.values():
            return Response(status=HTTPStatus.NOT_FOUND, text="404 Not Found\n")
        return _file_answer(request, name)

    async def _services(self, request: Request) -> StreamResponse:
        from stream_app.dashboard import answers  # noqa: PLC0415

        return await self._answered(lambda board: answers.services(board, answers.ServicesQuery.read(_query(request))))

    async def _pod(self, request: Request) -> StreamResponse:
        from stream_app.dashboard import answers  # noqa: PLC0415

        namespace, pod = request.match_info["namespace"], request.match_info["pod"]
        return await self._answered(
            lambda board: answers.pod(board, "" if namespace == "_" else namespace, pod, _query(request))
        )

    async def _anomalies(self, request: Request) -> StreamResponse:
        from stream_app.dashboard import answers  # noqa: PLC0415

        return await self._answered(lambda board: answers.anomalies(board, _query(request)))

    async def _pipeline(self, _: Request) -> StreamResponse:
        from stream_app.dashboard import answers  # noqa: PLC0415

        worker = self._own_state()

        def answer(board: Board) -> dict[str, Any]:
            members, problem = self._members()
            with board.lock:
                told = answers.pipeline(board, time.time_ns() // 1_000_000, time.monotonic())
            return told | {
                "worker": worker,
                "group": {"id": self._view.group_id, "problem": problem, "workers": [asdict(one) for one in members]},
            }

        return await self._answered(answer, locked=False)

    async def _nowhere(self, request: Request) -> StreamResponse:
        if request.method not in ("GET", "HEAD"):
            response = _error(HTTPStatus.METHOD_NOT_ALLOWED, f"{request.method} is not possible: GET only")
            response.headers["Allow"] = "GET, HEAD"
            return response
        return _error(HTTPStatus.NOT_FOUND, f"there is no {request.path}")

    async def _stream(self, request: Request) -> StreamResponse:
        from stream_app.dashboard import answers  # noqa: PLC0415

        if self._streams >= MOST_STREAMS:
            return _error(HTTPStatus.SERVICE_UNAVAILABLE, f"{MOST_STREAMS} others watch already")
        response = StreamResponse(headers={**HEADERS, "Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        self._streams += 1
        try:
            board = await self._visit()
            await response.prepare(request)
            seen, spoke_at = -1, 0.0
            while not self._is_closing:
                if board is not self._board:
                    board = await self._visit()
                if board.version != seen:
                    with board.lock:
                        seen, event = board.version, answers.changed(board)
                    await response.write(b"event: changed\ndata: " + orjson.dumps(event) + b"\n\n")
                    spoke_at = time.monotonic()
                elif time.monotonic() - spoke_at > _HEARTBEAT_S:
                    await response.write(b": here\n\n")
                    spoke_at = time.monotonic()
                self._visited_at = time.monotonic()
                await asyncio.sleep(_TICK_S)
        except ConnectionError:
            log.debug("a browser has left")
        finally:
            self._streams -= 1
        return response

    async def _answered(self, answer: Callable[[Board], dict[str, Any]], *, locked: bool = True) -> Response:
        """Make an answer in a thread."""
        from stream_app.dashboard.answers import BadQuery, NotFound  # noqa: PLC0415

        if self._waiting >= _MOST_WAITING or self._is_closing:
            return _error(HTTPStatus.SERVICE_UNAVAILABLE, "too many ask at once, or the worker ends: try again")

        def made(board: Board) -> bytes:
            if not locked:
                return orjson.dumps(answer(board))
            with board.lock:
                told = answer(board)
            return orjson.dumps(told)

        self._waiting += 1
        try:
            board = await self._visit()
            body = await asyncio.get_running_loop().run_in_executor(self._threads, made, board)
        except BadQuery as error:
            return _error(HTTPStatus.BAD_REQUEST, str(error))
        except NotFound as error:
            return _error(HTTPStatus.NOT_FOUND, str(error))
        finally:
            self._waiting -= 1
        return Response(body=body, headers={"Content-Type": "application/json", "Cache-Control": "no-store"})

    async def _visit(self) -> Board:
        """Note that somebody looks, and return the board: reading begins where it does not go on yet."""
        self._visited_at = time.monotonic()
        if (board := self._board) is not None:
            return board
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._begin)

    def _begin(self) -> Board:
        from stream_app.dashboard.board import Board  # noqa: PLC0415
        from stream_app.dashboard.reader import Reader  # noqa: PLC0415

        with self._begin_lock:
            if self._board is not None:
                return self._board
            board = Board(self._view)
            reader = Reader(self._cluster, board, self._is_watched)

            def read() -> None:
                reader.run()
                with self._begin_lock:
                    self._board = None

            self._board = board
            threading.Thread(target=read, name="dashboard-reader", daemon=True).start()
            return board

    def _is_watched(self) -> bool:
        return not self._is_closing and time.monotonic() - self._visited_at < self._idle_s

    def _members(self) -> tuple[list[Member], str]:
        """Return the group's workers, as they were seconds ago at most."""
        from stream_app.dashboard.group import GroupLook  # noqa: PLC0415

        at, members, problem = self._group
        if time.monotonic() - at > _GROUP_S:
            if self._look is None:
                self._look = GroupLook(self._cluster, self._view.group_id, self._view.topics.range_chunks)
            members, problem = self._look.members()
            self._group = time.monotonic(), members, problem
        return members, problem

    def _own_state(self) -> dict[str, Any]:
        """Return what this worker says of itself."""
        standing = self._telemetry.standing
        seen: dict[str, float] = {}
        for sample in (sample for family in self._telemetry.registry.collect() for sample in family.samples):
            seen[sample.name] = seen.get(sample.name, 0.0) + sample.value
        return {
            "member": self._member_id(),
            "not_ready": standing.not_ready(),
            "not_healthy": standing.not_healthy(),
            "partitions": sorted(standing.partitions),
            "lag": {str(partition): lag for partition, lag in sorted(standing.lag().items())},
            "open_windows": seen.get(WINDOWS_OPEN.name),
            "open_cells": seen.get(CELLS.name),
            "held_values": seen.get(VALUES.name),
            "records_total": seen.get(RECORDS.name),
        }


@dataclass(frozen=True, slots=True)
class _File:
    kind: str
    body: bytes
    etag: str


@cache
def _files() -> dict[str, _File]:
    """Return the pages, scripts and styles, by name."""
    folder = resources.files("stream_app.dashboard") / "static"
    found = {}
    for file in folder.iterdir():
        if (kind := _KINDS.get(file.name.rpartition(".")[2])) is not None:
            body = file.read_bytes()
            etag = f'"{hashlib.blake2b(body, digest_size=10).hexdigest()}"'
            found[file.name] = _File(f"{kind}; charset=utf-8", body, etag)
    return found


def _file_answer(request: Request, name: str) -> Response:
    file = _files()[name]
    # Asked for again each time: a worker that is updated has other scripts.
    headers = {"ETag": file.etag, "Cache-Control": "no-cache"}
    if request.headers.get("If-None-Match") == file.etag:
        return Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(body=file.body, headers={**headers, "Content-Type": file.kind})


def _query(request: Request) -> dict[str, list[str]]:
    return {name: request.query.getall(name) for name in request.query}


def _error(status: HTTPStatus, text: str) -> Response:
    body = orjson.dumps({"error": text})
    headers = {**HEADERS, "Content-Type": "application/json", "Cache-Control": "no-store"}
    return Response(status=status, body=body, headers=headers)


def _is_loopback(host: str) -> bool:
    """Tell whether a Host header names this machine: else a name of somebody's own leads a browser here."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name in ("localhost", "localhost.") or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
