"""`ingestor run --recheck`: samples that came late are read after all, and change only the windows that they are in."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import files
import pytest
import remote_write
from commands import PATIENCE_S, end, ingestor, run, view_of, wait_until, wait_until_windowed, worker, write_files
from scraped import SETTLE

from ingestor.core.topics import Topics
from ingestor.kafka import connect, ensure_topics, read_to_end
from ingestor.local.kafka import LocalKafka
from ingestor.local.processes import Child
from ingestor.local.prometheus import LocalPrometheus
from ingestor.positions import Position, read_positions
from ingestor.publisher import Publisher
from stream_app.records import Record, decode_record

PODS = ("web-0", "web-1")
WINDOW_MS = 2_000


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPrometheus]:
    """One that takes what is pushed, also out of order."""
    config = {"global": {"scrape_interval": "1m"}, "storage": {"tsdb": {"out_of_order_time_window": "10m"}}}
    flags = ["--web.enable-remote-write-receiver"]
    with LocalPrometheus(tmp_path_factory.mktemp("late"), config=config, extra_args=flags) as server:
        yield server


def push(server: LocalPrometheus, pod: str, time_ms: int, value: float) -> None:
    labels = {"__name__": "queue_depth", "namespace": "shop", "pod": pod}
    remote_write.push(server.url, [(labels, time_ms, value)])


def records(kafka: LocalKafka, prefix: str) -> list[Record]:
    return [decode_record(m.value()) for p in range(2) for m in read_to_end(kafka.cluster, f"{prefix}.pods", p)]


def test_late_samples_are_read_once_more(kafka: LocalKafka, prometheus: LocalPrometheus, tmp_path: Path) -> None:
    """Of two pods and some windows, one window of one pod is emitted again, with revision 1 and its right sum."""
    prefix = "rechecked"
    where = ["--bootstrap-servers", kafka.bootstrap_servers, "--topic-prefix", prefix]
    flags = ["--settle", SETTLE, "--poll-interval", "1s", "--recheck", "12s", "--url", prometheus.url]
    view = view_of(prefix, "2s", "sum")
    ensure_topics(connect(kafka.cluster), view.topics, 2)
    truth: dict[tuple[str, int], list[float]] = {}

    def sent(pod: str, time_ms: int, value: float) -> None:
        push(prometheus, pod, time_ms, value)
        truth.setdefault((pod, time_ms // WINDOW_MS * WINDOW_MS), []).append(value)

    poller = Child(ingestor("run", *where, *flags), log_path=tmp_path / "poller.log")
    late_ms = 0
    with worker(kafka, view, tmp_path / "worker.log") as child, poller:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            now_ms = int(time.time() * 1000)
            for number, pod in enumerate(PODS):
                sent(pod, now_ms, float(number + now_ms % 100))
            time.sleep(0.5)
            seen = records(kafka, prefix)
            whole = [r for r in seen if not r.partial and r.revision == 0 and r.pod == "web-0"]
            if len(whole) >= 2 and not late_ms:
                late_ms = whole[-1].window_start_ms + 777
                # The live reading has passed this window; its second reading has not, and cannot meanwhile.
                os.kill(poller.pid, signal.SIGSTOP)
                if read_positions(kafka.cluster, view.topics)["live.recheck"].position_ms < whole[-1].window_start_ms:
                    sent("web-0", late_ms, 1_000.0)
                else:
                    late_ms = 0
                os.kill(poller.pid, signal.SIGCONT)
            if late_ms and any(r.window_start_ms > late_ms + 4_000 for r in seen):
                break
            assert child.poll() is None, child.log_tail()
            assert poller.poll() is None, poller.log_tail()
        # Until the second reading has passed all that there is.
        wait_until_rechecked(where, now_ms + WINDOW_MS, deadline)
        end(poller)
        run(ingestor("cancel", "live", *where))
        run(ingestor("cancel", "live.recheck", *where))
        wait_until_windowed(kafka, view, child)
        found = records(kafka, prefix)
    changed = [(r.pod, r.window_start_ms) for r in found if r.revision]
    window_ms = late_ms // WINDOW_MS * WINDOW_MS
    assert changed == [("web-0", window_ms)], "only what changed is emitted again, once"
    [record] = [r for r in found if r.revision]
    assert (record.revision, record.job, record.partial) == (1, "live.recheck", False)
    assert record.metrics["queue_depth"] == sum(truth["web-0", window_ms])
    write_files(kafka, view, tmp_path / "data")
    rows = files.read(tmp_path / "data", pods=True)
    last_ms = max(window for _, pod, window in rows)
    for (_, pod, start_ms), metrics in rows.items():
        if min(window for _, _, window in rows) < start_ms < last_ms:
            assert metrics["queue_depth"] == pytest.approx(sum(truth[pod, start_ms]), rel=1e-12)


def test_live_ranges_are_read_while_a_recheck_has_a_lot_to_do(
    kafka: LocalKafka, prometheus: LocalPrometheus, tmp_path: Path
) -> None:
    """After a poller was away, its second readings take long; what comes due meanwhile does not wait for them."""
    topics, now_ms = Topics("behind"), int(time.time() * 1000)
    away_since_ms = now_ms // 1000 * 1000 - 1_200_000
    labels = [{"__name__": "queue_length", "namespace": "shop", "pod": f"web-{number}"} for number in range(100)]
    times_ms = range(away_since_ms, now_ms, 15_000)
    remote_write.push(prometheus.url, [(each, time_ms, 1.0) for time_ms in times_ms for each in labels])
    where = ["--bootstrap-servers", kafka.bootstrap_servers, "--topic-prefix", topics.prefix]
    flags = ["--settle", "1s", "--poll-interval", "1s", "--recheck", "1s", "--url", prometheus.url]
    slowly = ["--range-samples", "1000", "--max-samples-per-second", "1000"]
    command = ingestor("run", *where, *flags, *slowly)
    ensure_topics(connect(kafka.cluster), topics, 2)

    def moved() -> list[tuple[str, int]]:
        """Return how the jobs went on, one after the other."""
        stored = [Position.from_json(m.value()) for m in read_to_end(kafka.cluster, topics.positions)]
        return [(position.job, position.position_ms) for position in stored]

    with Child(command, log_path=tmp_path / "begins.log") as poller:
        wait_until(lambda: {job for job, _ in moved()} == {"live", "live.recheck"}, poller)
        end(poller)
    with Publisher(kafka.cluster, topics, "live") as publisher:
        begun = read_positions(kafka.cluster, topics).values()
        publisher.store(replace(job, start_ms=away_since_ms, position_ms=away_since_ms) for job in begun)
    before = len(moved())
    with Child(command, log_path=tmp_path / "goes_on.log") as poller:
        wait_until(lambda: any(job == "live.recheck" and at_ms > now_ms for job, at_ms in moved()[before:]), poller)
        end(poller)
    later = moved()[before:]
    backlog = [number for number, (job, at_ms) in enumerate(later) if job == "live.recheck" and at_ms < now_ms - 5_000]
    assert len(backlog) > 5
    assert "live" in [job for job, _ in later[backlog[1] : backlog[-1]]]


def wait_until_rechecked(where: list[str], until_ms: int, deadline: float) -> None:
    while time.monotonic() < deadline:
        states = map(json.loads, run(ingestor("status", "--json", *where)).stdout.splitlines())
        if any(s["job"] == "live.recheck" and s["position"] > iso_of(until_ms) for s in states):
            return
        time.sleep(0.5)
    raise TimeoutError("the second reading does not come")


def iso_of(time_ms: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time_ms / 1000))


def test_a_recheck_that_is_not_wanted_any_longer_ends(
    kafka: LocalKafka, prometheus: LocalPrometheus, tmp_path: Path
) -> None:
    """It would hold the worker's place back for good; wanted again, it begins anew."""
    where = ["--bootstrap-servers", kafka.bootstrap_servers, "--topic-prefix", "given-up"]
    command = ingestor("run", *where, "--settle", "1s", "--poll-interval", "1s", "--url", prometheus.url)
    for flags, wanted in [
        (["--recheck", "2s"], {"live.recheck": False}),
        ([], {"live.recheck": True}),
        (["--recheck", "2s"], {"live.recheck": True, "live.recheck-2": False}),
    ]:
        with Child([*command, *flags], log_path=tmp_path / "poller.log") as poller:
            deadline = time.monotonic() + PATIENCE_S
            while True:
                states = map(json.loads, run(ingestor("status", "--json", *where)).stdout.splitlines())
                found = {state["job"]: state["ended"] for state in states}
                if found.pop("live", None) is False and found == wanted:
                    break
                assert time.monotonic() < deadline, (found, poller.log_tail())
                time.sleep(0.3)
