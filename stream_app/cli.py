"""The console script ``stream-app``: the only place that wires the stream app's objects."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ingestor.access import Access
from ingestor.command_line import SpelledGroup, presence, run, say, stop_on_signals
from ingestor.interrupts import EXIT_INTERRUPTED
from ingestor.options import (
    CHUNK_SIZE,
    DURATION_MS,
    cluster_options,
    config_option,
    end_option,
    json_option,
    kafka_options,
    logging_option,
    meaning_arguments,
    source_options,
    start_option,
    typed,
)
from ingestor.settings import Pairs
from ingestor.urls import split_prometheus_url, without_credentials
from stream_app.methods import COUNTERS, GROUP_BY, MAX_HELD_VALUES, METHODS, OVER_TIME, method_name, parse_method

if TYPE_CHECKING:
    # Imported where used: --help must not wait for Faust, numba and pyarrow.
    from ingestor.core.durations import ChunkSize
    from stream_app.tail import TailSettings
    from stream_app.tail_display import Lines
    from stream_app.view import View

log = logging.getLogger(__name__)

METHOD = typed("method", parse_method)
DEFAULT_WEB_ADDRESS = "127.0.0.1:6066"


@click.group(cls=SpelledGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="podstream")
@config_option
def cli() -> None:
    """Window the metrics of Kubernetes pods, and write them to files.

    Every flag can also be an environment variable (STREAM_APP_WORKER_METHOD=mean)
    or a key in a YAML file (--config).
    """


class _MetricMethod(Pairs):
    """``REGEX=METHOD``; the regular expression may have an equals sign of its own."""

    name = "regex=method"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        pattern, _, method = str(value).rpartition("=")
        if not pattern:
            self.fail(f"{value!r} is not REGEX=METHOD, like '.*_total=sum'", param, ctx)
        try:
            re.compile(pattern)
            return pattern, parse_method(method)
        except re.error as error:
            self.fail(f"{pattern!r} is not a regular expression: {error}", param, ctx)
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def from_pair(self, key: str, value: str) -> str:
        return f"{key}={value}"


def _timezone(text: str) -> str:
    from ingestor.core.durations import checked_timezone  # noqa: PLC0415

    return checked_timezone(text)


timezone_option = click.option(
    "--timezone",
    type=typed("zone", _timezone),
    metavar="ZONE",
    help="Whose calendar days, weeks, months and years are of, like Europe/Berlin. [default: UTC]",
)


def view_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add what is made of the samples."""
    options: list[Callable[..., Any]] = [
        click.option(
            "--chunk-size",
            type=CHUNK_SIZE,
            default="1m",
            show_default=True,
            help="The length of a window: 30s, 1t or 1m (a minute), 1h, 1d, 1w, 1mo (a month), 1y.",
        ),
        timezone_option,
        click.option(
            "--method",
            type=METHOD,
            default="mean",
            show_default=True,
            help=f"What is made of a window's samples: {', '.join(METHODS)}, or a quantile like p99.9.",
        ),
        click.option(
            "--metric-method",
            "metric_methods",
            type=_MetricMethod(),
            multiple=True,
            help="A method of their own for metrics whose whole name matches; repeatable, the first match counts.",
        ),
        click.option(
            "--over-time",
            type=click.Choice(OVER_TIME),
            default="pooled",
            show_default=True,
            help="pooled: all samples count; else first each series' own last, mean, increase or rate in the window, "
            "then the method across the series.",
        ),
        click.option(
            "--counters",
            type=click.Choice(COUNTERS),
            default="raw",
            show_default=True,
            help="increase, rate: what comes first for each series of a counter; raw: counters are not special.",
        ),
        group_by_option,
    ]
    for option in reversed(options):
        function = option(function)
    return function


group_by_option = click.option(
    "--group-by",
    type=click.Choice(GROUP_BY),
    multiple=True,
    default=("pod",),
    show_default=True,
    help="A record a pod or a record a service; repeat it for both.",
)


def chosen_view_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add which view's records are taken, where several views write."""
    options: list[Callable[..., Any]] = [
        click.option(
            "--chunk-size", type=CHUNK_SIZE, help="Take records of this chunk size only, where there are several."
        ),
        timezone_option,
        click.option("--method", type=METHOD, help="Take records of this method only, where there are several."),
        click.option(
            "--over-time", type=click.Choice(OVER_TIME), default="pooled", help="With --method: as the worker has it."
        ),
        click.option(
            "--counters", type=click.Choice(COUNTERS), default="raw", help="With --method: as the worker has it."
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


max_held_option = click.option(
    "--max-held-values",
    type=click.IntRange(1),
    default=MAX_HELD_VALUES,
    show_default=True,
    help="Samples that median and quantiles may hold in memory, up to 30 bytes each; beyond it the worker ends.",
)

storage_option = click.option(
    "--storage",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="The folder that the files are written to.",
)


def looks_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the files' format and how CSV looks; the function gets *file_format*, *style* and *drop*."""

    @functools.wraps(function)
    def with_looks(
        *,
        absent: str,
        time_format: str,
        escape_formulas: bool,
        drop_empty_columns: bool,
        drop_zero_columns: bool,
        **flags: Any,
    ) -> Any:
        from stream_app.sinks.csv_style import AS_THEY_ARE, ESCAPED, CsvStyle  # noqa: PLC0415

        dropped = {"empty": drop_empty_columns, "zero": drop_zero_columns}
        drop = frozenset(which for which, is_asked in dropped.items() if is_asked)
        style = CsvStyle(absent, time_format, ESCAPED if escape_formulas else AS_THEY_ARE)
        return function(style=style, drop=drop, **flags)

    options: list[Callable[..., Any]] = [
        click.option(
            "--format",
            "file_format",
            type=click.Choice(["csv", "parquet"]),
            default="csv",
            show_default=True,
            help="The files' format.",
        ),
        click.option(
            "--missing",
            "absent",
            type=typed("empty|nan|number", _absent),
            default="empty",
            show_default=True,
            help="What stands in CSV where a metric has no samples.",
        ),
        click.option(
            "--time-format",
            type=click.Choice(["iso", "epoch-s", "epoch-ms"]),
            default="iso",
            show_default=True,
            help="Times in CSV: ISO 8601 in UTC, or seconds or milliseconds since 1970.",
        ),
        click.option(
            "--escape-formulas",
            is_flag=True,
            help="In CSV, put ' before names of pods and metrics that spreadsheets would run.",
        ),
        click.option(
            "--drop-empty-columns",
            is_flag=True,
            help="At the end, leave out CSV columns without any value, or with NaN only.",
        ),
        click.option(
            "--drop-zero-columns",
            is_flag=True,
            help="At the end, leave out CSV columns whose values are all 0.",
        ),
    ]
    for option in reversed(options):
        with_looks = option(with_looks)
    return with_looks


def until_idle_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """When a command that writes a storage ends by itself."""
    options: list[Callable[..., Any]] = [
        click.option(
            "--until-idle", is_flag=True, help="Exit when all that is there is written and nothing more comes."
        ),
        click.option(
            "--idle",
            "idle_ms",
            type=DURATION_MS,
            default="5s",
            show_default=True,
            help="With --until-idle: how long nothing must have come.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def _absent(text: str) -> str:
    from stream_app.sinks.csv_style import absent_text  # noqa: PLC0415

    return absent_text(text)


def _start(text: str) -> Any:
    from stream_app.sink_loop import Start  # noqa: PLC0415

    return Start.parse(text, time.time_ns() // 1_000_000)


def _address_or_none(text: str) -> tuple[str, int] | None:
    from ingestor.web import listen_address  # noqa: PLC0415

    return None if text.strip().lower() == "none" else listen_address(text)


@cli.command()
@view_options
@click.option(
    "--slot",
    type=click.IntRange(min=0),
    envvar="STREAM_APP_SLOT",
    help="Names this worker among those of its view, so that after a crash it goes on at once.",
)
@max_held_option
@click.option(
    "--accept-loss",
    is_flag=True,
    help="Go on where retention has deleted chunks (their windows are incomplete) or Kafka has forgotten this "
    "view's commit (all that the chunks hold is emitted once more).",
)
@click.option(
    "--web-listen-address",
    type=typed("address", _address_or_none),
    metavar="[HOST]:PORT",
    default=DEFAULT_WEB_ADDRESS,
    show_default=True,
    help="Serve the dashboard, /metrics, /-/ready and /-/healthy there, like :6066; none: nowhere.",
)
@kafka_options
@click.option("--partitions", type=click.IntRange(1, 1024), help="Of topics that are made. [default: 8]")
@logging_option
def worker(**flags: Any) -> None:
    """Run one Faust worker for good; start as many as there are partitions."""
    from ingestor.kafka import connect, ensure_topics  # noqa: PLC0415
    from ingestor.web import url_of  # noqa: PLC0415
    from stream_app.app import WorkerSettings, run_worker  # noqa: PLC0415
    from stream_app.preflight import check_view  # noqa: PLC0415
    from stream_app.standing import Standing  # noqa: PLC0415
    from stream_app.telemetry import Telemetry  # noqa: PLC0415

    view = _view(flags)
    listener = _web_listener(flags["web_listen_address"])
    admin = connect(flags["cluster"])
    ensure_topics(admin, view.topics, flags["partitions"])
    check_view(admin, view)
    settings = WorkerSettings(
        flags["cluster"],
        view,
        slot=flags["slot"],
        listener=listener,
        max_held_values=flags["max_held_values"],
        accept_loss=flags["accept_loss"],
    )
    click.echo(f"{view.in_words()}: {view.topics.range_chunks} -> {view.sinks_in_words()}", err=True)
    known = {"group": view.group_id} | ({} if listener is None else {"web": url_of(listener)})
    telemetry = Telemetry(Standing())
    asyncio.run(run_worker(settings, telemetry, lambda: log.info("worker is ready", extra=known)))


@cli.command()
@storage_option
@looks_options
@group_by_option
@chosen_view_options
@click.option(
    "--from",
    "start",
    type=typed("earliest|latest|time", _start),
    help="Where a new storage begins: what Kafka still has, what comes from now on, or windows that start at this time "
    "or later. [default: earliest]",
)
@until_idle_options
@kafka_options
@json_option
@logging_option
def files(**flags: Any) -> None:
    """Write pods' records into files, for good or until idle."""
    from stream_app.files import FilesSettings, run_files  # noqa: PLC0415
    from stream_app.files_display import display  # noqa: PLC0415

    chunk_size, method = _chosen_view(flags)
    settings = FilesSettings(
        cluster=flags["cluster"],
        topics=flags["topics"],
        storage=flags["storage"],
        file_format=flags["file_format"],
        group_by=flags["group_by"],
        chunk_size=chunk_size,
        method=method,
        style=flags["style"],
        drop=flags["drop"],
        start=flags["start"],
        until_idle=flags["until_idle"],
        idle_s=flags["idle_ms"] / 1000,
    )
    stop = stop_on_signals()
    with display(presence(as_json=flags["as_json"]), until_idle=settings.until_idle) as shown:
        total = run_files(settings, stop, shown.written)
    click.echo(f"{settings.storage}: {total.rows:,} rows written, {total.files:,} files", err=True)
    if settings.until_idle and stop.is_set():
        sys.exit(EXIT_INTERRUPTED)


@cli.command("raw-files")
@storage_option
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["parquet", "csv"]),
    default="parquet",
    show_default=True,
    help="The files' format.",
)
@click.option(
    "--metric", "metrics", multiple=True, metavar="GLOB", help="Only of these, like 'container_memory_*'; repeatable."
)
@click.option(
    "--from",
    "start",
    type=typed("earliest|latest|time", _start),
    help="Where a new storage begins: what Kafka still has, what comes from now on, or samples from this time on. "
    "[default: earliest]",
)
@until_idle_options
@kafka_options
@json_option
@logging_option
def raw_files(**flags: Any) -> None:
    """Write raw samples, a folder a metric and day."""
    from stream_app.files_display import display  # noqa: PLC0415
    from stream_app.raw_files import RawFilesSettings, run_raw_files  # noqa: PLC0415

    settings = RawFilesSettings(
        cluster=flags["cluster"],
        topics=flags["topics"],
        storage=flags["storage"],
        file_format=flags["file_format"],
        metrics=flags["metrics"],
        start=flags["start"],
        until_idle=flags["until_idle"],
        idle_s=flags["idle_ms"] / 1000,
    )
    stop = stop_on_signals()
    how = presence(as_json=flags["as_json"])
    with display(how, until_idle=settings.until_idle, messages="chunks", rows="samples") as shown:
        total = run_raw_files(settings, stop, shown.written)
    click.echo(f"{settings.storage}: {total.rows:,} samples written, {total.files:,} files", err=True)
    if total.messages and not total.files and settings.metrics:
        names = ", ".join(settings.metrics)
        click.echo(f"no metric of {total.messages:,} messages is like {names}: look at --metric", err=True)
    if settings.until_idle and stop.is_set():
        sys.exit(EXIT_INTERRUPTED)


def _from(text: str) -> Any:
    from stream_app.reading import start_of  # noqa: PLC0415

    return start_of(text, time.time_ns() // 1_000_000)


@cli.command()
@group_by_option
@click.option(
    "--namespace", "namespaces", multiple=True, metavar="GLOB", help="Only of these, like prod-*; repeatable."
)
@click.option("--service", "services", multiple=True, metavar="GLOB", help="Only of these; repeatable.")
@click.option("--pod", "pods", multiple=True, metavar="GLOB", help="Only of these, like cart-*; repeatable.")
@click.option("--metric", "metrics", multiple=True, metavar="GLOB", help="Show these metrics only; repeatable.")
@chosen_view_options
@click.option(
    "--from",
    "start",
    type=typed("earliest|latest|time", _from),
    default="latest",
    show_default=True,
    help="Begin with what Kafka still has, with what comes from now on, or with windows that start at this time: "
    "RFC 3339, Unix seconds, or a duration ago like 10m.",
)
@click.option("-n", "--lines", type=click.IntRange(min=1), help="Exit after so many records. [default: never]")
@click.option("--no-follow", is_flag=True, help="Exit at what is the end now.")
@kafka_options
@json_option
@logging_option
def tail(**flags: Any) -> None:
    """Show records as they come, for good: what the sink topics carry.

    A table on a terminal; elsewhere a line a record with tabs between time, pod, chunk size, method,
    flags (or -) and each metric=value.
    """
    from stream_app.tail import TailSettings, run_tail  # noqa: PLC0415
    from stream_app.tail_filter import Wanted  # noqa: PLC0415

    group_by = tuple(name for name in GROUP_BY if name in flags["group_by"])
    if flags["pods"] and group_by == ("service",):
        raise click.BadParameter("records of services have no pod: give --service", param_hint="--pod")
    chunk_size, method = _chosen_view(flags)
    start, from_ms = flags["start"]
    names = {field: flags[field] for field in ("namespaces", "services", "pods", "metrics")}
    settings = TailSettings(
        cluster=flags["cluster"],
        topics=flags["topics"],
        group_by=group_by,
        wanted=Wanted(**names, chunk_size=chunk_size, method=method, from_ms=from_ms),
        start=start,
        lines=flags["lines"],
        follow=not flags["no_follow"],
    )
    stop = stop_on_signals()
    if sys.stdout.isatty() and settings.follow and start == "latest":
        say("records as they come from now on; Ctrl-C ends it")
    if not run_tail(settings, stop, _tail_lines(settings, as_json=flags["as_json"]), sys.stdout.buffer) and (
        settings.lines or not settings.follow
    ):
        sys.exit(EXIT_INTERRUPTED)


def _tail_lines(settings: TailSettings, *, as_json: bool) -> Lines:
    from stream_app.tail_display import JsonLines, PlainLines, TableLines  # noqa: PLC0415

    is_terminal = sys.stdout.isatty()
    if as_json:
        return JsonLines(all_metrics=not settings.wanted.metrics, for_terminal=is_terminal)
    if not is_terminal:
        return PlainLines(mixed=len(settings.group_by) > 1)
    return TableLines(
        lambda: shutil.get_terminal_size().columns,
        colour=not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb",
        chosen=bool(settings.wanted.metrics),
        groupings=settings.group_by,
    )


@cli.command()
def schema() -> None:
    """Print the JSON Schema of a record."""
    click.echo((resources.files("stream_app") / "record.schema.json").read_bytes(), nl=False)


@cli.command()
@start_option
@end_option
@view_options
@storage_option
@looks_options
@max_held_option
@click.option("--overwrite", is_flag=True, help="Replace the dataset that the storage holds.")
@source_options
@cluster_options(
    help="A Kafka cluster to use, under topics of its own. [default: a local broker, for as long as this runs]"
)
@json_option
@logging_option
def dataset(**flags: Any) -> None:
    """Write the files of [START, END), all in one command, and exit.

    Runs a broker (unless one is given), a poller, a worker and the file sink.
    The same command again goes on after a crash.
    """
    from stream_app.dataset import DatasetSettings, run_dataset  # noqa: PLC0415

    as_json, overwrite = flags.pop("as_json"), flags.pop("overwrite")
    flags["chunk_size"] = _chunk_size(flags)
    view = _view({**flags, "topics": None})
    settings = DatasetSettings(
        view=view,
        storage=flags["storage"],
        cluster=flags["cluster"],
        poller_arguments=_poller_arguments(flags),
        poller_secrets=_poller_secrets(flags),
        partitions=flags["partitions"],
        max_held_values=flags["max_held_values"],
        overwrite=overwrite,
        file_format=flags["file_format"],
        style=flags["style"],
        drop=flags["drop"],
    )
    stop = stop_on_signals()
    if not run_dataset(settings, stop, presence(as_json=as_json)):
        click.echo("stopped: the same command goes on from here", err=True)
        sys.exit(EXIT_INTERRUPTED)


def _chosen_view(flags: dict[str, Any]) -> tuple[str | None, str | None]:
    """Return chunk size and method as records spell them; None: any.

    Raises:
        click.BadParameter: a flag says more of one that is not given.
    """
    context = click.get_current_context()
    for name, of in (("timezone", "chunk_size"), ("over_time", "method"), ("counters", "method")):
        typed_here = context.get_parameter_source(name) in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
        if typed_here and not flags[of]:
            hint = f"--{name.replace('_', '-')}"
            raise click.BadParameter(f"give --{of.replace('_', '-')} too: it says more of that", param_hint=hint)
    method = flags["method"] and method_name(flags["method"], flags["over_time"], flags["counters"])
    return str(_chunk_size(flags)) if flags["chunk_size"] else None, method


def _poller_arguments(flags: dict[str, Any]) -> list[str]:
    """Write the poller's share of the flags as its command line has them."""
    arguments = [
        *("--url", without_credentials(flags["url"]), "--start", flags["start"], "--end", flags["end"]),
        *("--align", str(flags["chunk_size"]), "--preset", flags["preset"]),
        *("--source", flags["source"]),
        *("--settle", f"{flags['settle_ms']}ms", "--concurrency", str(flags["concurrency"])),
        *("--request-timeout", f"{flags['timeout_ms']}ms", "--range-samples", str(flags["range_samples"])),
    ]
    arguments += ["--max-in-flight-samples", str(flags["max_in_flight_samples"]), *meaning_arguments(flags)]
    for name in ("include", "exclude"):
        for pattern in flags[name]:
            arguments += [f"--{name}", pattern]
    if flags["max_samples_per_second"] is not None:
        arguments += ["--max-samples-per-second", str(flags["max_samples_per_second"])]
    return [*arguments, *flags["access"].arguments()]


def _poller_secrets(flags: dict[str, Any]) -> dict[str, str]:
    """Return the poller's share of what a list of processes must not show, as environment variables."""
    access: Access = flags["access"]
    _, in_url = split_prometheus_url(flags["url"])
    if in_url and not access.has_credentials:
        access = replace(access, basic_auth=in_url)
    return access.environment("INGESTOR_BACKFILL")


def _view(flags: dict[str, Any]) -> View:
    from ingestor.core.topics import Topics  # noqa: PLC0415
    from stream_app.view import View  # noqa: PLC0415

    group_by: Any = tuple(name for name in GROUP_BY if name in flags["group_by"])
    return View(
        _chunk_size(flags),
        flags["method"],
        flags["over_time"],
        group_by,
        flags["topics"] or Topics(),
        flags["counters"],
        flags["metric_methods"],
    )


def _chunk_size(flags: dict[str, Any]) -> ChunkSize:
    """Return ``--chunk-size`` in ``--timezone``; a size can also name its zone itself (``1d@Europe/Berlin``)."""
    size: ChunkSize = flags["chunk_size"]
    in_zone = replace(size, timezone=flags["timezone"] or size.timezone)
    if size.timezone not in ("UTC", in_zone.timezone):
        raise click.BadParameter(f"--chunk-size {size} names another zone: leave one out", param_hint="--timezone")
    return in_zone


def _web_listener(address: tuple[str, int] | None) -> socket.socket | None:
    """Return what listens at *address*; None where there is none, or where it is nobody's choice and taken.

    Raises:
        ConfigError: nothing can listen there.
    """
    from ingestor.core.errors import ConfigError  # noqa: PLC0415
    from ingestor.web import listening  # noqa: PLC0415

    if address is None:
        return None
    try:
        return listening(address)
    except ConfigError as error:
        context = click.get_current_context()
        if context.get_parameter_source("web_listen_address") != ParameterSource.DEFAULT:
            raise
        log.warning("no web pages", extra={"error": str(error)})
        return None


def main() -> None:
    """Run the console script."""
    run(cli, "STREAM_APP")
