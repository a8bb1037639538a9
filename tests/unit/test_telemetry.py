"""What a scrape says is what the poller was told, at every moment."""

from __future__ import annotations

import subprocess
import threading

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from ingestor.core.errors import ConfigError, PublishError, QueryRejected, SourceUnavailable, TooManySamples
from ingestor.core.time_range import TimeRange
from ingestor.exposition import OTHER, Described
from ingestor.local.prometheus import Binaries
from ingestor.telemetry import METRICS, MOST_INCOMPLETE_NAMES, Telemetry, outcome_of

START = 1_795_435_200_000
RANGE = TimeRange(START, START + 60_000)
NEXT = TimeRange(RANGE.end_ms, RANGE.end_ms + 60_000)
TEXT, OPENMETRICS = "text/plain", "application/openmetrics-text; version=1.0.0"

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


def fed(clock: Clock) -> Telemetry:
    """Return a poller's metrics after a while of everything."""
    telemetry = Telemetry("live", monotonic=clock, unix_s=lambda: 1_795_435_300.5)
    telemetry.activated()
    telemetry.backend_clock(RANGE.end_ms + 45_000)
    with telemetry.request("samples"):
        clock.s += 0.3
    with pytest.raises(TooManySamples), telemetry.request("samples"):
        raise TooManySamples("too many")
    telemetry.split("range")
    telemetry.retried("kafka")
    telemetry.incomplete("huge")
    telemetry.failed(SourceUnavailable("away"))
    telemetry.samples_read(RANGE, 100)
    telemetry.samples_read(NEXT, 7)
    telemetry.range_published(RANGE, samples=100, series=10, size_bytes=900, seconds=0.2)
    return telemetry


def scraped(telemetry: Telemetry) -> Samples:
    """Return every sample of a scrape."""
    text, _ = telemetry.exposition(TEXT)
    families = parse_text(text.decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def value(telemetry: Telemetry, metric: Described, suffix: str = "", /, **labels: str) -> float | None:
    return scraped(telemetry).get((metric.name + suffix, tuple(sorted(labels.items()))))


def metric(name: str) -> Described:
    return next(described for described in METRICS if described.name == f"podstream_poller_{name}")


def test_a_scrape_says_what_was_told() -> None:
    """Every method moves the metric that it names, by as much as it was told."""
    clock = Clock()
    telemetry = fed(clock)
    assert value(telemetry, metric("ranges_total")) == 1
    assert value(telemetry, metric("samples_total")) == 100
    assert value(telemetry, metric("published_bytes_total")) == 900
    assert value(telemetry, metric("series")) == 10
    assert value(telemetry, metric("publish_duration_seconds"), "_sum") == pytest.approx(0.2)
    seconds = metric("request_duration_seconds")
    assert value(telemetry, seconds, "_count", kind="samples", outcome="ok") == 1
    assert value(telemetry, seconds, "_sum", kind="samples", outcome="ok") == pytest.approx(0.3)
    assert value(telemetry, seconds, "_bucket", kind="samples", outcome="ok", le="0.25") == 0
    assert value(telemetry, seconds, "_bucket", kind="samples", outcome="ok", le="0.5") == 1
    assert value(telemetry, seconds, "_count", kind="samples", outcome="too_large") == 1
    assert [value(telemetry, metric("splits_total"), of=of) for of in ("range", "selector")] == [1, 0]
    assert [value(telemetry, metric("retries_total"), of=of) for of in ("backend", "kafka")] == [0, 1]
    assert value(telemetry, metric("incomplete_ranges_total"), metric="huge") == 1
    assert value(telemetry, metric("position_timestamp_seconds")) == RANGE.end_ms / 1000
    assert value(telemetry, metric("lag_seconds")) == pytest.approx(45.3)
    assert value(telemetry, metric("in_flight_samples")) == 7
    assert value(telemetry, metric("active")) == 1
    assert value(telemetry, metric("errors_total"), **{"class": "SourceUnavailable"}) == 1
    assert value(telemetry, metric("last_error_timestamp_seconds")) == 1_795_435_300.5
    assert value(telemetry, metric("job_info"), poller_job="live") == 1


@pytest.mark.parametrize(("accept", "parse"), [(TEXT, parse_text), (OPENMETRICS, parse_openmetrics)])
def test_what_is_described_is_what_is_exposed(accept, parse) -> None:
    """Both formats can be parsed; names, types, labels and texts are those of the table, and no other of ours."""
    text, content_type = fed(Clock()).exposition(accept)
    assert content_type.startswith(accept.partition(";")[0])
    families = [f for f in parse(text.decode()) if f.name.startswith("podstream_")]
    exposed = {f.name + "_total" * (f.type == "counter"): (f.type, f.documentation) for f in families}
    assert exposed == {m.name: (m.kind, m.meaning) for m in METRICS}
    labels = {s.name: set(s.labels) - {"le"} for f in families for s in f.samples}
    assert {m.name: labels[m.name + "_count" * (m.kind == "histogram")] for m in METRICS} == {
        m.name: set(m.labels) for m in METRICS
    }
    suffixes = {name.removeprefix(f.name) for f in families for name in labels if name.startswith(f.name)}
    assert not any("created" in suffix for suffix in suffixes)


@pytest.mark.parametrize("telemetry", [Telemetry("live"), fed(Clock())], ids=["new", "fed"])
def test_promtool_has_no_complaint(telemetry: Telemetry, prometheus_binaries: Binaries) -> None:
    """Prometheus' own linter: names, units, help texts, types."""
    text, _ = telemetry.exposition(TEXT)
    done = subprocess.run(
        [prometheus_binaries.promtool, "check", "metrics"], input=text, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "text/plain"),
        ("*/*", "text/plain"),
        ("text/html,application/xhtml+xml;q=0.9,*/*;q=0.8", "text/plain"),
        ("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5", "application/openmetrics-text"),
        ("text/plain;q=0.1, Application/OpenMetrics-Text", "application/openmetrics-text"),
        ("application/openmetrics-text;version=none\r\n x: y", "application/openmetrics-text"),
    ],
)
def test_the_format_is_chosen_by_accept(accept: str, kind: str) -> None:
    """OpenMetrics for who understands it; nothing of what a client sends comes back."""
    text, content_type = Telemetry("live").exposition(accept)
    assert content_type.partition(";")[0] == kind
    assert text.endswith(b"# EOF\n") == (kind == "application/openmetrics-text")
    assert "none" not in content_type


def test_the_lag_grows_while_the_backend_is_away() -> None:
    """It is the backend's clock that counts, carried on by ours; a new answer corrects it."""
    clock, lag = Clock(), metric("lag_seconds")
    telemetry = Telemetry("live", monotonic=clock)
    telemetry.position_confirmed(START)
    assert value(telemetry, lag) is None
    telemetry.backend_clock(START + 30_000)
    assert value(telemetry, lag) == pytest.approx(30)
    clock.s += 600
    assert value(telemetry, lag) == pytest.approx(630)
    telemetry.backend_clock(START + 620_000)
    assert value(telemetry, lag) == pytest.approx(620)
    telemetry.position_confirmed(START + 590_000)
    assert value(telemetry, lag) == pytest.approx(30)


def test_nothing_known_is_no_sample() -> None:
    """A poller that knows no position yet is not fifty years behind."""
    telemetry = Telemetry("live")
    assert value(telemetry, metric("position_timestamp_seconds")) is None
    telemetry.backend_clock(START)
    assert value(telemetry, metric("lag_seconds")) is None


def test_samples_in_flight_end_with_their_range() -> None:
    """Halves of a range, in whatever order, go when the range is published, also those that were not packed."""
    telemetry, in_flight = Telemetry("live"), metric("in_flight_samples")
    first, second = RANGE.halves()
    for time_range, samples in ((NEXT, 5), (second, 30), (first, 20), (first, 1)):
        telemetry.samples_read(time_range, samples)
    assert value(telemetry, in_flight) == 56
    telemetry.range_published(RANGE, samples=40, series=1, size_bytes=1, seconds=0.1)
    assert value(telemetry, in_flight) == 5
    telemetry.activated()
    assert value(telemetry, in_flight) == 0


def test_many_refused_metrics_stay_few_series() -> None:
    """The first hundred names are told; what comes after is counted all the same."""
    telemetry, incomplete = Telemetry("live"), metric("incomplete_ranges_total")
    for _ in range(2):
        for number in range(MOST_INCOMPLETE_NAMES + 50):
            telemetry.incomplete(f"metric_{number}")
    counted = {labels: v for (name, labels), v in scraped(telemetry).items() if name == incomplete.name}
    assert len(counted) == MOST_INCOMPLETE_NAMES + 1
    assert counted[(("metric", OTHER),)] == 100
    assert sum(counted.values()) == 2 * (MOST_INCOMPLETE_NAMES + 50)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (TooManySamples("x"), "too_large"),
        (SourceUnavailable("x"), "unavailable"),
        (QueryRejected("x"), "rejected"),
        (type("RemoteReadUnsupported", (QueryRejected,), {})("x"), "rejected"),
        (ConfigError("x"), "rejected"),
        (PublishError("x"), "failed"),
        (KeyError("x"), "failed"),
        (KeyboardInterrupt(), "failed"),
    ],
)
def test_outcomes(error: BaseException, outcome: str) -> None:
    """An error's class says how the request ended."""
    assert outcome_of(error) == outcome


def test_readiness() -> None:
    """Ready is who has published or confirmed lately; who stands by or stands still says so."""
    clock = Clock()
    telemetry = Telemetry("live", monotonic=clock)
    assert "nothing of the job live" in (telemetry.not_ready(60) or "")
    telemetry.standing_by()
    assert "another process polls the job live" in (telemetry.not_ready(60) or "")
    assert value(telemetry, metric("active")) == 0
    telemetry.activated()
    assert "starting" in (telemetry.not_ready(60) or "")
    assert value(telemetry, metric("active")) == 1
    telemetry.position_confirmed(START)
    assert telemetry.not_ready(60) is None
    clock.s += 60
    assert telemetry.not_ready(60) is None
    clock.s += 1
    assert telemetry.not_ready(60) == "nothing was published or confirmed for 61 s; ready means within 60 s"
    telemetry.range_published(RANGE, samples=1, series=1, size_bytes=1, seconds=0.1)
    assert telemetry.not_ready(60) is None
    telemetry.standing_by()
    telemetry.activated()
    assert "starting" in (telemetry.not_ready(60) or "")


def test_pollers_share_nothing() -> None:
    """Two of them in one process count for themselves."""
    one, other = fed(Clock()), Telemetry("other")
    assert value(one, metric("ranges_total")) == 1
    assert value(other, metric("ranges_total")) == 0


def test_no_count_is_lost_between_threads() -> None:
    """Eight threads count at once, while others scrape."""
    telemetry, rounds = Telemetry("live"), 500

    def work(number: int) -> None:
        for _ in range(rounds):
            with telemetry.request("samples"):
                pass
            telemetry.samples_read(NEXT, 1)
            telemetry.incomplete(f"metric_{number}")

    workers = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        assert (value(telemetry, metric("in_flight_samples")) or 0) <= 8 * rounds
    assert value(telemetry, metric("request_duration_seconds"), "_count", kind="samples", outcome="ok") == 8 * rounds
    assert value(telemetry, metric("in_flight_samples")) == 8 * rounds
    assert value(telemetry, metric("incomplete_ranges_total"), metric="metric_7") == rounds
