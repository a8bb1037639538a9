"""Range chunks made from plain samples, the way the poller makes them."""

from typing import NamedTuple, Self

import numpy as np
import orjson
import pandas as pd

from ingestor import packing, presets
from ingestor.catalogue import Catalogue, Meaning
from ingestor.core import wire
from ingestor.core.chunk import LOOKBACK_MS, Header
from ingestor.core.time_range import TimeRange
from ingestor.workloads import service_of

PARTITIONS = 4


def catalogue(partitions: int = PARTITIONS) -> Catalogue:
    return Catalogue(partitions, Meaning(presets.PRESETS["none"].rewrite), {})


class Numbered(NamedTuple):
    """Samples in time order, and the number of the series that each is of."""

    number: np.ndarray
    stamps: np.ndarray
    values: np.ndarray
    labels: list[bytes]
    """Of each series."""

    @classmethod
    def of(cls, samples: pd.DataFrame) -> Self:
        names = ["namespace", "pod", "metric", "series"]
        number = samples.groupby(names, sort=False).ngroup().to_numpy(np.int64)
        labels = [
            orjson.dumps({"__name__": metric, "namespace": namespace, "pod": pod, "series": str(series)})
            for namespace, pod, metric, series in samples[names].drop_duplicates().itertuples(index=False)
        ]
        stamps, values = samples["timestamp"].to_numpy(np.int64), samples["value"].to_numpy(float)
        order = np.argsort(stamps, kind="stable")
        return cls(number[order], stamps[order], values[order], labels)

    def within(self, time_range: TimeRange) -> Self:
        first, last = np.searchsorted(self.stamps, [time_range.start_ms, time_range.end_ms])
        return type(self)(self.number[first:last], self.stamps[first:last], self.values[first:last], self.labels)


def fetched(samples: pd.DataFrame | Numbered, known: Catalogue) -> packing.FetchedSeries:
    """Return the samples as a source would: a row a series, in time order."""
    numbered = Numbered.of(samples) if isinstance(samples, pd.DataFrame) else samples
    series, lengths = np.unique(numbered.number, return_counts=True)
    order = np.argsort(numbered.number, kind="stable")
    ids = known.ids([numbered.labels[one] for one in series.tolist()])
    known.place({pod: service_of(pod.name) for pod in known.unplaced()})
    return packing.FetchedSeries(ids, np.append(0, np.cumsum(lengths)), numbered.stamps[order], numbered.values[order])


def lookback(samples: pd.DataFrame, start_ms: int, known: Catalogue) -> packing.PackedRange:
    """Return each series' last sample in the lookback of a job that begins at *start_ms*."""
    time_range = TimeRange(start_ms - LOOKBACK_MS, start_ms)
    inside = (samples["timestamp"] >= time_range.start_ms) & (samples["timestamp"] < start_ms)
    last = (
        samples[inside].sort_values("timestamp").drop_duplicates(["namespace", "pod", "metric", "series"], keep="last")
    )
    return packing.pack(time_range, "test", [fetched(last, known)], known, PARTITIONS)


def messages(
    samples: pd.DataFrame,
    ranges: list[TimeRange],
    job: str = "job",
    *,
    ends: bool = True,
    looks_back: bool = False,
    **header,
):
    """Return each partition's stream of a whole job: a list of (headers, value), in order."""
    known = catalogue()
    streams: list[list] = [[] for _ in range(PARTITIONS)]
    if looks_back:
        before = lookback(samples, ranges[0].start_ms, known)
        for stream, values in zip(streams, before.partitions, strict=True):
            for value in values:
                told = Header(job, before.time_range, len(stream), "test", **header)
                stream.append((wire.headers("lookback", told), value))
    numbered = Numbered.of(samples)
    for time_range in ranges:
        inside = fetched(numbered.within(time_range), known)
        packed = packing.pack(time_range, "test", [inside], known, PARTITIONS)
        for stream, chunks in zip(streams, packed.partitions, strict=True):
            for kind, value in [*(("chunk", value) for value in chunks), ("marker", b"")]:
                stream.append((wire.headers(kind, Header(job, time_range, len(stream), "test", **header)), value))
    if ends:
        whole = TimeRange(ranges[0].start_ms, ranges[-1].end_ms)
        for stream in streams:
            stream.append((wire.headers("end", Header(job, whole, len(stream), "test", **header)), b""))
    return streams
