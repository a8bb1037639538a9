"""PURE: the windows of a while, in columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from ingestor.core.durations import LATEST_MS
from stream_app.consumer.forms import Matrix, Piece, long_form, matrix, wide_form
from stream_app.consumer.history import Int64Array, Part, Snapshot, rows_between
from stream_app.consumer.partition import Partition, Taken
from stream_app.consumer.window import Window
from stream_app.records import Who


@dataclass(frozen=True, slots=True)
class Batch:
    """The windows that came in a while: one a pod and window, the one that counts.

    Pods are in the order of their ids, each one's windows in the order of time.
    """

    chunk_size: str
    """As records spell it; empty where there are no windows."""
    _pods: Mapping[str, tuple[Part, Window]]
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


class _Latest(NamedTuple):
    """A pod's latest window so far."""

    start_ms: int
    taken: Taken
    number: int
    snapshot: Snapshot


class Gathering:
    """A batch that is still growing."""

    def __init__(self) -> None:
        self._parts: list[tuple[Partition, Taken, Int64Array]] = []
        self._latest: dict[tuple[Partition, Who], _Latest] = {}
        self.count = 0
        """Windows so far."""
        self.partitions: set[Partition] = set()
        """Those whose windows are in the batch, once it is closed."""

    def add(self, partition: Partition, taken: Taken, numbers: Int64Array) -> None:
        """Take some of the records that were taken of a partition."""
        if not len(numbers):
            return
        self._parts.append((partition, taken, numbers))
        self.count += len(numbers)
        records = taken.found.records
        # Of each pod the latest window, and of several jobs' the one that came last.
        order = numbers[np.lexsort((numbers, records.window_start_ms[numbers], records.who[numbers]))]
        who = records.who[order]
        for number in order[np.append(np.diff(who) != 0, [True])].tolist():
            name = partition, records.whos[records.who[number]]
            start_ms = int(records.window_start_ms[number])
            known = self._latest.get(name)
            if known is None or known.start_ms <= start_ms:
                self._latest[name] = _Latest(start_ms, taken, number, taken.snapshot(number))

    def close(self) -> Batch:
        """Return all windows but those of partitions that are another member's by now: it delivers them."""
        self.partitions = {partition for partition, _, _ in self._parts if partition.is_ours}
        found: dict[Who, list[Part]] = {}
        for partition, taken, numbers in self._parts:
            if partition in self.partitions:
                whos = taken.found.records.whos
                for number, _, parts in taken.found.of_each(numbers):
                    found.setdefault(whos[number], []).extend(parts)
        pods = {}
        for (partition, who), (_, taken, number, snapshot) in self._latest.items():
            if partition in self.partitions:
                latest = taken.window(number, snapshot)
                pods[latest.id] = rows_between(found[who], 0, LATEST_MS), latest
        size = next(iter(pods.values()))[1].record.chunk_size if pods else ""
        return Batch(size, dict(sorted(pods.items())))
