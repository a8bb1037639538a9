"""The worker's pages, on Faust's web server, which serves none of its own here."""

from __future__ import annotations

import logging
import socket
from http import HTTPStatus
from typing import Any, ClassVar

import faust
from aiohttp.web import Response, SockSite
from faust.web import base
from faust.web.drivers import aiohttp as driver
from faust.web.views import View

from ingestor.web import Answer, Pages

log = logging.getLogger(__name__)


class Web(driver.Web):
    """Faust's web server, on a socket that listens already."""

    # Tables, routes and counts that a worker without tables does not have.
    default_blueprints: ClassVar[Any] = ()
    production_blueprints: ClassVar[Any] = ()
    debug_blueprints: ClassVar[Any] = ()
    optional_blueprints: ClassVar[Any] = ()

    def __init__(self, app: faust.App, listener: socket.socket | None) -> None:
        super().__init__(app)
        self._listener = listener
        self.web_app.on_response_prepare.append(_sign)
        # It logs a traceback for whoever sends what is no HTTP; our pages log their own failures.
        logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)

    def _new_transport_tcp(self) -> SockSite:
        if self._listener is None:
            raise RuntimeError("the web server was started without a socket")
        return SockSite(self._runner, self._listener)


def add_pages(app: faust.App, pages: Pages) -> None:
    """Let Faust's web server answer *pages*, at GET and HEAD."""
    for path, page in pages.items():

        async def get(_: View, request: base.Request, page: Any = page) -> Response:
            try:
                answer: Answer = page(request.headers.get("Accept", ""))
            except Exception:
                log.exception("a web page failed", extra={"path": request.rel_url.path})
                return Response(status=HTTPStatus.INTERNAL_SERVER_ERROR, text="500 Internal Server Error\n")
            status, kind, body = answer
            return Response(status=status, headers={"Content-Type": kind}, body=body)

        app.page(path, name=path)(get)  # type: ignore[arg-type]


async def _sign(_: Any, response: Any) -> None:
    # Else it tells the versions of Python and aiohttp.
    response.headers["Server"] = "podstream"
