"""PURE: the windows of a while, in columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from ingestor.core.durations import LATEST_MS
from ingestor.core.topics import message_key
from stream_app.consumer.forms import Matrix, Piece, long_form, matrix, wide_form
from stream_app.consumer.history import PodHistory, Rows, keep_all, rows_between
from stream_app.consumer.partition import Partition, Taken
from stream_app.consumer.window import Window


@dataclass(frozen=True, slots=True)
class Batch:
    """The windows that came in a while: one a pod and window, the one that counts.

    Pods are in the order of their ids, each one's windows in the order of time.
    """

    chunk_size: str
    """As records spell it; empty where there are no windows."""
    _pods: Mapping[str, tuple[Rows, Window]]
    """By id: the windows, and the latest of them."""

    def __len__(self) -> int:
        """Count the windows."""
        return sum(len(rows.starts_ms) for rows, _ in self._pods.values())

    @property
    def ids(self) -> list[str]:
        """Whose windows these are: ``namespace/pod``, of service records ``namespace/service``."""
        return list(self._pods)

    def latest(self) -> list[Window]:
        """Return each pod's latest window, with its history; in the order of `ids`."""
        return [latest for _, latest in self._pods.values()]

    def long(self, metrics: Sequence[str] | None = None) -> pd.DataFrame:
        """Return the windows as tsfresh takes them: ``id``, ``time``, ``kind``, ``value``, without NaN."""
        return long_form(self._pieces(), metrics)

    def wide(self, metrics: Sequence[str] | None = None) -> pd.DataFrame:
        """Return the windows as sktime takes them: a MultiIndex (``id``, ``timestamp``), a column a metric.

        darts takes ``wide().reset_index()`` with ``TimeSeries.from_group_dataframe``.
        """
        return wide_form(self._pieces(), metrics)

    def matrix(self, metrics: Sequence[str] | None = None) -> Matrix:
        """Return the windows as one array, shape (pods, windows, metrics).

        Args:
            metrics: the last axis, in this order; None: all that there are, by name.

        Raises:
            ConfigError: windows are days of a time zone, and its rules are not installed.
        """
        return matrix(self._pieces(), metrics, self.chunk_size)

    def histories(self, metrics: Sequence[str] | None = None) -> Matrix:
        """Return each pod's lookback, up to its latest window here, as one array, shape (pods, windows, metrics).

        Raises:
            ConfigError: as `matrix`.
        """
        pieces = [Piece(name, latest.rows()) for name, (_, latest) in self._pods.items()]
        return matrix(pieces, metrics, self.chunk_size)

    def _pieces(self) -> list[Piece]:
        return [Piece(name, rows) for name, (rows, _) in self._pods.items()]


class Gathering:
    """A batch that is still growing."""

    def __init__(self) -> None:
        self._pods: dict[tuple[Partition, tuple[str, str]], _Pod] = {}
        self.count = 0
        """Windows so far."""
        self.partitions: set[Partition] = set()
        """Those whose windows are in the batch, once it is closed."""

    def add(self, partition: Partition, taken: Taken) -> None:
        """Take a window of a partition."""
        name = partition, taken.found.who
        pod = self._pods.get(name)
        if pod is None:
            pod = self._pods[name] = _Pod(PodHistory(), taken)
        row = taken.found.row
        pod.windows.add(row, keep_all)
        if row.start_ms >= pod.latest.found.row.start_ms:
            pod.latest = taken
        self.count += 1

    def close(self) -> Batch:
        """Return all windows but those of partitions that are another member's by now: it delivers them."""
        self.partitions = {partition for partition, _ in self._pods if partition.is_ours}
        pods = [(who, pod) for (partition, who), pod in self._pods.items() if partition in self.partitions]
        pods.sort(key=lambda pod: message_key(*pod[0]))
        latest = [pod.latest.window() for _, pod in pods]
        windows = [rows_between(pod.windows.snapshot(), 0, LATEST_MS) for _, pod in pods]
        size = latest[0].record.chunk_size if latest else ""
        return Batch(size, dict(zip([window.id for window in latest], zip(windows, latest, strict=True), strict=True)))


@dataclass(slots=True)
class _Pod:
    windows: PodHistory
    latest: Taken
