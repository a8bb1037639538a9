"""``make bench``: the pipeline on real servers, compared with the least that must be done, and with its peers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
import cluster
import orjson
from live import measure_live
from peers.against import Bench, measure_all
from pipeline import HERE, Place, Run, python, run_backfill
from report import Report
from starts import help_s, ready_s

from ingestor.local.kafka import LocalKafka
from ingestor.local.processes import PIPE
from ingestor.local.prometheus import LocalPrometheus


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be measured."""

    length: cluster.Length
    runs: int
    works: tuple[str, ...]
    scale: float
    live_series: tuple[int, ...]
    live_minutes: int


GROWTH_MINUTES = 50, 500, 5000
"""1, 10 and 100 million samples."""

WORKS: dict[str, Callable[[Place, cluster.Length], Run]] = {
    "mean": run_backfill,
    "median": lambda place, length: run_backfill(place, length, "median"),
    "Parquet": lambda place, length: run_backfill(place, length, file_format="parquet"),
    "CSV": lambda place, length: run_backfill(place, length, file_format="csv"),
}


@contextmanager
def place_of(length: cluster.Length) -> Iterator[Place]:
    """Start a Kafka and a Prometheus that has the history."""
    data = cluster.data_folder(length)
    with tempfile.TemporaryDirectory(prefix="podstream-bench.") as name:
        folder = Path(name)
        prometheus = LocalPrometheus(folder / "prometheus")
        cluster.lend(data, prometheus.data_dir)
        with prometheus, LocalKafka(folder / "kafka") as kafka:
            yield Place(kafka, prometheus, folder)


def measure_floor(place: Place, length: cluster.Length) -> dict[str, Any]:
    """Return the floor's figures."""
    what = [place.prometheus.url, str(cluster.START_MS), str(length.end_ms), str(length.samples)]
    floor = said([str(HERE / "floor.py"), *what], place.folder)
    if floor["samples"] != length.samples:
        raise click.ClickException(f"the floor has read {floor['samples']:,} samples, not {length.samples:,}")
    return floor


def measure_core(place: Place, asked: Asked, report: Report) -> None:
    """Measure the floor, records and files, in turns, so that what else the machine does meets all alike."""
    if asked.runs > 1:
        # The broker's own code is compiled by then, as that of a broker that has run for a while.
        WORKS[asked.works[0]](place, asked.length)
    floors: list[dict[str, Any]] = []
    runs: dict[str, list[Run]] = {name: [] for name in asked.works}
    for number in range(asked.runs):
        click.echo(f"run {number + 1} of {asked.runs} ...", err=True)
        floors.append(measure_floor(place, asked.length))
        for name, of_work in runs.items():
            of_work.append(WORKS[name](place, asked.length))
    report.floor(median(f["wall_s"] for f in floors), median(f["cpu_s"] for f in floors))
    for name, of_work in runs.items():
        report.work(name, of_work)
    report.core_targets()


def measure_stages(place: Place, asked: Asked, report: Report) -> None:
    """Measure each stage by itself."""
    length = min(asked.length, cluster.Length(cluster.MINUTES), key=lambda length: length.minutes)
    found: list[dict[str, Any]] = []
    for number in range(asked.runs):
        click.echo(f"stages, run {number + 1} of {asked.runs} ...", err=True)
        folder = place.folder / f"stages-{number}"
        folder.mkdir()
        what = [place.kafka.bootstrap_servers, place.prometheus.url, str(cluster.START_MS), str(length.end_ms)]
        told = said([str(HERE / "stages.py"), *what, str(folder), str(number)], folder)
        if told["samples"] != length.samples:
            raise click.ClickException(f"the stages have seen {told['samples']:,} samples, not {length.samples:,}")
        found.append(told["stages"])
    report.stages(length.samples, found)


def said(arguments: list[str], folder: Path) -> dict[str, Any]:
    """Run a program of the benchmark to its end; return the JSON object that it prints."""
    name = Path(arguments[0]).stem
    with python(arguments, folder / f"{name}.log", PIPE) as child:
        line = child.stdout.read()
        if child.wait():
            raise click.ClickException(f"{name} failed: {child.log_tail()}")
    told: dict[str, Any] = orjson.loads(line)
    return told


def measure_peers(place: Place, asked: Asked, report: Report) -> None:
    """Measure what a user would pick instead, once: what takes minutes varies little."""
    folder = place.folder / "peers"
    folder.mkdir()
    results, left_out = measure_all(Bench(place, min(asked.length.minutes, cluster.MINUTES), folder))
    report.peers(results, left_out)


def measure_lives(place: Place, asked: Asked, report: Report) -> None:
    """Measure a small and a large cluster that are followed live."""
    for series in asked.live_series:
        click.echo(f"live, {series:,} series ...", err=True)
        report.live(measure_live(place, series, asked.live_minutes))


def measure_growth(_: Place, asked: Asked, report: Report) -> None:
    """Measure a hundred times the samples, and all between."""
    lengths = [cluster.Length.of_scale(asked.scale * minutes / cluster.MINUTES) for minutes in GROWTH_MINUTES]
    tell_if_made(lengths[-1])
    found: list[tuple[int, Run]] = []
    with place_of(lengths[-1]) as place:
        for length in lengths:
            click.echo(f"growth, {length.samples:,} samples ...", err=True)
            runs = [run_backfill(place, length) for _ in range(asked.runs if length is not lengths[-1] else 1)]
            found.append((length.samples, sorted(runs, key=lambda run: run.own_cpu_s)[len(runs) // 2]))
    report.growth(found)


def measure_starts(place: Place, asked: Asked, report: Report) -> None:
    """Measure how soon the programs are there."""
    helps = {name: median(help_s(name) for _ in range(asked.runs)) for name in ("ingestor", "stream-app")}
    report.starts(helps, median(ready_s(place) for _ in range(asked.runs)))


PARTS: dict[str, Callable[[Place, Asked, Report], None]] = {
    "core": measure_core,
    "stages": measure_stages,
    "peers": measure_peers,
    "live": measure_lives,
    "growth": measure_growth,
    "starts": measure_starts,
}


def tell_if_made(length: cluster.Length) -> None:
    """Say why it takes so long, where a history is not in the cache."""
    if not cluster.is_made(length):
        click.echo(f"making {length.samples:,} samples of history, once ...", err=True)


def warm_up(folder: Path) -> None:
    """Compile all kernels where that was never done: seconds that belong to no run."""
    with python([str(HERE.parents[1] / "docker" / "warm_up.py")], folder / "warm_up.log") as child:
        if child.wait():
            raise click.ClickException(f"the kernels cannot be compiled: {child.log_tail()}")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--scale", type=click.FloatRange(min=0.001), default=1.0, show_default=True, help="Times 6 hours.")
@click.option("--runs", type=click.IntRange(min=1), default=5, show_default=True, help="Medians of so many.")
@click.option("--json", "as_json", is_flag=True, help="Only a JSON line, for machines; the table goes to stderr.")
@click.option("--part", "parts", multiple=True, type=click.Choice(list(PARTS)), help="Only this; repeatable.")
@click.option("--work", "works", multiple=True, type=click.Choice(list(WORKS)), help="Of the core, only this.")
@click.option(
    "--live-series",
    multiple=True,
    type=click.IntRange(min=250),
    default=(5000, 100_000),
    show_default=True,
    help="Followed live; repeatable.",
)
@click.option(
    "--live-minutes", type=click.IntRange(min=1), default=3, show_default=True, help="For so long, after the first."
)
def main(
    scale: float,
    runs: int,
    as_json: bool,  # noqa: FBT001 - a flag
    parts: tuple[str, ...],
    works: tuple[str, ...],
    live_series: tuple[int, ...],
    live_minutes: int,
) -> None:
    """Measure podstream against the least that must be done and against its peers, and check every cell."""
    length = cluster.Length.of_scale(scale)
    asked = Asked(length, runs, works or tuple(WORKS), scale, live_series, live_minutes)
    report = Report(length.samples, runs)
    tell_if_made(length)
    with place_of(asked.length) as place:
        warm_up(place.folder)
        for part in parts or PARTS:
            PARTS[part](place, asked, report)
    click.echo(report.table(), err=as_json)
    click.echo(orjson.dumps(report.figures))


if __name__ == "__main__":
    main()
