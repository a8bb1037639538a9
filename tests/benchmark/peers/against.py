"""The peers, one after the other, each on the samples and with the tuning that suit it, each result checked.

Each runs as a process that prints ``first`` with its first sample and ``done`` when all are counted and written:
what it has spent between the two is told. Windows that nothing has closed, each peer's last one, are not asked for.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import click
import cluster
import numpy as np
import orjson
import pandas as pd
from check import WrongError, committed_values, is_close
from confluent_kafka.admin import NewTopic
from peers import messages, vmagent
from peers.result import Result
from pipeline import Place, python
from processes import usage

from ingestor.core.errors import ConfigError
from ingestor.kafka import connect, wait_for_leaders
from ingestor.local.cache import cache_folder, filled_once
from ingestor.local.processes import PIPE, Child, run

HERE = Path(__file__).parent
PARTITIONS = 4

SLOW_MINUTES, MIDDLE_MINUTES, BATCH_MINUTES = 10, 100, 20
"""Parts of the history: 200,000 samples for Faust, 2 million for vmagent, 400,000 for the batch scripts."""

# They add doubles up one by one.
_TOLERANCE = 1e-12


class Missing(Exception):
    """The tools that a peer needs are not here; the message says which."""


@dataclass(frozen=True, slots=True)
class Bench:
    """Where peers run, on how much."""

    place: Place
    minutes: int
    """Of the history, for those that are fast enough."""
    folder: Path

    def part(self, minutes: int) -> int:
        return min(minutes, self.minutes)


def measure_all(bench: Bench) -> tuple[list[Result], dict[str, str]]:
    """Return the results, and why others have none.

    Raises:
        WrongError: a peer's results are not those of the oracle.
    """
    results, left_out = [], {}
    for name, measure in PEERS.items():
        click.echo(f"{name} ...", err=True)
        try:
            results.append(measure(bench))
        except (Missing, ConfigError) as error:
            left_out[name] = str(error)
    return results, left_out


def _per_sample(bench: Bench) -> Result:
    return _on_kafka(bench, "per-sample consumer", bench.minutes, lambda words: _python("per_sample.py", words))


def _faust(kind: str) -> Callable[[Bench], Result]:
    def measure(bench: Bench) -> Result:
        minutes = bench.part(SLOW_MINUTES)
        return _on_kafka(bench, f"Faust, {kind}", minutes, lambda words: _python("plain_faust.py", [kind, *words]))

    return measure


def _kafka_streams(bench: Bench) -> Result:
    if shutil.which("java") is None or shutil.which("mvn") is None:
        raise Missing("Java and Maven are not on PATH")
    target = filled_once(cache_folder() / f"benchmark-kafka-streams-{_edition()}", _build)
    java = ["java", "-Xmx2g", "-XX:+UseParallelGC", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error"]
    command = [*java, "-cp", f"{target}/lib/*:{target}/per-minute.jar", "PerMinute"]
    return _on_kafka(bench, "Kafka Streams", bench.minutes, lambda words: [*command, *words])


def _edition() -> str:
    """Return what changes when the program does."""
    sources = sorted((HERE / "kafka_streams").glob("**/*.*"))
    return hashlib.blake2b(b"".join(path.read_bytes() for path in sources if path.is_file()), digest_size=5).hexdigest()


def _build(target: Path) -> None:
    copy = target.with_name("source")
    shutil.copytree(HERE / "kafka_streams", copy)
    done = run(["mvn", "--quiet", "--batch-mode", "package"], cwd=copy)
    if done.returncode:
        raise ConfigError(f"Maven cannot build the Kafka Streams peer: {done.stdout.strip()[-300:]}")
    (copy / "target").rename(target)


def _vmagent(bench: Bench) -> Result:
    return vmagent.measure(bench.folder / "vmagent", bench.part(MIDDLE_MINUTES))


def _batch(bench: Bench) -> Result:
    minutes = bench.part(BATCH_MINUTES)
    if find_spec("prometheus_api_client") is None:
        raise Missing("prometheus-api-client is not installed: make bench")
    storage = bench.folder / "batch"
    words = [bench.place.prometheus.url, str(cluster.START_MS), str(minutes), str(storage)]
    child = _child(bench, "batch scripts", _python("batch_scripts.py", words))
    result = _timed(child, "batch scripts", cluster.Length(minutes).samples)
    found = pd.concat([pd.read_csv(path, float_precision="round_trip") for path in sorted(storage.glob("*.csv"))])
    stamps = pd.to_datetime(found["timestamp"], utc=True).to_numpy("datetime64[ms]").astype("int64")
    cells = (
        (pod, metric, start_ms, value)
        for metric in cluster.METRICS
        for pod, start_ms, value in zip(found["pod"], stamps.tolist(), found[metric].tolist(), strict=True)
    )
    _check("batch scripts", cells, minutes, closed=minutes)
    return result


PEERS: dict[str, Callable[[Bench], Result]] = {
    "per-sample consumer": _per_sample,
    "Kafka Streams": _kafka_streams,
    "vmagent": _vmagent,
    "Faust, dict": _faust("dict"),
    "Faust, table": _faust("table"),
    "batch scripts": _batch,
}


def _python(program: str, words: list[str]) -> list[str]:
    return [str(HERE / program), *words]


def _on_kafka(bench: Bench, name: str, minutes: int, command: Callable[[list[str]], list[str]]) -> Result:
    """Run a peer from one topic into another."""
    place, number = bench.place, cluster.Length(minutes).samples
    source, sink = f"peers-{minutes}", f"peers-{name.replace(', ', '-').replace(' ', '-')}"
    with _topics(bench, source, sink) as is_new:
        if source in is_new:
            messages.feed(place.kafka, source, minutes)
        words = [place.kafka.bootstrap_servers, source, sink, sink, str(number)]
        result = _timed(_child(bench, name, command(words)), name, number)
        cells = (
            (said["pod"], said["metric"], said["window"], said["mean"])
            for said in map(orjson.loads, committed_values(place.kafka, sink))
        )
        _check(name, cells, minutes, closed=minutes - 1)
    return result


@contextmanager
def _topics(bench: Bench, source: str, sink: str) -> Iterator[set[str]]:
    """Make the topics that are missing, and tell which; the sink is deleted in the end, the source is shared."""
    admin = connect(bench.place.kafka.cluster)
    known = admin.list_topics(timeout=10).topics
    wanted = {name for name in (source, sink) if name not in known}
    config = {"retention.ms": "-1"}
    for future in admin.create_topics([NewTopic(name, PARTITIONS, 1, config=config) for name in wanted]).values():
        future.result()
    wait_for_leaders(admin, wanted)
    yield wanted
    for future in admin.delete_topics([sink]).values():
        future.result()


def _child(bench: Bench, name: str, command: list[str]) -> Child:
    log_path = bench.folder / f"{name}.log"
    if command[0].endswith(".py"):
        return python(command, log_path, PIPE, TMPDIR=str(bench.folder))
    return Child(command, log_path=log_path, stdout=PIPE, cwd=bench.folder, env=dict(os.environ))


def _timed(child: Child, name: str, samples: int) -> Result:
    with child:
        _read(child, b"first")
        before_s, began = usage(child.pid).cpu_s, time.perf_counter()
        _read(child, b"done")
        after = usage(child.pid)
        return Result(name, samples, time.perf_counter() - began, after.cpu_s - before_s, after.peak_bytes)


def _read(child: Child, word: bytes) -> None:
    for line in child.stdout:
        if line.strip() == word:
            return
    raise click.ClickException(f"a peer ended: {child.log_tail()}")


def _check(name: str, cells: Iterator[tuple[str, str, int, float]], minutes: int, closed: int) -> None:
    """Compare what a peer has written with the oracle.

    Raises:
        WrongError: a cell is wrong, or of the closed windows one is missing.
    """
    wanted = cluster.expected(0, minutes, "mean")
    found = np.full(wanted.shape, np.nan)
    pods = {pod: number for number, pod in enumerate(cluster.pods())}
    metrics = {metric: number for number, metric in enumerate(cluster.METRICS)}
    for pod, metric, start_ms, value in cells:
        found[pods[pod], (start_ms - cluster.START_MS) // cluster.MINUTE_MS, metrics[metric]] = value
    wrong = ~is_close(found[:, :closed], wanted[:, :closed], _TOLERANCE)
    if wrong.any():
        missing = int(np.isnan(found[:, :closed]).sum())
        raise WrongError(f"{name}: {int(wrong.sum())} of {wrong.size} cells are wrong, {missing} of them missing")
