"""A group's coordinator that is another one just as somebody asks it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple
from weakref import WeakKeyDictionary

import click
import history
import pandas as pd
import verdict
from commands import backfill, end, run, view_of, wait_until_windowed, worker
from confluent_kafka import KafkaError
from kafka_proxy import AlteringProxy, Api
from proxied_kafka import ProxiedKafka
from tcp_proxy import Connection

from ingestor.core.time_range import floor_ms, iso
from ingestor.local.prometheus import LocalPrometheus

MIDDLE_MS = floor_ms(history.START_MS + 3_600_000, 60_000)

_BEHIND_THE_ERROR = {6: 1, 7: 1, 8: 2, 9: 2}
"""Bytes of an OffsetFetch's answer that follow a group's error code, by the version; none in earlier ones."""


class _Question(NamedTuple):
    version: int
    correlation: int


class Moving(AlteringProxy):
    """Answers as a broker that is a group's coordinator no more: each client's first question for the group's commits,
    and its first one behind a member's join.
    """

    def __init__(self, target_port: int, port: int) -> None:
        super().__init__(target_port, port)
        self._questions: WeakKeyDictionary[Connection, _Question] = WeakKeyDictionary()
        self._has_member = False
        self.moved: set[tuple[str, bool]] = set()
        """For which clients, by their ids, and whether they had joined."""

    def begin(self) -> None:
        """Move anew."""
        self._has_member = False
        self.moved = set()

    def hear(self, connection: Connection, frame: bytes) -> None:
        api, version, correlation, length = struct.unpack_from(">hhih", frame, 4)
        client = frame[14 : 14 + length].decode()
        if api == Api.SYNC_GROUP:
            self._has_member = True
        if api == Api.OFFSET_FETCH and (client, self._has_member) not in self.moved:
            self.moved.add((client, self._has_member))
            self._questions[connection] = _Question(version, correlation)

    def answer(self, connection: Connection, frame: bytes) -> bytes:
        (correlation,) = struct.unpack_from(">i", frame, 4)
        question = self._questions.get(connection)
        # Each connection counts its questions by itself.
        if question is None or question.correlation != correlation:
            return frame
        del self._questions[connection]
        changed = bytearray(frame)
        at = len(frame) - 2 - _BEHIND_THE_ERROR.get(question.version, 0)
        assert changed[at : at + 2] == b"\0\0"
        struct.pack_into(">h", changed, at, KafkaError.NOT_COORDINATOR)
        return bytes(changed)


def test_a_worker_asks_the_next_one(prometheus: LocalPrometheus, samples: pd.DataFrame, tmp_path: Path) -> None:
    """What its group has committed is asked for again by each of its clients, before it joins and behind that, in its
    first life and in one that goes on from a commit: every window is there once.
    """
    view = view_of("moving", "1m", "mean")
    with ProxiedKafka(tmp_path / "kafka") as broker, Moving(broker.proxied_port, broker.proxy_port) as net:
        child = worker(broker.way_in, view, tmp_path / "worker.log")
        for bounds in (["--end", iso(MIDDLE_MS)], ["--start", iso(MIDDLE_MS)]):
            # Of options that are there twice the last one counts.
            run(backfill(prometheus, broker, view.topics.prefix, *bounds))
            net.begin()
            with child:
                wait_until_windowed(broker, view, child)
                end(child)
            click.echo(f"  the coordinator has moved for {sorted(net.moved)}")
            assert {has_joined for _, has_joined in net.moved} == {False, True}
        verdict.assert_right(broker, view, samples, tmp_path / "data", history.TIME)
