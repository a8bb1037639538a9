"""A TCP proxy on the loopback that cuts, stalls, slows and refuses, as networks do."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Self

from ingestor.local.processes import free_port

_PIECE = 16_384
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class Trouble:
    """What a proxy does to connections."""

    felt: int = 0
    """How often it has held something back, or dropped a connection."""


@dataclass(eq=False)
class Connection:
    """Both ends of one client's connection."""

    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    doom: Trouble | None = None
    """It ends in the middle of what it carries next."""

    def reset(self) -> None:
        for writer in self.writers:
            if (end := writer.get_extra_info("socket")) is not None and not writer.transport.is_closing():
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
            writer.transport.abort()


class TcpProxy:
    """Carries bytes between clients and a port, in a thread of its own; its methods may be called from any.

    Args:
        target_port: of 127.0.0.1; nobody need listen there yet.
        port: where clients come; None chooses one.
    """

    def __init__(self, target_port: int, port: int | None = None) -> None:
        self.port = port or free_port()
        self._target_port = target_port
        self._connections: set[Connection] = set()
        self._stalls: set[Trouble] = set()
        self._refusals: set[Trouble] = set()
        self._bytes_per_s: dict[Trouble, float] = {}
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="tcp-proxy")
        self._is_ready = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        self._is_ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.soon(self._ends.set)
        self._thread.join()

    def cut_connections(self) -> Trouble:
        """Drop each open connection half-way through what it carries next, as a machine that fails does."""
        trouble = Trouble()

        def doom() -> None:
            for connection in self._connections:
                connection.doom = connection.doom or trouble

        self.soon(doom)
        return trouble

    def stall(self) -> Trouble:
        """Carry nothing, and keep all connections."""
        trouble = Trouble()

        def go() -> None:
            self._stalls.add(trouble)
            self._flows.clear()

        self.soon(go)
        return trouble

    def slow(self, bytes_per_s: float) -> Trouble:
        """Carry so much a second of each connection and direction."""
        trouble = Trouble()
        self.soon(lambda: self._bytes_per_s.update({trouble: bytes_per_s}))
        return trouble

    def refuse(self) -> Trouble:
        """Drop all connections, and drop new ones as they come."""
        trouble = Trouble()

        def go() -> None:
            self._refusals.add(trouble)
            for connection in self._connections:
                trouble.felt += 1
                connection.reset()

        self.soon(go)
        return trouble

    def end(self, trouble: Trouble) -> None:
        """Leave off one of these; connections that are to be cut are so all the same."""

        def leave_off() -> None:
            self._stalls.discard(trouble)
            self._refusals.discard(trouble)
            self._bytes_per_s.pop(trouble, None)
            if not self._stalls:
                self._flows.set()

        self.soon(leave_off)

    def heal(self) -> None:
        """Carry everything again, at once."""

        def come() -> None:
            for troubles in (self._stalls, self._refusals, self._bytes_per_s):
                troubles.clear()
            self._flows.set()

        self.soon(come)

    def soon(self, act: Callable[[], object]) -> None:
        """Have the proxy's thread do something."""
        self._loop.call_soon_threadsafe(act)

    async def _serve(self) -> None:
        self._loop, self._ends, self._flows = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        self._flows.set()
        async with await asyncio.start_server(self._come, "127.0.0.1", self.port):
            self._is_ready.set()
            await self._ends.wait()
            for connection in self._connections:
                connection.reset()

    async def _come(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection([writer])
        self._connections.add(connection)
        try:
            if self._refusals:
                for trouble in self._refusals:
                    trouble.felt += 1
                return
            there, back = await asyncio.open_connection("127.0.0.1", self._target_port)
            connection.writers.append(back)
            # Neither protocol closes one direction alone: whichever side ends first ends both.
            directions = [
                asyncio.create_task(self._carry(connection, *pair)) for pair in ((reader, back), (there, writer))
            ]
            _, other = await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
            for direction in other:
                direction.cancel()
        except OSError:
            # Nobody listens there: the client is told by the end of its connection.
            pass
        finally:
            self._connections.discard(connection)
            connection.reset()

    async def _carry(self, connection: Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(_PIECE):
                async for piece in self.pieces(connection, data, asks=writer is not connection.writers[0]):
                    await self._pass_on(connection, piece, writer)
                if connection.doom is not None:
                    return
        except OSError:
            pass

    async def pieces(
        self,
        connection: Connection,  # noqa: ARG002 - for those that know what they carry
        data: bytes,
        *,
        asks: bool,  # noqa: ARG002 - the same
    ) -> AsyncIterator[bytes]:
        """Yield what to pass on of *data*, and when.

        Args:
            connection: whose it is.
            data: as it came, cut anywhere.
            asks: whether the client says it.
        """
        yield data

    async def _pass_on(self, connection: Connection, data: bytes, writer: asyncio.StreamWriter) -> None:
        for trouble in self._stalls:
            trouble.felt += 1
        await self._flows.wait()
        if self._bytes_per_s:
            for trouble in self._bytes_per_s:
                trouble.felt += 1
            await asyncio.sleep(len(data) / min(self._bytes_per_s.values()))
        if connection.doom is not None:
            connection.doom.felt += 1
            data = data[: len(data) // 2]
        writer.write(data)
        await writer.drain()
