"""A worker whose client's queue holds few messages.

A program of its own: ``narrow_worker.py BOOTSTRAP_SERVERS PREFIX MESSAGES``; it works on pods' minutes, in slot 0.
"""

from __future__ import annotations

import asyncio
import os
import sys

import click
from commands import view_of

from ingestor.core.errors import IngestorError
from ingestor.kafka import Cluster
from stream_app.app import Worker, WorkerSettings
from stream_app.standing import Standing
from stream_app.telemetry import Telemetry
from stream_app.transactions import Transactions


class Narrow(Worker):
    """Has less room for what it sends than a worker has."""

    def __init__(self, settings: WorkerSettings, queue_messages: int) -> None:
        super().__init__(settings, Telemetry(Standing()))
        view, slot = settings.view, settings.slot
        self._transactions = Transactions(
            settings.cluster, view.topics.range_chunks, view.group_id, slot, queue_messages=queue_messages
        )


async def work(settings: WorkerSettings, queue_messages: int) -> None:
    try:
        await Narrow(settings, queue_messages).run(lambda: None)
    except IngestorError as error:
        click.echo(f"error: {error}", err=True)
        # Faust's threads would else hold it.
        os._exit(1)
    os._exit(0)


def main() -> None:
    servers, prefix, messages = sys.argv[1:]
    asyncio.run(work(WorkerSettings(Cluster(servers), view_of(prefix, "1m", "mean"), 0), int(messages)))


if __name__ == "__main__":
    main()
