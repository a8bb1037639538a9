"""`ingestor backfill --again`: what changed in Prometheus is emitted, and nothing else."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import files
import oracle
import pandas as pd
import pytest
import remote_write
from chunks import frame
from commands import PATIENCE_S, ingestor, run, view_of, wait_until_windowed, worker
from valid_records import decode_record

from ingestor.core.time_range import iso
from ingestor.kafka import read_to_end
from ingestor.local.kafka import LocalKafka
from ingestor.local.processes import Child
from ingestor.local.prometheus import LocalPrometheus
from stream_app.records import Record
from stream_app.view import View

MINUTE_MS = 60_000
PODS = ("web-0", "web-1", "db-0", "cart-0")
MINUTES = 20


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPrometheus]:
    """One that takes what is pushed, also out of order."""
    config = {"global": {"scrape_interval": "1m"}, "storage": {"tsdb": {"out_of_order_time_window": "2h"}}}
    flags = ["--web.enable-remote-write-receiver"]
    with LocalPrometheus(tmp_path_factory.mktemp("again"), config=config, extra_args=flags) as server:
        yield server


def push(server: LocalPrometheus, samples: list[tuple[str, int, float]]) -> list[tuple[str, str, str, str, int, float]]:
    """Push samples of pods; return them as `chunks.frame` takes them."""
    labels = {"__name__": "queue_depth", "namespace": "shop"}
    remote_write.push(server.url, [({**labels, "pod": pod}, t, value) for pod, t, value in samples])
    return [("shop", pod, "queue_depth", "", t, value) for pod, t, value in samples]


def records(kafka: LocalKafka, view: View) -> list[Record]:
    found = [decode_record(m.value()) for p in range(2) for m in read_to_end(kafka.cluster, view.topics.pods, p)]
    return [record for record in found if record.chunk_size == str(view.chunk_size)]


def named(found: list[Record]) -> list[tuple[str | None, int, int, bool]]:
    return sorted((r.pod, r.window_start_ms, r.revision, r.partial) for r in found)


def test_only_what_changed_is_emitted(kafka: LocalKafka, prometheus: LocalPrometheus, tmp_path: Path) -> None:
    """Nothing changed, nothing comes; two pods changed in a window each, these two come, wherever the worker restarts.

    A window that is read in part says nothing where a record is, and what nobody has read before comes as it is.
    """
    view = view_of("repeated", "2m", "sum")
    end_ms = view.chunk_size.floor_ms(int(time.time() * 1000) - 2 * MINUTE_MS)
    start_ms = end_ms - MINUTES * MINUTE_MS
    times = range(start_ms, end_ms, 15_000)
    rows = push(prometheus, [(pod, t, float(n + t % 1_000_003)) for t in times for n, pod in enumerate(PODS)])
    where = ["--bootstrap-servers", kafka.bootstrap_servers, "--topic-prefix", "repeated"]
    until = ["--end", iso(end_ms), "--url", prometheus.url, *where, "--range-samples", "1000"]
    first = ["backfill", "--start", iso(start_ms + 3 * MINUTE_MS), *until, "--partitions", "2"]
    run(ingestor(*first))
    log = tmp_path / "worker.log"
    with worker(kafka, view, log) as child:
        wait_until_windowed(kafka, view, child)
        before = records(kafka, view)
        read = frame([row for row in rows if row[4] >= start_ms + 3 * MINUTE_MS])
        assert_oracle(before, read)

        run(ingestor(*first, "--again"))
        wait_until_windowed(kafka, view, child)
        assert named(records(kafka, view)) == named(before), "nothing has changed"
        child.stop()

        # One sample more in a whole window, one in another pod's, one where only a part is read again.
        changed = [("web-1", start_ms + 8 * MINUTE_MS + 777, 5.0), ("db-0", start_ms + 12 * MINUTE_MS + 1, 7.0)]
        cut = ("cart-0", start_ms + 5 * MINUTE_MS + 1, 9.0)
        rows += push(prometheus, [*changed, cut])
        # Not on a window's edge: the first window is cut.
        run(ingestor("backfill", "--start", iso(start_ms + 5 * MINUTE_MS), *until, "--again"))
        kill_at_news(child)
        child.start()
        wait_until_windowed(kafka, view, child)
        news = [r for r in records(kafka, view) if r.revision]
        # The second time reads what was read twice already.
        assert named(news) == sorted((pod, view.chunk_size.floor_ms(t), 2, False) for pod, t, _ in changed)
        read = frame(rows)
        for record in news:
            expected = oracle.windows(read, "2m", "sum", "pod")["shop", record.pod or "", record.window_start_ms]
            assert record.metrics == expected

        # Read once more, with time that nobody has read: that and the window that was cut are news.
        run(ingestor("backfill", "--start", iso(start_ms), *until, "--again"))
        wait_until_windowed(kafka, view, child)
        last = {(r.pod, r.window_start_ms): r for r in sorted(records(kafka, view), key=lambda r: r.revision)}
        assert_oracle(list(last.values()), read)
        newest = [r for r in records(kafka, view) if r.revision == 3]
        windows = {start_ms, start_ms + 2 * MINUTE_MS}
        expected_news = [(pod, window, 3, False) for pod in PODS for window in windows]
        cut_window = view.chunk_size.floor_ms(cut[1])
        assert named(newest) == sorted([*expected_news, (cut[0], cut_window, 3, False)])


def assert_oracle(found: list[Record], samples: pd.DataFrame) -> None:
    cells = {(r.namespace, r.pod, r.window_start_ms): r.metrics for r in found}
    assert len(cells) == len(found)
    files.assert_equal_to_oracle(cells, samples, "2m", "sum", "pod")


def kill_at_news(child: Child) -> None:
    """Start a worker and SIGKILL it when it looks for what changed."""
    text = "reading what was written before"
    seen = child.log_path.read_text().count(text)
    child.start()
    deadline = time.monotonic() + PATIENCE_S
    while child.log_path.read_text().count(text) == seen:
        assert child.poll() is None, child.log_tail()
        assert time.monotonic() < deadline, child.log_tail()
        time.sleep(0.001)
    child.kill()


SLOW = """
import asyncio

import worker_program
from stream_app.app import Worker
from stream_app.standing import Standing
from stream_app.telemetry import Telemetry


class Slow(Worker):
    async def _written(self, emissions, membership):
        await asyncio.sleep(1.0)
        await super()._written(emissions, membership)


worker_program.main(lambda settings: Slow(settings, Telemetry(Standing())))
"""
"""A worker whose transactions take a while: what is fed meanwhile is far ahead of what is written."""


def test_again_is_caught_up_with_at_once(kafka: LocalKafka, prometheus: LocalPrometheus, tmp_path: Path) -> None:
    """A worker that finds a job and its repetition on the topic compares with what it is still writing."""
    view = view_of("again-at-once", "1m", "mean")
    end_ms = view.chunk_size.floor_ms(int(time.time() * 1000) - 60 * MINUTE_MS)
    times = range(end_ms - 5 * MINUTE_MS, end_ms, 15_000)
    rows = push(prometheus, [("twice-0", t, float(t % 1_009)) for t in times])
    where = ["--bootstrap-servers", kafka.bootstrap_servers, "--topic-prefix", "again-at-once", "--partitions", "2"]
    until = ["--end", iso(end_ms), "--url", prometheus.url, *where]
    run(ingestor("backfill", "--start", iso(times[0]), *until))
    # Of the first window only a part is read again.
    run(ingestor("backfill", "--start", iso(times[2]), *until, "--again"))
    command = [sys.executable, "-c", SLOW, kafka.bootstrap_servers, "again-at-once", "0"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with Child(command, log_path=tmp_path / "worker.log", env=environment) as child:
        wait_until_windowed(kafka, view, child)
    found = records(kafka, view)
    assert [r.revision for r in found] == [0] * 5
    cells = {(r.namespace, r.pod, r.window_start_ms): r.metrics for r in found}
    files.assert_equal_to_oracle(cells, frame(rows), "1m", "mean", "pod")


def test_again_where_nothing_was(kafka: LocalKafka, prometheus: LocalPrometheus, tmp_path: Path) -> None:
    """A first reading with `--again` is emitted whole."""
    view = view_of("again-first", "1m", "mean")
    end_ms = view.chunk_size.floor_ms(int(time.time() * 1000) - 40 * MINUTE_MS)
    times = range(end_ms - 5 * MINUTE_MS, end_ms, 15_000)
    rows = push(prometheus, [("lone-0", t, float(t % 1_009)) for t in times])
    where = ["--bootstrap-servers", kafka.bootstrap_servers, "--topic-prefix", "again-first", "--partitions", "2"]
    run(
        ingestor("backfill", "--start", iso(times[0]), "--end", iso(end_ms), "--url", prometheus.url, *where, "--again")
    )
    with worker(kafka, view, tmp_path / "worker.log") as child:
        wait_until_windowed(kafka, view, child)
    found = records(kafka, view)
    cells = {(r.namespace, r.pod, r.window_start_ms): r.metrics for r in found}
    files.assert_equal_to_oracle(cells, frame(rows), "1m", "mean", "pod")
    assert not any(r.partial for r in found)
