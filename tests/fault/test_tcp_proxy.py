"""The tests' TCP proxy does what it is told: a storm of faults that nobody feels would show nothing."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest
from tcp_proxy import TcpProxy

SENT = bytes(range(256)) * 16
QUIET_S = 0.3
"""For so long nothing comes of what is stalled; a machine that is slow cannot make this fail."""


def echo(listener: socket.socket) -> None:
    """Send back to each client what it sends."""

    def serve(client: socket.socket) -> None:
        with closing(client):
            try:
                while data := client.recv(65_536):
                    client.sendall(data)
            except ConnectionError:
                pass

    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=serve, args=(client,), daemon=True).start()


@pytest.fixture
def proxy() -> Iterator[TcpProxy]:
    """A proxy before a server that sends back what it is sent."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=echo, args=(listener,), daemon=True).start()
        with TcpProxy(listener.getsockname()[1]) as carrying:
            yield carrying
        listener.shutdown(socket.SHUT_RDWR)


def connect(proxy: TcpProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=30)


def received(client: socket.socket, size: int) -> bytes:
    """Read so many bytes, or fewer where the connection ends, in order or not."""
    found = b""
    while len(found) < size:
        try:
            data = client.recv(size - len(found))
        except ConnectionError:
            break
        if not data:
            break
        found += data
    return found


def exchange(client: socket.socket) -> bytes:
    client.sendall(SENT)
    return received(client, len(SENT))


def test_it_carries_and_slows(proxy: TcpProxy) -> None:
    """All bytes arrive as they were, also where they come slowly."""
    with connect(proxy) as client:
        assert exchange(client) == SENT
        slow = proxy.slow(100_000)
        assert exchange(client) == SENT
        felt = slow.felt
        assert felt >= 2, "there and back"
        proxy.end(slow)
        assert exchange(client) == SENT
        assert slow.felt == felt


def test_a_cut_is_in_the_middle(proxy: TcpProxy) -> None:
    """A part of what is sent arrives, and the connection ends; the next one is as before."""
    with connect(proxy) as client:
        assert exchange(client) == SENT
        cut = proxy.cut_connections()
        assert cut.felt == 0
        assert len(exchange(client)) < len(SENT)
        assert cut.felt == 1
    with connect(proxy) as client:
        assert exchange(client) == SENT


def test_what_is_stalled_comes_later(proxy: TcpProxy) -> None:
    """Nothing comes, and nothing is lost; of two stalls that overlap the end of one ends only that."""
    with connect(proxy) as client:
        assert exchange(client) == SENT
        first, second = proxy.stall(), proxy.stall()
        proxy.end(first)
        client.sendall(SENT)
        client.settimeout(QUIET_S)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(30)
        assert (first.felt, second.felt > 0) == (0, True)
        proxy.end(second)
        assert received(client, len(SENT)) == SENT


def test_refused_and_let_in_again(proxy: TcpProxy) -> None:
    """Who is there is dropped, who comes too."""
    with connect(proxy) as client:
        assert exchange(client) == SENT
        refusal = proxy.refuse()
        assert received(client, 1) == b""
        assert refusal.felt == 1
    # Who comes may be dropped before it knows that it was let in.
    with suppress(ConnectionError), connect(proxy) as client:
        assert received(client, 1) == b""
    proxy.heal()
    with connect(proxy) as client:
        assert exchange(client) == SENT
