"""Processes that die without a word, in the middle of a backfill: the files are the same, byte for byte."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import files
import pandas as pd
import records
from commands import (
    PATIENCE_S,
    backfill,
    run,
    stream_app,
    view_flags,
    view_of,
    wait_for_line,
    wait_until_windowed,
    worker,
    write_files,
)
from confluent_kafka import Producer

from ingestor.kafka import DEFAULT_PARTITIONS, client_config, connect, ensure_topics, read_to_end
from ingestor.local.kafka import LocalKafka
from ingestor.local.processes import PIPE, Child
from ingestor.local.prometheus import LocalPrometheus

SMALL_RANGES = ["--range-samples", "1000", "--json"]
SLOW = ["--max-samples-per-second", "4000"]
"""Whoever is to be killed in the middle has most of the job left, also where nobody looks for a second or two."""
FILE_KILLS = 5


def contents(storage: Path) -> dict[str, bytes]:
    return {str(path.relative_to(storage)): path.read_bytes() for path in sorted(storage.glob("*/*.csv"))}


def undisturbed(kafka: LocalKafka, prometheus: LocalPrometheus, folder: Path) -> dict[str, bytes]:
    """Return the files of a run without faults, in a single range."""
    view = view_of("calm", "1m", "mean")
    run(backfill(prometheus, kafka, "calm"))
    with worker(kafka, view, folder / "calm.log") as child:
        wait_until_windowed(kafka, view, child)
    write_files(kafka, view, folder / "calm")
    return contents(folder / "calm")


def poll_and_kill(command: list[str], after_ranges: int, log: Path) -> int:
    """Start a backfill and SIGKILL it once it has published so many ranges; return how many it reported."""
    poller = Child([*command, *SLOW], log_path=log, stdout=PIPE)
    poller.start()
    ranges = 0
    for line in poller.stdout:
        ranges += json.loads(line)["event"] == "range"
        if ranges >= after_ranges:
            break
    poller.kill()
    assert ranges == after_ranges, f"the job ended too soon to be killed: {poller.log_tail()}"
    return ranges


def kill_after_emissions(child: Child, more: int) -> None:
    """Start a worker, and SIGKILL it once it has logged so many more emissions; there must be as many."""
    seen = child.log_path.read_text().count("windows emitted") if child.log_path.exists() else 0
    child.start()
    wait_for_line(child, "windows emitted", seen + more)
    child.kill()


def test_killed_poller_and_worker_give_the_same_files(
    kafka: LocalKafka, prometheus: LocalPrometheus, samples: pd.DataFrame, tmp_path: Path
) -> None:
    """However often poller and worker are killed, every window is there once, and equal to the last bit."""
    expected = undisturbed(kafka, prometheus, tmp_path)
    view = view_of("killed", "1m", "mean")
    command = backfill(prometheus, kafka, "killed", *SMALL_RANGES)
    child = worker(kafka, view, tmp_path / "worker.log")
    poll_and_kill(command, 3, tmp_path / "poller.log")
    kill_after_emissions(child, 4)
    poll_and_kill(command, 4, tmp_path / "poller.log")
    kill_after_emissions(child, 3)
    rest = run(command)
    assert "job goes on" in rest.stderr
    kill_after_emissions(child, 5)
    with child:
        wait_until_windowed(kafka, view, child)
    write_files(kafka, view, tmp_path / "killed")
    assert contents(tmp_path / "killed") == expected
    files.assert_equal_to_oracle(files.read(tmp_path / "killed", pods=True), samples, "1m", "mean", "pod")


def test_ten_random_kills_give_the_same_records(kafka: LocalKafka, prometheus: LocalPrometheus, tmp_path: Path) -> None:
    """Poller and worker are killed five times each, in any order: the same records as of a run without faults."""
    undisturbed(kafka, prometheus, tmp_path)
    seed = int(os.environ.get("KILLS_SEED") or 1)
    click.echo(f"\nKILLS_SEED={seed}")
    generator = random.Random(seed)
    view = view_of(f"kills-{seed}", "1m", "mean")
    command = backfill(prometheus, kafka, view.topics.prefix, *SMALL_RANGES)
    poll_and_kill(command, 1, tmp_path / "poller.log")
    ready = 0
    with worker(kafka, view, tmp_path / "worker.log") as child:
        for who in generator.sample(["poller", "worker"], 9, counts=[4, 5]):
            if who == "poller":
                poll_and_kill(command, generator.randint(1, 3), tmp_path / "poller.log")
            else:
                ready += 1
                wait_for_line(child, "worker is ready", ready)
                time.sleep(generator.uniform(0, 2))
                child.kill()
                child.start()
        run(command)
        wait_until_windowed(kafka, view, child)
    expected, found = (records.read(kafka.cluster, topic) for topic in ("calm.pods", view.topics.pods))
    click.echo(f"  {len(expected):,} records without faults, {len(found):,} with ten kills")
    assert len(expected) > 500
    assert records.contents(found) == records.contents(expected)


def test_killed_files_are_whole_after_the_next_run(
    kafka: LocalKafka, prometheus: LocalPrometheus, tmp_path: Path
) -> None:
    """A file sink that is killed whenever its files have begun to grow leaves no row torn, twice or out."""
    expected = undisturbed(kafka, prometheus, tmp_path)
    view, storage = view_of("killed-files", "1m", "mean"), tmp_path / "data"
    ensure_topics(connect(kafka.cluster), view.topics, DEFAULT_PARTITIONS)
    where = ["--topic-prefix", view.topics.prefix, "--bootstrap-servers", kafka.bootstrap_servers]
    sink = Child(stream_app("files", "--storage", str(storage), *where, *view_flags(view)), log_path=tmp_path / "log")
    *parts, rest = copied(kafka, "calm.pods", view.topics.pods, FILE_KILLS + 1)
    for copy in parts:
        copy()
        before, deadline = sum(map(len, contents(storage).values())), time.monotonic() + PATIENCE_S
        sink.start()
        while sum(map(len, contents(storage).values())) <= before:
            assert sink.poll() is None, sink.log_tail()
            assert time.monotonic() < deadline, sink.log_tail()
            time.sleep(0.001)
        sink.kill()
    assert contents(storage) != expected, "nothing is left to be written"
    rest()
    write_files(kafka, view, storage)
    assert contents(storage) == expected


def copied(kafka: LocalKafka, source: str, target: str, parts: int) -> list[Callable[[], None]]:
    """Return what copies a sink topic's messages to another one, a part of each partition after the other."""
    messages = {p: list(read_to_end(kafka.cluster, source, p)) for p in range(DEFAULT_PARTITIONS)}
    producer = Producer(client_config(kafka.cluster))

    def copy(part: int) -> None:
        for partition, all_of_it in messages.items():
            edges = [len(all_of_it) * edge // parts for edge in (part, part + 1)]
            for message in all_of_it[slice(*edges)]:
                producer.produce(target, message.value(), message.key(), partition)
        assert producer.flush(PATIENCE_S) == 0

    return [partial(copy, part) for part in range(parts)]
