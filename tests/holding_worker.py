"""A worker that holds its second transaction back until it gets SIGUSR1: what is emitted meanwhile is gathered.

A program of its own: ``holding_worker.py BOOTSTRAP_SERVERS PREFIX SLOT``; it works on pods' minutes, and says on
stderr when emissions of several partitions wait.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterable, Sequence
from typing import Any

import click
import worker_program
from commands import PATIENCE_S

from stream_app import app
from stream_app.app import Worker, WorkerSettings
from stream_app.pipeline import Emission
from stream_app.standing import Standing
from stream_app.telemetry import Telemetry

GATHERED = "emissions of several partitions wait"


class Holding(Worker):
    """Holds its second transaction back."""

    def __init__(self, settings: WorkerSettings) -> None:
        super().__init__(settings, Telemetry(Standing()))
        self._begun = 0
        self._waiting: set[int] = set()
        self._gathered, self._goes_on = asyncio.Event(), asyncio.Event()

    async def _written(self, emissions: Sequence[tuple[int, Emission]], membership: bytes) -> None:
        self._begun += 1
        if self._begun == 2:
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self._goes_on.set)
            self._note(partition for partition, _ in emissions)
            await self._gathered.wait()
            click.echo(GATHERED, err=True)
            await self._goes_on.wait()
        await super()._written(emissions, membership)

    def _take(self, fed: Any, membership: bytes) -> None:
        super()._take(fed, membership)
        if self._begun == 2 and fed.emissions:
            self._note([fed.message.partition])

    def _note(self, partitions: Iterable[int]) -> None:
        self._waiting.update(partitions)
        if len(self._waiting) > 1:
            self._gathered.set()


if __name__ == "__main__":
    # What it has gathered is to be committed at its end, however slow the broker is.
    app._STOP_TIMEOUT_S = PATIENCE_S
    worker_program.main(Holding)
