"""A worker whose session in its group lasts so long that it is back in time on any machine.

A program of its own: ``patient_worker.py BOOTSTRAP_SERVERS PREFIX SLOT``; it works on pods' minutes.
"""

from __future__ import annotations

import faust
import worker_program

from stream_app.app import Worker, WorkerSettings
from stream_app.standing import Standing
from stream_app.telemetry import Telemetry

SESSION_S = 80.0
"""Below Faust's bound on requests, 90 s; a worker takes seconds to come back."""


class Patient(Worker):
    """Has a long session."""

    def __init__(self, settings: WorkerSettings) -> None:
        super().__init__(settings, Telemetry(Standing()))

    def _faust_app(self, settings: WorkerSettings) -> faust.App:
        app = super()._faust_app(settings)
        app.conf.broker_session_timeout = SESSION_S
        return app


if __name__ == "__main__":
    worker_program.main(Patient)
