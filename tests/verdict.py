"""All windows of a view, in Kafka and in files, beside what the oracle makes of Prometheus' samples."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import click
import files
import oracle
import pandas as pd
import records
from commands import Broker, write_files

from ingestor.core.time_range import TimeRange
from ingestor.kafka import connect, partition_counts
from stream_app.view import View


class Place(NamedTuple):
    """What was compared, and where."""

    what: str
    where: str

    def __str__(self) -> str:
        return f"{self.what} in {self.where}"


KAFKA, FILES = "Kafka", "files"

Verdict = dict[Place, records.Compared]


def look(
    broker: Broker, view: View, held: pd.DataFrame, storage: Path | None = None, job: TimeRange | None = None
) -> Verdict:
    """Compare the windows of all groups of a view.

    Args:
        broker: where the sink topics are; all of them is compared.
        view: what made the records.
        held: what Prometheus holds of the time that was read.
        storage: CSV files of this view, or None.
        job: the time that was read, where it does not begin and end with windows (`records.compare`).
    """
    found: Verdict = {}
    size, counts = str(view.chunk_size), partition_counts(connect(broker.cluster))
    for group_by in view.group_by:
        topic, what = view.topics.sink(group_by), f"{group_by}s"
        written = records.read(broker.cluster, topic, counts[topic])
        found[Place(what, KAFKA)] = records.compare(written, held, size, view.method, group_by, job)
        if storage is not None:
            suffix = ".service" if group_by == "service" and len(view.group_by) > 1 else ""
            cells = files.read(storage, pods=group_by == "pod", suffix=suffix)
            expected = oracle.windows(held, size, view.method, group_by)
            found[Place(what, FILES)] = records.compare_cells(cells, expected)
    return found


def assert_right(
    broker: Broker, view: View, held: pd.DataFrame, storage: Path | None = None, job: TimeRange | None = None
) -> None:
    """See that every window of a view is there once and right: on its topics, and in files that are written to its end.

    Arguments as of `look`.
    """
    if storage is not None:
        write_files(broker, view, storage)
    for place, compared in look(broker, view, held, storage, job).items():
        click.echo(f"  {view.topics.prefix}, {place}: {compared}")
        assert compared.is_right, f"{place}: {compared}"
        assert compared.found > 0
