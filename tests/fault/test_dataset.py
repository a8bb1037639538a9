"""A dataset whose process is killed: nothing it started lives on, and the same command finishes the job."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import files
import pandas as pd
from commands import PATIENCE_S, WHEN, run, stream_app

from ingestor.local.processes import PIPE, Child
from ingestor.local.prometheus import LocalPrometheus


def processes_with(text: str) -> list[int]:
    """Return the processes whose command line has *text*."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def test_a_killed_dataset_goes_on(prometheus: LocalPrometheus, samples: pd.DataFrame, tmp_path: Path) -> None:
    """Killed in the middle and interrupted in the middle, the same command ends with the oracle's files."""
    storage = tmp_path / "data"
    command = stream_app(
        "dataset", "--url", prometheus.url, *WHEN, "--preset", "none", "--storage", str(storage), "--json",
        "--range-samples", "1000", "--max-samples-per-second", "2000",
    )  # fmt: skip
    for number in (signal.SIGKILL, signal.SIGINT):
        dataset = Child(command, log_path=tmp_path / "dataset.log", stdout=PIPE)
        dataset.start()
        ranges = 0
        for line in dataset.stdout:
            ranges += json.loads(line)["event"] == "range"
            if ranges == 2:
                break
        assert ranges == 2, dataset.log_tail()
        os.kill(dataset.pid, number)
        for _ in dataset.stdout:
            # Until nobody writes any more; to a pipe that is closed the command could not write what it ends with.
            pass
        code = dataset.wait(PATIENCE_S)
        assert code == (-signal.SIGKILL if number == signal.SIGKILL else 130), dataset.log_tail()
        deadline = time.monotonic() + PATIENCE_S
        while left := processes_with(str(storage)):
            assert time.monotonic() < deadline, f"still running: {left}"
            time.sleep(0.1)
    finished = json.loads(run(command).stdout.splitlines()[-1])
    assert finished["event"] == "finished"
    files.assert_equal_to_oracle(files.read(storage, pods=True), samples, "1m", "mean", "pod")
