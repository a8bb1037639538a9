"""The benchmark says what is true: it runs on real servers, and refuses results that are not the oracle's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import orjson
import programs
import pytest

FOLDER = Path(__file__).parents[1] / "benchmark"
_MODULES = programs.modules(str(FOLDER))
check, cluster = _MODULES["check"], _MODULES["cluster"]

LENGTH = cluster.Length(3)


def test_a_small_run_is_measured_and_checked():
    """From Prometheus to records, all of them right, and every process' share is told."""
    flags = ["--scale", "0.01", "--runs", "1", "--work", "mean", "--part", "core", "--json"]
    done = subprocess.run([sys.executable, FOLDER / "run.py", *flags], capture_output=True, check=False, timeout=800)
    assert done.returncode == 0, done.stderr.decode()
    figures = orjson.loads(done.stdout)
    assert figures["samples"] == cluster.Length.of_scale(0.01).samples
    assert set(figures["works"]["mean"]["cpu_s"]) == {"poller", "worker", "kafka", "prometheus"}
    assert all(spent > 0 for spent in figures["works"]["mean"]["cpu_s"].values())


@pytest.fixture
def cells():
    """What a right run gives."""
    found = check.Cells(LENGTH)
    fill(found)
    return found


def fill(cells, *, leave_out: int = 0) -> None:
    wanted = cluster.expected(0, LENGTH.minutes, "mean")
    for number, pod in enumerate(cluster.pods()[leave_out:], leave_out):
        for minute in range(LENGTH.minutes):
            metrics = dict(zip(cluster.METRICS, wanted[number, minute].tolist(), strict=True))
            cells.add(pod, cluster.START_MS + minute * cluster.MINUTE_MS, metrics)


def test_right_cells_pass(cells):
    """The oracle agrees with itself."""
    cells.check("mean")


def test_one_wrong_cell_fails_the_run(cells):
    """A single value that is off by a millionth is seen, and named."""
    cells._values[17, 1, 5] *= 1 + 1e-6
    with pytest.raises(check.WrongError, match=rf"1 of \d+ cells.*{cluster.METRICS[5]} of {cluster.pods()[17]}"):
        cells.check("mean")


def test_another_methods_cells_fail_the_run(cells):
    """Means are no medians."""
    with pytest.raises(check.WrongError, match="cells differ"):
        cells.check("median")


def test_missing_and_doubled_records_fail_the_run():
    """Every record is there, and once."""
    found = check.Cells(LENGTH)
    fill(found, leave_out=1)
    with pytest.raises(check.WrongError, match="3 are missing and 0 came more than once"):
        found.check("mean")
    fill(found)
    with pytest.raises(check.WrongError, match="0 are missing and 597 came more than once"):
        found.check("mean")
