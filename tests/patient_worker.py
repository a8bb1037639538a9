"""A worker whose session in its group lasts so long that it is back in time on any machine.

A program of its own: ``patient_worker.py BOOTSTRAP_SERVERS PREFIX SLOT``; it works on pods' minutes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys

import faust
from commands import view_of

from ingestor.kafka import Cluster
from stream_app.app import Worker, WorkerSettings
from stream_app.standing import Standing
from stream_app.telemetry import Telemetry

SESSION_S = 80.0
"""Below Faust's bound on requests, 90 s; a worker takes seconds to come back."""


class Patient(Worker):
    """Has a long session."""

    def _faust_app(self, settings: WorkerSettings) -> faust.App:
        app = super()._faust_app(settings)
        app.conf.broker_session_timeout = SESSION_S
        return app


async def work(settings: WorkerSettings) -> None:
    await Patient(settings, Telemetry(Standing())).run(lambda: None)
    # Faust's thread would else hold it.
    os._exit(0)


def main() -> None:
    servers, prefix, slot = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    asyncio.run(work(WorkerSettings(Cluster(servers), view_of(prefix, "1m", "mean"), int(slot))))


if __name__ == "__main__":
    main()
