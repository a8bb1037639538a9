"""Jobs beside one another: each moment is read once, `--again` reads anew, and `status` says where all stand."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import chunks
import files
import history
import pandas as pd
from commands import PATIENCE_S, backfill, ingestor, run, view_of, wait_until_windowed, worker, write_files

from ingestor.core.time_range import iso
from ingestor.local.kafka import LocalKafka
from ingestor.local.prometheus import LocalPrometheus

MIDDLE = [iso(history.START_MS + 1_000 * s) for s in (2_000, 4_000)]


def where(kafka: LocalKafka, prefix: str) -> list[str]:
    return ["--topic-prefix", prefix, "--bootstrap-servers", kafka.bootstrap_servers]


def by_sample(frame: pd.DataFrame) -> pd.DataFrame:
    columns = ["namespace", "pod", "metric", "code", "timestamp", "value"]
    return frame.assign(code=[labels.get("code", "") for labels in frame["labels"]])[columns].sort_values(
        columns, ignore_index=True
    )


def expected(samples: pd.DataFrame) -> pd.DataFrame:
    return samples.rename(columns={"series": "code"}).sort_values(
        ["namespace", "pod", "metric", "code", "timestamp", "value"], ignore_index=True
    )


def states(kafka: LocalKafka, prefix: str) -> dict[str, dict]:
    lines = run(ingestor("status", "--json", *where(kafka, prefix))).stdout.splitlines()
    return {state["job"]: state for state in map(json.loads, lines)}


def test_jobs_share_the_time(
    kafka: LocalKafka, prometheus: LocalPrometheus, samples: pd.DataFrame, tmp_path: Path
) -> None:
    """What one job has read the next leaves out; `--again` replaces the windows that were cut where they met."""
    prefix = "shared"
    run(backfill(prometheus, kafka, prefix, "--start", MIDDLE[0], "--end", MIDDLE[1]))
    told = run(backfill(prometheus, kafka, prefix)).stderr
    assert "only the rest is read" in told
    assert "read up to" in told
    assert told.count("ended at") == 2, "the time before the first job, and the time after it"
    found = states(kafka, prefix)
    assert sorted((s["start"], s["end"]) for s in found.values()) == [
        (iso(history.START_MS), MIDDLE[0]),
        (MIDDLE[0], MIDDLE[1]),
        (MIDDLE[1], iso(history.END_MS)),
    ]
    assert all(state["ended"] and state["lag_s"] is None for state in found.values())
    once = chunks.published(kafka.cluster, prefix)
    pd.testing.assert_frame_equal(by_sample(once), expected(samples))

    assert "has ended already" in run(backfill(prometheus, kafka, prefix)).stderr
    later = ["--start", iso(history.START_MS + 60_000)]
    assert "all of this time is other jobs'" in run(backfill(prometheus, kafka, prefix, *later)).stderr
    assert len(states(kafka, prefix)) == 3

    run(backfill(prometheus, kafka, prefix, "--again"))
    twice = chunks.published(kafka.cluster, prefix)
    assert set(twice["revision"]) == {0, 1}
    pd.testing.assert_frame_equal(by_sample(twice[twice["revision"] == 1]), expected(samples))
    assert [state["revision"] for name, state in states(kafka, prefix).items() if ".r1" in name] == [1]

    view = view_of(prefix, "7m", "sum")
    with worker(kafka, view, tmp_path / "worker.log") as child:
        wait_until_windowed(kafka, view, child)
    write_files(kafka, view, tmp_path / "data")
    files.assert_equal_to_oracle(files.read(tmp_path / "data", pods=True), samples, "7m", "sum", "pod")


def test_all_parts_of_a_command_are_cancelled(kafka: LocalKafka, prometheus: LocalPrometheus) -> None:
    """`ingestor cancel` takes the name of the command, and leaves what has ended."""
    prefix = "parts"
    run(backfill(prometheus, kafka, prefix, "--start", MIDDLE[0], "--end", MIDDLE[1]))
    slow = backfill(prometheus, kafka, prefix, "--max-samples-per-second", "100", "--request-timeout", "5s")
    with subprocess.Popen([*slow, "--json"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        event = json.loads(process.stdout.readline())
        process.kill()
    command = event["job"].partition(".")[0]
    before = states(kafka, prefix)
    assert {f"{command}.1", command} <= before.keys()
    assert "knows no job" in run(ingestor("cancel", f"{command}.9", *where(kafka, prefix)), code=2).stderr
    told = run(ingestor("cancel", command, *where(kafka, prefix))).stderr
    assert told.count("is cancelled") == 2
    after = states(kafka, prefix)
    assert all(state["ended"] for state in after.values())
    assert after[command]["position"] == MIDDLE[1], "the second part has read nothing"
    # What was given up is free for others.
    run(backfill(prometheus, kafka, prefix, "--start", iso(history.START_MS - 1)))
    once = chunks.published(kafka.cluster, prefix)
    assert not once.duplicated(["pod", "metric", "timestamp", "value"]).any()


def test_again_goes_on_after_a_crash(kafka: LocalKafka, prometheus: LocalPrometheus, samples: pd.DataFrame) -> None:
    """Also where nobody had read the time before: it is one job, not two."""
    command = backfill(prometheus, kafka, "again-whole", "--again", "--json", "--range-samples", "2000")
    with subprocess.Popen([*command, "--max-samples-per-second", "100"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    run(command)
    [state] = states(kafka, "again-whole").values()
    assert state["ended"]
    pd.testing.assert_frame_equal(by_sample(chunks.published(kafka.cluster, "again-whole")), expected(samples))


def test_commands_that_begin_at_once_share_the_time(
    kafka: LocalKafka, prometheus: LocalPrometheus, samples: pd.DataFrame
) -> None:
    """Three overlapping backfills, started together: each moment is read by one of them."""
    begins = [iso(history.START_MS), iso(history.START_MS + 600_000), iso(history.START_MS + 1_200_000)]
    children = [
        subprocess.Popen(backfill(prometheus, kafka, "at-once", "--start", begin), stderr=subprocess.PIPE)
        for begin in begins
    ]
    for child in children:
        _, told = child.communicate(timeout=PATIENCE_S)
        assert child.returncode == 0, told.decode()
    pd.testing.assert_frame_equal(by_sample(chunks.published(kafka.cluster, "at-once")), expected(samples))


def test_status_without_jobs(kafka: LocalKafka) -> None:
    """A cluster that knows nothing of us is no error."""
    done = run(ingestor("status", *where(kafka, "nobody")))
    assert "no job has begun" in done.stderr
    assert not done.stdout
