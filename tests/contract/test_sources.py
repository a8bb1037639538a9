"""The promises of `Source`, kept by every implementation on a real Prometheus.

A new way of reading becomes one line in ``SOURCES``.
"""

from __future__ import annotations

import json
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TextIO

import numpy as np
import pytest

from ingestor.core.errors import QueryRejected
from ingestor.core.time_range import TimeRange
from ingestor.expressions import Expressions
from ingestor.local.processes import free_port
from ingestor.local.prometheus import Binaries, LocalPrometheus, create_blocks
from ingestor.selector import Selector
from ingestor.sources import registry
from ingestor.sources.base import SeriesBlock, Source
from ingestor.sources.expressions import WithExpressions
from ingestor.sources.http_query import HttpQuerySource
from ingestor.sources.remote_read import RemoteReadSource, RemoteReadUnsupported

SOURCES: dict[str, Callable[[str], Source]] = {
    **registry.SOURCES,
    "with-expressions": lambda url: WithExpressions(HttpQuerySource(url), url, Expressions(), 15_000),
}

START_MS = 1_700_006_400_000
HISTORY = TimeRange(START_MS, START_MS + 3 * 3_600_000)
PODS = Selector.parse('{pod!=""}')

MILLION = Selector.parse('{__name__="million"}')
MILLION_RANGE = TimeRange(START_MS, START_MS + 6 * 3_600_000)
ODD_LABELS = ["<a>&b", "\u2028é😀", "tab\there", "bell\x07", "del\x7f", 'quote"d', "back\\slash", "line\nfeed"]

Labels = frozenset[tuple[str, str]]
Samples = dict[tuple[Labels, int], float]


def history() -> dict[str, dict[tuple[str, ...], list[tuple[int, float]]]]:
    """Return samples by metric and labels: regular, ragged to the millisecond, odd values, and late starters."""
    rng = random.Random(5)
    odd = [math.nan, math.inf, -math.inf, -0.0, 5e-324, 1.7976931348623157e308, 0.1 + 0.2, 1e21, 1e-7, 2.0**53 + 2]
    series: dict[str, dict[tuple[str, ...], list[tuple[int, float]]]] = {
        "ragged": {},
        "regular": {},
        "odd": {},
        "short": {},
    }
    for pod in range(7):
        labels = (f'pod="api-{pod}"', 'namespace="shop"', 'quoted="a \\"b\\" \\\\ ]}"')
        at, ragged = START_MS + rng.randrange(1000), []
        while at < HISTORY.end_ms:
            ragged.append((at, rng.random() * 10 ** rng.randint(-8, 17)))
            at += rng.choice([1, 2, 999, 14_999, 15_000, 15_001])
        series["ragged"][labels] = ragged
        series["regular"][labels] = [(t, float(t % 977)) for t in range(START_MS, HISTORY.end_ms, 15_000)]
        series["odd"][labels] = [(START_MS + i * 60_000 + pod, value) for i, value in enumerate(odd * 5)]
    series["short"][('pod="late"',)] = [(HISTORY.end_ms - 1, 1.0)]
    series["short"][('pod="early"',)] = [(START_MS, 2.0)]
    series["short"][('node="no pod"',)] = [(START_MS, 3.0)]
    return series


def write_million(file: TextIO) -> None:
    """Write 1,050,000 samples of 100 series without a pod: gauges, counters, floats, some with gaps."""
    rng = random.Random(8)
    file.write("# TYPE million gauge\n")
    for number in range(100):
        odd = ODD_LABELS[number % len(ODD_LABELS)].replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        start = f'million{{A="capital",node="{number:03d}",odd="{odd}"}} '
        step, jitter, t = rng.choice([1000, 1000, 1001, 999]), rng.choice([0, 0, 3, 400]), START_MS
        value = rng.random() * 1e9
        for _ in range(10_500):
            t += step + (rng.randrange(jitter) if jitter else 0) + (rng.random() < 0.001) * 300_000
            value = (value, value + 1, float(int(value) + rng.randrange(-9, 9)), rng.random())[number % 4]
            file.write(f"{start}{value!r} {t // 1000}.{t % 1000:03d}\n")


def expected(metric: str, time_range: TimeRange = HISTORY) -> Samples:
    """Return what must come back."""
    return {
        (frozenset(text.partition("=")[::2] for text in labels), t): value
        for labels, samples in history()[metric].items()
        if any(text.startswith("pod=") for text in labels)
        for t, value in samples
        if time_range.start_ms <= t < time_range.end_ms
    }


def found(metric: str, *blocks: SeriesBlock) -> Samples:
    """Return the samples of blocks, and see that each is there once and in order."""
    samples: Samples = {}
    for block in blocks:
        assert block.offsets[0] == 0
        assert block.offsets[-1] == len(block.timestamps_ms) == len(block.values)
        assert (np.diff(block.offsets) > 0).all(), "a series without samples"
        for text, first, last in zip(block.label_sets, block.offsets[:-1], block.offsets[1:], strict=True):
            labels = json.loads(text)
            assert labels.pop("__name__") == metric
            key = frozenset((name, json.dumps(value)) for name, value in labels.items())
            times = block.timestamps_ms[first:last]
            assert (np.diff(times) > 0).all()
            for t, value in zip(times.tolist(), block.values[first:last].tolist(), strict=True):
                assert (key, t) not in samples, "a sample came twice"
                samples[key, t] = value
    return samples


def bits(samples: Samples) -> dict[tuple[Labels, int], str]:
    """Make samples comparable: NaN equals NaN, -0.0 is not 0.0."""
    return {key: repr(value) for key, value in samples.items()}


@pytest.fixture(scope="session")
def prometheus(prometheus_binaries: Binaries, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPrometheus]:
    """A server with the history, that also scrapes itself."""
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    scrape = {"job_name": "self", "scrape_interval": "1s", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
    server = LocalPrometheus(folder, port=port, config={"scrape_configs": [scrape]})
    text = folder / "history.om"
    with text.open("w") as file:
        for metric, by_labels in history().items():
            file.write(f"# TYPE {metric} gauge\n")
            for labels, samples in by_labels.items():
                for t, value in samples:
                    spelt = {"nan": "NaN", "inf": "+Inf", "-inf": "-Inf"}.get(repr(value), repr(value))
                    file.write(f"{metric}{{{','.join(labels)}}} {spelt} {t // 1000}.{t % 1000:03d}\n")
        write_million(file)
        file.write("# EOF\n")
    create_blocks(text, server.data_dir)
    with server:
        yield server


class Exporter:
    """A target that counts its scrapes, and that can go away."""

    def __init__(self) -> None:
        scrapes = iter(range(10**9))

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = f"# TYPE scrapes counter\nscrapes {next(scrapes)}\nlabelled{{cluster='prod'}} 1\n".replace(
                    "'", '"'
                )
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        # A client that hangs up is what some tests are about.
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def go_away(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="session")
def head(prometheus_binaries: Binaries, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPrometheus]:
    """A server with external labels and nothing but a head: one target, scraped 50 times a second, that then died."""
    exporter = Exporter()
    scrape = {
        "job_name": "exporter",
        "scrape_interval": "20ms",
        "scrape_timeout": "20ms",
        "static_configs": [{"targets": [f"127.0.0.1:{exporter.server.server_port}"]}],
    }
    external = {"cluster": "prod", "replica": "<a>"}
    server = LocalPrometheus(
        tmp_path_factory.mktemp("head"), config={"global": {"external_labels": external}, "scrape_configs": [scrape]}
    )
    with server:
        query, scrapes = HttpQuerySource(server.url), Selector.parse("scrapes")
        wait_until(lambda: query.fetch(scrapes, "scrapes", last_hour(query)).samples > 300)
        assert query.count_series(scrapes, query.now_ms()) == 1
        exporter.go_away()
        # Prometheus looks five minutes back, so that only a stale marker ends a series at once.
        wait_until(lambda: query.count_series(scrapes, query.now_ms()) == 0)
        yield server


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def last_hour(source: Source) -> TimeRange:
    now_ms = source.now_ms()
    return TimeRange(now_ms - 3_600_000, now_ms)


def assert_same(one: SeriesBlock, other: SeriesBlock) -> None:
    """See that two sources gave the same columns, bit for bit."""
    assert one.label_sets == other.label_sets
    for column in ("offsets", "timestamps_ms", "values"):
        first, second = getattr(one, column), getattr(other, column)
        assert np.array_equal(first.view(np.int64), second.view(np.int64)), column


@pytest.fixture(params=list(SOURCES))
def source(request: pytest.FixtureRequest, prometheus: LocalPrometheus) -> Source:
    return SOURCES[request.param](prometheus.url)


@pytest.mark.parametrize("metric", ["regular", "ragged", "odd", "short"])
def test_everything_comes_back_bit_for_bit(source: Source, metric: str) -> None:
    """One range over all of history gives every sample, NaN, infinities, denormals and 17 digits included."""
    assert bits(found(metric, source.fetch(PODS, metric, HISTORY))) == bits(expected(metric))


@pytest.mark.parametrize("length_ms", [15_000, 60_000, 599_999, 3_600_000, 7_200_001])
def test_adjoining_ranges_hold_each_sample_once(source: Source, length_ms: int) -> None:
    """However history is cut, also exactly on samples, nothing is missing and nothing comes twice."""
    start = START_MS - length_ms
    end = START_MS + 1_800_000 if length_ms < 60_000 else HISTORY.end_ms
    for metric in ("regular", "ragged"):
        ranges = [TimeRange(at, min(at + length_ms, end)) for at in range(start, end, length_ms)]
        blocks = [source.fetch(PODS, metric, part) for part in ranges]
        assert bits(found(metric, *blocks)) == bits(expected(metric, TimeRange(start, end)))


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


def test_ranges_of_one_millisecond(source: Source) -> None:
    """The shortest range reads what is on it."""
    ragged = expected("ragged")
    for t in sorted({t for _, t in ragged})[:40]:
        part = TimeRange(t, t + 1)
        assert bits(found("ragged", source.fetch(PODS, "ragged", part))) == bits(expected("ragged", part))


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
    with pytest.raises(QueryRejected, match="error parsing regexp"):
        source.label_sets(['short{pod=~"("}'], HISTORY)


def test_the_clock_is_the_backends(source: Source) -> None:
    """Here it is this machine's too."""
    before_ms = int(time.time() * 1000)
    now_ms = source.now_ms()
    assert before_ms - 1 <= now_ms <= time.time() * 1000 + 1


def test_metric_types_are_those_of_the_scraped_targets(source: Source) -> None:
    """Types come as the target told them; history that was written as blocks has none."""
    deadline = time.monotonic() + 30
    while not (types := source.metric_types()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert types["prometheus_build_info"] == "gauge"
    assert types["prometheus_http_requests_total"] == "counter"
    assert types["prometheus_http_request_duration_seconds"] == "histogram"
    assert "regular" not in types


def test_an_impossible_selector_is_refused_for_good(source: Source) -> None:
    """What the backend cannot parse is not asked for again."""
    with pytest.raises(QueryRejected, match="error parsing regexp"):
        source.fetch(PODS.with_matchers('pod=~"("'), "regular", HISTORY)


def test_threads_share_a_source(source: Source) -> None:
    """Several fetches at once give what one after the other gives."""
    ranges = [TimeRange(at, at + 600_000) for at in range(START_MS, HISTORY.end_ms, 600_000)]
    with ThreadPoolExecutor(6) as pool:
        blocks = list(pool.map(lambda part: source.fetch(PODS, "ragged", part), ranges))
    assert bits(found("ragged", *blocks)) == bits(expected("ragged"))


def test_a_million_samples_are_the_same_however_they_are_read(prometheus: LocalPrometheus) -> None:
    """Remote read and the query API give the same bytes for labels and the same bits for times and values."""
    query, remote_read = HttpQuerySource(prometheus.url), RemoteReadSource(prometheus.url)
    one, other = (source.fetch(MILLION, "million", MILLION_RANGE) for source in (query, remote_read))
    assert one.samples == 1_050_000
    assert_same(one, other)
    assert {json.loads(labels)["odd"] for labels in other.label_sets} == set(ODD_LABELS)
    assert (one.source, other.source) == ("query", "remote-read")


@pytest.mark.parametrize("length_ms", [1, 2_000, 119_999, 120_000, 121_001, 1_800_000])
def test_borders_are_the_same_however_they_are_read(prometheus: LocalPrometheus, length_ms: int) -> None:
    """Ranges that begin and end on, before and behind samples and chunks (120 samples) and blocks (2 h)."""
    query, remote_read = HttpQuerySource(prometheus.url), RemoteReadSource(prometheus.url)
    first_ms = int(query.fetch(MILLION, "million", HISTORY).timestamps_ms[0])
    block_ms = START_MS - START_MS % 7_200_000 + 7_200_000
    for start_ms in (first_ms, first_ms + 119_000, first_ms + 120_001, block_ms, block_ms - length_ms, block_ms - 1):
        part = TimeRange(start_ms, start_ms + length_ms)
        assert_same(query.fetch(MILLION, "million", part), remote_read.fetch(MILLION, "million", part))


def test_a_head_and_its_stale_marker(head: LocalPrometheus) -> None:
    """What is not compacted yet comes in open chunks; the marker that ends it is no sample."""
    query, remote_read = HttpQuerySource(head.url), RemoteReadSource(head.url)
    for metric in ("scrapes", "up", "scrape_samples_scraped"):
        selector, part = Selector.parse(metric), last_hour(query)
        if metric != "scrapes":
            # They go on; what comes in between the two questions does not count.
            part = TimeRange(part.start_ms, part.end_ms - 1_000)
        block = remote_read.fetch(selector, metric, part)
        assert_same(query.fetch(selector, metric, part), block)
        assert block.samples > 120
        assert not np.isnan(block.values).any()


def test_external_labels_are_not_the_series_own(head: LocalPrometheus) -> None:
    """The server adds them to remote reads only; where they cannot be told apart, remote read is refused."""
    query, remote_read = HttpQuerySource(head.url), RemoteReadSource(head.url)
    (labels,) = remote_read.fetch(Selector.parse("scrapes"), "scrapes", last_hour(query)).label_sets
    assert json.loads(labels).keys() == {"__name__", "instance", "job"}
    # The server would drop a matcher that asks for one of them.
    for text, series in (('{cluster="prod"}', 0), ('{replica="<a>"}', 0), ('{replica!="<a>"}', 1), ('{cluster=""}', 1)):
        assert len(remote_read.fetch(Selector.parse(text), "scrapes", last_hour(query))) == series, text
    selector = Selector.parse("labelled")
    with pytest.raises(RemoteReadUnsupported, match="external labels that series of labelled carry themselves"):
        remote_read.fetch(selector, "labelled", last_hour(query))
    block = registry.SOURCES["auto"](head.url).fetch(selector, "labelled", last_hour(query))
    assert block.source == "query"
    assert json.loads(block.label_sets[0])["cluster"] == "prod"
