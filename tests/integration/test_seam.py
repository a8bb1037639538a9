"""History read by one job, by a job that goes on live, or by two that meet: the same set of records."""

from __future__ import annotations

import time
from pathlib import Path

import history
import pandas as pd
import pytest
import records
from commands import PATIENCE_S, end, ingestor, run, view_of, wait_until_windowed, worker

from ingestor.core.time_range import TimeRange, floor_ms, iso
from ingestor.kafka import connect, ensure_topics
from ingestor.local.kafka import LocalKafka
from ingestor.local.processes import Child
from ingestor.local.prometheus import LocalPrometheus
from ingestor.positions import read_positions
from stream_app.records import Record

MINUTE_MS = 60_000
BEGIN_MS, END_MS = floor_ms(history.START_MS, MINUTE_MS), floor_ms(history.END_MS, MINUTE_MS) + MINUTE_MS
"""At windows' edges, so that no window of a whole reading is partial."""

SEAM_MS = floor_ms((BEGIN_MS + END_MS) // 2, MINUTE_MS)


class Reading:
    """Jobs of one topic prefix, and the records that come of them."""

    def __init__(self, kafka: LocalKafka, prometheus: LocalPrometheus, prefix: str, log: Path) -> None:
        self._kafka, self._log = kafka, log
        self._view = view_of(prefix, "1m", "mean")
        ensure_topics(connect(kafka.cluster), self._view.topics, None)
        self._where = ["--topic-prefix", prefix, "--bootstrap-servers", kafka.bootstrap_servers]
        self._source = ["--url", prometheus.url, "--preset", "none", *self._where]

    def backfill(self, start_ms: int, end_ms: int) -> None:
        run(ingestor("backfill", *self._source, "--start", iso(start_ms), "--end", iso(end_ms)))

    def live(self, start_ms: int) -> None:
        """Poll from a point on until the history has been passed; then end the job there."""
        with Child(ingestor("run", *self._source, "--start", iso(start_ms)), log_path=self._log) as poller:
            deadline = time.monotonic() + PATIENCE_S
            while (live := read_positions(self._kafka.cluster, self._view.topics).get("live")) is None or (
                live.position_ms < END_MS
            ):
                assert poller.poll() is None, poller.log_tail()
                assert time.monotonic() < deadline, poller.log_tail()
                time.sleep(0.3)
            end(poller)
        run(ingestor("cancel", "live", *self._where))

    def records(self) -> list[Record]:
        with worker(self._kafka, self._view, self._log.with_suffix(".worker")) as child:
            wait_until_windowed(self._kafka, self._view, child)
        return records.read(self._kafka.cluster, self._view.topics.pods)


@pytest.fixture(scope="module")
def whole(
    kafka: LocalKafka, prometheus: LocalPrometheus, samples: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory
) -> list[Record]:
    """The records of one backfill of all, which are the oracle's."""
    reading = Reading(kafka, prometheus, "seam-none", tmp_path_factory.mktemp("seam") / "log")
    reading.backfill(BEGIN_MS, END_MS)
    found = reading.records()
    compared = records.compare(found, samples, "1m", "mean", "pod")
    assert compared.is_right, compared
    return found


def test_one_live_job_that_catches_up(
    kafka: LocalKafka, prometheus: LocalPrometheus, whole: list[Record], tmp_path: Path
) -> None:
    """`ingestor run --start` over all of the history gives the records of the backfill."""
    reading = Reading(kafka, prometheus, "seam-live", tmp_path / "log")
    reading.live(BEGIN_MS)
    found = reading.records()
    assert {record.job for record in found} == {"live"}
    assert records.contents(found) == records.contents(whole)


def test_a_backfill_and_then_live(
    kafka: LocalKafka, prometheus: LocalPrometheus, whole: list[Record], tmp_path: Path
) -> None:
    """Two jobs that meet at a window's edge give the records of the backfill."""
    reading = Reading(kafka, prometheus, "seam-edge", tmp_path / "log")
    reading.backfill(BEGIN_MS, SEAM_MS)
    reading.live(SEAM_MS)
    found = reading.records()
    assert len({record.job for record in found}) == 2
    assert records.contents(found) == records.contents(whole)


def test_a_seam_inside_a_window(
    kafka: LocalKafka, prometheus: LocalPrometheus, samples: pd.DataFrame, whole: list[Record], tmp_path: Path
) -> None:
    """Where two jobs meet inside a window, each gives its part of it, called partial; all else is the same."""
    seam_ms = SEAM_MS + MINUTE_MS // 2
    reading = Reading(kafka, prometheus, "seam-inside", tmp_path / "log")
    reading.backfill(BEGIN_MS, seam_ms)
    reading.live(seam_ms)
    found = reading.records()
    cut = [record for record in found if record.window_start_ms == SEAM_MS]
    others = [record for record in found if record.window_start_ms != SEAM_MS]
    assert records.contents(others) == records.contents(r for r in whole if r.window_start_ms != SEAM_MS)
    for is_live in (False, True):
        side = samples[(samples["timestamp"] >= seam_ms) == is_live]
        side = side[side["timestamp"].between(SEAM_MS, SEAM_MS + MINUTE_MS - 1)]
        mine = [record for record in cut if (record.job == "live") == is_live]
        job = TimeRange(seam_ms, END_MS) if is_live else TimeRange(BEGIN_MS, seam_ms)
        compared = records.compare(mine, side, "1m", "mean", "pod", job)
        assert compared.is_right, compared
        assert compared.expected > 5
