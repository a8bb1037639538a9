"""A second reading of live ranges: only windows whose result changed are emitted again, wherever a worker restarts."""

from itertools import pairwise

import numpy as np
import pandas as pd
from builders import messages
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import same, windows
from test_pipeline import run

from ingestor.core.durations import ChunkSize
from ingestor.core.time_range import TimeRange
from stream_app.pipeline import View

T0 = 1_795_435_200_000
PODS = ["web-7d9f8b6c5-x2x4z", "web-7d9f8b6c5-8vx7t", "db-0"]
LIVE, RECHECK = "live", "live.recheck"


def scraped(generator, start, end, count) -> pd.DataFrame:
    frame = pd.DataFrame(
        {
            "namespace": "shop",
            "pod": generator.choice(PODS, count),
            "metric": generator.choice(["cpu", "memory"], count),
            "series": generator.integers(0, 2, count),
            "timestamp": generator.integers(start, end, count),
            "value": generator.normal(size=count),
        }
    )
    return frame.drop_duplicates(["pod", "metric", "series", "timestamp"])


def by_range(stream) -> list[list]:
    """Cut a stream behind each marker."""
    groups, group = [], []
    for message in stream:
        group.append(message)
        if dict(message[0])["kind"] != b"chunk":
            groups.append(group)
            group = []
    return groups


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(0, 120_000),
    st.integers(3, 20),
    st.floats(0, 0.2),
    st.sampled_from(["30s", "1m", "2m"]),
    st.integers(1, 4),
    st.lists(st.integers(0, 60), max_size=4).map(sorted),
)
def test_only_what_changed_is_emitted_again(seed, offset, count, late_share, size, lag, restarts):
    """The last word on every whole window is the oracle's of all samples, and nothing else is said twice."""
    generator = np.random.default_rng(seed)
    start, step = T0 + offset, 20_000
    cuts = [start + i * step for i in range(count + 1)]
    ranges = [TimeRange(a, b) for a, b in pairwise(cuts)]
    everything = scraped(generator, start, cuts[-1], 40 * count)
    in_time = everything[generator.random(len(everything)) >= late_share]
    first = messages(in_time, ranges, LIVE, ends=False, recheck=RECHECK)
    second = messages(everything, ranges, RECHECK, ends=False, revision=1)
    streams = []
    for live, again in zip(first, second, strict=True):
        stream, groups = [], by_range(again)
        for i, group in enumerate(by_range(live)):
            stream += group
            if i >= lag:
                stream += groups[i - lag]
        streams.append([*stream, *(m for group in groups[max(count - lag, 0) :] for m in group)])
    view = View(ChunkSize.parse(size), "sum")
    records = [record for _, record in run(streams, view, restarts, until_low=False)]
    seen: dict = {}
    for record in records:
        key = record.pod, record.window_start_ms
        assert (key, record.revision) not in seen, "said twice"
        seen[key, record.revision] = record.metrics
    live, full = (windows(frame, size, "sum", "pod") for frame in (in_time, everything))
    whole_from, whole_to = start, ChunkSize.parse(size).floor_ms(cuts[-1])
    for (_, pod, window_ms), metrics in full.items():
        if window_ms >= whole_to:
            continue
        before, after = live.get(("shop", pod, window_ms)), seen.get(((pod, window_ms), 1))
        assert (seen.get(((pod, window_ms), 0)) is None) == (before is None)
        changed = (
            before is None or before.keys() != metrics.keys() or has_late(everything, in_time, pod, window_ms, size)
        )
        assert (after is not None) == (changed and window_ms >= whole_from), (before, metrics)
        if after is not None:
            assert after.keys() == metrics.keys()
            assert all(same(after[name], value) for name, value in metrics.items())


def has_late(everything, in_time, pod, window_ms, size) -> bool:
    """Tell whether a window of a pod got samples later."""
    end_ms = int(ChunkSize.parse(size).edges_ms(window_ms, window_ms + 1)[1])
    inside = (everything["pod"] == pod) & (everything["timestamp"] >= window_ms) & (everything["timestamp"] < end_ms)
    return bool((inside & ~everything.index.isin(in_time.index)).any())
