"""Real backends with one made history, and what each of them keeps of it.

Prometheus (the distribution's, 2.x), Prometheus 3 and VictoriaMetrics hold the same samples, so that one
suite can ask each of them in every way.
"""

from __future__ import annotations

import functools
import json
import math
import random
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pytest

from ingestor.core.time_range import TimeRange
from ingestor.local import prometheus3, victoria_metrics
from ingestor.local.cache import filled_once
from ingestor.local.processes import free_port
from ingestor.local.prometheus import LocalPrometheus, create_blocks
from ingestor.local.victoria_metrics import LocalVictoriaMetrics
from ingestor.sources.base import SeriesBlock

PROMETHEUS = ["prometheus", "prometheus-3"]
VICTORIA_METRICS = "victoria-metrics"
BACKENDS = [*PROMETHEUS, VICTORIA_METRICS]

START_MS = 1_700_006_400_000
HISTORY = TimeRange(START_MS, START_MS + 3 * 3_600_000)
MILLION_RANGE = TimeRange(START_MS, START_MS + 6 * 3_600_000)
ODD_LABELS = ["<a>&b", "\u2028é😀", "tab\there", "bell\x07", "del\x7f", 'quote"d', "back\\slash", "line\nfeed"]

TYPED = """# TYPE typed_gauge_total gauge
typed_gauge_total 1
# TYPE typed_hits counter
typed_hits 1
# TYPE typed_untyped_total untyped
typed_untyped_total 1
# TYPE typed_untyped untyped
typed_untyped 1
typed_bare_total 1
typed_bare 1
# TYPE typed_seconds histogram
typed_seconds_bucket{le="+Inf"} 1
typed_seconds_sum 1
typed_seconds_count 1
# TYPE typed_bytes summary
typed_bytes{quantile="0.5"} 1
typed_bytes_sum 1
typed_bytes_count 1
"""

EXTERNAL_LABELS = {"cluster": "prod", "replica": "<a>"}

Labels = frozenset[tuple[str, str]]
Samples = dict[tuple[Labels, int], float]


@functools.cache
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


def expected(metric: str, time_range: TimeRange = HISTORY) -> Samples:
    """Return what the history has of a metric's pods."""
    return {
        (labels, t): value
        for (labels, t), value in _expected(metric).items()
        if time_range.start_ms <= t < time_range.end_ms
    }


@functools.cache
def _expected(metric: str) -> Samples:
    return {
        (frozenset(text.partition("=")[::2] for text in labels), t): value
        for labels, samples in history()[metric].items()
        if any(text.startswith("pod=") for text in labels)
        for t, value in samples
    }


@functools.cache
def _largest(metric: str) -> dict[Labels, float]:
    """Return each series' largest finite number."""
    largest: dict[Labels, float] = {}
    for (labels, _), value in _expected(metric).items():
        if math.isfinite(value):
            largest[labels] = max(largest.get(labels, 0.0), abs(value))
    return largest


def found(metric: str, *blocks: SeriesBlock) -> Samples:
    """Return the samples of blocks, and see that each is there once and in order."""
    samples: Samples = {}
    for block in blocks:
        assert block.offsets[0] == 0
        assert block.offsets[-1] == len(block.timestamps_ms) == len(block.values)
        assert (np.diff(block.offsets) > 0).all(), "a series without samples"
        for text, first, last in zip(block.label_sets, block.offsets[:-1], block.offsets[1:], strict=True):
            labels = json.loads(text)
            assert list(labels) == sorted(labels), "one label set is not spelt in one way"
            assert labels.pop("__name__") == metric
            key = frozenset((name, json.dumps(value)) for name, value in labels.items())
            times = block.timestamps_ms[first:last]
            assert (np.diff(times) > 0).all()
            for t, value in zip(times.tolist(), block.values[first:last].tolist(), strict=True):
                assert (key, t) not in samples, "a sample came twice"
                samples[key, t] = value
    return samples


def assert_same_bits(samples: Samples, sent: Samples) -> None:
    """See that exactly these came: NaN as NaN, and -0.0 not as 0.0."""
    assert {key: repr(value) for key, value in samples.items()} == {key: repr(value) for key, value in sent.items()}


def assert_decimals(samples: Samples, sent: Samples, largest: dict[Labels, float]) -> None:
    """See that VictoriaMetrics gave what it keeps: every sample but NaN, with its exact time, as a decimal number.

    Of numbers with a fraction 12 digits are sure up to a million, and nearly 15 above. A block of a series (up
    to 8,192 samples) has one scale, on which its largest number has 18 or 19 digits: beside 1e17, 0.25 is 0.2,
    and beside 1e308 it is 0. Blocks are merged later on, and then this can happen again. -0.0 is 0.0, and a NaN
    is left out.
    Source: VictoriaMetrics lib/decimal/decimal.go, FromFloat, AppendFloatToDecimal and CalibrateScale.

    Args:
        samples: what came.
        sent: what should have come.
        largest: each series' largest number at any time: it may share a block with what was asked for.
    """
    numbers = {key: value for key, value in sent.items() if not math.isnan(value)}
    assert samples.keys() == numbers.keys()
    for key, value in numbers.items():
        if math.isinf(value):
            assert samples[key] == value
        else:
            cut = (2e-15 if abs(value) > 1e6 else 1.1e-12) * abs(value) + 3e-18 * largest[key[0]]
            assert abs(samples[key] - value) <= cut, (key, value)


@dataclass(frozen=True, slots=True)
class Backend:
    """A server that holds the history."""

    name: str
    url: str

    def assert_gave(self, metric: str, *blocks: SeriesBlock, time_range: TimeRange = HISTORY) -> None:
        """See that the blocks hold what this backend keeps of the history in a range, each sample once."""
        samples, sent = found(metric, *blocks), expected(metric, time_range)
        if self.name == VICTORIA_METRICS:
            assert_decimals(samples, sent, _largest(metric))
        else:
            assert_same_bits(samples, sent)


def server(
    name: str, folder: Path, config: dict[str, Any], *extra_args: str, port: int | None = None
) -> LocalPrometheus | LocalVictoriaMetrics:
    """Return a backend that is not started yet; where this machine cannot have it, skip the test and say why.

    Tests neither build nor download for minutes: ``make test`` lets ``python -m ingestor.local fetch`` do that.
    """
    if name == VICTORIA_METRICS:
        if not victoria_metrics.on_path() and not victoria_metrics.program_folder().is_dir():
            pytest.skip("no VictoriaMetrics: python -m ingestor.local fetch --backends gets it, or says why not")
        return LocalVictoriaMetrics(folder, port=port, config=config, extra_args=extra_args)
    # It would take 5 s until a new server scrapes its targets, as 2.42 does all the same.
    extra_args = ("--scrape.discovery-reload-interval=100ms", *extra_args)
    if name == "prometheus":
        return LocalPrometheus(folder, port=port, config=config, extra_args=extra_args)
    if not prometheus3.program_folder().is_dir():
        pytest.skip("no Prometheus 3: python -m ingestor.local fetch --backends builds it, or says why not")
    return LocalPrometheus(folder, port=port, config=config, extra_args=extra_args, program=prometheus3.find_program())


@contextmanager
def with_history(name: str, folder: Path) -> Iterator[Backend]:
    """Run a backend that holds the history, and scrapes itself."""
    port = free_port()
    scrape = {"job_name": "self", "scrape_interval": "1s", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
    backend = server(name, folder, {"scrape_configs": [scrape]}, port=port)
    if isinstance(backend, LocalPrometheus):
        shutil.copytree(filled_once(folder.parent / "history", _create_blocks), backend.data_dir)
    with backend:
        if isinstance(backend, LocalVictoriaMetrics):
            text = folder / "history.txt"
            _write_history(text, _milliseconds)
            backend.import_text(text)
        yield Backend(name, backend.url)


@contextmanager
def with_types(name: str, folder: Path) -> Iterator[str]:
    """Run a backend that scrapes metrics of every type, and such whose type is not told; yield its URL."""
    exporter = Exporter(TYPED)
    target = {"targets": [f"127.0.0.1:{exporter.server.server_port}"]}
    scrape = {"job_name": "exporter", "scrape_interval": "1s", "scrape_timeout": "1s", "static_configs": [target]}
    with server(name, folder, {"scrape_configs": [scrape]}) as backend:
        yield backend.url
    exporter.go_away()


@contextmanager
def with_head(name: str, folder: Path, settings: Mapping[str, Any] | None = None) -> Iterator[tuple[str, Exporter]]:
    """Run a backend with external labels and nothing but a head, that scrapes a target 50 times a second.

    Args:
        name: one of ``BACKENDS``.
        folder: its own.
        settings: more sections of its configuration.
    """
    exporter = Exporter()
    scrape = {
        "job_name": "exporter",
        "scrape_interval": "20ms",
        "scrape_timeout": "20ms",
        "static_configs": [{"targets": [f"127.0.0.1:{exporter.server.server_port}"]}],
    }
    config = {"global": {"external_labels": EXTERNAL_LABELS}, "scrape_configs": [scrape], **(settings or {})}
    with server(name, folder, config) as backend:
        yield backend.url, exporter


class Exporter:
    """A target that counts its scrapes, and that can go away."""

    def __init__(self, more: str = "") -> None:
        exporter = self
        self.scrapes = 0

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                # Prometheus 3 reads nothing whose format is not told.
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                text = f'# TYPE scrapes counter\nscrapes {exporter.scrapes}\nlabelled{{cluster="prod"}} 1\n{more}'
                exporter.scrapes += 1
                self.wfile.write(text.encode())

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


def prometheus_text(value: float) -> str:
    """Write a value as Prometheus' text formats do."""
    return {"nan": "NaN", "inf": "+Inf", "-inf": "-Inf"}.get(repr(value), repr(value))


def _create_blocks(folder: Path) -> None:
    """Make the blocks that every Prometheus is given: 3.x reads those of 2.x."""
    text = folder.with_name("history.om")
    _write_history(text, _seconds)
    create_blocks(text, folder)


def _write_history(text: Path, written: Callable[[int], str]) -> None:
    """Write all samples as OpenMetrics, or as Prometheus' text format: they differ in how a time is *written*."""
    with text.open("w") as file:
        _write_samples(file, written)
        _write_million(file, written)
        file.write("# EOF\n")


def _write_samples(file: TextIO, written: Callable[[int], str]) -> None:
    for metric, by_labels in history().items():
        file.write(f"# TYPE {metric} gauge\n")
        for labels, samples in by_labels.items():
            start = f"{metric}{{{','.join(labels)}}} "
            file.writelines(f"{start}{prometheus_text(value)} {written(t)}\n" for t, value in samples)


def _write_million(file: TextIO, written: Callable[[int], str]) -> None:
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
            file.write(f"{start}{value!r} {written(t)}\n")


def _seconds(t: int) -> str:
    return f"{t // 1000}.{t % 1000:03d}"


def _milliseconds(t: int) -> str:
    return str(t)
