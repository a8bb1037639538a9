"""The types that travel on the range-chunk topic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ingestor.core.time_range import TimeRange

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]
UInt64Array = npt.NDArray[np.uint64]

LOOKBACK_MS = 300_000
"""A counter's sample before a window, or before a job, is where its first increase begins if it is not older.

As far as Prometheus itself looks back (``--query.lookback-delta``): what is older has ended.
"""


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


EVERY_METRIC = "*"
"""Instead of a metric's name, where something is missing: of any."""


class Refused(NamedTuple):
    """Samples of *metric* in [start_ms, end_ms) that the backend refused for good."""

    metric: str
    start_ms: int
    end_ms: int


@dataclass(frozen=True, slots=True)
class Header:
    """What every message of a job says of itself."""

    job: str
    time_range: TimeRange
    sequence: int
    """Per job and partition, without holes."""
    source: str
    revision: int = 0
    """Higher ones replace what lower ones have said of the same time."""
    recheck: str = ""
    """The job that will read this range once more; empty: none will."""


@dataclass(frozen=True, slots=True)
class RangeChunk:
    """The samples of the pods of one partition in one range."""

    header: Header
    series: SeriesColumns
    is_lookback: bool = False
    """It comes before all others of its job: of each series the last sample in the `LOOKBACK_MS` before the job's
    start, which is its range's end. No window counts those; they are for a counter's first increase only."""


@dataclass(frozen=True, slots=True)
class Marker:
    """All of the header's range is now published in this partition; with *ends_job*, all of the job."""

    header: Header
    ends_job: bool
    incomplete: tuple[Refused, ...] = ()
    """What is missing all the same."""
