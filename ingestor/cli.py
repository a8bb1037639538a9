"""The console script ``ingestor``: the only place that wires the poller's objects."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from ingestor.command_line import EXIT_INTERRUPTED, SpelledGroup, presence, run, say, stop_on_signals
from ingestor.options import (
    CHUNK_SIZE,
    DURATION_MS,
    TIME,
    config_option,
    dry_run_option,
    end_option,
    json_option,
    kafka_options,
    logging_option,
    source_options,
    start_option,
)
from ingestor.urls import without_credentials

if TYPE_CHECKING:
    # Imported where used: --help must not wait for numba and pyarrow.
    from ingestor.poller import PollerSettings


@click.group(cls=SpelledGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="podstream")
@config_option
def cli() -> None:
    """Publish the metrics of Kubernetes pods from Prometheus to Kafka.

    Every flag can also be an environment variable (INGESTOR_BACKFILL_START=10d)
    or a key in a YAML file (--config).
    """


@cli.command()
@start_option
@end_option
@click.option(
    "--align",
    type=CHUNK_SIZE,
    help="Floor relative times to this chunk size. [default: the hour; now: the second]",
)
@source_options
@kafka_options
@json_option
@dry_run_option
@logging_option
def backfill(**flags: Any) -> None:
    """Publish [START, END) and exit.

    The same command again goes on after a crash, and does nothing after the end.
    """
    _poll(flags)


@cli.command(name="run")
@click.option("--start", type=TIME, default="now", show_default=True, help="Where the very first run begins, like 10d.")
@click.option(
    "--poll-interval", "poll_interval_ms", type=DURATION_MS, default="15s", show_default=True, help="How often to poll."
)
@source_options
@kafka_options
@json_option
@dry_run_option
@logging_option
def run_command(**flags: Any) -> None:
    """Publish from START on, history first, then live, for good.

    It resumes from its position after every stop.
    """
    _poll(flags)


@cli.command()
@click.argument("job")
@kafka_options
@logging_option
def cancel(job: str, cluster: Any, topics: Any) -> None:
    """Give up JOB, which will never go on, so that it holds nothing back.

    What it has published stays; the window that its end cuts is marked partial.
    """
    from ingestor.core.errors import ConfigError  # noqa: PLC0415
    from ingestor.kafka import connect, partition_counts  # noqa: PLC0415
    from ingestor.positions import read_positions  # noqa: PLC0415
    from ingestor.publisher import Publisher  # noqa: PLC0415

    known = topics.positions in partition_counts(connect(cluster))
    if not known or job not in read_positions(cluster, topics):
        raise ConfigError(f"{topics.positions} knows no job {job}: give the name that ingestor backfill printed")
    with Publisher(cluster, topics, job) as publisher:
        # Read again: only now can no other poller move it.
        position = read_positions(cluster, topics)[job]
        if position.ended:
            click.echo(f"{job} has ended already", err=True)
            return
        position = publisher.cancel(position)
    click.echo(f"{job} is cancelled at {position.samples:,} samples", err=True)


def _poll(flags: dict[str, Any]) -> None:
    from ingestor.poller import Poller, PollerSettings  # noqa: PLC0415
    from ingestor.presets import PRESETS  # noqa: PLC0415
    from ingestor.sources.registry import SOURCES  # noqa: PLC0415

    source = SOURCES[flags.pop("source")](
        url := flags.pop("url"),
        access=flags.pop("access"),
        timeout_s=flags.pop("timeout_ms") / 1000,
        connections=flags["concurrency"],
    )
    as_json, dry_run = flags.pop("as_json"), flags.pop("dry_run")
    settings = PollerSettings(url=without_credentials(url), end=flags.pop("end", None), **flags)
    preset = f"preset {settings.preset}: {PRESETS[settings.preset].description}"
    stop = stop_on_signals()
    source.check()
    if dry_run:
        click.echo(preset)
        click.echo(Poller(settings, source).plan())
        return
    display = _display(settings, as_json=as_json)
    if not as_json:
        say(preset)
    with display:
        position = Poller(settings, source, display.show, stop).run()
    display.summary(position)
    if stop.is_set() and not position.ended and settings.end is not None:
        sys.exit(EXIT_INTERRUPTED)


def _display(settings: PollerSettings, *, as_json: bool) -> Any:
    from ingestor import progress  # noqa: PLC0415

    return progress.display(settings.job, presence(as_json=as_json))


def main() -> None:
    """Run the console script."""
    run(cli, "INGESTOR")
