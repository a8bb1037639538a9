"""A second reading of live ranges: only windows whose result changed are emitted again, wherever a worker restarts."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import orjson
import pandas as pd
from builders import messages
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import same, windows
from test_pipeline import run

from ingestor.core import wire
from ingestor.core.durations import ChunkSize
from ingestor.core.time_range import TimeRange
from stream_app.earlier import EarlierResults
from stream_app.encoding import result_hash
from stream_app.pipeline import Identity, Pipeline
from stream_app.records import Record, decode_record, record_key
from stream_app.view import View

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
    second = messages(everything, ranges, RECHECK, ends=False, revision=1, recheck=RECHECK)
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


def one_pod(count: int) -> pd.DataFrame:
    """A sample every five seconds, in two metrics."""
    times = range(T0, T0 + count * 20_000, 5_000)
    frame = pd.DataFrame({"timestamp": [*times, *times], "metric": ["cpu"] * len(times) + ["memory"] * len(times)})
    return frame.assign(namespace="shop", pod="db-0", series=0, value=1.0)


def stream_of(live: list, again: list, lag: int) -> list:
    groups, stream = by_range(again), []
    for i, group in enumerate(by_range(live)):
        stream += group
        if lag <= i < lag + len(groups):
            stream += groups[i - lag]
    return stream


def revisions(stream: list, restarts: list[int] | None = None) -> list:
    records = run([stream], View(ChunkSize.parse("1m"), "sum"), restarts or [], until_low=False)
    return [record for _, record in records if record.revision]


def adjoining(first: int, last: int) -> list[TimeRange]:
    return [TimeRange(T0 + i * 20_000, T0 + (i + 1) * 20_000) for i in range(first, last)]


def test_a_recheck_that_was_refused_a_metric_says_nothing() -> None:
    """What the backend refuses the second time was right the first time."""
    samples = one_pod(12)
    live = max(messages(samples, adjoining(0, 12), LIVE, ends=False, recheck=RECHECK), key=len)
    only_memory = samples[samples["metric"] == "memory"]
    again = max(messages(only_memory, adjoining(0, 8), RECHECK, ends=False, revision=1, recheck=RECHECK), key=len)
    assert len(revisions(stream_of(live, again, 3))) == 2, "without a word of why, less is a change"
    refused = orjson.dumps([["cpu", T0, T0 + 8 * 20_000]])
    told = [(h + [("incomplete", refused)] * (dict(h)["kind"] == b"marker"), value) for h, value in again]
    assert revisions(stream_of(live, told, 3)) == []


def test_a_recheck_of_a_cancelled_job_says_nothing() -> None:
    """What it has read a part of must not replace what its job has said."""
    samples = one_pod(12)
    live = max(messages(samples, adjoining(0, 9), LIVE, recheck=RECHECK), key=len)
    again = max(messages(samples, adjoining(0, 7), RECHECK, revision=1, recheck=RECHECK), key=len)
    assert revisions([*live, *again]) == []


def test_a_restart_before_the_recheck_begins_changes_nothing() -> None:
    """A recheck that is added in the middle of a window compares with what was said, also after a restart."""
    samples = one_pod(15)
    before = max(messages(samples, adjoining(0, 4), LIVE, ends=False), key=len)
    whole = max(messages(samples, adjoining(0, 15), LIVE, ends=False), key=len)
    # From the fifth range on, in the middle of the second window, the messages name the recheck.
    named = [
        (h if i < len(before) else [*h, ("recheck", RECHECK.encode())], value) for i, (h, value) in enumerate(whole)
    ]
    again = max(messages(samples, adjoining(4, 12), RECHECK, ends=False, revision=1, recheck=RECHECK), key=len)
    stream = stream_of(named, again, 7)
    for restart in range(len(stream)):
        assert revisions(stream, [restart]) == [], restart


def test_a_recheck_says_what_was_incomplete_even_if_it_is_the_same() -> None:
    """A window of which a message was lost says that it may be wrong; the recheck says that it is right, once."""
    samples = one_pod(12)
    live = max(messages(samples, adjoining(0, 12), LIVE, ends=False, recheck=RECHECK), key=len)
    again = max(messages(samples, adjoining(0, 8), RECHECK, ends=False, revision=1, recheck=RECHECK), key=len)
    # The marker of the second range, without any sample.
    stream = stream_of(live, again, 3)
    stream.remove(live[3])
    for restart in range(len(stream)):
        said = revisions(stream, [restart])
        assert [(r.window_start_ms - T0, r.partial, r.incomplete) for r in said] == [(0, False, ())], restart


def test_a_recheck_that_has_ended_holds_nothing_back() -> None:
    """Its job goes on, also after a restart that does not see the recheck's end any more."""
    samples = one_pod(15)
    live = max(messages(samples, adjoining(0, 15), LIVE, ends=False, recheck=RECHECK), key=len)
    again = max(messages(samples, adjoining(0, 3), RECHECK, revision=1, recheck=RECHECK), key=len)
    stream = [*live[:12], *again, *live[12:]]
    view, commit = View(ChunkSize.parse("1m"), "sum"), (0, "")
    pipeline, fed = Pipeline(view, *commit), 0
    for number in range(len(stream)):
        for offset in range(fed, number + 1):
            for emission in pipeline.feed(offset, wire.decode(*stream[offset])):
                commit = emission.offset, emission.metadata
        pipeline, fed = Pipeline(view, *commit), commit[0]
    assert commit[0] == len(stream)


def test_nothing_was_written_before() -> None:
    """A job that repeats a time of which there is no record says all of it."""
    nothing = EarlierResults(np.empty(0, np.int64), np.empty(0, np.int64))
    assert nothing.get(("metrics.pods", b"shop/db-0", T0)) is None
    stream = max(messages(one_pod(6), adjoining(0, 6), "again", revision=1), key=len)
    asked = []
    pipeline = Pipeline(View(ChunkSize.parse("1m"), "sum"), 0, "", lambda from_ms: asked.append(from_ms) or nothing)
    emissions = [e for offset, message in enumerate(stream) for e in pipeline.feed(offset, wire.decode(*message))]
    assert sum(len(emission.outputs) for emission in emissions) == 2
    assert asked == [T0], "it is read once"


def test_a_record_that_is_too_large_is_repeated_alone() -> None:
    """What was written without its metrics says nothing that a repeated job could equal; all others say it already."""
    of_all = pd.concat([one_pod(6), one_pod(6).assign(pod="db-1")])
    names = [f"{'a_long_name_' * 84}{number}" for number in range(2_000)]
    large = pd.DataFrame(
        {"namespace": "shop", "pod": "db-1", "metric": names, "series": 0, "timestamp": T0, "value": 1.0}
    )
    samples, view = pd.concat([of_all, large]), View(ChunkSize.parse("1m"), "sum")

    def emitted(revision: int, known: dict[Identity, int]) -> list[tuple[Record, bool]]:
        stream = max(messages(samples, adjoining(0, 6), "job", revision=revision), key=len)
        pipeline = Pipeline(view, 0, "", lambda _: known)
        emissions = [e for offset, message in enumerate(stream) for e in pipeline.feed(offset, wire.decode(*message))]
        return [
            (decode_record(value), place in batch.too_large)
            for emission in emissions
            for batch in emission.records
            for place, value in enumerate(batch.values)
        ]

    first = emitted(0, {})
    known = {
        (view.topics.pods, record_key(r.namespace, r.pod, r.service), r.window_start_ms): 0
        if r.incomplete
        else result_hash(list(r.metrics), np.array(list(r.metrics.values())), r.samples)
        for r, _ in first
    }
    assert len(known) == len(first) == 2 * len({r.window_start_ms for r, _ in first})
    [(record, is_too_large)] = emitted(1, known)
    assert is_too_large
    assert (record.pod, record.window_start_ms, record.revision, record.metrics) == ("db-1", T0, 1, {})
    assert [one for one in first if one[1]] == [(replace(record, revision=0), True)]
