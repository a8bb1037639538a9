"""A live poller as a program, which waits for its turn or takes over:
``python queued_poller.py poll --on-conflict wait|take-over --url URL --bootstrap-servers HOST:PORT …``.
"""

from __future__ import annotations

import click

from ingestor.command_line import run, stop_on_signals
from ingestor.core.topics import Topics
from ingestor.kafka import Cluster
from ingestor.options import kafka_options, logging_option
from ingestor.poller import Poller, PollerSettings
from ingestor.progress import display
from ingestor.selector import Selector
from ingestor.sources.auto import AutoSource


@click.group()
def cli() -> None:
    pass


@cli.command()
@click.option("--on-conflict", type=click.Choice(["wait", "take-over"]), required=True)
@click.option("--url", required=True)
@kafka_options
@logging_option
def poll(on_conflict: str, url: str, cluster: Cluster, topics: Topics) -> None:
    settings = PollerSettings(
        cluster, topics, Selector.parse('{pod!=""}'), "now", None, url,
        settle_ms=2_000, poll_interval_ms=1_000, waits_for_its_turn=on_conflict == "wait",
    )  # fmt: skip
    stop = stop_on_signals()
    with display("live", "json") as shown:
        for position in Poller(settings, AutoSource(url), shown.show, stop).run():
            shown.summary(position)


if __name__ == "__main__":
    run(cli, "QUEUED_POLLER")
