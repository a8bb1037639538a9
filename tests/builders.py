"""Range chunks made from plain samples, the way the poller makes them."""

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


def fetched(samples: pd.DataFrame, known: Catalogue) -> packing.FetchedSeries:
    """Return the samples as a source would: a row a series, in time order."""
    names = ["namespace", "pod", "metric", "series"]
    number = samples.groupby(names, sort=False).ngroup().to_numpy(np.int64)
    order = np.lexsort((samples["timestamp"], number))
    series = samples[names].drop_duplicates().itertuples(index=False, name=None)
    labels = [
        {"__name__": metric, "namespace": namespace, "pod": pod, "series": str(one)}
        for namespace, pod, metric, one in series
    ]
    ids = known.ids([orjson.dumps(one) for one in labels])
    known.place({pod: service_of(pod.name) for pod in known.unplaced()})
    return packing.FetchedSeries(
        ids,
        np.append(0, np.cumsum(np.bincount(number, minlength=len(labels)))),
        samples["timestamp"].to_numpy(np.int64)[order],
        samples["value"].to_numpy(float)[order],
    )


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
    for time_range in ranges:
        inside = (samples["timestamp"] >= time_range.start_ms) & (samples["timestamp"] < time_range.end_ms)
        packed = packing.pack(time_range, "test", [fetched(samples[inside], known)], known, PARTITIONS)
        for stream, chunks in zip(streams, packed.partitions, strict=True):
            for kind, value in [*(("chunk", value) for value in chunks), ("marker", b"")]:
                stream.append((wire.headers(kind, Header(job, time_range, len(stream), "test", **header)), value))
    if ends:
        whole = TimeRange(ranges[0].start_ms, ranges[-1].end_ms)
        for stream in streams:
            stream.append((wire.headers("end", Header(job, whole, len(stream), "test", **header)), b""))
    return streams
