"""A poller that was frozen while another one took its job over writes nothing more, and says so."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import history
import pandas as pd
import verdict
from commands import PATIENCE_S, backfill, run, view_of, wait_until_windowed, worker

from ingestor.local.kafka import LocalKafka
from ingestor.local.processes import PIPE, Child
from ingestor.local.prometheus import LocalPrometheus


def test_a_frozen_poller_is_fenced(
    kafka: LocalKafka, prometheus: LocalPrometheus, samples: pd.DataFrame, tmp_path: Path
) -> None:
    """SIGSTOP in the middle of a job, another poller ends the job, SIGCONT: an error, and nothing is there twice."""
    view = view_of("zombie", "1m", "mean")
    command = backfill(prometheus, kafka, view.topics.prefix, "--range-samples", "1000", "--json")
    frozen = Child([*command, "--max-samples-per-second", "1000"], log_path=tmp_path / "frozen.log", stdout=PIPE)
    with frozen:
        told = [next(frozen.stdout) for _ in range(4)]
        assert any(b'"range"' in line for line in told)
        os.kill(frozen.pid, signal.SIGSTOP)
        rest = run(command)
        assert "job goes on" in rest.stderr
        os.kill(frozen.pid, signal.SIGCONT)
        assert frozen.wait(PATIENCE_S) == 1
    (last_words,) = [line for line in frozen.log_path.read_text().splitlines() if line.startswith("error:")]
    assert "has taken over" in last_words
    with worker(kafka, view, tmp_path / "worker.log") as child:
        wait_until_windowed(kafka, view, child)
    verdict.assert_right(kafka, view, samples, tmp_path / "data", history.TIME)
