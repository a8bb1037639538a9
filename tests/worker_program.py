"""What programs of tests have in common that are workers of a kind of their own: how they begin and end."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable

import click
from commands import view_of

from ingestor.core.errors import IngestorError
from ingestor.kafka import Cluster
from stream_app.app import Worker, WorkerSettings


def main(kind: Callable[..., Worker]) -> None:
    """Run ``PROGRAM BOOTSTRAP_SERVERS PREFIX SLOT [NUMBER]``: a worker on pods' minutes.

    Args:
        kind: makes it of its settings, and of the number if there is one.
    """
    servers, prefix, slot, *numbers = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    settings = WorkerSettings(Cluster(servers), view_of(prefix, "1m", "mean"), int(slot))
    asyncio.run(_work(kind, settings, *map(int, numbers)))


async def _work(kind: Callable[..., Worker], settings: WorkerSettings, *numbers: int) -> None:
    try:
        await kind(settings, *numbers).run(lambda: None)
    except IngestorError as error:
        click.echo(f"error: {error}", err=True)
        # Faust's threads would else hold it.
        os._exit(1)
    os._exit(0)
