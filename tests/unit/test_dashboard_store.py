"""What the dashboard remembers of pods is what the records say, for as long as there is room."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from itertools import pairwise

import numpy as np
import orjson
from hypothesis import given
from hypothesis import strategies as st

from ingestor.core.durations import ChunkSize
from stream_app.consumer.history import ABSENT
from stream_app.dashboard.store import MOST_WINDOWS, PodStore, columns, means, spelled, spelled_value
from stream_app.records import Record, Records, decode_records

MINUTE_MS = 60_000
START_MS = 1_795_435_200_000
METRICS = ("cpu", "memory", "queue")


def record(
    pod: str,
    window: int,
    metrics: dict[str, float],
    *,
    service: str = "web",
    revision: int = 0,
    partial: bool = False,
    chunk_size: str = "1m",
) -> Record:
    start_ms = START_MS + window * MINUTE_MS
    return Record(
        namespace="shop",
        pod=pod,
        service=service,
        window_start_ms=start_ms,
        window_end_ms=start_ms + MINUTE_MS,
        chunk_size=chunk_size,
        method="mean",
        job="live",
        revision=revision,
        partial=partial,
        samples=4,
        metrics=metrics,
    )


def as_columns(records: list[Record]) -> Records:
    """Return records as a worker writes them and the dashboard reads them."""
    values = []
    for one in records:
        fields = asdict(one)
        fields |= {
            "window_start": fields.pop("window_start_ms"),
            "window_end": fields.pop("window_end_ms"),
            "version": 1,
        }
        fields["metrics"] = {name: None if math.isnan(v) else spelled_value(v) for name, v in one.metrics.items()}
        values.append(orjson.dumps(fields))
    columns, malformed = decode_records(values, range(len(values)))
    assert not malformed
    return columns


def store(most_bytes: int = 1 << 30) -> PodStore:
    return PodStore(ChunkSize.parse("1m"), "mean", most_bytes)


VALUES = st.floats() | st.sampled_from([math.nan, math.inf, -math.inf])
RECORDS = st.lists(
    st.builds(
        record,
        st.sampled_from(["a", "b"]),
        st.integers(0, 2 * MOST_WINDOWS),
        st.dictionaries(st.sampled_from(METRICS), VALUES),
        revision=st.integers(0, 2),
        partial=st.booleans(),
    ),
    max_size=60,
)


@given(RECORDS, st.integers(1, 60))
def test_columns_are_the_records(records: list[Record], together: int) -> None:
    """In whatever order records come, each window shows the record that counts: whole, newest revision, last."""
    kept = store()
    everything = as_columns(records)
    for first in range(0, len(records), together):
        kept.add(everything[first : first + together])
    kept.tidy()
    newest_ms = max((one.window_start_ms for one in records), default=None)
    assert kept.newest_ms == newest_ms
    axis = kept.axis(MOST_WINDOWS)
    for pod in {one.pod for one in records}:
        best: dict[int, Record] = {}
        for one in records:
            other = best.get(one.window_start_ms)
            is_better = other is None or (not one.partial, one.revision) >= (not other.partial, other.revision)
            if one.pod == pod and is_better:
                best[one.window_start_ms] = one
        found = kept.pod("shop", pod)
        if found is None:
            assert all(start_ms not in axis for start_ms in best)
            continue
        assert repr(found.last) == repr(best[max(best)])
        shown = columns(found, METRICS, axis)
        for row, metric in enumerate(METRICS):
            expected = [best[t].metrics.get(metric) if t in best else None for t in axis.tolist()]
            assert spelled(shown[row]) == [None if value is None else as_json(value) for value in expected]


def as_json(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


def test_only_the_newest_windows_are_kept() -> None:
    """Two hours of minutes; a pod of which nothing is left is forgotten, and its service with it."""
    kept = store()
    kept.add(as_columns([record("gone", 0, {"cpu": 1.0}, service="old")]))
    for window in range(3 * MOST_WINDOWS):
        kept.add(as_columns([record("a", window, {"cpu": float(window)})]))
    kept.tidy()
    assert kept.pod("shop", "gone") is None
    assert [key for key, _ in kept.services()] == [("shop", "web")]
    axis = kept.axis(10 * MOST_WINDOWS)
    assert len(axis) == MOST_WINDOWS
    assert axis[-1] == kept.newest_ms == START_MS + (3 * MOST_WINDOWS - 1) * MINUTE_MS
    pod = kept.pod("shop", "a")
    assert pod is not None
    assert spelled(columns(pod, ["cpu"], axis)[0]) == [float(window) for window in range(2 * MOST_WINDOWS, 360)]
    assert not kept.add(as_columns([record("late", 0, {"cpu": 1.0})])).any()


def test_memory_is_bounded() -> None:
    """Where all windows do not fit, fewer are kept: what histories hold stays about what is allowed."""
    most_bytes = 400_000
    kept = store(most_bytes)
    for window in range(400):
        metrics = dict.fromkeys([f"m{number}" for number in range(10)], 1.0)
        kept.add(as_columns([record(f"pod-{pod}", window, metrics) for pod in range(40)]))
        if window % 10 == 0:
            kept.tidy()
    held = 0
    for pod in range(40):
        found = kept.pod("shop", f"pod-{pod}")
        assert found is not None
        held += sum(part.values.nbytes + 3 * part.starts_ms.nbytes for part in found.history.snapshot())
    assert held <= 1.25 * most_bytes
    assert 1 < kept.windows < MOST_WINDOWS
    assert len(kept.axis(MOST_WINDOWS)) == kept.windows


def test_other_views_are_left_out() -> None:
    """Records of another chunk size or method are not mixed in; it is told that they are there."""
    kept = store()
    both = [record("a", 9, {"cpu": 1.0}, chunk_size="5m"), record("a", 0, {"cpu": 2.0})]
    assert kept.add(as_columns(both)).tolist() == [False, True]
    assert kept.newest_ms == START_MS
    assert kept.others == {"mean of 5m"}


def test_means_are_of_what_is_finite() -> None:
    """A window's mean is over the pods that have a number there; where none has, there is none."""
    kept = store()
    for pod, values in {"a": [1.0, math.nan, None], "b": [3.0, 5.0, None], "c": [math.inf, None, None]}.items():
        for window, value in enumerate(values):
            kept.add(as_columns([record(pod, window, {} if value is None else {"cpu": value})]))
    axis = kept.axis(3)
    (_, pods), *_ = kept.services()
    assert spelled(means(pods.values(), ["cpu", "other"], axis)[0]) == [2.0, 5.0, None]
    assert spelled(means(pods.values(), ["other"], axis)[0]) == [None] * 3


def test_absent_is_not_nan() -> None:
    """What a pod reported as NaN is told apart from what is not there."""
    assert spelled(np.array([ABSENT, math.nan, 1.0, -math.inf])) == [None, "NaN", 1.0, "-Inf"]


def test_calendar_windows() -> None:
    """Windows of a time zone's calendar have their places, also over a change of the clocks."""
    size = ChunkSize.parse("1d@Europe/Berlin")
    kept = PodStore(size, "mean")
    edges = size.edges_ms(1_792_000_000_000, 1_794_000_000_000).tolist()
    template = record("a", 0, {}, chunk_size=str(size))
    days = [
        replace(template, window_start_ms=start_ms, window_end_ms=end_ms, metrics={"cpu": float(start_ms)})
        for start_ms, end_ms in pairwise(edges)
    ]
    assert kept.add(as_columns(days)).all()
    pod = kept.pod("shop", "a")
    assert pod is not None
    axis = kept.axis(len(edges) - 1)
    assert spelled(columns(pod, ["cpu"], axis)[0]) == [float(start_ms) for start_ms in edges[:-1]]
