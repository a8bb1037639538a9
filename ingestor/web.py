"""A small web server beside a command's work: its metrics, and whether it lives and is ready."""

from __future__ import annotations

import errno
import ipaddress
import logging
import re
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any

from ingestor.core.errors import ConfigError
from ingestor.telemetry import Telemetry

log = logging.getLogger(__name__)

_FLAG = "--web-listen-address"
_HOST = re.compile(r"[^\s/:@\[\]]*")
_PORT = re.compile(r"[0-9]{1,5}")
_HIGHEST_PORT = 65_535

MOST_CONNECTIONS = 16
"""At once; a scrape and two probes need three."""
LONGEST_CONNECTION_S = 10.0
"""Prometheus gives a scrape up by default after so long: whoever takes longer is stuck."""

_POLL_S = 0.2
_JOIN_S = 0.5
_LONGEST_BODY_BYTES = 1 << 16

_BUSY = b"HTTP/1.0 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n\r\ntoo many connections\n"
_TEXT = "text/plain; charset=utf-8"
_INDEX = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>podstream ingestor</title></head>
<body><h1>podstream ingestor</h1>
<ul><li><a href="metrics">metrics</a></li><li><a href="-/ready">ready</a></li>
<li><a href="-/healthy">healthy</a></li></ul></body></html>
"""


def listen_address(text: str) -> tuple[str, int]:
    """Read where to listen: host (empty: all addresses) and port (0: any that is free).

    Raises:
        ValueError: it has none of the forms that the message shows.
    """
    host, colon, port = text.strip().rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    valid = _is_ipv6(host[1:-1]) if bracketed else _HOST.fullmatch(host)
    if not (colon and valid and _PORT.fullmatch(port) and int(port) <= _HIGHEST_PORT):
        raise ValueError(
            f"{text!r} is no address to listen on: write 127.0.0.1:9420, [::1]:9420, :9420 for all addresses, "
            "or 127.0.0.1:0 for any port that is free"
        )
    return host[1:-1] if bracketed else host, int(port)


@contextmanager
def web_server(
    address: tuple[str, int],
    telemetry: Telemetry,
    not_ready: Callable[[], str | None],
    *,
    most_connections: int = MOST_CONNECTIONS,
    longest_connection_s: float = LONGEST_CONNECTION_S,
) -> Iterator[str]:
    """Serve ``/metrics``, ``/-/healthy``, ``/-/ready`` and ``/`` in threads, until the block ends.

    Args:
        address: host and port, as `listen_address` reads them.
        telemetry: whose metrics are served.
        not_ready: returns None, or in a line why the process is not ready; called in the server's threads.
        most_connections: further ones are told 503 at once.
        longest_connection_s: a client that takes longer is cut off.

    Yields:
        The URL, without a slash at its end; where all addresses are listened on, that of the loopback.

    Raises:
        ConfigError: nothing can listen there.
    """
    server = _listening(address, _Served(telemetry, not_ready, most_connections, longest_connection_s))
    thread = threading.Thread(target=server.serve_forever, args=(_POLL_S,), name="web", daemon=True)
    thread.start()
    try:
        log.info("web server listens", extra={"url": server.url})
        yield server.url
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass(frozen=True, slots=True)
class _Served:
    """What is served, and to how many for how long."""

    telemetry: Telemetry
    not_ready: Callable[[], str | None]
    most_connections: int
    longest_connection_s: float


@dataclass(frozen=True, slots=True)
class _Client:
    """A connection and the thread that answers it."""

    connection: socket.socket
    thread: threading.Thread
    until: float


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """A thread a connection, so many and for so long; http.server's own bounds neither, and asks the DNS for a name."""

    allow_reuse_address = True
    request_queue_size = 32

    def __init__(self, host: str, port: int, served: _Served) -> None:
        # An empty host means all addresses, of IPv6 and IPv4 where the machine has both, as in Go's servers.
        self._both_families = not host and socket.has_dualstack_ipv6()
        if host:
            self.address_family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        else:
            self.address_family = socket.AF_INET6 if self._both_families else socket.AF_INET
            address = (host, port)
        self.served = served
        # Only the thread of serve_forever touches it, and after its end server_close.
        self._clients: list[_Client] = []
        super().__init__(address, _Handler)  # type: ignore[arg-type]

    @property
    def url(self) -> str:
        host, port = str(self.server_address[0]), self.server_address[1]
        if host == "0.0.0.0" or self._both_families:  # noqa: S104 - compared, not bound
            host = "127.0.0.1"
        elif host == "::":
            host = "::1"
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def server_bind(self) -> None:
        if self._both_families:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def verify_request(self, request: Any, *_: Any) -> bool:
        self._clients = [client for client in self._clients if client.thread.is_alive()]
        if len(self._clients) < self.served.most_connections:
            return True
        with suppress(OSError):
            request.send(_BUSY)
        return False

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(
            target=self.process_request_thread, args=(request, client_address), name="web-client", daemon=True
        )
        thread.start()
        self._clients.append(_Client(request, thread, time.monotonic() + self.served.longest_connection_s))

    def service_actions(self) -> None:
        """Cut off who takes too long; called at least every poll interval."""
        now = time.monotonic()
        for client in self._clients:
            if now > client.until:
                _cut(client)

    def server_close(self) -> None:
        super().server_close()
        for client in self._clients:
            _cut(client)
        deadline = time.monotonic() + _JOIN_S
        for client in self._clients:
            client.thread.join(max(deadline - time.monotonic(), 0.0))

    def handle_error(self, *_: Any) -> None:
        # Called where the exception is handled: mostly a client that left, or was cut off.
        log.debug("a web client was not answered", exc_info=True)  # noqa: LOG014


class _Handler(BaseHTTPRequestHandler):
    """Answers one request a connection: HTTP/1.0."""

    server: _Server
    server_version, sys_version = "podstream", ""
    error_message_format, error_content_type = "%(code)d %(message)s\n", _TEXT

    def do_GET(self) -> None:
        known = self._known()
        if known is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        try:
            status, kind, body = known()
        except Exception:
            log.exception("a web page failed", extra={"path": self.path})
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)
            return
        self._reply(status, {"Content-Type": kind}, body)

    do_HEAD = do_GET  # noqa: N815 - http.server looks for these names

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if length.isdecimal() and length.isascii():
            # What is left unread would reset the connection, and the answer with it.
            self.rfile.read(min(int(length), _LONGEST_BODY_BYTES))
        if self._known() is None:
            self.send_error(HTTPStatus.NOT_FOUND)
        else:
            body = f"{HTTPStatus.METHOD_NOT_ALLOWED:d} Method Not Allowed\n".encode()
            self._reply(HTTPStatus.METHOD_NOT_ALLOWED, {"Content-Type": _TEXT, "Allow": "GET, HEAD"}, body)

    do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_POST  # noqa: N815

    def _known(self) -> Callable[[], tuple[HTTPStatus, str, bytes]] | None:
        pages = {
            "/": lambda: (HTTPStatus.OK, "text/html; charset=utf-8", _INDEX.encode()),
            "/metrics": self._metrics,
            "/-/healthy": lambda: (HTTPStatus.OK, _TEXT, b"healthy\n"),
            "/-/ready": self._ready,
        }
        return pages.get(self.path.partition("?")[0])

    def _metrics(self) -> tuple[HTTPStatus, str, bytes]:
        body, kind = self.server.served.telemetry.exposition(self.headers.get("Accept", ""))
        return HTTPStatus.OK, kind, body

    def _ready(self) -> tuple[HTTPStatus, str, bytes]:
        reason = self.server.served.not_ready()
        if reason is None:
            return HTTPStatus.OK, _TEXT, b"ready\n"
        return HTTPStatus.SERVICE_UNAVAILABLE, _TEXT, f"{reason}\n".encode()

    def _reply(self, status: HTTPStatus, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        log.debug("web request", extra={"client": self.client_address[0], "what": format % args})


def _listening(address: tuple[str, int], served: _Served) -> _Server:
    host, port = address
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        return _Server(host, port, served)
    except OSError as error:
        reasons = {
            errno.EADDRINUSE: "the port is taken: stop its owner or give another port",
            errno.EACCES: "the port needs privileges: give one from 1024 on",
            errno.EADDRNOTAVAIL: "this machine does not have the address: give :PORT for all that it has",
        }
        if isinstance(error, socket.gaierror):
            reason = f"the host is not known ({error.strerror}): give an address of this machine"
        else:
            reason = reasons.get(error.errno or 0, f"{error.strerror or error}: give another address")
        raise ConfigError(f"cannot listen on {_FLAG} {shown}: {reason}") from error


def _cut(client: _Client) -> None:
    """End a connection under its thread, whatever that waits for."""
    with suppress(OSError):
        client.connection.shutdown(socket.SHUT_RDWR)


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True
