"""The console script ``ingestor``: the only place that wires the poller's objects."""

from __future__ import annotations

import logging
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from ingestor.command_line import SpelledGroup, presence, run, say, stop_on_signals
from ingestor.interrupts import EXIT_INTERRUPTED
from ingestor.options import (
    CHUNK_SIZE,
    DURATION_MS,
    TIME,
    chosen_selector,
    config_option,
    conflict_option,
    dry_run_option,
    end_option,
    json_option,
    kafka_options,
    logging_option,
    source_options,
    start_option,
    web_option,
)
from ingestor.urls import without_credentials

if TYPE_CHECKING:
    # Imported where used: --help must not wait for numba and pyarrow.
    from ingestor.poller import PollerSettings
    from ingestor.sources.http import HttpSettings

log = logging.getLogger(__name__)


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
@click.option("--again", is_flag=True, help="Read what other jobs have read once more, with a higher revision.")
@source_options
@kafka_options
@conflict_option
@web_option
@json_option
@dry_run_option
@logging_option
def backfill(**flags: Any) -> None:
    """Publish [START, END) and exit.

    What other jobs have read is left out. The same command again goes on after
    a crash, and does nothing after the end.
    """
    _poll(flags)


@cli.command(name="run")
@click.option("--start", type=TIME, default="now", show_default=True, help="Where the very first run begins, like 10d.")
@click.option(
    "--poll-interval", "poll_interval_ms", type=DURATION_MS, default="15s", show_default=True, help="How often to poll."
)
@click.option(
    "--recheck",
    "recheck_ms",
    type=DURATION_MS,
    help="Read each live range once more so much later, for samples that came late. [default: no]",
)
@source_options
@kafka_options
@conflict_option
@web_option
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
    from ingestor.core.time_range import iso  # noqa: PLC0415
    from ingestor.jobs import command_of, parts_of  # noqa: PLC0415
    from ingestor.positions import known_positions  # noqa: PLC0415
    from ingestor.publisher import Publisher  # noqa: PLC0415

    def named() -> list[Any]:
        parts = parts_of(command_of(job), known_positions(cluster, topics).values())
        return [position for position in parts if job in (position.job, command_of(position.job))]

    if not (found := named()):
        raise ConfigError(f"{topics.positions} knows no job {job}: give the name that ingestor backfill printed")
    if all(position.ended for position in found):
        say(f"{job} has ended already")
        return
    with Publisher(cluster, topics, command_of(job)) as publisher:
        # Read again: only now can no other poller move them.
        for position in named():
            if position.ended:
                say(f"{position.job} has ended already")
                continue
            cancelled = publisher.cancel(position)
            say(f"{position.job} is cancelled at {iso(cancelled.position_ms)}, {cancelled.samples:,} samples")


@cli.command()
@kafka_options
@json_option
@logging_option
def status(cluster: Any, topics: Any, as_json: bool) -> None:  # noqa: FBT001 - a flag
    """Say where each job stands: position, lag behind now, samples a second, the last error."""
    import time  # noqa: PLC0415

    import orjson  # noqa: PLC0415

    from ingestor.positions import known_positions  # noqa: PLC0415
    from ingestor.status import as_dict, as_text  # noqa: PLC0415

    positions = known_positions(cluster, topics).values()
    now_ms = int(time.time() * 1000)
    if as_json:
        for position in positions:
            click.echo(orjson.dumps(as_dict(position, now_ms)))
    elif positions:
        click.echo("\n".join(as_text(positions, now_ms)))
    else:
        say(f"no job has begun: {topics.positions} has none")


def _poll(flags: dict[str, Any]) -> None:
    from ingestor.core.errors import ConfigError, SourceUnavailable  # noqa: PLC0415
    from ingestor.poller import Poller, PollerSettings  # noqa: PLC0415
    from ingestor.presets import PRESETS  # noqa: PLC0415
    from ingestor.sources.expressions import WithExpressions  # noqa: PLC0415
    from ingestor.sources.registry import SOURCES  # noqa: PLC0415
    from ingestor.telemetry import Telemetry  # noqa: PLC0415
    from ingestor.web import web_server  # noqa: PLC0415

    expressions, step_ms, address = flags.pop("expressions"), flags.pop("step_ms"), flags.pop("web_listen_address")
    as_json, dry_run, kind = flags.pop("as_json"), flags.pop("dry_run"), flags.pop("source")
    url = flags.pop("url")
    http: HttpSettings = {
        "access": flags.pop("access"),
        "timeout_s": flags.pop("timeout_ms") / 1000,
        # Beside the requests for samples, the poller asks for the clock.
        "connections": flags["concurrency"] + 2,
    }
    settings = PollerSettings(
        url=without_credentials(url),
        end=flags.pop("end", None),
        selector=chosen_selector(flags.pop("selector"), everything=flags["everything"]),
        rules=flags.pop("relabel"),
        expressions=dict(expressions.by_name),
        waits_for_its_turn=flags.pop("on_conflict") == "wait",
        **flags,
    )
    telemetry = Telemetry(settings.command)
    source: Any = SOURCES[kind](url, **http)
    if expressions.by_name:
        source = WithExpressions(source, url, expressions, step_ms, **http)
    preset = f"preset {settings.preset}: {PRESETS[settings.preset].description}"
    stop = stop_on_signals()
    display = _display(settings, as_json=as_json)
    poller = Poller(settings, source, display.show, stop, telemetry)
    try:
        # Where this poller stands by for hours, its clock is known all the same.
        poller.backend_clock.ask(source.check)
    except (ConfigError, SourceUnavailable) as error:
        # A wrong address is told; but a live job that has begun knows that it was right once.
        is_away = isinstance(error, SourceUnavailable) or isinstance(error.__cause__, SourceUnavailable)
        if dry_run or not is_away or not poller.goes_on():
            raise
        log.warning("the backend does not answer yet; waiting for it", extra={"error": str(error)})
    if dry_run:
        click.echo(preset)
        click.echo(poller.plan())
        return
    if not as_json:
        say(preset)
    ready_within_s = max(5 * settings.poll_interval_ms / 1000, 2 * http["timeout_s"])
    with ExitStack() as stack:
        if address:
            web = web_server(address, telemetry, lambda: telemetry.not_ready(ready_within_s))
            log.info("serving metrics", extra={"url": stack.enter_context(web)})
        stack.enter_context(display)
        positions = poller.run()
    for position in positions:
        display.summary(position)
    if not positions and not stop.is_set():
        say(f"{settings.command}: all of this time is other jobs' (see ingestor status); --again reads it once more")
    ended = bool(positions) and all(position.ended for position in positions)
    if stop.is_set() and settings.end is not None and not ended:
        sys.exit(EXIT_INTERRUPTED)


def _display(settings: PollerSettings, *, as_json: bool) -> Any:
    from ingestor import progress  # noqa: PLC0415

    return progress.display(settings.command, presence(as_json=as_json))


def main() -> None:
    """Run the console script."""
    run(cli, "INGESTOR")
