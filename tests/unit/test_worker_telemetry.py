"""What a scrape of a worker says is what the worker was told."""

from __future__ import annotations

import subprocess

import builders
import history
import numpy as np
import pandas as pd
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from ingestor.core import wire
from ingestor.core.chunk import RangeChunk
from ingestor.core.durations import ChunkSize
from ingestor.core.errors import PublishError
from ingestor.core.time_range import TimeRange
from ingestor.local.prometheus import Binaries
from stream_app.dead_letters import size_letter
from stream_app.encoding import RecordContext, encode_records
from stream_app.pipeline import Emission, Output, Pipeline
from stream_app.standing import Read, Standing
from stream_app.telemetry import DELAY_BUCKETS, METRICS, Telemetry
from stream_app.view import View
from stream_app.windows import Closed, Group

START = history.START_MS
RANGES = [TimeRange(START + i * 600_000, START + (i + 1) * 600_000) for i in range(3)]
NOW_S = 1_795_500_000.0


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


def emission(*letters: Output, ends_ms: tuple[int, ...] = ()) -> Emission:
    return Emission([], letters, 0, "", final=False, window_ends_ms=ends_ms)


def letter_of_size() -> Output:
    one = np.ones(1, np.int64)
    cells = Closed(one * START, one * 0, one * 0, one, one / 3, [Group("shop", "api-0", "api")], ["up"])
    [key], [value], too_large = encode_records(
        cells, 0, 1, RecordContext("live", ChunkSize.parse("5m"), "mean", 0, 0), 9
    )
    return size_letter(
        "x.dead-letters",
        key,
        value,
        topic="x.pods",
        partition=3,
        window="2026-11-23T12:00:00Z",
        size_bytes=too_large[0],
    )


def fed(clock: Clock) -> Telemetry:
    """Return a worker's metrics after a while of everything."""
    telemetry = Telemetry(Standing(monotonic=clock), monotonic=clock, unix_s=lambda: NOW_S)
    telemetry.standing.reads = lambda: {3: Read(0, 5, 5)}
    telemetry.assigned([3])
    telemetry.standing.looked(telemetry.standing.assignment, {3: 9})
    view = View(ChunkSize.parse("5m"), "median")
    pipeline = Pipeline(view, 0, "")
    for offset, (headers, value) in enumerate(builders.messages(history.samples(), RANGES)[3][:-1]):
        message = wire.decode(headers, value)
        emissions = pipeline.feed(offset, message)
        telemetry.taken_in(3, message, 0.02, pipeline)
        for one in emissions:
            began = clock()
            clock.s += 0.3
            telemetry.committed([one], began)
        telemetry.handled(3, offset)
    letters = [Output("x.dead-letters", None, b"", reason="value"), *[letter_of_size()] * 2]
    telemetry.committed([emission(*letters)], clock())
    telemetry.failed(PublishError("away"))
    return telemetry


def scraped(telemetry: Telemetry) -> dict[str, float]:
    """Return the samples of a scrape, by name (without what all have in common) and labels' values."""
    families = parse_text(telemetry.exposition("")[0].decode())
    found = (sample for family in families for sample in family.samples)
    return {" ".join([s.name.removeprefix("podstream_worker_"), *s.labels.values()]): s.value for s in found}


def test_a_scrape_says_what_was_told() -> None:
    """Every method moves the metrics that it names, by as much as it was told."""
    seen = scraped(fed(Clock()))
    stream = [wire.decode(*message) for message in builders.messages(history.samples(), RANGES)[3][:-1]]
    chunks = [message for message in stream if isinstance(message, RangeChunk)]
    closed = (RANGES[-1].end_ms // 300_000) - (START // 300_000)
    assert seen["messages_total chunk"] == len(chunks) > 0
    assert seen["messages_total marker"] == len(RANGES)
    assert seen["samples_total"] == sum(chunk.series.samples for chunk in chunks)
    assert seen["message_duration_seconds_sum chunk"] == pytest.approx(0.02 * len(chunks))
    assert seen["commit_duration_seconds_count"] == len(RANGES) + 1
    assert seen["commit_duration_seconds_sum"] == pytest.approx(0.3 * len(RANGES))
    assert seen["windows_closed_total"] == closed == seen["emission_delay_seconds_count"]
    assert seen["records_total metrics.pods"] > closed
    assert seen["dead_letters_total value"] == 1
    assert seen["dead_letters_total size"] == 2
    assert seen["dead_letters_total headers"] == 0
    assert not any(name.startswith("records_total") and "dead" in name for name in seen)
    assert seen["errors_total PublishError"] == 1
    assert seen["partitions"] == 1
    assert seen["lag_messages 3"] == seen["replay_messages"] == 9 - len(stream)
    assert seen["position_timestamp_seconds 3"] == RANGES[-1].end_ms / 1000
    # The job's last range ends within a window.
    assert seen["open_windows"] == 1
    assert seen["held_values"] >= seen["open_cells"] > 0


def test_what_is_described_is_what_is_exposed() -> None:
    """Both formats can be parsed; names, types, labels and texts are those of the table, and no other of ours."""
    for accept, parse in (("text/plain", parse_text), ("application/openmetrics-text", parse_openmetrics)):
        text, _ = fed(Clock()).exposition(accept)
        families = [f for f in parse(text.decode()) if f.name.startswith("podstream_")]
        exposed = {f.name + "_total" * (f.type == "counter"): (f.type, f.documentation) for f in families}
        assert exposed == {m.name: (m.kind, m.meaning) for m in METRICS}
        labels = {s.name: set(s.labels) - {"le"} for f in families for s in f.samples}
        assert {m.name: labels[m.name + "_count" * (m.kind == "histogram")] for m in METRICS} == {
            m.name: set(m.labels) for m in METRICS
        }


@pytest.mark.parametrize("telemetry", [Telemetry(Standing()), fed(Clock())], ids=["new", "fed"])
def test_promtool_has_no_complaint(telemetry: Telemetry, prometheus_binaries: Binaries) -> None:
    """Prometheus' own linter: names, units, help texts, types."""
    text, _ = telemetry.exposition("")
    done = subprocess.run(
        [prometheus_binaries.promtool, "check", "metrics"], input=text, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_delays_are_a_histogram_like_any_other() -> None:
    """All windows of an emission at once, each in its bucket and all above; what ends in the future is not late."""
    telemetry = Telemetry(Standing(), unix_s=lambda: NOW_S)
    delays_s = [-5.0, 0.5, 1.0, 1.5, 100.0, 86_400.0, 5e6]
    ends_ms = [int((NOW_S - s) * 1000) for s in delays_s]
    telemetry.committed([emission(ends_ms=(end_ms,)) for end_ms in ends_ms[:3]], telemetry.clock())
    telemetry.committed([emission(ends_ms=tuple(ends_ms[3:])), emission()], telemetry.clock())
    seen = scraped(telemetry)
    for bound in DELAY_BUCKETS:
        assert seen[f"emission_delay_seconds_bucket {float(bound)}"] == sum(s <= bound for s in delays_s), bound
    assert seen["emission_delay_seconds_bucket +Inf"] == seen["emission_delay_seconds_count"] == len(delays_s)
    assert seen["emission_delay_seconds_sum"] == pytest.approx(sum(max(s, 0) for s in delays_s))


def test_what_was_held_goes_with_the_partitions() -> None:
    """After a rebalance nothing is held, and no lag or position is told, until messages come."""
    telemetry = fed(Clock())
    telemetry.revoked()
    seen = scraped(telemetry)
    assert [seen[name] for name in ("open_windows", "open_cells", "held_values", "partitions")] == [0, 0, 0, 0]
    assert not any(name.startswith(("lag_", "position_")) for name in seen)


@pytest.mark.parametrize("group_by", [("pod",), ("pod", "service")])
def test_window_ends(group_by: tuple) -> None:
    """Each window that closes is told once, whatever is grouped, cut at calendars' edges too."""
    samples: pd.DataFrame = history.samples()
    view = View(ChunkSize.parse("7m"), "sum", group_by=group_by)
    stream, ends = builders.messages(samples, RANGES)[3], []
    pipeline = Pipeline(view, 0, "")
    for offset, message in enumerate(stream):
        for one in pipeline.feed(offset, wire.decode(*message)):
            ends += one.window_ends_ms
    first, last = RANGES[0].start_ms // 420_000, (RANGES[-1].end_ms - 1) // 420_000
    assert ends == [(number + 1) * 420_000 for number in range(first, last + 1)]
    assert (pipeline.open_windows, pipeline.open_cells, pipeline.held_values) == (0, 0, 0)
