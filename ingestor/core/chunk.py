"""The types that travel on the range-chunk topic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ingestor.core.time_range import TimeRange

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]
UInt64Array = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class SeriesColumns:
    """Samples of many series, a column a field; row i is one series.

    A series' samples lie at ``offsets[i]:offsets[i + 1]`` of *timestamps_ms* and
    *values*, in strictly rising time order. A series may stand in several rows
    (its samples cut between them), never twice with the same timestamp.
    """

    namespace: pa.DictionaryArray
    pod: pa.DictionaryArray
    service: pa.DictionaryArray
    metric: pa.DictionaryArray
    type: pa.DictionaryArray
    """``counter``, ``gauge``, ``histogram``, ``summary`` or ``unknown``."""
    labels: pa.MapArray
    """All labels but the metric's name, sorted by name."""
    fingerprint: UInt64Array
    """A hash of metric and labels: names one series within its pod and metric."""
    offsets: Int64Array
    timestamps_ms: Int64Array
    values: Float64Array

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def samples(self) -> int:
        return int(self.offsets[-1] - self.offsets[0])


@dataclass(frozen=True, slots=True)
class RangeChunk:
    """The samples of the pods of one partition in one range."""

    job: str
    time_range: TimeRange
    revision: int
    sequence: int
    source: str
    series: SeriesColumns


@dataclass(frozen=True, slots=True)
class Marker:
    """All of *time_range* of *job* is now published in this partition; with *ends_job*, all of the job."""

    job: str
    time_range: TimeRange
    revision: int
    sequence: int
    source: str
    ends_job: bool
