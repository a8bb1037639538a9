"""What the first messages of a view would wait for: compiled kernels, and what libraries load when they are used."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ingestor.core import wire
from ingestor.core.arrow import maps, texts
from ingestor.core.chunk import Header, SeriesColumns
from ingestor.core.time_range import TimeRange
from stream_app.pipeline import Pipeline
from stream_app.view import View

_WHOLE = TimeRange(400 * 86_400_000, 400 * 86_400_000 + 60_000)
"""Some time in 1971: whatever a window's length, it begins behind 1970."""
_SAMPLES = 3


def warm_up(view: View) -> None:
    """Take messages of a few samples through what *view* makes of all: a gauge's and a counter's, by each method."""
    headers = [wire.headers(kind, Header("warm-up", _WHOLE, n, "warm-up")) for n, kind in enumerate(("chunk", "end"))]
    values = [wire.encode_series(_series()), b""]
    for method in dict.fromkeys([view.method, *(method for _, method in view.metric_methods)]):
        pipeline = Pipeline(replace(view, method=method, metric_methods=()), 0, "")
        for offset, message in enumerate(zip(headers, values, strict=True)):
            pipeline.feed(offset, wire.decode(*message))


def _series() -> SeriesColumns:
    kinds = texts(["gauge", "counter"]).dictionary_encode()
    same = texts(["warm-up"] * len(kinds)).dictionary_encode()
    return SeriesColumns(
        namespace=same,
        pod=same,
        service=same,
        metric=kinds,
        type=kinds,
        labels=maps([[]] * len(kinds)),
        fingerprint=np.arange(len(kinds), dtype=np.uint64),
        offsets=np.arange(len(kinds) + 1) * _SAMPLES,
        timestamps_ms=np.tile(np.arange(_WHOLE.start_ms, _WHOLE.start_ms + _SAMPLES), len(kinds)),
        values=np.ones(len(kinds) * _SAMPLES),
    )
