"""The promises of `Source`, kept by every implementation on real backends.

A new way of reading becomes one line in ``SOURCES``, a new backend one in ``BACKENDS``. Where a backend
itself keeps less than it was given, the test asserts what it keeps, and says why.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import requests
from backends import (
    BACKENDS,
    EXTERNAL_LABELS,
    HISTORY,
    MILLION_RANGE,
    ODD_LABELS,
    PROMETHEUS,
    START_MS,
    VICTORIA_METRICS,
    Backend,
    expected,
    prometheus_text,
    server,
    with_head,
    with_history,
    with_types,
)
from commands import PATIENCE_S, wait_until

from ingestor.catalogue import Catalogue, Meaning
from ingestor.core.errors import QueryRejected
from ingestor.core.time_range import TimeRange
from ingestor.expressions import Expressions
from ingestor.selector import Selector
from ingestor.sources import registry
from ingestor.sources.base import SeriesBlock, Source
from ingestor.sources.expressions import WithExpressions
from ingestor.sources.http import instant
from ingestor.sources.http_query import HttpQuerySource
from ingestor.sources.remote_read import RemoteReadSource, RemoteReadUnsupported

SOURCES: dict[str, Callable[[str], Source]] = {
    **registry.SOURCES,
    "with-expressions": lambda url: WithExpressions(HttpQuerySource(url), url, Expressions(), 15_000),
}

# VictoriaMetrics has no remote read: that it is refused has a test of its own.
READINGS = [(name, way) for name in BACKENDS for way in SOURCES if (name, way) != (VICTORIA_METRICS, "remote-read")]

PODS = Selector.parse('{pod!=""}')
ODD_ATTRIBUTE = {"key": "my.label ü", "value": {"stringValue": "x"}}
MILLION = Selector.parse('{__name__="million"}')

_Running = TypeVar("_Running")
Start = Callable[[Callable[[str, Path], AbstractContextManager[_Running]], str], _Running]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start[Any]]:
    """Run a backend in a scenario, from the first test that wants it to the end."""
    with ExitStack() as stack:

        @functools.cache
        def run(scenario: Callable[[str, Path], AbstractContextManager[Any]], name: str) -> Any:
            return stack.enter_context(scenario(name, tmp_path_factory.mktemp(name)))

        yield run


@pytest.fixture(params=READINGS, ids="-by-".join)
def reading(request: pytest.FixtureRequest, start: Start[Backend]) -> tuple[Backend, Source]:
    name, way = request.param
    backend = start(with_history, name)
    return backend, SOURCES[way](backend.url)


@pytest.fixture
def backend(reading: tuple[Backend, Source]) -> Backend:
    return reading[0]


@pytest.fixture
def source(reading: tuple[Backend, Source]) -> Source:
    return reading[1]


@pytest.fixture(params=PROMETHEUS)
def prometheus(request: pytest.FixtureRequest, start: Start[Backend]) -> Backend:
    """Each Prometheus with the history."""
    return start(with_history, request.param)


@pytest.fixture
def victoria_metrics(start: Start[Backend]) -> Backend:
    return start(with_history, VICTORIA_METRICS)


@pytest.fixture(params=PROMETHEUS)
def head(request: pytest.FixtureRequest, start: Start[str]) -> str:
    """Each Prometheus with external labels and nothing but a head of a target that died, by its URL."""
    return start(after_its_targets_death, request.param)


@contextmanager
def after_its_targets_death(name: str, folder: Path) -> Iterator[str]:
    """Run a backend that has 200 scrapes of a target, which then died: more than a chunk."""
    with with_head(name, folder) as (url, exporter):
        query, scrapes = HttpQuerySource(url), Selector.parse("scrapes")
        # VictoriaMetrics remembers for 10 s that it found nothing: do not ask before there is something.
        wait_until(lambda: exporter.scrapes > 200)
        # On a busy machine not every scrape is in time.
        wait_until(lambda: query.fetch(scrapes, "scrapes", last_hour(query)).samples > 200)
        wait_until(lambda: query.count_series(scrapes, query.now_ms()) == 1)
        exporter.go_away()
        # Prometheus looks five minutes back, so that only a stale marker ends a series at once.
        wait_until(lambda: query.count_series(scrapes, query.now_ms()) == 0)
        yield url


def last_hour(source: Source) -> TimeRange:
    now_ms = source.now_ms()
    return TimeRange(now_ms - 3_600_000, now_ms)


def all_but_the_last_seconds(source: Source) -> TimeRange:
    """Return a range to which nothing comes between two questions."""
    part = last_hour(source)
    return TimeRange(part.start_ms, part.end_ms - 5_000)


def assert_same(one: SeriesBlock, other: SeriesBlock) -> None:
    """See that two sources gave the same columns, bit for bit."""
    assert one.label_sets == other.label_sets
    for column in ("offsets", "timestamps_ms", "values"):
        first, second = getattr(one, column), getattr(other, column)
        assert np.array_equal(first.view(np.int64), second.view(np.int64)), column


@pytest.mark.parametrize("metric", ["regular", "ragged", "odd", "short"])
def test_everything_comes_back_bit_for_bit(backend: Backend, source: Source, metric: str) -> None:
    """One range over all of history gives every sample, NaN, infinities, denormals and 17 digits included."""
    backend.assert_gave(metric, source.fetch(PODS, metric, HISTORY))


def test_several_metrics_come_as_each_would(source: Source) -> None:
    """One question for some of them, one of which there is not, gives what a question for each gives."""
    metrics = ["odd", "no_such_metric", "ragged", "regular"]
    together = source.fetch_together(PODS, metrics, HISTORY, 10**9)
    assert by_labels(together) == by_labels(*(source.fetch(PODS, metric, HISTORY) for metric in metrics))
    assert {json.loads(labels)["__name__"] for labels in together.label_sets} == {"odd", "ragged", "regular"}
    narrowed = PODS.with_matchers('pod=~"api-[12]"')
    assert len(source.fetch_together(narrowed, metrics, HISTORY, 10**9)) == sum(
        len(source.fetch(narrowed, metric, HISTORY)) for metric in metrics
    )


def by_labels(*blocks: SeriesBlock) -> dict[bytes, tuple[bytes, bytes]]:
    """Return each series' columns, bit for bit."""
    return {
        labels: (block.timestamps_ms[first:last].tobytes(), block.values[first:last].tobytes())
        for block in blocks
        for labels, (first, last) in zip(block.label_sets, itertools.pairwise(block.offsets.tolist()), strict=True)
    }


@pytest.mark.parametrize("length_ms", [15_000, 60_000, 599_999, 3_600_000, 7_200_001])
def test_adjoining_ranges_hold_each_sample_once(backend: Backend, source: Source, length_ms: int) -> None:
    """However history is cut, also exactly on samples, nothing is missing and nothing comes twice."""
    start = START_MS - length_ms
    end = START_MS + 1_800_000 if length_ms < 60_000 else HISTORY.end_ms
    for metric in ("regular", "ragged"):
        ranges = [TimeRange(at, min(at + length_ms, end)) for at in range(start, end, length_ms)]
        blocks = [source.fetch(PODS, metric, part) for part in ranges]
        backend.assert_gave(metric, *blocks, time_range=TimeRange(start, end))


def test_a_range_is_closed_at_its_start_and_open_at_its_end(source: Source) -> None:
    """A sample on a border belongs to the later range, to the millisecond."""
    middle = START_MS + 15_000
    for time_range, count in [
        (TimeRange(START_MS, middle), 1),
        (TimeRange(START_MS, middle + 1), 2),
        (TimeRange(START_MS + 1, middle), 0),
        (TimeRange(START_MS + 1, middle + 1), 1),
        (TimeRange(middle, middle + 1), 1),
        (TimeRange(middle - 1, middle), 0),
    ]:
        assert source.fetch(PODS, "regular", time_range).samples == 7 * count


def test_ranges_of_one_millisecond(backend: Backend, source: Source) -> None:
    """The shortest range reads what is on it."""
    ragged = expected("ragged")
    for t in sorted({t for _, t in ragged})[:40]:
        part = TimeRange(t, t + 1)
        backend.assert_gave("ragged", source.fetch(PODS, "ragged", part), time_range=part)


def test_nothing_found_is_an_empty_block(source: Source) -> None:
    """An unknown metric, a time without samples and a selector without series are no errors."""
    before = TimeRange(START_MS - 7_200_000, START_MS - 3_600_000)
    for block in (
        source.fetch(PODS, "no_such_metric", HISTORY),
        source.fetch(PODS, "regular", before),
        source.fetch(PODS.with_matchers('namespace="none"'), "regular", HISTORY),
    ):
        assert (len(block), block.samples, block.offsets.tolist()) == (0, 0, [0])


def test_only_the_selected_series_come(source: Source) -> None:
    """The selector's matchers hold beside the metric's name."""
    block = source.fetch(PODS.with_matchers('pod=~"api-[12]"'), "regular", HISTORY)
    assert sorted(json.loads(labels)["pod"] for labels in block.label_sets) == ["api-1", "api-2"]


def test_an_empty_label_is_a_missing_one(source: Source) -> None:
    """Whatever way the matcher takes to the backend."""
    assert len(source.fetch(PODS.with_matchers('quoted=""'), "regular", HISTORY)) == 0
    assert len(source.fetch(PODS.with_matchers('nothing=""'), "regular", HISTORY)) == 7


def test_series_are_counted(source: Source) -> None:
    """The count at an instant is what the selector finds there; nothing is zero."""
    assert source.count_series(PODS.with_matchers('__name__="regular"'), HISTORY.end_ms - 1) == 7
    assert source.count_series(PODS.with_matchers('namespace="none"'), HISTORY.end_ms - 1) == 0


def test_metric_names_are_listed(source: Source) -> None:
    """Names are sorted, and only of series that match."""
    assert source.metric_names(PODS, HISTORY) == ["odd", "ragged", "regular", "short"]
    assert source.metric_names(PODS.with_matchers('pod="late"'), HISTORY) == ["short"]
    assert source.metric_names(PODS.with_matchers('pod="none"'), HISTORY) == []


def test_label_sets_are_listed(source: Source) -> None:
    """Each series that any selector finds is there once, whatever characters are in it; hundreds may be asked for."""
    early = {"__name__": "short", "pod": "early"}
    assert source.label_sets(['short{pod="early"}'], HISTORY) == [early]
    both = source.label_sets(['short{pod=~".+"}', 'short{pod="early"}', 'regular{pod="api-3"}'], HISTORY)
    assert sorted(both, key=str) == [
        {"__name__": "regular", "namespace": "shop", "pod": "api-3", "quoted": 'a "b" \\ ]}'},
        early,
        {"__name__": "short", "pod": "late"},
    ]
    many = [f'short{{pod="{"x" * 200}-{number}"}}' for number in range(500)]
    assert source.label_sets([*many, "short"], HISTORY) == source.label_sets(["short"], HISTORY) != []
    assert source.label_sets(["no_such_metric"], HISTORY) == []
    assert source.label_sets(["short"], TimeRange(START_MS - 7_200_000, START_MS - 3_600_000)) == []
    with pytest.raises(QueryRejected, match=r"pars|regexp"):
        source.label_sets(['short{pod=~"("}'], HISTORY)


def test_the_clock_is_the_backends(backend: Backend, source: Source) -> None:
    """Here it is this machine's too."""
    before_ms = int(time.time() * 1000)
    now_ms = source.now_ms()
    # VictoriaMetrics cuts now to the second (and would say 30 s ago, were it not asked for exactly now).
    cut_ms = 999 if backend.name == VICTORIA_METRICS else 0
    assert before_ms - cut_ms - 1 <= now_ms <= time.time() * 1000 + 1


def test_metric_types_are_those_of_the_scraped_targets(backend: Backend, source: Source) -> None:
    """Types come as the target told them; history that was written as blocks has none."""
    if backend.name == VICTORIA_METRICS:
        # It answers, but keeps no metadata (1.79); an unknown type is no error.
        assert source.metric_types() == {}
        return
    deadline = time.monotonic() + PATIENCE_S
    while not (types := source.metric_types()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert types["prometheus_build_info"] == "gauge"
    assert types["prometheus_http_requests_total"] == "counter"
    assert types["prometheus_http_request_duration_seconds"] == "histogram"
    assert "regular" not in types


@pytest.mark.parametrize("way", SOURCES)
@pytest.mark.parametrize("name", BACKENDS)
def test_types_are_useful_ones_or_go_by_the_name(start: Start[str], name: str, way: str) -> None:
    """What a target says counts, where it says anything: a gauge stays one whatever its name is."""
    source = SOURCES[way](start(with_types, name))
    typed = Selector.parse('{__name__=~"typed_.*"}')
    wait_until(lambda: len(source.label_sets([str(typed)], last_hour(source))) == 12)
    known = name != VICTORIA_METRICS
    wait_until(lambda: bool(source.metric_types()) == known)
    types = {metric: kind for metric, kind in source.metric_types().items() if metric.startswith("typed_")}
    told = {"gauge_total": "gauge", "hits": "counter", "seconds": "histogram", "bytes": "summary"}
    assert types == ({f"typed_{metric}": kind for metric, kind in told.items()} if known else {})
    catalogue = Catalogue(1, Meaning(dict, without_pod=True), types)
    label_sets = source.label_sets([str(typed)], last_hour(source))
    columns = catalogue.columns(catalogue.ids([json.dumps(labels).encode() for labels in label_sets]))
    assert dict(zip(columns["metric"].to_pylist(), columns["type"].to_pylist(), strict=True)) == {
        "typed_gauge_total": "gauge" if known else "counter",
        "typed_hits": "counter" if known else "unknown",
        "typed_untyped_total": "counter",
        "typed_untyped": "unknown",
        "typed_bare_total": "counter",
        "typed_bare": "unknown",
        "typed_seconds_bucket": "counter",
        "typed_seconds_sum": "counter",
        "typed_seconds_count": "counter",
        "typed_bytes": "summary" if known else "unknown",
        "typed_bytes_sum": "counter",
        "typed_bytes_count": "counter",
    }


def test_an_impossible_selector_is_refused_for_good(source: Source) -> None:
    """What the backend cannot parse is not asked for again."""
    with pytest.raises(QueryRejected, match="error parsing regexp"):
        source.fetch(PODS.with_matchers('pod=~"("'), "regular", HISTORY)


def test_threads_share_a_source(backend: Backend, source: Source) -> None:
    """Several fetches at once give what one after the other gives."""
    ranges = [TimeRange(at, at + 600_000) for at in range(START_MS, HISTORY.end_ms, 600_000)]
    with ThreadPoolExecutor(6) as pool:
        blocks = list(pool.map(lambda part: source.fetch(PODS, "ragged", part), ranges))
    backend.assert_gave("ragged", *blocks)


def test_a_million_samples_are_the_same_however_they_are_read(prometheus: Backend) -> None:
    """Remote read and the query API give the same bytes for labels and the same bits for times and values."""
    query, remote_read = HttpQuerySource(prometheus.url), RemoteReadSource(prometheus.url)
    one, other = (source.fetch(MILLION, "million", MILLION_RANGE) for source in (query, remote_read))
    assert one.samples == 1_050_000
    assert_same(one, other)
    assert {json.loads(labels)["odd"] for labels in other.label_sets} == set(ODD_LABELS)
    assert (one.source, other.source) == ("query", "remote-read")


@pytest.mark.parametrize("length_ms", [1, 2_000, 119_999, 120_000, 121_001, 1_800_000])
def test_borders_are_the_same_however_they_are_read(prometheus: Backend, length_ms: int) -> None:
    """Ranges that begin and end on, before and behind samples and chunks (120 samples) and blocks (2 h)."""
    query, remote_read = HttpQuerySource(prometheus.url), RemoteReadSource(prometheus.url)
    first_ms = int(query.fetch(MILLION, "million", HISTORY).timestamps_ms[0])
    block_ms = START_MS - START_MS % 7_200_000 + 7_200_000
    for start_ms in (first_ms, first_ms + 119_000, first_ms + 120_001, block_ms, block_ms - length_ms, block_ms - 1):
        part = TimeRange(start_ms, start_ms + length_ms)
        assert_same(query.fetch(MILLION, "million", part), remote_read.fetch(MILLION, "million", part))


def test_a_head_and_its_stale_marker(head: str) -> None:
    """What is not compacted yet comes in open chunks; the marker that ends it is no sample."""
    query, remote_read = HttpQuerySource(head), RemoteReadSource(head)
    for metric in ("scrapes", "up", "scrape_samples_scraped"):
        selector = Selector.parse(metric)
        # All but the first go on, its stale marker is among the last.
        until_when = last_hour if metric == "scrapes" else all_but_the_last_seconds
        wait_until(lambda: query.fetch(selector, metric, until_when(query)).samples > 120)  # noqa: B023 - at once
        part = until_when(query)
        block = remote_read.fetch(selector, metric, part)
        assert_same(query.fetch(selector, metric, part), block)
        assert block.samples > 120
        assert not np.isnan(block.values).any()


def test_external_labels_are_not_the_series_own(head: str) -> None:
    """The server adds them to remote reads only; where they cannot be told apart, remote read is refused."""
    query, remote_read = HttpQuerySource(head), RemoteReadSource(head)
    (labels,) = remote_read.fetch(Selector.parse("scrapes"), "scrapes", last_hour(query)).label_sets
    assert json.loads(labels).keys() == {"__name__", "instance", "job"}
    # The server would drop a matcher that asks for one of them.
    for text, series in (('{cluster="prod"}', 0), ('{replica="<a>"}', 0), ('{replica!="<a>"}', 1), ('{cluster=""}', 1)):
        assert len(remote_read.fetch(Selector.parse(text), "scrapes", last_hour(query))) == series, text
    selector = Selector.parse("labelled")
    with pytest.raises(RemoteReadUnsupported, match="external labels that series of labelled carry themselves"):
        remote_read.fetch(selector, "labelled", last_hour(query))
    both = Selector.parse('{instance!=""}')
    with pytest.raises(RemoteReadUnsupported, match="external labels that series of labelled carry themselves"):
        remote_read.fetch_together(both, ["labelled", "scrapes"], last_hour(query), 10**9)
    assert len(remote_read.fetch_together(both, ["scrapes", "up"], last_hour(query), 10**9)) == 2
    block = registry.SOURCES["auto"](head).fetch(selector, "labelled", last_hour(query))
    assert block.source == "query"
    assert json.loads(block.label_sets[0])["cluster"] == "prod"


def test_the_last_millisecond_of_a_range_is_read(backend: Backend, source: Source) -> None:
    """Whatever fraction of a second a range ends on: as a float of seconds, one of two is below its millisecond."""
    ragged = expected("ragged")
    for t in sorted({t for _, t in ragged})[100:200]:
        part = TimeRange(t - 1, t + 1)
        backend.assert_gave("ragged", source.fetch(PODS, "ragged", part), time_range=part)


def test_a_million_samples_of_victoria_metrics_are_prometheus_samples(
    victoria_metrics: Backend, prometheus: Backend
) -> None:
    """The same label sets byte for byte, the same times, and values to as many digits as it keeps."""
    one, other = (
        HttpQuerySource(server.url).fetch(MILLION, "million", MILLION_RANGE)
        for server in (prometheus, victoria_metrics)
    )
    assert other.samples == 1_050_000
    # Series come in an order of its own.
    places = {labels: i for i, labels in enumerate(other.label_sets)}
    assert places.keys() == set(one.label_sets)
    for i, labels in enumerate(one.label_sets):
        mine, its = (slice(*block.offsets[at : at + 2]) for block, at in ((one, i), (other, places[labels])))
        assert np.array_equal(one.timestamps_ms[mine], other.timestamps_ms[its])
        assert np.allclose(one.values[mine], other.values[its], rtol=1.1e-12, atol=0)


def test_victoria_metrics_keeps_whole_numbers_and_short_decimals(tmp_path: Path) -> None:
    """Whole numbers below 2^55 and decimals of 11 digits come back bit for bit; others are cut, NaN is dropped."""
    rng = random.Random(3)
    exact = [float(rng.randrange(10 ** rng.randrange(1, 17))) for _ in range(2_000)]
    exact += [round(rng.random() * 10**power, 11 - power) for power in range(7) for _ in range(300)]
    exact += [-value for value in exact if value] + [math.inf, -math.inf, 0.0]
    cut = {
        math.pi: 3.141592653589,
        0.1 + 0.2: 0.3,
        5e-324: 0.0,
        -0.0: 0.0,
        1.7976931348623157e308: 1.797693134862315e308,
    }
    sent = [*exact, *cut, math.nan]
    text = tmp_path / "text"
    # A series each, so that no number shares a block with another.
    lines = (f'v{{pod="p",n="{n}"}} {prometheus_text(value)} {START_MS}\n' for n, value in enumerate(sent))
    text.write_text("".join(lines))
    with server(VICTORIA_METRICS, tmp_path / "server", {}) as victoria_metrics:
        victoria_metrics.import_text(text)
        block = HttpQuerySource(victoria_metrics.url).fetch(PODS, "v", TimeRange(START_MS, START_MS + 1))
    came = {int(json.loads(labels)["n"]): value for labels, value in zip(block.label_sets, block.values, strict=True)}
    kept = [*exact, *cut.values()]
    assert [came[n].hex() for n in sorted(came)] == [value.hex() for value in kept]


@pytest.mark.parametrize("way", SOURCES)
def test_victoria_metrics_is_read_by_its_query_api(victoria_metrics: Backend, way: str) -> None:
    """It has no remote read: who asks for that is told what to do, and `auto` finds out by itself."""
    source = SOURCES[way](victoria_metrics.url)
    if way == "remote-read":
        assert not RemoteReadSource(victoria_metrics.url).is_supported()
        with pytest.raises(RemoteReadUnsupported, match=r"has no streamed remote read .*400.* --source query"):
            source.fetch(PODS, "regular", HISTORY)
    else:
        assert source.fetch(PODS, "regular", HISTORY).source == "query"


def test_a_stale_marker_of_victoria_metrics_is_no_sample(start: Start[str]) -> None:
    """It writes one where a target dies, which ends the series at once; its answers show it as NaN."""
    query = HttpQuerySource(start(after_its_targets_death, VICTORIA_METRICS))
    part = last_hour(query)
    (raw,) = query_raw(query.url, "scrapes[1h]", part.end_ms)
    # A scrape that a busy machine has missed leaves one too.
    markers = [value for _, value in raw["values"] if not value.isdecimal()]
    assert set(markers) == {"NaN"} == {raw["values"][-1][1]}
    block = query.fetch(Selector.parse("scrapes"), "scrapes", part)
    assert block.samples == len(raw["values"]) - len(markers) > 150
    assert not np.isnan(block.values).any()
    # Unlike Prometheus it stores external labels with the series, so there is nothing to take off.
    assert EXTERNAL_LABELS.items() <= json.loads(block.label_sets[0]).items()


def test_victoria_metrics_reads_no_quoted_label_names(tmp_path: Path) -> None:
    """Any characters stand in a metric's name and in label values; a matcher with a quoted name is refused (1.79)."""
    text = tmp_path / "text"
    text.write_text(f'my.metric/ä{{pod="p",my.label="x"}} 1 {START_MS}\n')
    part = TimeRange(START_MS, START_MS + 1)
    with server(VICTORIA_METRICS, tmp_path / "server", {}) as victoria_metrics:
        victoria_metrics.import_text(text)
        query = HttpQuerySource(victoria_metrics.url)
        assert query.metric_names(PODS, part) == ["my.metric/ä"]
        (labels,) = query.fetch(PODS, "my.metric/ä", part).label_sets
        assert json.loads(labels) == {"__name__": "my.metric/ä", "my.label": "x", "pod": "p"}
        with pytest.raises(QueryRejected, match=r'unexpected token "\\"my\.label'):
            query.fetch(Selector.parse('{"my.label"="x"}'), "my.metric/ä", part)


def test_a_sample_that_was_written_twice_comes_once(tmp_path: Path) -> None:
    """VictoriaMetrics keeps both, unless its deduplication is on."""
    text = tmp_path / "text"
    text.write_text(f'v{{pod="p"}} 1 {START_MS}\nv{{pod="p"}} 2 {START_MS + 1}\n')
    with server(VICTORIA_METRICS, tmp_path / "server", {}) as victoria_metrics:
        for _ in range(2):
            victoria_metrics.import_text(text)
        raw = query_raw(victoria_metrics.url, f"v[{1000}ms]", START_MS + 1)
        assert [value for _, value in raw[0]["values"]] == ["1", "1", "2", "2"]
        block = HttpQuerySource(victoria_metrics.url).fetch(PODS, "v", TimeRange(START_MS, START_MS + 2))
    assert (block.timestamps_ms - START_MS).tolist() == [0, 1]
    assert block.values.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("name", BACKENDS)
def test_only_prometheus_2_closes_a_range_selector_at_its_start(start: Start[Backend], name: str) -> None:
    """What a range selector gives differs by the sample on its start; what a source gives does not."""
    backend = start(with_history, name)
    version = requests.get(f"{backend.url}/api/v1/status/buildinfo", timeout=10).json()["data"].get("version", "")
    for series in query_raw(backend.url, 'regular{pod!=""}[15000ms]', START_MS + 15_000):
        assert len(series["values"]) == (2 if version.startswith("2.") else 1)


def query_raw(url: str, query: str, at_ms: int) -> list[dict[str, Any]]:
    """Return the result of an instant query as it stands in the answer."""
    answer = requests.get(f"{url}/api/v1/query", {"query": query, "time": instant(at_ms)}, timeout=10)
    return answer.json()["data"]["result"]


@contextmanager
def with_otlp(name: str, folder: Path) -> Iterator[str]:
    """Run a Prometheus 3 that was given what 2.x cannot hold, by OTLP: UTF-8 names, histograms among floats."""
    folder.joinpath("rules.yml").write_text(
        "groups: [{name: g, interval: 100ms, rules: [{record: summed, expr: 'sum({\"took.s\"})'}]}]"
    )
    config = {
        "otlp": {"translation_strategy": "NoTranslation"},
        "rule_files": [str(folder / "rules.yml")],
    }
    with server(name, folder, config, "--web.enable-otlp-receiver") as prometheus:
        now_ms = HttpQuerySource(prometheus.url).now_ms()
        start_ms = now_ms - 60_000
        for step in range(60):
            at = {"timeUnixNano": str((start_ms + step * 1000) * 1_000_000)}
            at |= {"attributes": [{"key": "pod", "value": {"stringValue": "p"}}, ODD_ATTRIBUTE]}
            number = {"gauge": {"dataPoints": [{**at, "asDouble": step / 7}]}}
            buckets = {"offset": 1, "bucketCounts": ["1", str(step)]}
            histogram = {**at, "count": str(step + 3), "sum": 1.5, "scale": 0, "zeroCount": "2", "positive": buckets}
            took = {"exponentialHistogram": {"aggregationTemporality": 2, "dataPoints": [histogram]}}
            metrics = [
                {"name": "my.metric/ä", **number},
                {"name": "took.s", **took},
                {"name": "mixed", **(number if step % 20 < 15 else took)},
            ]
            body = {"resourceMetrics": [{"scopeMetrics": [{"metrics": metrics}]}]}
            answer = requests.post(f"{prometheus.url}/api/v1/otlp/v1/metrics", json=body, timeout=10)
            assert answer.ok, answer.text
        query, summed = HttpQuerySource(prometheus.url), Selector.parse("summed")
        wait_until(lambda: query.fetch(summed, "summed", all_but_the_last_seconds(query)).histograms > 2)
        yield prometheus.url


@pytest.fixture
def otlp(start: Start[str]) -> str:
    return start(with_otlp, "prometheus-3")


@pytest.mark.parametrize("way", SOURCES)
def test_utf_8_names_are_read(otlp: str, way: str) -> None:
    """Prometheus 3 allows any character in the names of metrics and labels; a selector quotes them."""
    source = SOURCES[way](otlp)
    part = last_hour(source)
    for text in ('{pod="p"}', '{"my.metric/ä"}', '{"my.label ü"="x"}', '{"my.label ü"=~"x|y", pod!=""}'):
        selector = Selector.parse(text)
        assert "my.metric/ä" in source.metric_names(selector, part)
        block = source.fetch(selector, "my.metric/ä", part)
        assert [json.loads(labels) for labels in block.label_sets] == [
            {"__name__": "my.metric/ä", "my.label ü": "x", "pod": "p"}
        ]
        assert block.values.tolist() == [step / 7 for step in range(60)]
    assert source.count_series(Selector.parse('{"my.label ü"="x", __name__="my.metric/ä"}'), part.end_ms) == 1


@pytest.mark.parametrize("metric", ["took.s", "summed", "mixed"])
def test_native_histograms_are_counted_and_left_out(otlp: str, metric: str) -> None:
    """Integer ones, float ones (a rule's sum) and those between floats: all ways give the floats, and only them."""
    query, remote_read, auto = (SOURCES[way](otlp) for way in ("query", "remote-read", "auto"))
    part = all_but_the_last_seconds(query)
    blocks = [source.fetch(Selector.parse('{__name__!=""}'), metric, part) for source in (query, remote_read, auto)]
    assert_same(blocks[0], blocks[1])
    assert_same(blocks[0], blocks[2])
    for block in blocks:
        assert block.samples == (45 if metric == "mixed" else 0)
        assert block.histograms == {"took.s": 60, "mixed": 15}.get(metric, blocks[0].histograms) > 0


def test_chunks_of_a_newer_encoding_are_read_by_the_query_api(start: Start[str]) -> None:
    """Prometheus 3 can be told to write floats as XOR2, which remote read passes on and which is not known here."""
    url = start(with_xor2, "prometheus-3")
    query, scrapes = HttpQuerySource(url), Selector.parse("scrapes")
    wait_until(lambda: query.fetch(scrapes, "scrapes", last_hour(query)).samples > 130)
    part = last_hour(query)
    with pytest.raises(RemoteReadUnsupported, match=r"unknown encoding 4: read with --source query"):
        RemoteReadSource(url).fetch(scrapes, "scrapes", part)
    block = registry.SOURCES["auto"](url).fetch(scrapes, "scrapes", part)
    assert block.source == "query"
    assert_same(block, query.fetch(scrapes, "scrapes", part))
    # A busy machine may skip a scrape.
    assert (np.diff(block.values) >= 1).all()


@contextmanager
def with_xor2(name: str, folder: Path) -> Iterator[str]:
    with with_head(name, folder, {"storage": {"tsdb": {"chunk_encoding": {"floats": "xor2"}}}}) as (url, _):
        yield url
