"""What came out, compared with what must: every cell, and nothing twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import cluster
import numpy as np
import numpy.typing as npt
import orjson
import pandas as pd

from ingestor.core.topics import Topics
from ingestor.kafka import connect, partition_counts, read_to_end
from ingestor.local.kafka import LocalKafka

# Of a sum of a dozen doubles in extended precision and the product's, which is exact: the last bit may differ.
_TOLERANCE = 2**-51


class WrongError(click.ClickException):
    """The results are not those of the oracle: no figure of this run means anything."""


class Cells:
    """All cells of a run: shape (pods, minutes, metrics), NaN where nothing came."""

    def __init__(self, length: cluster.Length) -> None:
        self._length = length
        self._values = np.full((cluster.PODS, length.minutes, len(cluster.METRICS)), np.nan)
        self._seen = np.zeros((cluster.PODS, length.minutes), int)
        self._pods = {pod: number for number, pod in enumerate(cluster.pods())}

    def add(self, pod: str, start_ms: int, metrics: dict[str, float]) -> None:
        """Take in one pod's window."""
        minute = (start_ms - cluster.START_MS) // cluster.MINUTE_MS
        if pod not in self._pods or not 0 <= minute < self._length.minutes or len(metrics) != len(cluster.METRICS):
            raise WrongError(f"nobody expects {pod} at {start_ms} with {len(metrics)} metrics")
        self._seen[self._pods[pod], minute] += 1
        self._values[self._pods[pod], minute] = [metrics[name] for name in cluster.METRICS]

    def check(self, method: str) -> None:
        """Compare all cells with the oracle.

        Raises:
            WrongError: one differs, is missing, or has come twice.
        """
        if (self._seen != 1).any():
            missing, doubled = int((self._seen == 0).sum()), int((self._seen > 1).sum())
            raise WrongError(f"of {self._seen.size} records {missing} are missing and {doubled} came more than once")
        for number, minutes in self._length.blocks():
            wanted = cluster.expected(number, minutes, method)
            first = number * cluster.MINUTES
            got = self._values[:, first : first + minutes]
            differ = np.argwhere(~is_close(got, wanted))
            if len(differ):
                pod, minute, metric = differ[0].tolist()
                raise WrongError(
                    f"{len(differ)} of {wanted.size} cells differ from the oracle: {cluster.METRICS[metric]} of "
                    f"{cluster.pods()[pod]} in minute {first + minute} is {got[pod, minute, metric]!r}, "
                    f"not {wanted[pod, minute, metric]!r}"
                )


def is_close(got: cluster.Matrix, wanted: cluster.Matrix, tolerance: float = _TOLERANCE) -> npt.NDArray[np.bool_]:
    """Tell of each cell whether it is the oracle's; what is missing is not."""
    return np.isclose(got, wanted, rtol=tolerance, atol=0.0)


def check_records(kafka: LocalKafka, topics: Topics, length: cluster.Length, method: str) -> None:
    """Compare the committed records of the pods' topic with the oracle; see `Cells.check`."""
    cells = Cells(length)
    for value in committed_values(kafka, topics.pods):
        record = orjson.loads(value)
        if record["partial"] or record.get("incomplete"):
            raise WrongError(f"a record is not whole: {record}")
        cells.add(record["pod"], record["window_start"], record["metrics"])
    cells.check(method)


def committed_values(kafka: LocalKafka, topic: str) -> Iterator[bytes]:
    """Yield every message that a read_committed reader sees."""
    for number in range(partition_counts(connect(kafka.cluster))[topic]):
        for message in read_to_end(kafka.cluster, topic, number):
            yield message.value() or b""


def check_files(storage: Path, file_format: str, length: cluster.Length, method: str) -> None:
    """Compare all rows of a storage with the oracle; see `Cells.check`."""
    cells = Cells(length)
    for frame in _frames(storage, file_format):
        stamps = pd.to_datetime(frame["timestamp"], utc=True).to_numpy("datetime64[ms]").astype("int64")
        rows = frame[list(cluster.METRICS)].to_numpy()
        for pod, start_ms, row in zip(frame["pod"], stamps.tolist(), rows.tolist(), strict=True):
            cells.add(pod, start_ms, dict(zip(cluster.METRICS, row, strict=True)))
    cells.check(method)


def _frames(storage: Path, file_format: str) -> Iterator[pd.DataFrame]:
    if file_format == "parquet":
        yield pd.read_parquet(storage)
        return
    for path in sorted(storage.glob("*/*.csv")):
        yield pd.read_csv(path, float_precision="round_trip")
