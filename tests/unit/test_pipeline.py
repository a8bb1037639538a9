"""The stream's heart: whatever way samples are cut, and wherever a worker restarts, windows are the oracle's."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from builders import messages
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import same, windows
from valid_records import decode_record

from ingestor.core import wire
from ingestor.core.durations import ChunkSize
from ingestor.core.errors import ConfigError
from ingestor.core.time_range import TimeRange
from stream_app import pipeline as pipeline_module
from stream_app.pipeline import Pipeline
from stream_app.view import View

T0 = 1_795_435_200_000
PODS = ["web-7d9f8b6c5-x2x4z", "web-7d9f8b6c5-8vx7t", "db-0", "db-1", "agent-tz6kd"]


@st.composite
def histories(draw):
    """Samples of a few pods over some minutes, and how the time is cut into ranges."""
    seed = draw(st.integers(0, 2**32))
    generator = np.random.default_rng(seed)
    minutes = draw(st.integers(1, 12))
    start = T0 + draw(st.integers(0, 120_000))
    end = start + minutes * 60_000 + draw(st.integers(0, 59_999))
    count = draw(st.integers(0, 400))
    frame = pd.DataFrame(
        {
            "namespace": "shop",
            "pod": generator.choice(PODS, count),
            "metric": generator.choice(["cpu", "memory", "up"], count),
            "series": generator.integers(0, 3, count),
            "timestamp": generator.integers(start, end, count),
            "value": generator.normal(size=count) * 10.0 ** generator.integers(-9, 16, count),
        }
    ).drop_duplicates(["pod", "metric", "series", "timestamp"])
    cuts = sorted({start, end, *draw(st.lists(st.integers(start + 1, end - 1), max_size=6))})
    ranges = [TimeRange(a, b) for a, b in pairwise(cuts)]
    return frame, ranges


def run(streams, view, restarts=(), *, until_low=True):
    """Feed every partition; before the messages numbered in *restarts* the worker starts again from its commit."""
    records = []
    for stream in streams:
        commit = (0, "")
        pipeline = Pipeline(view, *commit)
        offset = 0
        restarts_left = list(restarts)
        while offset < len(stream):
            if restarts_left and offset >= restarts_left[0]:
                restarts_left.pop(0)
                pipeline = Pipeline(view, *commit)
                offset = commit[0]
            headers, value = stream[offset]
            for emission in pipeline.feed(offset, wire.decode(headers, value)):
                records += [(output.topic, decode_record(output.value)) for output in emission.outputs]
                commit = (emission.offset, emission.metadata)
            offset += 1
        assert pipeline.low == len(stream) or not until_low
    return records


def as_cells(records, topic):
    cells = {}
    for name, record in records:
        if name == topic:
            key = (record.namespace, record.pod or record.service, record.window_start_ms)
            assert key not in cells, f"{key} was emitted twice"
            cells[key] = record.metrics
    return cells


def assert_same(cells, expected):
    assert cells.keys() == expected.keys()
    for key, metrics in expected.items():
        assert cells[key].keys() == metrics.keys()
        for metric, value in metrics.items():
            assert same(cells[key][metric], value), (key, metric, cells[key][metric], value)


@settings(max_examples=60, deadline=None)
@given(
    histories(),
    st.sampled_from(["sum", "mean", "median"]),
    st.sampled_from(["pooled", "last"]),
    st.sampled_from(["30s", "1m", "7m", "1h"]),
    st.lists(st.integers(0, 20), max_size=4).map(sorted),
)
def test_windows_equal_the_oracle(history, method, over_time, size, restarts):
    """However time is cut into ranges and wherever a worker restarts, each window is emitted once, and right."""
    samples, ranges = history
    view = View(ChunkSize.parse(size), method, over_time, ("pod", "service"))
    records = run(messages(samples, ranges), view, restarts)
    for group_by in ("pod", "service"):
        assert_same(as_cells(records, view.topics.sink(group_by)), windows(samples, size, method, group_by, over_time))


@settings(max_examples=20, deadline=None)
@given(histories(), st.integers(1, 9))
def test_small_emissions_restart_between_any_two(history, records_each):
    """A worker that dies between two emissions of one marker neither loses nor repeats a window."""
    samples, ranges = history
    view = View(ChunkSize.parse("30s"), "sum")
    whole = pipeline_module.EMISSION_RECORDS
    pipeline_module.EMISSION_RECORDS = records_each
    try:
        records = []
        for stream in messages(samples, ranges):
            commit, offset = (0, ""), 0
            pipeline = Pipeline(view, *commit)
            while offset < len(stream):
                emissions = pipeline.feed(offset, wire.decode(*stream[offset]))
                offset += 1
                if emissions:
                    # Only the first is written; the rest is lost with the process.
                    records += [(o.topic, decode_record(o.value)) for o in emissions[0].outputs]
                    commit = (emissions[0].offset, emissions[0].metadata)
                if len(emissions) > 1:
                    pipeline, offset = Pipeline(view, *commit), commit[0]
        assert_same(as_cells(records, view.topics.pods), windows(samples, "30s", "sum", "pod"))
    finally:
        pipeline_module.EMISSION_RECORDS = whole


def constant(stamps, pod="web-7d9f8b6c5-x2x4z", value=1.0):
    return pd.DataFrame(
        {"namespace": "shop", "pod": pod, "metric": "up", "series": 0, "timestamp": stamps, "value": value}
    )


def test_cut_windows_say_so():
    """The windows that a job's start and end cut are partial, the whole ones between them are not."""
    samples = constant(range(T0 + 30_000, T0 + 210_000, 15_000))
    streams = messages(samples, [TimeRange(T0 + 30_000, T0 + 100_000), TimeRange(T0 + 100_000, T0 + 200_000)])
    records = run(streams, View(ChunkSize.parse("1m"), "sum"))
    assert [(r.window_start_ms - T0, r.partial, r.metrics["up"]) for _, r in records] == [
        (0, True, 2.0),
        (60_000, False, 4.0),
        (120_000, False, 4.0),
        (180_000, True, 2.0),
    ]


def test_a_window_waits_for_its_marker():
    """Nothing is emitted before a marker has passed the window's end, however many chunks have come."""
    samples = constant(range(T0, T0 + 119_000, 1000))
    streams = messages(samples, [TimeRange(T0, T0 + 59_999), TimeRange(T0 + 59_999, T0 + 61_000)], ends=False)
    stream = max(streams, key=len)
    pipeline = Pipeline(View(ChunkSize.parse("1m"), "sum"), 0, "")
    emitted = [pipeline.feed(offset, wire.decode(*message)) for offset, message in enumerate(stream)]
    assert [len(e) for e in emitted] == [0, 0, 0, 1]
    assert pipeline.low == 2, "a restart must see the second range again, not the first"


def test_missing_messages_make_windows_partial(caplog):
    """A gap in the sequence numbers is said aloud, and its windows are partial."""
    samples = constant(range(T0, T0 + 180_000, 15_000))
    streams = messages(samples, [TimeRange(T0 + i * 60_000, T0 + (i + 1) * 60_000) for i in range(3)])
    stream = max(streams, key=len)
    del stream[2]
    records = run([stream], View(ChunkSize.parse("1m"), "sum"))
    assert [(r.window_start_ms - T0, r.partial) for _, r in records] == [(0, False), (120_000, False)]
    assert "missing" in caplog.text


def test_infinities_and_nan():
    """NaN travels as null, infinities by name; a sum with NaN is NaN, one with both infinities is too."""
    inf, nan = float("inf"), float("nan")
    for values, expected in [([1.0, inf], inf), ([-inf, 2.0], -inf), ([inf, -inf], nan), ([nan, 1.0], nan)]:
        for method in ("sum", "mean"):
            samples = constant([T0, T0 + 1000], value=values)
            records = run(messages(samples, [TimeRange(T0, T0 + 60_000)]), View(ChunkSize.parse("1m"), method))
            assert same(records[0][1].metrics["up"], expected), (values, method)
    samples = constant([T0, T0 + 1000, T0 + 2000], value=[nan, 1.0, 2.0])
    records = run(messages(samples, [TimeRange(T0, T0 + 60_000)]), View(ChunkSize.parse("1m"), "median"))
    assert same(records[0][1].metrics["up"], nan)


def test_sums_are_right_to_the_last_digit():
    """Small values are not lost beside large ones, in whatever ranges they come."""
    values = [1e15, *([0.1] * 1000), -1e15]
    samples = constant(range(T0, T0 + len(values)), value=values)
    cuts = [T0, T0 + 3, T0 + 500, T0 + 60_000]
    ranges = [TimeRange(a, b) for a, b in pairwise(cuts)]
    records = run(messages(samples, ranges), View(ChunkSize.parse("1m"), "sum"))
    assert_same(as_cells(records, "metrics.pods"), windows(samples, "1m", "sum", "pod"))


@pytest.mark.parametrize(
    "values",
    [[0.1] * 3, [16_777_216.7] * 40, [1e15 + i for i in range(10)], [1e9 + i / 7 for i in range(40)], [1e200] * 9],
)
def test_deviations_of_large_values_that_are_alike_are_right(values):
    """However far from zero: none where all are the same, else to the last digits; and it is the same for all cuts."""
    samples, found = constant(range(T0, T0 + len(values)), value=values), set()
    for cut in range(1, len(values), 3):
        ranges = [TimeRange(T0, T0 + cut), TimeRange(T0 + cut, T0 + 60_000)]
        records = run(messages(samples, ranges), View(ChunkSize.parse("1m"), "stddev"))
        assert_same(as_cells(records, "metrics.pods"), windows(samples, "1m", "stddev", "pod"))
        found.add(records[0][1].metrics["up"])
    assert len(found) == 1


def test_a_zero_in_the_middle_has_no_sign():
    """Two zeros of both signs are alike: which of them comes first must not show."""
    for values in ([-1.0, 0.0, -0.0, 1.0, 1.0], [-0.0, -1.0, 0.0, 1.0, -1.0]):
        samples = constant(range(T0, T0 + 5), value=values)
        for method in ("median", "p50"):
            records = run(messages(samples, [TimeRange(T0, T0 + 60_000)]), View(ChunkSize.parse("1m"), method))
            assert str(records[0][1].metrics["up"]) == "0.0", method


@pytest.mark.parametrize(("method", "count"), [("p70", 15), ("p90", 43), ("p95", 37)])
def test_quantiles_of_values_that_are_alike_are_that_value(method, count):
    """A constant metric is constant in every window, however many samples it has there."""
    samples = constant(range(T0, T0 + count), value=1 / 3)
    records = run(messages(samples, [TimeRange(T0, T0 + 60_000)]), View(ChunkSize.parse("1m"), method))
    assert records[0][1].metrics["up"] == 1 / 3


@pytest.mark.parametrize(("method", "rank"), [("p99.9", 999), ("p0.7", 7), ("p35.1", 351), ("p50", 500)])
def test_a_quantile_reaches_no_further_than_its_percentage(method, rank):
    """Of 1,001 samples each thousandth is one of them: what lies above it, were it infinite, does not show."""
    values = [float(i) if i <= rank else math.inf for i in range(1_001)]
    samples = constant(range(T0, T0 + len(values)), value=values)
    records = run(messages(samples, [TimeRange(T0, T0 + 60_000)]), View(ChunkSize.parse("1m"), method))
    assert records[0][1].metrics["up"] == float(rank)


def test_another_views_commit_is_refused():
    """A group's commit that another view wrote is not taken for ours."""
    pipeline = Pipeline(View(ChunkSize.parse("1m"), "sum"), 0, "")
    metadata = pipeline.idle_emission().metadata
    with pytest.raises(ConfigError, match="another view"):
        Pipeline(View(ChunkSize.parse("1m"), "mean"), 0, metadata)


def test_a_topic_whose_head_is_gone_begins_partial():
    """Where retention has cut into a range, its windows say that they are not whole."""
    samples = constant(range(T0, T0 + 180_000, 1000))
    streams = messages(samples, [TimeRange(T0 + i * 60_000, T0 + (i + 1) * 60_000) for i in range(3)])
    stream = max(streams, key=len)[1:]
    records = run([stream], View(ChunkSize.parse("1m"), "sum"))
    assert [(r.window_start_ms - T0, r.partial) for _, r in records] == [(60_000, False), (120_000, False)]
    records = run([stream], View(ChunkSize.parse("2m"), "sum"))
    assert [(r.window_start_ms - T0, r.partial) for _, r in records] == [(0, True), (120_000, True)]


def test_a_message_that_comes_twice_counts_once(caplog):
    """A repeated sequence number is said aloud and left out."""
    samples = constant(range(T0, T0 + 60_000, 15_000))
    stream = max(messages(samples, [TimeRange(T0, T0 + 60_000)]), key=len)
    records = run([[stream[0], *stream]], View(ChunkSize.parse("1m"), "sum"))
    assert [(r.partial, r.metrics["up"]) for _, r in records] == [(False, 4.0)]
    assert "twice" in caplog.text


def test_a_metric_whose_type_changes_has_one_value():
    """Metadata may come late: a window that has seen both types still says one thing of the metric."""
    samples = constant(range(T0, T0 + 60_000, 15_000), value=[1.0, 2.0, 4.0, 8.0])
    stream = max(messages(samples, [TimeRange(T0, T0 + 30_000), TimeRange(T0 + 30_000, T0 + 60_000)]), key=len)
    pipeline = Pipeline(View(ChunkSize.parse("1m"), "sum", counters="increase"), 0, "")
    found = []
    for offset, message in enumerate(stream):
        item = wire.decode(*message)
        if offset == 2:
            counter = pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()), pa.array(["counter"]))
            item = replace(item, series=replace(item.series, type=counter))
        found += [o for emission in pipeline.feed(offset, item) for o in emission.outputs]
    assert [decode_record(output.value).metrics for output in found] == [{"up": 4.0}]
    assert found[0].value.count(b'"up"') == 1


def test_columns_that_come_and_go_are_forgotten():
    """A split label with new values every minute does not fill the memory of a view that looks back."""
    frames = [constant([T0 + n * 60_000], value=1.0).assign(metric=f"m{n}_{i}") for n in range(40) for i in range(60)]
    samples = pd.concat(frames, ignore_index=True)
    ranges = [TimeRange(T0 + n * 60_000, T0 + (n + 1) * 60_000) for n in range(40)]
    stream = max(messages(samples, ranges, ends=False), key=len)
    pipeline = Pipeline(View(ChunkSize.parse("1m"), "sum", "increase"), 0, "")
    most = 0
    for offset, message in enumerate(stream):
        pipeline.feed(offset, wire.decode(*message))
        ((windows,),) = (job.windows for job in pipeline._jobs.values())
        most = max(most, len(windows._metrics.names))
    assert 60 < most < 1900 < samples["metric"].nunique()


def test_a_type_that_is_forgotten_still_holds():
    """A backend that has just started calls a counter unknown: it stays a counter."""
    samples = constant(range(T0, T0 + 120_000, 15_000), value=[1.0, 2.0, 4.0, 8.0, 9.0, 10.0, 11.0, 12.0])
    stream = max(messages(samples, [TimeRange(T0, T0 + 90_000), TimeRange(T0 + 90_000, T0 + 120_000)]), key=len)
    pipeline = Pipeline(View(ChunkSize.parse("2m"), "sum", counters="increase"), 0, "")
    found = []
    for offset, message in enumerate(stream):
        item = wire.decode(*message)
        if offset == 0:
            counter = pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()), pa.array(["counter"]))
            item = replace(item, series=replace(item.series, type=counter))
        found += [o for emission in pipeline.feed(offset, item) for o in emission.outputs]
    assert [decode_record(output.value).metrics for output in found] == [{"up": 11.0}]
