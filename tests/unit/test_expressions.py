"""Expressions are read in either spelling, and their points are the same however time is cut."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from test_http_errors import RANGE, Backend, api_error, reply

from ingestor.core.errors import ConfigError, IngestorError, QueryRejected, SourceUnavailable, TooManySamples
from ingestor.core.time_range import TimeRange
from ingestor.expressions import Expressions
from ingestor.selector import Selector
from ingestor.sources.expressions import MOST_POINTS, WithExpressions, _requests
from ingestor.sources.http_query import HttpQuerySource

PODS = Selector.parse('{pod!=""}')
CPU = "sum by (namespace, pod) (rate(container_cpu_usage_seconds_total{container!=''}[5m]))"
EXPRESSIONS = Expressions.parse({"cpu_rate": CPU, "job:errors:ratio": "errors / requests"})


@pytest.fixture
def backend() -> Iterator[Backend]:
    backend = Backend()
    yield backend
    backend.server.shutdown()
    backend.server.server_close()


def test_both_spellings_mean_the_same() -> None:
    """PromQL's own equals signs, quotes and line ends are its own."""
    text = f"cpu_rate: {CPU}\njob:errors:ratio: |\n  errors / requests\n"
    assert Expressions.parse(yaml.safe_load(text)) == EXPRESSIONS
    assert Expressions.parse([f"cpu_rate={CPU}", " job:errors:ratio = errors / requests "]) == EXPRESSIONS
    assert Expressions.parse(yaml.safe_load(text).items()) == EXPRESSIONS
    assert dict(EXPRESSIONS.by_name) == {"cpu_rate": CPU, "job:errors:ratio": "errors / requests"}
    assert Expressions.parse(['a=b == bool c{d="=e"}']).by_name == {"a": 'b == bool c{d="=e"}'}
    assert Expressions.parse({}) == Expressions.parse([]) == Expressions()


@pytest.mark.parametrize(
    ("given_", "faults"),
    [
        ({"cpu rate": "up"}, ["'cpu rate' is not a metric's name"]),
        ({"5m": "up"}, ["'5m' is not a metric's name"]),
        ({"größe": "up"}, ["'größe' is not a metric's name"]),
        ({"": "up"}, ["an expression has no name (it says 'up')"]),
        ({"a": " \n"}, ["the expression 'a' is empty"]),
        ({"a": None}, ["the expression 'a' is not text but None"]),
        ({"a": ["up"]}, ["the expression 'a' is not text but ['up']"]),
        (yaml.safe_load("on: up"), ["name True is not text: put it in quotes"]),
        (["up"], ["an expression has no name (it says 'up')"]),
        (["=up"], ["an expression has no name (it says 'up')"]),
        ([("a", "up"), "a=up", ["b", ""]], ["'a' is there 2 times", "'b' is empty"]),
        ([7], ["name 7 is not text"]),
        (["a="], ["the expression 'a' is empty"]),
        (["a=up", "b=up", "a=up"], ["the expression 'a' is there 2 times"]),
        (["sum(up{a='b'})"], ['"sum(up{a" is not', "sum"]),
        (["a b=", "c=", "c=up"], ["'a b' is not", "'a b' is empty", "'c' is empty", "'c' is there 2 times"]),
    ],
)
def test_all_faults_are_told_at_once(given_: object, faults: list[str]) -> None:
    """In one line, with an example."""
    with pytest.raises(ValueError, match="write it like cpu_rate=sum by") as caught:
        Expressions.parse(given_)  # type: ignore[arg-type]
    for fault in faults:
        assert fault.replace('"sum(up{a" is not', "is not a metric's name") in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.integers(0, 10**13), st.integers(1, 10**7), st.integers(1, 10**7), st.lists(st.floats(0, 1), max_size=5))
def test_every_multiple_of_the_step_is_asked_for_once(start_ms: int, length_ms: int, step_ms: int, cuts: list[float]):
    """However time is cut, and never too many at once; where there is none, nothing is asked."""
    step_ms = max(step_ms, length_ms // (3 * MOST_POINTS))
    end_ms = start_ms + length_ms
    edges = sorted({start_ms, end_ms, *(start_ms + int(cut * length_ms) for cut in cuts)})
    parts = [part for a, b in itertools.pairwise(edges) for part in _requests(TimeRange(a, b), step_ms)]
    assert all(0 < len(part) <= MOST_POINTS for part in parts)
    points = [t for part in parts for t in part]
    assert points == [t for t in range(end_ms - end_ms % step_ms, start_ms - 1, -step_ms) if t < end_ms][::-1]


@pytest.mark.parametrize(
    ("points", "sizes"),
    [
        (1, [1]),
        (MOST_POINTS - 1, [MOST_POINTS - 1]),
        (MOST_POINTS, [MOST_POINTS]),
        (MOST_POINTS + 1, [MOST_POINTS, 1]),
        (25_000, [MOST_POINTS, MOST_POINTS, 3_000]),
    ],
)
def test_a_request_is_never_too_long(points: int, sizes: list[int]) -> None:
    """The range's end is no point of it, also where the step meets it."""
    start_ms = 1_700_000_000_000
    for length_ms in (points * 250, points * 250 - 249):
        parts = list(_requests(TimeRange(start_ms, start_ms + length_ms), 250))
        assert [len(part) for part in parts] == sizes
        assert parts[-1][-1] == start_ms + (points - 1) * 250


def source(backend: Backend, step_ms: int = 15_000) -> WithExpressions:
    return WithExpressions(HttpQuerySource(backend.url), backend.url, EXPRESSIONS, step_ms, timeout_s=60.0)


def test_the_points_are_asked_for_as_documented(backend: Backend) -> None:
    """Both ends are points, exact to the millisecond; the selector does not apply."""
    answer = {"resultType": "matrix", "result": [{"metric": {"pod": "a"}, "values": [[1_700_000_010, "1"]]}]}
    backend.answer = reply(200, json.dumps({"status": "success", "data": answer}))
    block = source(backend, 29).fetch(PODS, "cpu_rate", RANGE)
    (form,) = backend.forms
    assert (form["query"], form["step"]) == ([CPU], ["29ms"])
    assert (form["start"], form["end"]) == (["2023-11-14T22:13:20.024Z"], ["2023-11-14T22:14:19.996Z"])
    assert block.label_sets == [b'{"__name__":"cpu_rate","pod":"a"}']
    assert (block.source, block.timestamps_ms.tolist()) == ("query-range", [1_700_000_010_000])


def test_a_range_without_a_point_asks_nothing(backend: Backend) -> None:
    """A range may be shorter than the step."""
    block = source(backend, 7_200_000).fetch(PODS, "cpu_rate", RANGE)
    assert (len(block), block.samples, block.offsets.tolist()) == (0, 0, [0])
    assert backend.forms == []


def test_a_backend_may_have_an_opinion_of_an_expression(backend: Backend) -> None:
    """That is no partial answer, which would be waited out for ever; others are."""
    data = {"resultType": "matrix", "result": []}
    warning = "PromQL warning: quantile value should be between 0 and 1, got 99 (1:10)"
    backend.answer = reply(200, json.dumps({"status": "success", "data": data, "warnings": [warning]}))
    assert source(backend).fetch(PODS, "cpu_rate", RANGE).samples == 0
    backend.answer = reply(
        200, json.dumps({"status": "success", "data": data, "warnings": [warning, "store x is gone"]})
    )
    with pytest.raises(SourceUnavailable, match="store x is gone"):
        source(backend).fetch(PODS, "cpu_rate", RANGE)


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (422, "query processing would load too many samples into memory in query execution", TooManySamples),
        (503, "query timed out in expression evaluation", TooManySamples),
        (422, "multiple matches for labels", QueryRejected),
        (503, "the backend is starting", SourceUnavailable),
    ],
)
def test_refusals_mean_what_they_mean_for_metrics(
    backend: Backend, status: int, text: str, kind: type[IngestorError]
) -> None:
    """What is too large will be halved, what cannot be is told with the expression's name."""
    backend.answer = api_error(status, text)
    with pytest.raises(kind, match=text) as caught:
        source(backend).fetch(PODS, "cpu_rate", RANGE)
    assert ("the expression cpu_rate cannot be used" in str(caught.value)) == (kind is QueryRejected)


def test_a_check_tells_what_is_too_large_for_any_range(backend: Backend) -> None:
    """An expression that one instant is too much for would be halved down to nothing."""
    backend.answer = api_error(422, "query processing would load too many samples into memory in query execution")
    with pytest.raises(TooManySamples, match=r"the expression cpu_rate is too large for a single instant: .*422"):
        source(backend).check()


@pytest.mark.parametrize("data", [None, [], {"resultType": "vector"}])
def test_a_check_tells_what_is_not_prometheus(backend: Backend, data: object) -> None:
    """As all other questions do."""
    backend.answer = reply(200, json.dumps({"status": "success", "data": data}))
    with pytest.raises(ConfigError, match="does not answer as Prometheus does"):
        source(backend).check()


def test_a_step_that_is_none_is_told(backend: Backend) -> None:
    """At construction."""
    with pytest.raises(ConfigError, match="must be positive"):
        source(backend, 0)
