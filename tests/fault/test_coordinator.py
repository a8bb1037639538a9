"""A group's coordinator that is another one just as somebody asks it."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

from commands import end, view_of, wait_for_line, worker
from confluent_kafka import KafkaError
from kafka_proxy import Api, KafkaProxy
from proxied_kafka import ProxiedKafka
from tcp_proxy import Connection

_BEHIND_THE_ERROR = {6: 1, 7: 1, 8: 2, 9: 2}
"""Bytes of an OffsetFetch's answer that follow a group's error code, by the version; none in earlier ones."""


class _Question(NamedTuple):
    connection: Connection
    version: int
    correlation: int


class Moving(KafkaProxy):
    """Answers the first question for a group's commits as a broker does that is its coordinator no more."""

    has_moved = False
    _question: _Question | None = None

    async def pieces(self, connection: Connection, data: bytes, *, asks: bool) -> AsyncIterator[bytes]:
        async for frame in super().pieces(connection, data, asks=asks):
            if asks:
                api, version, correlation = struct.unpack_from(">hhi", frame, 4)
                if api == Api.OFFSET_FETCH and self._question is None:
                    self._question = _Question(connection, version, correlation)
                yield frame
            else:
                yield self._answer(connection, frame)

    def _answer(self, connection: Connection, frame: bytes) -> bytes:
        (correlation,) = struct.unpack_from(">i", frame, 4)
        question = self._question
        # Each connection counts its questions by itself.
        if self.has_moved or question is None or question[::2] != (connection, correlation):
            return frame
        self.has_moved = True
        changed = bytearray(frame)
        at = len(frame) - 2 - _BEHIND_THE_ERROR.get(question.version, 0)
        assert changed[at : at + 2] == b"\0\0"
        struct.pack_into(">h", changed, at, KafkaError.NOT_COORDINATOR)
        return bytes(changed)


def test_a_worker_asks_the_next_one(tmp_path: Path) -> None:
    """What its group has committed is asked for again."""
    view = view_of("moving", "1m", "mean")
    with ProxiedKafka(tmp_path / "kafka") as broker, Moving(broker.proxied_port, broker.proxy_port) as net:
        with worker(broker.way_in, view, tmp_path / "worker.log") as child:
            wait_for_line(child, "worker is ready")
            end(child)
        assert net.has_moved
