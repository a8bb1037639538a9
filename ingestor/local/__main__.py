"""``python -m ingestor.local``: fetch the local servers, or run one in the foreground."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click

from ingestor.core.errors import ConfigError, IngestorError
from ingestor.local import chromium, docker, helm, kafka, prometheus, prometheus3, victoria_metrics

FOLDER = click.Path(file_okay=False, path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """A real Apache Kafka and a real Prometheus on this machine, without installing either."""


@main.command()
@click.option(
    "--backends", is_flag=True, help="Also what the tests use: Prometheus 3, VictoriaMetrics, Chromium, Helm, Docker."
)
def fetch(backends: bool) -> None:  # noqa: FBT001 - a flag
    """Download what the local servers need into the user's cache; silent when it is there.

    Apache Kafka's jars come from Maven's repository, Prometheus out of the distribution's package.
    After this, nothing here needs a network.
    """
    if not kafka.jar_folder().is_dir():
        click.echo(f"fetching Apache Kafka {kafka.KAFKA_VERSION} (45 MB) ...")
        kafka.jars()
    archive = kafka.start_archive()
    if archive is not None and not archive.exists():
        click.echo("recording a start of Kafka, so that later ones take a second ...")
        kafka.make_start_archive()
    if not prometheus.on_path() and not prometheus.binary_folder().is_dir():
        click.echo("fetching Prometheus ...")
    prometheus.find_binaries()
    if backends:
        if not victoria_metrics.on_path() and not victoria_metrics.program_folder().is_dir():
            click.echo("fetching VictoriaMetrics ...")
        _find_or_warn(victoria_metrics.find_program)
        if not chromium.on_path() and not chromium.program_folder().is_dir():
            click.echo("fetching Chromium (120 MB) ...")
        _find_or_warn(chromium.find_program)
        if not prometheus3.program_folder().is_dir():
            click.echo(f"building Prometheus {prometheus3.VERSION} (some minutes) ...")
        _find_or_warn(prometheus3.find_program)
        if not helm.program_folder().is_dir():
            click.echo(f"building Helm {helm.VERSION} (two minutes) ...")
        _find_or_warn(helm.find_program)
        if not docker.on_path() and not docker.program_folder().is_dir():
            click.echo("fetching Docker (65 MB; as root) ...")
        _find_or_warn(docker.find_programs)


def _find_or_warn(find: Callable[[], object]) -> None:
    """Get what only tests need: where that cannot be, they say so and go on without."""
    try:
        find()
    except ConfigError as error:
        click.echo(f"warning: tests will be skipped: {error}", err=True)


@main.command(name="kafka")
@click.option("--folder", type=FOLDER, required=True, help="Data, configuration and log; made if missing.")
@click.option("--port", type=click.IntRange(1, 65535), default=9092, show_default=True, help="Listener on 127.0.0.1.")
@click.option("--heap", default="512m", show_default=True, help="Java's largest heap.")
def run_kafka(folder: Path, port: int, heap: str) -> None:
    """Run one Kafka broker until Ctrl-C; its data stays in the folder."""
    with kafka.LocalKafka(folder, port=port, heap=heap) as broker:
        click.echo(f"Kafka answers on {broker.bootstrap_servers} (process {broker.pid}); Ctrl-C ends it")
        _wait_for_the_end("Kafka", broker, folder / "kafka.log")


@main.command(name="prometheus")
@click.option("--folder", type=FOLDER, required=True, help="Data, configuration and log; made if missing.")
@click.option("--port", type=click.IntRange(1, 65535), default=9090, show_default=True, help="Listener on 127.0.0.1.")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A prometheus.yml; without it nothing is scraped.",
)
def run_prometheus(folder: Path, port: int, config: Path | None) -> None:
    """Run one Prometheus until Ctrl-C; its data stays in the folder and is kept for good."""
    text = None if config is None else config.read_text()
    with prometheus.LocalPrometheus(folder, port=port, config=text) as server:
        click.echo(f"Prometheus answers on {server.url} (process {server.pid}); Ctrl-C ends it")
        _wait_for_the_end("Prometheus", server, folder / "prometheus.log")


def _wait_for_the_end(name: str, server: kafka.LocalKafka | prometheus.LocalPrometheus, log_path: Path) -> None:
    """Return at Ctrl-C or SIGTERM; raise when the server ends first."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while server.poll() is None:
            time.sleep(0.2)
    except KeyboardInterrupt:
        return
    raise ConfigError(f"{name} ended by itself (exit code {server.poll()}): see {log_path}")


if __name__ == "__main__":
    try:
        main()
    except IngestorError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
