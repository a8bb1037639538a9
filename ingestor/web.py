"""Pages beside a command's work: its metrics, and whether it lives and is ready; and a small server for them."""

from __future__ import annotations

import errno
import ipaddress
import logging
import re
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any

from ingestor.core.errors import ConfigError
from ingestor.exposition import Exposed

log = logging.getLogger(__name__)

_FLAG = "--web-listen-address"
_HOST = re.compile(r"[^\s/:@\[\]]*")
_PORT = re.compile(r"[0-9]{1,5}")
_HIGHEST_PORT = 65_535

MOST_CONNECTIONS = 16
"""At once; a scrape and two probes need three."""
LONGEST_CONNECTION_S = 10.0
"""Prometheus gives a scrape up by default after so long: whoever takes longer is stuck."""

_BACKLOG = 32
_POLL_S = 0.2
_JOIN_S = 0.5
_LONGEST_BODY_BYTES = 1 << 16

_BUSY = b"HTTP/1.0 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n\r\ntoo many connections\n"
TEXT = "text/plain; charset=utf-8"
_INDEX = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>podstream {program}</title></head>
<body><h1>podstream {program}</h1>
<ul><li><a href="metrics">metrics</a></li><li><a href="-/ready">ready</a></li>
<li><a href="-/healthy">healthy</a></li></ul></body></html>
"""

Answer = tuple[HTTPStatus, str, bytes]
"""Status, content type, body."""
Pages = Mapping[str, Callable[[str], Answer]]
"""What each path answers to who sends this Accept header."""


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


def pages(
    program: str,
    exposed: Exposed,
    not_ready: Callable[[], str | None],
    not_healthy: Callable[[], str | None] = lambda: None,
) -> Pages:
    """Return ``/metrics``, ``/-/healthy``, ``/-/ready`` and ``/``.

    Args:
        program: its name, for people.
        exposed: whose metrics are served.
        not_ready: returns None, or in a line why the process is not ready.
        not_healthy: the same of its health.
    """

    def state(why_not: Callable[[], str | None], word: str) -> Answer:
        if reason := why_not():
            return HTTPStatus.SERVICE_UNAVAILABLE, TEXT, f"{reason}\n".encode()
        return HTTPStatus.OK, TEXT, f"{word}\n".encode()

    def metrics(accept: str) -> Answer:
        body, kind = exposed.exposition(accept)
        return HTTPStatus.OK, kind, body

    index = _INDEX.format(program=program).encode()
    return {
        "/": lambda _: (HTTPStatus.OK, "text/html; charset=utf-8", index),
        "/metrics": metrics,
        "/-/healthy": lambda _: state(not_healthy, "healthy"),
        "/-/ready": lambda _: state(not_ready, "ready"),
    }


def listening(address: tuple[str, int]) -> socket.socket:
    """Return a socket that listens: on no host, on all addresses, of IPv6 and IPv4 where the machine has both.

    Args:
        address: host and port, as `listen_address` reads them.

    Raises:
        ConfigError: nothing can listen there.
    """
    host, port = address
    try:
        if not host:
            # As in Go's servers.
            host = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104 - what no host means
        family, _, _, _, resolved = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        return socket.create_server(resolved, family=family, backlog=_BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        raise _cannot_listen(address, error) from error


def url_of(listener: socket.socket) -> str:
    """Return the URL of who listens, without a slash at its end; of all addresses, that of the loopback."""
    host, port = listener.getsockname()[:2]
    if host == "0.0.0.0" or (host == "::" and socket.has_dualstack_ipv6()):  # noqa: S104 - compared, not bound
        host = "127.0.0.1"
    elif host == "::":
        host = "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextmanager
def web_server(
    address: tuple[str, int],
    exposed: Exposed,
    not_ready: Callable[[], str | None],
    *,
    most_connections: int = MOST_CONNECTIONS,
    longest_connection_s: float = LONGEST_CONNECTION_S,
) -> Iterator[str]:
    """Serve the poller's `pages` in threads, until the block ends.

    Args:
        address: host and port, as `listen_address` reads them.
        exposed: whose metrics are served.
        not_ready: returns None, or in a line why the process is not ready; called in the server's threads.
        most_connections: further ones are told 503 at once.
        longest_connection_s: a client that takes longer is cut off.

    Yields:
        The URL, without a slash at its end; where all addresses are listened on, that of the loopback.

    Raises:
        ConfigError: nothing can listen there.
    """
    served = _Served(pages("ingestor", exposed, not_ready), most_connections, longest_connection_s)
    listener = listening(address)
    url = url_of(listener)
    server = _Server(listener, served)
    thread = threading.Thread(target=server.serve_forever, args=(_POLL_S,), name="web", daemon=True)
    thread.start()
    try:
        log.info("web server listens", extra={"url": url})
        yield url
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass(frozen=True, slots=True)
class _Served:
    """What is served, and to how many for how long."""

    pages: Pages
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

    def __init__(self, listener: socket.socket, served: _Served) -> None:
        self.served = served
        # Only the thread of serve_forever touches it, and after its end server_close.
        self._clients: list[_Client] = []
        super().__init__(listener.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener

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
    error_message_format, error_content_type = "%(code)d %(message)s\n", TEXT

    def do_GET(self) -> None:
        known = self._known()
        if known is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        try:
            status, kind, body = known(self.headers.get("Accept", ""))
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
            self._reply(HTTPStatus.METHOD_NOT_ALLOWED, {"Content-Type": TEXT, "Allow": "GET, HEAD"}, body)

    do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_POST  # noqa: N815

    def _known(self) -> Callable[[str], Answer] | None:
        return self.server.served.pages.get(self.path.partition("?")[0])

    def _reply(self, status: HTTPStatus, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        log.debug("web request", extra={"client": self.client_address[0], "what": format % args})


def _cannot_listen(address: tuple[str, int], error: OSError) -> ConfigError:
    host, port = address
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    reasons = {
        errno.EADDRINUSE: "the port is taken: stop its owner or give another port",
        errno.EACCES: "the port needs privileges: give one from 1024 on",
        errno.EADDRNOTAVAIL: "this machine does not have the address: give :PORT for all that it has",
    }
    if isinstance(error, socket.gaierror):
        reason = f"the host is not known ({error.strerror}): give an address of this machine"
    else:
        reason = reasons.get(error.errno or 0, f"{error.strerror or error}: give another address")
    return ConfigError(f"cannot listen on {_FLAG} {shown}: {reason}")


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
