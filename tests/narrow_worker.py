"""A worker whose client's queue holds few messages.

A program of its own: ``narrow_worker.py BOOTSTRAP_SERVERS PREFIX SLOT MESSAGES``; it works on pods' minutes.
"""

from __future__ import annotations

import worker_program

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


if __name__ == "__main__":
    worker_program.main(Narrow)
