"""A proxy between Kafka's clients and their broker that knows which request passes, and stops at a chosen one."""

from __future__ import annotations

import asyncio
import struct
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple
from weakref import WeakKeyDictionary

from tcp_proxy import Connection, TcpProxy


class Api(IntEnum):
    """Requests, by the keys that Kafka's protocol gives them."""

    PRODUCE = 0
    FETCH = 1
    LIST_OFFSETS = 2
    METADATA = 3
    OFFSET_COMMIT = 8
    OFFSET_FETCH = 9
    FIND_COORDINATOR = 10
    JOIN_GROUP = 11
    HEARTBEAT = 12
    SYNC_GROUP = 14
    INIT_PRODUCER_ID = 22
    ADD_PARTITIONS_TO_TXN = 24
    ADD_OFFSETS_TO_TXN = 25
    END_TXN = 26
    TXN_OFFSET_COMMIT = 28


class Point(NamedTuple):
    """A moment on a request's way."""

    api: Api
    is_answered: bool
    """The broker has done it, and the client does not know yet; else the broker has not heard of it."""
    nth: int = 1
    """Counted from when the stop is set."""
    of: bytes = b""
    """What the request has in it, such as a transactional id."""

    def __str__(self) -> str:
        return f"{'after' if self.is_answered else 'before'} {self.api.name} {self.nth}"


@dataclass(eq=False)
class Stop:
    """A point at which one connection is held."""

    point: Point
    _loop: asyncio.AbstractEventLoop
    reached: threading.Event = field(default_factory=threading.Event)
    lost: threading.Event = field(default_factory=threading.Event)
    """Its connection has ended meanwhile."""
    _left: int = 0
    _decided: asyncio.Event = field(default_factory=asyncio.Event)
    _goes_on: bool = False

    def __post_init__(self) -> None:
        self._left = self.point.nth

    def go_on(self) -> None:
        """Pass on what is held."""
        self._decide(goes_on=True)

    def drop(self) -> None:
        """Pass on nothing more: the connection ends."""
        self._decide(goes_on=False)

    def _decide(self, *, goes_on: bool) -> None:
        self._goes_on = goes_on
        self._loop.call_soon_threadsafe(self._decided.set)

    def is_at(self, api: int, frame: bytes) -> bool:
        """Tell whether this is the one, and count."""
        if api != self.point.api or self.point.of not in frame:
            return False
        self._left -= 1
        return self._left == 0

    async def hold(self) -> None:
        """Wait for what is decided.

        Raises:
            ConnectionAbortedError: the connection is to end.
        """
        self.reached.set()
        try:
            await self._decided.wait()
        except asyncio.CancelledError:
            self.lost.set()
            raise
        if not self._goes_on:
            raise ConnectionAbortedError


@dataclass
class _Conversation:
    """What is known of a connection: frames that are not whole yet, and requests that wait for their answers."""

    asked: bytearray = field(default_factory=bytearray)
    answered: bytearray = field(default_factory=bytearray)
    stops: dict[int, list[Stop]] = field(default_factory=dict)
    """Those that wait for an answer, by its correlation id."""


class KafkaProxy(TcpProxy):
    """Lets requests and answers pass one by one; of a plaintext listener."""

    def __init__(self, target_port: int, port: int | None = None) -> None:
        super().__init__(target_port, port)
        self._stops: list[Stop] = []
        self._conversations: WeakKeyDictionary[Connection, _Conversation] = WeakKeyDictionary()

    def stop_at(self, point: Point) -> Stop:
        """Hold what passes at *point*, once."""
        stop = Stop(point, self._loop)
        self.soon(lambda: self._stops.append(stop))
        return stop

    async def pieces(self, connection: Connection, data: bytes, *, asks: bool) -> AsyncIterator[bytes]:
        talk = self._conversations.setdefault(connection, _Conversation())
        pending = talk.asked if asks else talk.answered
        pending += data
        while len(pending) >= 4 and len(pending) >= (length := 4 + struct.unpack_from(">i", pending)[0]):
            frame = bytes(pending[:length])
            del pending[:length]
            for stop in self._asked(talk, frame) if asks else self._answered(talk, frame):
                await stop.hold()
            yield frame

    def _asked(self, talk: _Conversation, frame: bytes) -> list[Stop]:
        api, _, correlation = struct.unpack_from(">hhi", frame, 4)
        met = [stop for stop in self._stops if stop.is_at(api, frame)]
        self._stops = [stop for stop in self._stops if stop not in met]
        talk.stops[correlation] = [stop for stop in met if stop.point.is_answered]
        return [stop for stop in met if not stop.point.is_answered]

    @staticmethod
    def _answered(talk: _Conversation, frame: bytes) -> list[Stop]:
        (correlation,) = struct.unpack_from(">i", frame, 4)
        return talk.stops.pop(correlation, [])


class AlteringProxy(KafkaProxy):
    """Hears each request, and may pass on another answer than came."""

    async def pieces(self, connection: Connection, data: bytes, *, asks: bool) -> AsyncIterator[bytes]:
        async for frame in super().pieces(connection, data, asks=asks):
            if asks:
                self.hear(connection, frame)
                yield frame
            else:
                yield self.answer(connection, frame)

    def hear(self, connection: Connection, frame: bytes) -> None:
        """Take note of a request."""
        raise NotImplementedError

    def answer(self, connection: Connection, frame: bytes) -> bytes:
        """Return what is passed on of an answer."""
        raise NotImplementedError
