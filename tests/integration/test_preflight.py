"""What a worker refuses before it begins, and jobs that are given up."""

from __future__ import annotations

from pathlib import Path

import files
import history
import pandas as pd
from commands import (
    backfill,
    ingestor,
    run,
    stream_app,
    view_flags,
    view_of,
    wait_for_line,
    wait_until_windowed,
    worker,
    write_files,
)

from ingestor.core.topics import Topics
from ingestor.kafka import connect, ensure_topics, partition_counts
from ingestor.local.kafka import LocalKafka
from ingestor.local.processes import PIPE, Child
from ingestor.local.prometheus import LocalPrometheus
from ingestor.positions import read_positions


def refused_worker(kafka: LocalKafka, *flags: str) -> str:
    where = ["--bootstrap-servers", kafka.bootstrap_servers, "--web-listen-address", "none"]
    return run(stream_app("worker", *where, *flags), code=2).stderr


def test_a_second_writer_of_the_same_records_is_refused(kafka: LocalKafka, tmp_path: Path) -> None:
    """Two groupings that share a sink topic would double its records."""
    view = view_of("second-group", "5m", "mean", "pod")
    ensure_topics(connect(kafka.cluster), view.topics, 2)
    with worker(kafka, view, tmp_path / "worker.log") as child:
        wait_for_line(child, "worker is ready")
        both = view_of("second-group", "5m", "mean", "pod", "service")
        assert view.group_id in refused_worker(kafka, "--topic-prefix", "second-group", *view_flags(both))


def test_windows_longer_than_chunks_are_kept_are_refused(kafka: LocalKafka) -> None:
    """A window that could not be replayed is refused, with the retention that it needs."""
    ensure_topics(connect(kafka.cluster), Topics("short"), 2, retention_ms=86_400_000)
    error = refused_worker(kafka, "--topic-prefix", "short", "--chunk-size", "1w")
    assert "retention.ms" in error
    assert str(2 * 7 * 86_400_000) in error


def test_a_cancelled_job_ends_where_it_stands(
    kafka: LocalKafka, prometheus: LocalPrometheus, samples: pd.DataFrame, tmp_path: Path
) -> None:
    """What it has published is windowed, the cut window is there, and nothing is held back any more."""
    command = backfill(prometheus, kafka, "cancelled", "--range-samples", "1000", "--json")
    slow = [*command, "--max-samples-per-second", "100"]
    poller = Child(slow, log_path=tmp_path / "poller.log", stdout=PIPE)
    poller.start()
    poller.stdout.readline()
    poller.kill()
    topics = Topics("cancelled")
    [(job, position)] = read_positions(kafka.cluster, topics).items()
    where = ["--bootstrap-servers", kafka.bootstrap_servers, "--topic-prefix", "cancelled"]
    run(ingestor("cancel", job, *where))
    assert "has ended already" in run(ingestor("cancel", job, *where)).stderr
    assert "no job nothing" in run(ingestor("cancel", "nothing", *where), code=2).stderr
    assert "has ended already" in run(command).stderr
    view = view_of("cancelled", "1m", "sum")
    with worker(kafka, view, tmp_path / "worker.log") as child:
        wait_until_windowed(kafka, view, child)
    write_files(kafka, view, tmp_path / "data")
    until_ms = read_positions(kafka.cluster, topics)[job].position_ms
    assert history.START_MS < until_ms < history.END_MS
    assert position.position_ms <= until_ms
    published = samples[samples["timestamp"] < until_ms]
    files.assert_equal_to_oracle(files.read(tmp_path / "data", pods=True), published, "1m", "sum", "pod")


def test_what_is_refused_makes_no_topics(kafka: LocalKafka, prometheus: LocalPrometheus) -> None:
    """Exit code 2 leaves the cluster as it was."""
    run(backfill(prometheus, kafka, "unmade", "--match", '{pod="nobody"}'), code=2)
    assert not [name for name in partition_counts(connect(kafka.cluster)) if name.startswith("unmade")]
