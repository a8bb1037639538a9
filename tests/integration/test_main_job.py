"""The main job on real servers: every cell of every file is what the samples in Prometheus say."""

from __future__ import annotations

import itertools
import json
import shutil
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import files
import pandas as pd
import pytest
from commands import WHEN, backfill, run, stream_app, view_of, wait_until_windowed, worker, write_files

from ingestor.core.time_range import iso
from ingestor.kafka import connect
from ingestor.local.kafka import LocalKafka
from ingestor.local.prometheus import LocalPrometheus
from ingestor.options import cluster_arguments


@pytest.mark.parametrize(("chunk_size", "method"), [*itertools.product(["1m", "7m"], ["sum", "mean", "median"])])
def test_every_cell_equals_the_oracle(
    kafka: LocalKafka, prometheus: LocalPrometheus, samples: pd.DataFrame, tmp_path: Path, chunk_size: str, method: str
) -> None:
    """Pod rows and service rows of each view are the oracle's, with no row too many or missing."""
    run(backfill(prometheus, kafka, "matrix"))
    view = view_of("matrix", chunk_size, method, "pod", "service")
    with worker(kafka, view, tmp_path / "worker.log") as child:
        wait_until_windowed(kafka, view, child)
    write_files(kafka, view, tmp_path / "data")
    for group_by, suffix in (("pod", ""), ("service", ".service")):
        cells = files.read(tmp_path / "data", pods=group_by == "pod", suffix=suffix)
        files.assert_equal_to_oracle(cells, samples, chunk_size, method, group_by)


def test_days_of_a_time_zone(
    kafka: LocalKafka, prometheus: LocalPrometheus, samples: pd.DataFrame, tmp_path: Path
) -> None:
    """Groups, records and files carry the zone; its midnight (11:00 UTC) is where a day's row ends."""
    run(backfill(prometheus, kafka, "zone"))
    view = view_of("zone", "1d@Pacific/Auckland", "sum")
    with worker(kafka, view, tmp_path / "worker.log") as child:
        wait_until_windowed(kafka, view, child)
        assert "windows of 1 day in Pacific/Auckland" in child.log_path.read_text()
    assert view.group_id in {group.group_id for group in connect(kafka.cluster).list_consumer_groups().result().valid}
    files_of = stream_app(
        "files", "--storage", str(tmp_path / "data"), "--until-idle", "--idle", "1ms", "--topic-prefix", "zone",
        *cluster_arguments(kafka.cluster), "--chunk-size", "1d", "--timezone",
    )  # fmt: skip
    run([*files_of, "Pacific/Auckland"])
    cells = files.read(tmp_path / "data", pods=True)
    files.assert_equal_to_oracle(cells, samples, "1d@Pacific/Auckland", "sum", "pod")
    assert {iso(start_ms) for _, _, start_ms in cells} == {"2026-11-22T11:00:00Z", "2026-11-23T11:00:00Z"}
    other = run([*files_of, "Pacific/Apia"], code=2)
    assert "holds records of chunk size 1d@Pacific/Auckland, method sum, not of chunk size 1d@Pacific/Apia" in (
        other.stderr
    )


def test_dataset_floors_relative_times_to_days_of_a_time_zone(
    prometheus: LocalPrometheus, samples: pd.DataFrame, tmp_path: Path
) -> None:
    """``now`` is the zone's last midnight, and the worker has the same calendar."""
    done = run(stream_app(
        "dataset", "--url", prometheus.url, "--start", WHEN[1], "--end", "now", "--preset", "none", "--json",
        "--chunk-size", "1d", "--timezone", "Pacific/Auckland", "--storage", str(tmp_path / "data"),
    ))  # fmt: skip
    plan = json.loads(done.stdout.splitlines()[0])["text"]
    end = datetime.fromisoformat(plan.rpartition(" to ")[2]).astimezone(ZoneInfo("Pacific/Auckland"))
    assert (end.hour, end.minute, end.second) == (0, 0, 0)
    inside = samples[samples["timestamp"] < end.timestamp() * 1000]
    cells = files.read(tmp_path / "data", pods=True)
    files.assert_equal_to_oracle(cells, inside, "1d@Pacific/Auckland", "mean", "pod")
    assert {iso(start_ms) for _, _, start_ms in cells} >= {"2026-11-22T11:00:00Z"}


def test_dataset_does_it_all(prometheus: LocalPrometheus, samples: pd.DataFrame, tmp_path: Path) -> None:
    """One command with a broker of its own ends with exit code 0 and the oracle's files."""
    storage = tmp_path / "data"
    command = stream_app(
        "dataset", "--url", prometheus.url, *WHEN, "--preset", "none", "--chunk_size", "7t",
        "--method", "median", "--over-time", "last", "--storage_path", str(storage), "--json",
    )  # fmt: skip
    last = json.loads(run(command).stdout.splitlines()[-1])
    assert (last["event"], last["samples"], last["files"]) == ("finished", len(samples), 5)
    cells = files.read(storage, pods=True)
    files.assert_equal_to_oracle(cells, samples, "7m", "median", "pod", over_time="last")
    assert last["rows"] == len(cells)
    again = run(command, code=2)
    assert "holds a finished dataset" in again.stderr


def test_dataset_on_a_given_cluster_leaves_nothing_there(
    kafka: LocalKafka, prometheus: LocalPrometheus, samples: pd.DataFrame, tmp_path: Path
) -> None:
    """Service rows alone have no pod column; the dataset's own topics are gone afterwards."""
    from ingestor.kafka import connect, partition_counts  # noqa: PLC0415

    run(stream_app(
        "dataset", "--url", prometheus.url, *WHEN, "--preset", "none", "--chunk-size", "1m", "--method", "sum",
        "--group-by", "service", "--storage", str(tmp_path / "data"), "--bootstrap-servers", kafka.bootstrap_servers,
    ))  # fmt: skip
    files.assert_equal_to_oracle(files.read(tmp_path / "data", pods=False), samples, "1m", "sum", "service")
    assert not [name for name in partition_counts(connect(kafka.cluster)) if "dataset" in name]


def test_the_same_backfill_again_does_nothing(kafka: LocalKafka, prometheus: LocalPrometheus) -> None:
    """After its end, the same command publishes nothing and says so."""
    run(backfill(prometheus, kafka, "again"))
    second = run(backfill(prometheus, kafka, "again", "--json"))
    assert "job has ended already" in second.stderr
    assert [json.loads(line)["event"] for line in second.stdout.splitlines()] == ["ended"]


def test_a_prometheus_with_small_limits_gives_every_sample(
    kafka: LocalKafka, prometheus: LocalPrometheus, samples: pd.DataFrame, tmp_path: Path
) -> None:
    """Where a query is refused as too large, its range is halved until it is not; nothing is skipped."""
    limited = LocalPrometheus(tmp_path / "limited", extra_args=("--query.max-samples=1000",))
    shutil.copytree(prometheus.data_dir, limited.data_dir, ignore=shutil.ignore_patterns("lock", "queries.active"))
    view = view_of("limited", "1m", "sum")
    with limited:
        done = run(backfill(limited, kafka, "limited", "--source", "query"))
    assert "halving" in done.stderr
    with worker(kafka, view, tmp_path / "worker.log") as child:
        wait_until_windowed(kafka, view, child)
    write_files(kafka, view, tmp_path / "data")
    files.assert_equal_to_oracle(files.read(tmp_path / "data", pods=True), samples, "1m", "sum", "pod")
