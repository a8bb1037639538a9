"""Whatever a backend does wrong, every sample lies on the topic once, bit for bit, or is named as refused."""

from __future__ import annotations

import base64
import itertools
import json
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from email.utils import formatdate
from time import time

import history
import misbehaving
import numpy as np
import pandas as pd
import pytest
from commands import backfill, ingestor, run
from misbehaving import Answer, Asked, Behaviour, Given, HurriedEvent, MisbehavingProxy, api_error, reply

from ingestor.core import wire
from ingestor.core.chunk import LOOKBACK_MS, Marker, RangeChunk, Refused
from ingestor.core.errors import ConfigError, QueryRejected
from ingestor.core.time_range import TimeRange, iso
from ingestor.core.topics import Topics
from ingestor.kafka import connect, partition_counts, read_to_end
from ingestor.local.kafka import LocalKafka
from ingestor.local.prometheus import LocalPrometheus
from ingestor.poller import Poller, PollerSettings
from ingestor.selector import Selector
from ingestor.sources.registry import SOURCES

WHOLE = TimeRange(history.START_MS, history.END_MS)
COLUMNS = ["namespace", "pod", "metric", "series", "timestamp"]
REFUSED = "temperature_celsius"
_PREFIXES = (f"misbehaving-{number}" for number in itertools.count())

TOO_MANY_SAMPLES = api_error(422, "query processing would load too many samples into memory in query execution")
TOO_MANY_SERIES = api_error(422, "the number of matching timeseries exceeds 10; reduce the number of series")


@pytest.fixture
def proxy(prometheus: LocalPrometheus) -> Iterator[MisbehavingProxy]:
    with MisbehavingProxy(prometheus.url) as proxy:
        yield proxy


class Published:
    """What lies on a range-chunk topic."""

    def __init__(self, kafka: LocalKafka, prefix: str) -> None:
        topic = Topics(prefix).range_chunks
        chunks: list[RangeChunk] = []
        markers: list[Marker] = []
        for partition in range(partition_counts(connect(kafka.cluster))[topic]):
            stream = [
                wire.decode(message.headers(), message.value())  # type: ignore[arg-type]
                for message in read_to_end(kafka.cluster, topic, partition)
            ]
            assert [message.header.sequence for message in stream] == list(range(len(stream)))
            chunks += [message for message in stream if isinstance(message, RangeChunk) and not message.is_lookback]
            markers = [message for message in stream if isinstance(message, Marker)]
        self.sources = {chunk.header.source for chunk in chunks}
        self.incomplete = [refused for marker in markers for refused in marker.incomplete]
        self.ranges = [marker.header.time_range for marker in markers if not marker.ends_job]
        self.samples = pd.concat([_frame(chunk) for chunk in chunks], ignore_index=True)

    def lacks(self, samples: pd.DataFrame, *refused: Refused) -> None:
        """See that everything is here once, in ranges without holes, but what is *refused*, and that this is told."""
        assert [self.ranges[0].start_ms, *(r.end_ms for r in self.ranges)] == [
            *(r.start_ms for r in self.ranges),
            WHOLE.end_ms,
        ]
        assert self.incomplete == list(refused)
        assert_same(self.samples, samples)

    def holds(self, samples: pd.DataFrame) -> None:
        """See that everything is here once."""
        self.lacks(samples)


def _frame(chunk: RangeChunk) -> pd.DataFrame:
    series = chunk.series
    lengths = np.diff(series.offsets)
    columns: dict[str, object] = {
        name: np.repeat(np.array(getattr(series, name).to_pylist(), object), lengths)
        for name in ("namespace", "pod", "metric")
    }
    codes = [dict(labels).get("code", "") for labels in series.labels.to_pylist()]
    return pd.DataFrame(
        columns
        | {
            "series": np.repeat(np.array(codes, object), lengths),
            "timestamp": series.timestamps_ms[series.offsets[0] : series.offsets[-1]],
            "value": series.values[series.offsets[0] : series.offsets[-1]],
        }
    )


def assert_same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """See that two frames hold the same samples, the values bit for bit."""
    assert len(found) == len(expected)
    a, b = (frame.sort_values(COLUMNS, ignore_index=True) for frame in (found, expected))
    for column in COLUMNS:
        assert a[column].tolist() == b[column].tolist()
    assert (a["value"].to_numpy(float).view(np.int64) == b["value"].to_numpy(float).view(np.int64)).all()


def without(samples: pd.DataFrame, *refused: Refused) -> pd.DataFrame:
    for metric, start_ms, end_ms in refused:
        inside = (samples["timestamp"] >= start_ms) & (samples["timestamp"] < end_ms)
        samples = samples[~(inside & (samples["metric"] == metric))]
    return samples


def poll(
    proxy: MisbehavingProxy,
    kafka: LocalKafka,
    behaviour: Behaviour,
    source: str,
    *,
    prefix: str = "",
    stop: threading.Event | None = None,
    range_samples: int = 3_000_000,
    timeout_s: float = 20.0,
) -> Published:
    """Publish the whole history through the proxy, with waits cut short, and return what lies on the topic."""
    proxy.behaviour = behaviour
    settings = PollerSettings(
        cluster=kafka.cluster,
        topics=Topics(prefix or next(_PREFIXES)),
        selector=Selector.parse('{pod!=""}'),
        start=iso(WHOLE.start_ms),
        end=iso(WHOLE.end_ms),
        url=proxy.url,
        preset="none",
        range_samples=range_samples,
        partitions=2,
    )
    backend = SOURCES[source](proxy.url, timeout_s=timeout_s, connections=settings.concurrency)
    (position,) = Poller(settings, backend, stop=stop or HurriedEvent()).run()
    assert position.ended
    return Published(kafka, settings.topics.prefix)


def only(kind: str, wrong: Callable[[Given], Answer | None]) -> Behaviour:
    """Spoil the answers of one kind."""
    return lambda asked, given: wrong(given) if asked.kind == kind else None


def first(number: int, behaviour: Behaviour) -> Behaviour:
    """Spoil so many answers, and no more."""
    left = itertools.count(-number)

    def spoil(asked: Asked, given: Given) -> Answer | None:
        answer = behaviour(asked, given)
        return answer if answer is not None and next(left) < 0 else None

    return spoil


def now_and_then(
    seed: int, probability: float, wrongs: Callable[[Asked], Sequence[Callable[[Given], Answer]]]
) -> Behaviour:
    """Spoil answers by chance: each in one of the ways that *wrongs* gives for the question.

    A question's fate depends on how often it was asked, not on what other threads ask in between.
    """
    times = dict[str, int]()

    def spoil(asked: Asked, given: Given) -> Answer | None:
        times[str(asked)] = time = times.get(str(asked), 0) + 1
        chance, ways = random.Random(f"{seed} {time} {asked.kind}{asked.selector}{asked.time_range}"), wrongs(asked)
        return chance.choice(ways)(given) if ways and chance.random() < probability else None

    return spoil


OVERLOADED: list[Callable[[Given], Answer]] = [
    lambda _: reply(429, "slow down", Retry_After="7"),
    lambda _: reply(429, "", Retry_After=formatdate(time() + 60, usegmt=True)),
    lambda _: reply(503, ""),
    lambda _: reply(503, "upstream connect error or disconnect/reset before headers. reset reason: overflow"),
    lambda _: reply(503, "too many concurrent requests", Retry_After="7"),
    lambda _: reply(500, "rate limit exceeded"),
    lambda _: reply(502, misbehaving.WEB_PAGE),
    lambda _: misbehaving.hang_up,
    lambda _: misbehaving.reset,
]
CUT: list[Callable[[Given], Answer]] = [
    lambda given: misbehaving.cut_off(given, 0.5),
    lambda given: misbehaving.cut_off(given, 0.999),
    lambda given: misbehaving.cut_within(given, 0.5),
    lambda given: misbehaving.cut_within(given, 0.999),
    lambda _: reply(200, ""),
]
FRAMES_BROKEN: list[Callable[[Given], Answer]] = [
    misbehaving.without_last_chunk,
    *(lambda given, place=place: misbehaving.with_a_bit_flipped(given, place) for place in (0.002, 0.3, 0.7, 0.99)),
]


@pytest.mark.parametrize(
    ("source", "wrongs"),
    [("query", OVERLOADED), ("remote-read", OVERLOADED), ("query", CUT), ("remote-read", CUT[:-1] + FRAMES_BROKEN)],
    ids=["query-overloaded", "remote-read-overloaded", "query-cut", "remote-read-cut-and-broken"],
)
def test_what_passes_is_waited_for(
    proxy: MisbehavingProxy,
    kafka: LocalKafka,
    samples: pd.DataFrame,
    source: str,
    wrongs: list[Callable[[Given], Answer]],
) -> None:
    """Refusals for overload, and answers that are cut or broken in any way, are asked for again."""
    stop = HurriedEvent()
    spoil = now_and_then(3, 0.6, lambda asked: wrongs if asked.kind == "samples" else ())
    published = poll(proxy, kafka, spoil, source, stop=stop, range_samples=4_000)
    published.holds(samples)
    assert published.sources == {source}
    assert proxy.spoilt > 10
    if wrongs is OVERLOADED:
        # Seconds, and a date, which are not rounded down.
        assert any(7.0 <= wait_s < 40.0 for wait_s in stop.waits_s)
        assert any(40.0 <= wait_s <= 60.0 for wait_s in stop.waits_s)


@pytest.mark.parametrize(
    ("source", "answer"),
    [("query", TOO_MANY_SAMPLES), ("remote-read", reply(413, "")), ("auto", TOO_MANY_SAMPLES)],
    ids=["query-422", "remote-read-413", "auto-422"],
)
def test_too_many_samples_are_asked_for_in_parts(
    proxy: MisbehavingProxy, kafka: LocalKafka, samples: pd.DataFrame, source: str, answer: Answer
) -> None:
    """Ranges are halved until the backend gives them, and little is asked for that it will refuse."""
    most = 200
    published = poll(
        proxy,
        kafka,
        lambda asked, given: (
            answer if asked.kind == "samples" and misbehaving.samples_in(asked, given) > most else None
        ),
        source,
    )
    published.holds(samples)
    # Halving without learning from it would be refused once for each part that is given.
    assert len(samples) / most > 80
    assert len(history.METRICS) <= proxy.spoilt < 15 * len(history.METRICS)


@pytest.mark.parametrize("source", ["query", "remote-read"])
def test_too_many_series_are_asked_for_in_parts(
    proxy: MisbehavingProxy, kafka: LocalKafka, samples: pd.DataFrame, source: str
) -> None:
    """The selector is halved, not the time."""
    published = poll(
        proxy,
        kafka,
        lambda asked, given: (
            TOO_MANY_SERIES if asked.kind == "samples" and misbehaving.series_in(asked, given) > 3 else None
        ),
        source,
    )
    published.holds(samples)
    before = TimeRange(WHOLE.start_ms - LOOKBACK_MS, WHOLE.start_ms)
    assert {asked.time_range for asked in proxy.asked if asked.metric in history.METRICS} == {WHOLE, before}
    assert proxy.spoilt > 6


def test_what_takes_too_long_is_asked_for_in_parts(
    proxy: MisbehavingProxy, kafka: LocalKafka, samples: pd.DataFrame
) -> None:
    """No answer, and an answer that stops in the middle, both in time; the clock answers."""

    def slow(asked: Asked, given: Given) -> Answer | None:
        if asked.kind != "samples" or asked.time_range.length_ms < 5_000_000:
            return None
        if asked.metric in history.METRICS[:2]:
            return misbehaving.silence(20, proxy.ended)
        return misbehaving.stalled(given, 20, proxy.ended)

    proxy.behaviour = slow
    run(backfill(proxy, kafka, "misbehaving-slow", "--source", "query", "--request-timeout", "3s"))  # type: ignore[arg-type]
    Published(kafka, "misbehaving-slow").holds(samples)
    assert proxy.spoilt >= len(history.METRICS)


def test_a_backend_that_hangs_is_waited_for(proxy: MisbehavingProxy, kafka: LocalKafka, samples: pd.DataFrame) -> None:
    """Where nothing answers in time, not even the clock, nothing is halved, and nothing is given up."""
    hanging = threading.Event()

    def hang(asked: Asked, _given: Given) -> Answer | None:
        if asked.kind == "samples" and not proxy.spoilt:
            hanging.set()
            threading.Timer(6.0, hanging.clear).start()
        return misbehaving.silence(4, proxy.ended) if hanging.is_set() else None

    published = poll(proxy, kafka, hang, "query", timeout_s=1.5)
    published.holds(samples)
    assert published.ranges == [WHOLE]
    assert proxy.spoilt >= 4


def test_a_backend_that_is_away_is_waited_for(
    proxy: MisbehavingProxy, kafka: LocalKafka, samples: pd.DataFrame
) -> None:
    """Connections that are refused for a while, in the middle of a job."""
    gone = threading.Event()

    def go_and_come() -> None:
        proxy.go()
        proxy.ended.wait(1.0)
        proxy.come()

    def leave(asked: Asked, _given: Given) -> Answer | None:
        if asked.kind == "samples" and not gone.is_set():
            gone.set()
            threading.Thread(target=go_and_come).start()
            return misbehaving.hang_up
        return None

    poll(proxy, kafka, leave, "auto", range_samples=8_000).holds(samples)
    assert gone.is_set()


@pytest.mark.parametrize("source", ["query", "remote-read", "auto"])
def test_a_mixture_of_everything(
    proxy: MisbehavingProxy, kafka: LocalKafka, samples: pd.DataFrame, source: str
) -> None:
    """Each request fails with a probability of 0.2, in any way that may pass."""
    too_much: list[Callable[[Given], Answer]] = [lambda _: TOO_MANY_SAMPLES, lambda _: TOO_MANY_SERIES]
    too_much += [lambda _: reply(413, ""), lambda _: reply(504, misbehaving.WEB_PAGE)]

    def wrongs(asked: Asked) -> list[Callable[[Given], Answer]]:
        # An empty stream is an answer: there is nothing.
        ways = OVERLOADED + (CUT[:-1] + FRAMES_BROKEN if asked.way == "read" else CUT)
        if asked.kind == "samples" and asked.time_range.length_ms > 120_000:
            # What is halved down to nothing is refused for good: that is another test's.
            return ways + too_much * 3
        return ways

    published = poll(proxy, kafka, now_and_then(20, 0.2, wrongs), source, range_samples=2_000)
    published.holds(samples)
    assert proxy.spoilt > 10


def test_auto_asks_the_query_api_where_remote_read_sends_something_else(
    proxy: MisbehavingProxy, kafka: LocalKafka, samples: pd.DataFrame
) -> None:
    """A content type that is not the stream's, now and then."""

    def wrongs(asked: Asked) -> list[Callable[[Given], Answer]]:
        is_read = asked.way == "read" and asked.metric in history.METRICS
        return [lambda given: misbehaving.as_type(given, "text/html")] if is_read else []

    published = poll(proxy, kafka, now_and_then(4, 0.5, wrongs), "auto", range_samples=6_000)
    published.holds(samples)
    assert "query" in "+".join(published.sources)
    assert "remote-read" in "+".join(published.sources)


@pytest.mark.parametrize("source", ["query", "remote-read"])
def test_a_page_in_place_of_an_answer_ends_the_run_and_loses_nothing(
    proxy: MisbehavingProxy, kafka: LocalKafka, samples: pd.DataFrame, source: str
) -> None:
    """It may be a login page, which no waiting helps; the same command goes on from where it was."""
    page = reply(200, misbehaving.WEB_PAGE, Content_Type="text/html")
    prefix = next(_PREFIXES)

    def late(asked: Asked, _given: Given) -> Answer | None:
        return page if asked.kind == "samples" and asked.time_range.end_ms == WHOLE.end_ms else None

    with pytest.raises((ConfigError, QueryRejected)) as ended:
        poll(proxy, kafka, late, source, prefix=prefix, range_samples=8_000)
    assert str(ended.value).startswith(proxy.url)
    published = poll(proxy, kafka, lambda _asked, _given: None, source, prefix=prefix, range_samples=8_000)
    published.holds(samples)
    assert len(published.ranges) > 1


@pytest.mark.parametrize(
    ("source", "answer"),
    [
        ("query", api_error(400, "cannot select these", "bad_data")),
        ("remote-read", api_error(422, "this metric is not for you")),
        ("auto", TOO_MANY_SAMPLES),
        ("query", TOO_MANY_SERIES),
    ],
    ids=["query-400", "remote-read-422", "auto-422-samples", "query-422-series"],
)
def test_a_metric_that_is_always_refused_is_named(
    proxy: MisbehavingProxy, kafka: LocalKafka, samples: pd.DataFrame, source: str, answer: Answer
) -> None:
    """All else is there, and not many questions were lost on it."""
    published = poll(
        proxy,
        kafka,
        lambda asked, _: answer if asked.kind == "samples" and asked.metric == REFUSED else None,
        source,
        range_samples=6_000,
    )
    assert len(published.ranges) > 3
    refused = [Refused(REFUSED, r.start_ms, r.end_ms) for r in published.ranges]
    published.lacks(samples[samples["metric"] != REFUSED], *refused)
    assert proxy.count(REFUSED) < 150


def test_a_refused_metric_is_told_everywhere(proxy: MisbehavingProxy, kafka: LocalKafka, samples: pd.DataFrame) -> None:
    """In the log, in the markers and by `ingestor status`."""
    proxy.behaviour = lambda asked, _: (
        api_error(422, "no") if asked.kind == "samples" and asked.metric == REFUSED else None
    )
    prefix = next(_PREFIXES)
    done = run(backfill(proxy, kafka, prefix, "--source", "query"))  # type: ignore[arg-type]
    assert "refuses samples for good" in done.stderr
    assert f"metric={REFUSED}" in done.stderr
    status = run(ingestor("status", "--json", "--topic-prefix", prefix, "--bootstrap-servers", kafka.bootstrap_servers))
    assert [json.loads(line)["incomplete"] for line in status.stdout.splitlines()] == [[REFUSED]]
    Published(kafka, prefix).lacks(samples[samples["metric"] != REFUSED], Refused(REFUSED, *_bounds(WHOLE)))


def test_a_series_that_fits_into_no_message_is_told_everywhere(
    proxy: MisbehavingProxy, kafka: LocalKafka, samples: pd.DataFrame
) -> None:
    """Labels of more than a megabyte leave their own series out: log, markers and `ingestor status` name it."""
    metric, pod = "http_requests_total", "postgres-0"
    # Letters at random take three quarters of their size, compressed.
    padding = base64.b64encode(random.Random(7).randbytes(1_200_000))

    def padded(asked: Asked, given: Given) -> Answer | None:
        labels = b'"code":"500","container":"app","namespace":"data","pod":"%b"' % pod.encode()
        if asked.kind != "samples" or labels not in given.body:
            return None
        return misbehaving.whole(replace(given, body=given.body.replace(labels, b'%b,"z":"%b"' % (labels, padding))))

    proxy.behaviour = padded
    prefix = next(_PREFIXES)
    done = run(backfill(proxy, kafka, prefix, "--source", "query", "--range-samples", "6000"))  # type: ignore[arg-type]
    told = f"a series of {metric} of the pod data/{pod} is left out"
    assert told in done.stderr
    published = Published(kafka, prefix)
    assert len(published.ranges) > 3
    is_padded = (samples["metric"] == metric) & (samples["pod"] == pod) & (samples["series"] == "500")
    published.lacks(samples[~is_padded], *(Refused(metric, r.start_ms, r.end_ms) for r in published.ranges))
    status = run(ingestor("status", "--json", "--topic-prefix", prefix, "--bootstrap-servers", kafka.bootstrap_servers))
    (job,) = map(json.loads, status.stdout.splitlines())
    assert (job["incomplete"], job["samples"]) == ([metric], len(samples) - is_padded.sum())
    assert told in job["last_error"]


def _bounds(time_range: TimeRange) -> tuple[int, int]:
    return time_range.start_ms, time_range.end_ms


@pytest.mark.parametrize(
    ("source", "answer"),
    [("query", TOO_MANY_SAMPLES), ("remote-read", api_error(422, "corrupt block"))],
    ids=["query-too-many", "remote-read-corrupt"],
)
def test_one_bad_second_of_one_series_is_all_that_is_lost(
    proxy: MisbehavingProxy, kafka: LocalKafka, samples: pd.DataFrame, source: str, answer: Answer
) -> None:
    """Of the metric's other series not even that second is; and it is found without asking for all others."""
    bad = samples[(samples["metric"] == "http_requests_total") & (samples["series"] == "500")].iloc[777]
    start_ms = int(bad["timestamp"]) // 1000 * 1000
    refused = Refused("http_requests_total", start_ms, start_ms + 1000)

    def spoil(asked: Asked, given: Given) -> Answer | None:
        overlaps = asked.time_range.start_ms < refused.end_ms and refused.start_ms < asked.time_range.end_ms
        if asked.kind != "samples" or asked.metric != refused.metric or not overlaps:
            return None
        return answer if _finds(asked, bad) else None

    published = poll(proxy, kafka, spoil, source)
    lost = (samples["metric"] == refused.metric) & (samples["pod"] == bad["pod"]) & (samples["series"] == "500")
    lost &= (samples["timestamp"] >= refused.start_ms) & (samples["timestamp"] < refused.end_ms)
    assert lost.sum() == 1
    published.lacks(samples[~lost], refused)
    assert proxy.count(refused.metric) < 100


def _finds(asked: Asked, sample: pd.Series) -> bool:
    """Tell whether a selector finds the series of a sample."""
    labels = {
        "__name__": sample["metric"],
        "namespace": sample["namespace"],
        "pod": sample["pod"],
        "container": "app",
        "code": sample["series"],
    }
    return misbehaving.finds(asked.selector, labels)


def test_a_server_that_needs_three_attempts_gives_everything(
    proxy: MisbehavingProxy, kafka: LocalKafka, samples: pd.DataFrame
) -> None:
    """A backend that is only slow, and answers what it has in its cache by then, loses nothing."""
    times = dict[tuple[Asked, str], int]()

    def slow(asked: Asked, _given: Given) -> Answer | None:
        key = (asked, str(asked.selector))
        times[key] = times.get(key, 0) + 1
        heavy = asked.kind == "samples" and asked.metric == REFUSED and asked.time_range.start_ms < WHOLE.start_ms + 500
        return reply(504, "") if heavy and times[key] < 3 else None

    poll(proxy, kafka, slow, "query").holds(samples)
    assert proxy.spoilt > 10
