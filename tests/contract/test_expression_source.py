"""Expressions on a real Prometheus: what it answers itself, and what pandas computes, however time is cut."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import history
import numpy as np
import pandas as pd
import pytest
import requests

from ingestor.core.errors import ConfigError, QueryRejected, TooManySamples
from ingestor.core.time_range import TimeRange, iso
from ingestor.expressions import Expressions
from ingestor.local.prometheus import Binaries, LocalPrometheus, create_blocks
from ingestor.selector import Selector
from ingestor.sources import registry
from ingestor.sources.base import SeriesBlock
from ingestor.sources.expressions import MOST_POINTS, WithExpressions
from ingestor.sources.http_query import HttpQuerySource

PODS = Selector.parse('{pod!=""}')
WHOLE = TimeRange(history.START_MS, history.END_MS)
LOOK_BACK_MS = 300_000
STEP_MS = 7_000

SUM = "sum by (namespace, pod) (http_requests_total)"
NAN = "sum by (namespace, pod) (queue_depth) * NaN"
PROMQL = {
    "requests": SUM,
    "request_rate": "sum by (namespace, pod) (rate(http_requests_total[5m]))",
    "bare": "http_requests_total",
    "not_a_number": NAN,
    "sparse": "sum by (namespace, pod) (queue_depth > 35)",
    "no_series": "sum by (namespace, pod) (no_such_metric)",
    "no_pod": "sum by (namespace) (queue_depth)",
    "two_names": '{__name__=~"queue_depth|temperature_celsius"}',
}

Points = dict[tuple[frozenset[tuple[str, str]], int], float]


@pytest.fixture
def make(prometheus: LocalPrometheus) -> Callable[..., WithExpressions]:
    """Sources with all expressions, at some step."""

    def made(step_ms: int = STEP_MS, way: str = "auto", **promql: str) -> WithExpressions:
        expressions = Expressions.parse(promql or PROMQL)
        return WithExpressions(registry.SOURCES[way](prometheus.url), prometheus.url, expressions, step_ms)

    return made


def found(metric: str, *blocks: SeriesBlock) -> Points:
    """Return the points of blocks, and see that each is there once, in order, and spelt as all labels are."""
    points: Points = {}
    for block in blocks:
        assert (np.diff(block.offsets) > 0).all(), "a series without points"
        assert len(set(block.label_sets)) == len(block)
        for text, first, last in zip(block.label_sets, block.offsets[:-1], block.offsets[1:], strict=True):
            labels = json.loads(text)
            assert json.dumps(labels, separators=(",", ":"), sort_keys=True).encode() == text
            assert labels.pop("__name__") == metric
            times_ms = block.timestamps_ms[first:last]
            assert (np.diff(times_ms) > 0).all()
            for t, value in zip(times_ms.tolist(), block.values[first:last].tolist(), strict=True):
                key = frozenset(labels.items()), t
                assert key not in points, "a point came twice"
                points[key] = value
    return points


def bits(points: Points) -> dict[tuple[frozenset[tuple[str, str]], int], str]:
    """Make points comparable: NaN equals NaN."""
    return {key: repr(value) for key, value in points.items()}


def answered(url: str, promql: str, time_range: TimeRange, step_ms: int) -> Points:
    """Ask the server, as its documentation says, for a thousand points at a time."""
    first = -(-time_range.start_ms // step_ms) * step_ms
    points: Points = {}
    for start_ms in range(first, time_range.end_ms, step_ms * 1000):
        end_ms = min(start_ms + step_ms * 999, time_range.end_ms - 1)
        asked = {"query": promql, "start": iso(start_ms), "end": iso(end_ms), "step": f"{step_ms / 1000:.3f}"}
        for series in requests.get(f"{url}/api/v1/query_range", asked, timeout=60).json()["data"]["result"]:
            series["metric"].pop("__name__", None)
            for seconds, text in series["values"]:
                points[frozenset(series["metric"].items()), round(seconds * 1000)] = float(text)
    return points


def sums(samples: pd.DataFrame, time_range: TimeRange, step_ms: int) -> Points:
    """Compute `SUM` the short way: each series' last sample of the five minutes before a point, summed a pod."""
    first = -(-time_range.start_ms // step_ms) * step_ms
    grid = pd.DataFrame({"point": np.arange(first, time_range.end_ms, step_ms)})
    parts = [
        pd.merge_asof(
            grid, part.sort_values("timestamp"), left_on="point", right_on="timestamp", tolerance=LOOK_BACK_MS
        ).dropna(subset="value")
        for _, part in samples[samples["metric"] == "http_requests_total"].groupby(["namespace", "pod", "series"])
    ]
    joined = pd.concat(parts)
    # There, the versions of Prometheus differ.
    assert (joined["point"] - joined["timestamp"] < LOOK_BACK_MS).all()
    totals = joined.groupby(["namespace", "pod", "point"])["value"].sum()
    return {
        (frozenset((k, v) for k, v in (("namespace", namespace), ("pod", pod)) if v), int(point)): value
        for (namespace, pod, point), value in totals.items()
    }


def test_a_sum_is_what_pandas_computes(make: Callable[..., WithExpressions], samples: pd.DataFrame) -> None:
    """Pods that come and go, gaps and pods without a namespace included."""
    points = found("requests", make().fetch(PODS, "requests", WHOLE))
    assert len(points) > 5_000
    assert points == sums(samples, WHOLE, STEP_MS)


@pytest.mark.parametrize("metric", ["requests", "request_rate", "bare", "not_a_number", "sparse", "no_pod"])
def test_points_are_what_the_server_answers(
    make: Callable[..., WithExpressions], prometheus: LocalPrometheus, metric: str
) -> None:
    """To the bit, with the labels of the result and the expression's name."""
    points = found(metric, make().fetch(PODS, metric, WHOLE))
    assert bits(points) == bits(answered(prometheus.url, PROMQL[metric], WHOLE, STEP_MS))
    assert points
    assert all(t % STEP_MS == 0 and WHOLE.start_ms <= t < WHOLE.end_ms for _, t in points)


@pytest.mark.parametrize("step_ms", [29, 250, 1_001, 7_000, 60_000])
@pytest.mark.parametrize("seed", range(3))
def test_any_cutting_gives_the_same_points(make: Callable[..., WithExpressions], step_ms: int, seed: int) -> None:
    """Each point is in exactly one range: also where cuts are on points, or closer together than the step."""
    generator, source = random.Random(seed), make(step_ms)
    start_ms = WHOLE.start_ms + 3_600_000 + seed
    part = TimeRange(start_ms, start_ms + min(600 * step_ms, 3_600_000))
    cuts = {generator.randrange(part.start_ms, part.end_ms) for _ in range(8)}
    on_points = {cut - cut % step_ms + near for cut in list(cuts)[:4] for near in (0, 1)}
    edges = sorted(
        {part.start_ms, part.end_ms} | {cut for cut in cuts | on_points if part.start_ms < cut < part.end_ms}
    )
    ranges = [TimeRange(a, b) for a, b in itertools.pairwise(edges)]
    for metric in ("requests", "sparse", "not_a_number"):
        cut = found(metric, *(source.fetch(PODS, metric, piece) for piece in ranges))
        assert bits(cut) == bits(found(metric, source.fetch(PODS, metric, part)))
        assert cut
        assert all(t % step_ms == 0 for _, t in cut)


@pytest.mark.parametrize("count", [1, MOST_POINTS - 1, MOST_POINTS, MOST_POINTS + 1, 25_000])
def test_as_many_points_as_are_wanted(
    make: Callable[..., WithExpressions], prometheus: LocalPrometheus, count: int
) -> None:
    """More than the server gives at once come in several requests, joined in time order; none is lost or doubled."""
    step_ms = 250
    end_ms = WHOLE.end_ms - WHOLE.end_ms % step_ms
    part = TimeRange(end_ms - count * step_ms, end_ms)
    # Pods that are there for a part of the time only are what joining must not mix up.
    promql = 'sum by (namespace, pod) (http_requests_total{pod=~"web-.*|report-.*"})'
    block = make(step_ms, few=promql).fetch(PODS, "few", part)
    points = found("few", block)
    assert points == answered(prometheus.url, promql, part, step_ms)
    assert max(np.diff(block.offsets)) == count


def test_a_range_without_a_point(make: Callable[..., WithExpressions]) -> None:
    """The point on a range's end is the next range's."""
    source = make(60_000)
    point = WHOLE.end_ms - WHOLE.end_ms % 60_000
    for part, count in [
        (TimeRange(point - 59_999, point), 0),
        (TimeRange(point - 59_999, point + 1), 1),
        (TimeRange(point, point + 1), 1),
        (TimeRange(point + 1, point + 60_000), 0),
    ]:
        block = source.fetch(PODS, "requests", part)
        assert {t for _, t in found("requests", block)} == ({point} if count else set())
        assert bool(len(block)) == bool(count)


def test_nothing_found_is_an_empty_block(make: Callable[..., WithExpressions]) -> None:
    """No error."""
    for metric, part in [
        ("no_series", WHOLE),
        ("requests", TimeRange(WHOLE.start_ms - 7_200_000, WHOLE.start_ms - 3_600_000)),
    ]:
        block = make().fetch(PODS, metric, part)
        assert (len(block), block.samples, block.offsets.tolist()) == (0, 0, [0])


def test_not_a_number_stays(make: Callable[..., WithExpressions]) -> None:
    """It is what the expression says, not a gap."""
    values = make().fetch(PODS, "not_a_number", WHOLE).values
    assert len(values) > 5_000
    assert all(math.isnan(value) for value in values.tolist())


@pytest.mark.parametrize("way", list(registry.SOURCES))
def test_everything_else_is_the_other_source(make: Callable[..., WithExpressions], way: str) -> None:
    """Metrics come as they do without expressions, under whatever selector."""
    source = make(way=way)
    plain, selector = source._source, PODS.with_matchers('namespace="shop"')
    assert source.name == plain.name == way
    part = TimeRange(WHOLE.start_ms, WHOLE.start_ms + 600_000)
    one, other = source.fetch(selector, "queue_depth", part), plain.fetch(selector, "queue_depth", part)
    assert one.label_sets == other.label_sets
    assert one.values.tolist() == other.values.tolist()
    assert source.metric_names(selector, WHOLE) == sorted([*history.METRICS, *PROMQL])
    assert source.metric_types() == plain.metric_types() | dict.fromkeys(PROMQL, "gauge")
    at_ms = WHOLE.start_ms + 3_600_000
    assert source.count_series(selector, at_ms) == plain.count_series(selector, at_ms) > 0
    assert source.label_sets(["queue_depth"], part) == plain.label_sets(["queue_depth"], part)
    assert abs(source.now_ms() - plain.now_ms()) < 5_000
    source.close()
    assert plain.fetch(selector, "queue_depth", part).samples == other.samples


def test_a_name_that_a_metric_has_is_refused(make: Callable[..., WithExpressions]) -> None:
    """Where that metric would be read too."""
    source = make(queue_depth="sum by (pod) (up)", fine="sum by (pod) (up)")
    with pytest.raises(ConfigError, match=r"^queue_depth: a metric of .* has the name of an expression"):
        source.metric_names(PODS, WHOLE)
    assert source.metric_names(Selector.parse("temperature_celsius"), WHOLE) == [
        "fine",
        "queue_depth",
        "temperature_celsius",
    ]


def test_series_that_only_their_metrics_name_tells_apart_are_refused(make: Callable[..., WithExpressions]) -> None:
    """As metrics of one name they would be one series, with two values at once."""
    with pytest.raises(QueryRejected, match=r"the expression two_names cannot be used: .* metric's name only"):
        make().fetch(PODS, "two_names", WHOLE)


def test_good_expressions_pass_the_check(make: Callable[..., WithExpressions]) -> None:
    """Those without series at the moment too."""
    source = make(**{name: promql for name, promql in PROMQL.items() if name != "two_names"})
    assert abs(source.check() - source.now_ms()) < 5_000


def test_wrong_expressions_are_told_at_the_start(make: Callable[..., WithExpressions]) -> None:
    """All of them at once, each with its name and the server's words."""
    source = make(
        good=SUM,
        cut="sum by (pod) (up",
        unknown="frobnicate(up)",
        one_number="scalar(sum(up))",
        literal="42",
        text='"x"',
        ranges="http_requests_total[5m]",
    )
    with pytest.raises(ConfigError) as caught:
        source.check()
    told = str(caught.value)
    for name, words in [
        ("cut", "parse error: unclosed left parenthesis"),
        ("unknown", 'unknown function with name "frobnicate"'),
        ("one_number", "it gives one number, which belongs to no pod"),
        ("literal", "it gives one number"),
        ("text", "it gives a text"),
        ("ranges", "it gives ranges of samples"),
    ]:
        part = next(part for part in told.split("; ") if part.startswith(f"the expression {name} cannot be used: "))
        assert words in part
    assert "good" not in told
    assert "\n" not in told


def test_a_query_too_large_is_what_halving_helps(
    prometheus_binaries: Binaries, samples: pd.DataFrame, tmp_path: Path
) -> None:
    """A server that loads 2,000 samples at most refuses the whole, and gives the parts."""
    history.write_openmetrics(samples[samples["metric"] == "queue_depth"], tmp_path / "history.om")
    server = LocalPrometheus(tmp_path / "server", extra_args=["--query.max-samples=2000"])
    create_blocks(tmp_path / "history.om", server.data_dir)
    with server:
        depth = Expressions.parse({"depth": "sum by (namespace, pod) (queue_depth)"})
        source = WithExpressions(HttpQuerySource(server.url), server.url, depth, 15_000)
        with pytest.raises(TooManySamples, match="too many samples"):
            source.fetch(PODS, "depth", WHOLE)
        waiting, blocks = [WHOLE], []
        while waiting:
            part = waiting.pop()
            try:
                blocks.append(source.fetch(PODS, "depth", part))
            except TooManySamples:
                waiting += part.halves()
        assert len(blocks) > 1
        assert {t for _, t in found("depth", *blocks)} == set(
            range(-(-WHOLE.start_ms // 15_000) * 15_000, WHOLE.end_ms, 15_000)
        )
