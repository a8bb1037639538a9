"""PURE: the windows of a while, in columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from stream_app.consumer.forms import Matrix, Piece, long_form, matrix, wide_form
from stream_app.consumer.history import PodHistory, Row, Rows, keep_all, rows_between
from stream_app.consumer.partition import Partition
from stream_app.consumer.window import Window

_LAST_MS = 1 << 62


@dataclass(frozen=True, slots=True)
class Batch:
    """The windows that came in a while: one a pod and window, the one that counts.

    Pods are in the order of their ids, each one's windows in the order of time.
    """

    chunk_size: str
    """As records spell it; empty where there are no windows."""
    _windows: Mapping[str, Rows]
    _latest: Mapping[str, Window]

    def __len__(self) -> int:
        """Count the windows."""
        return sum(len(rows.starts_ms) for rows in self._windows.values())

    @property
    def ids(self) -> list[str]:
        """Whose windows these are: ``namespace/pod``, of service records ``namespace/service``."""
        return list(self._windows)

    def latest(self) -> list[Window]:
        """Return each pod's latest window, with its history; in the order of `ids`."""
        return list(self._latest.values())

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
        pieces = [Piece(name, window.rows()) for name, window in self._latest.items()]
        return matrix(pieces, metrics, self.chunk_size)

    def _pieces(self) -> list[Piece]:
        return [Piece(name, rows) for name, rows in self._windows.items()]


class Gathering:
    """A batch that is still growing."""

    def __init__(self) -> None:
        self._found: dict[tuple[Partition, str], tuple[PodHistory, list[Window]]] = {}
        self.count = 0
        self.partitions: set[Partition] = set()
        """Those whose windows are in the batch."""

    def add(self, partition: Partition, offset: int, window: Window) -> None:
        """Take a window, which is at an offset of a partition."""
        name = partition, window.id
        found = self._found.get(name)
        if found is None:
            found = self._found[name] = PodHistory(), [window]
        record = window.record
        found[0].add(
            Row(record.window_start_ms, window.rank, offset, tuple(record.metrics), list(record.metrics.values())),
            keep_all,
        )
        if record.window_start_ms >= found[1][0].record.window_start_ms:
            found[1][0] = window
        self.count += 1

    def close(self) -> Batch:
        """Return all windows but those of partitions that are another member's by now: it delivers them."""
        self.partitions = {partition for partition, _ in self._found if partition.is_ours}
        ours = sorted((name, found) for (partition, name), found in self._found.items() if partition in self.partitions)
        windows = {name: rows_between(history.snapshot(), -1, _LAST_MS) for name, (history, _) in ours}
        latest = {name: window for name, (_, (window,)) in ours}
        size = next(iter(latest.values())).record.chunk_size if latest else ""
        return Batch(size, windows, latest)
