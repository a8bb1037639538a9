"""Whatever way samples are cut, repeated and interleaved, wherever a worker restarts: records are the oracle's.

``HYPOTHESIS_EXAMPLES=1000 pytest tests/unit/test_stream_properties.py`` looks longer.
"""

from __future__ import annotations

import math
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import chain, pairwise
from typing import Any

import numpy as np
import oracle
import orjson
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ingestor.core import wire
from ingestor.core.chunk import LOOKBACK_MS, Header, SeriesColumns
from ingestor.core.durations import ChunkSize
from ingestor.core.errors import MalformedMessage
from ingestor.core.time_range import TimeRange
from ingestor.workloads import service_of
from stream_app import pipeline as pipeline_module
from stream_app import windows as windows_module
from stream_app.dead_letters import dead_letter
from stream_app.earlier import EarlierResults
from stream_app.encoding import result_hash
from stream_app.pipeline import Pipeline, Unreadable
from stream_app.records import decode_record
from stream_app.view import View

Message = tuple[Any, bytes]
Commit = tuple[int, str]
Identity = tuple[str, bytes, int]

SUMMER_ENDS_MS = 1_792_890_000_000
"""2026-10-25T01:00Z: in Berlin an hour comes twice."""
SIZES = ["10s", "1m", "7m", "1h", "5h", "1d@Europe/Berlin", "1d", "1w@Europe/Berlin"]
PODS = ["web-7d9f8b6c5-x2x4z", "web-7d9f8b6c5-8vx7t", "db-0", "db-1"]
TYPES = {"cpu": "gauge", 'queue{name="a"}': "gauge", "requests_total": "counter", "bytes_total": "counter"}
METHODS = ["sum", "mean", "median", "min", "max", "count", "stddev", "last", "p0", "p50", "p90", "p99.9", "p100"]
OWN_METHODS = [("queue", "max"), ("requests.*", "stddev"), ("requests.*", "mean"), ("cpu", "p75"), ("bytes_.*", "last")]

many = settings(
    max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "16")),
    deadline=None,
    # A scenario is mostly seeds: making it smaller takes minutes and shows little.
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@dataclass(frozen=True, slots=True)
class Cuts:
    """How samples become messages and messages commits: all that must not show. Drawn, so that it shrinks."""

    seed: int
    ranges: int
    """At most so many each job."""
    pieces: int
    """A series has so many rows a range at most, and a range so many chunks."""
    repeats: float
    """How many of the messages come twice."""
    crashes: int
    """A worker restarts so many times at most."""
    emission_records: int
    merge_above: int


@dataclass(slots=True)
class Job:
    """What one job reads."""

    name: str
    start_ms: int
    end_ms: int
    looks_back: bool = False
    ends: bool = True
    revision: int = 0
    recheck: str = ""
    is_cut_at: tuple[int, ...] = field(default=())
    """Where ranges end, beside where chance ends them."""

    def sees(self, samples: pd.DataFrame) -> pd.DataFrame:
        """Return what comes to the worker, as `oracle.windows` takes it."""
        from_ms = self.start_ms - LOOKBACK_MS if self.looks_back else self.start_ms
        return samples[(samples["timestamp"] >= from_ms) & (samples["timestamp"] < self.end_ms)]

    def whole(self, start_ms: int, end_ms: int) -> bool:
        return self.start_ms <= start_ms and end_ms <= self.end_ms


# -------------------------------------------------------------------------------- scenarios


@st.composite
def views(draw: st.DrawFn, sizes: tuple[str, ...] = tuple(SIZES)) -> View:
    return View(
        ChunkSize.parse(draw(st.sampled_from(sizes))),
        draw(st.sampled_from(METHODS)),
        draw(st.sampled_from(["pooled", "pooled", "last", "mean", "increase", "rate"])),
        draw(st.sampled_from([("pod",), ("service",), ("pod", "service")])),
        counters=draw(st.sampled_from(["raw", "increase", "rate"])),
        metric_methods=tuple(draw(st.lists(st.sampled_from(OWN_METHODS), max_size=3))),
    )


@st.composite
def times(draw: st.DrawFn, view: View) -> tuple[int, int]:
    """Return a stretch of some windows around the end of summer time."""
    size_ms = view.chunk_size.longest_ms
    length_ms = int(draw(st.floats(0.3, 6.0)) * size_ms) + 1
    return (start_ms := SUMMER_ENDS_MS - draw(st.integers(0, length_ms))), start_ms + length_ms


def all_cuts() -> st.SearchStrategy[Cuts]:
    return st.builds(
        Cuts,
        seed=st.integers(0, 2**32),
        ranges=st.integers(1, 9),
        pieces=st.integers(1, 4),
        repeats=st.sampled_from([0.0, 0.0, 0.2]),
        crashes=st.integers(0, 6),
        emission_records=st.sampled_from([1, 2, 5, 20_000]),
        merge_above=st.sampled_from([0, 3, 100_000]),
    )


def sampled(seed: int, view: View, start_ms: int, end_ms: int, *, most: int = 24) -> pd.DataFrame:
    """Return samples of a few series, some before *start_ms* too; many lie at windows' edges."""
    generator, frames = np.random.default_rng(seed), []
    edges = view.chunk_size.edges_ms(start_ms, end_ms)
    is_quantile = any(method[0] == "p" for method in (view.method, *(own for _, own in view.metric_methods)))
    for number in range(generator.integers(1, 11)):
        metric = str(generator.choice(list(TYPES)))
        from_ms, to_ms = np.sort(generator.integers(start_ms - 2 * LOOKBACK_MS, end_ms, 2, endpoint=True))
        count = int(generator.integers(1, most))
        near = generator.choice(edges, count) + generator.integers(-LOOKBACK_MS - 2, LOOKBACK_MS, count)
        stamps = np.where(generator.random(count) < 0.4, near, generator.integers(from_ms, to_ms + 1, count))
        on_edge = generator.choice(edges, count) - generator.choice([0, 1, LOOKBACK_MS, LOOKBACK_MS + 1], count)
        stamps = np.unique(np.where(generator.random(count) < 0.2, on_edge, stamps))
        values = counter(generator, len(stamps)) if TYPES[metric] == "counter" else gauge(generator, len(stamps))
        # Between values of both signs a quantile's own rounding shows.
        values = np.abs(values) if is_quantile else values
        # What infinities increase by is nobody's question.
        values = np.where(np.isinf(values), 7.0, values) if view.reductions.looks_back else values
        pod = str(generator.choice(PODS))
        frame = pd.DataFrame({"timestamp": stamps, "value": values})
        fingerprint = int(generator.integers(0, 2**64, dtype=np.uint64))
        frames.append(frame.assign(pod=pod, metric=metric, series=number, fingerprint=fingerprint))
    samples = pd.concat(frames, ignore_index=True).astype({"fingerprint": np.uint64})
    return samples.assign(namespace="shop", type=samples["metric"].map(TYPES))


def gauge(generator: np.random.Generator, count: int) -> np.ndarray:
    kind = generator.integers(0, 6)
    if kind == 0:
        return np.full(count, float(generator.choice([0.1, 0.3, 1e15 + 0.125, 1e-300, 16_777_216.7])))
    if kind == 1:
        return 1e15 + generator.integers(0, 100, count) / 8
    if kind == 2:
        return generator.normal(size=count) * 10.0 ** generator.integers(-9, 16, count)
    if kind == 3:
        return generator.choice([0.0, -0.0, 1.0, 0.1, 3.0], count)
    values = generator.normal(size=count)
    if kind == 4:
        special = generator.random(count) < 0.1
        values[special] = generator.choice([np.nan, np.inf, -np.inf], int(special.sum()))
    return values


def counter(generator: np.random.Generator, count: int) -> np.ndarray:
    values = np.cumsum(generator.exponential(size=count) * 10.0 ** generator.integers(-3, 9))
    for reset in np.flatnonzero(generator.random(count) < 0.15):
        values[reset:] -= values[reset] - generator.integers(0, 2)
    values[generator.random(count) < generator.choice([0.0, 0.0, 0.1])] = np.nan
    return values


# ---------------------------------------------------------------------------------- messages


def messages(job: Job, samples: pd.DataFrame, cuts: Cuts) -> list[Message]:
    """Return a job's messages in one partition, in order."""
    chance = random.Random(f"{cuts.seed} {job.name}")
    points = [chance.randint(job.start_ms, job.end_ms) for _ in range(cuts.ranges - 1)]
    edges = sorted({job.start_ms, job.end_ms, *points, *job.is_cut_at})
    found: list[Message] = []

    def add(kind: str, start_ms: int, end_ms: int, value: bytes = b"") -> None:
        header = Header(job.name, TimeRange(start_ms, end_ms), len(found), "test", job.revision, job.recheck)
        found.append((wire.headers(kind, header), value))

    if job.looks_back:
        before_ms = job.start_ms - LOOKBACK_MS
        earlier = samples[samples["timestamp"].between(before_ms, job.start_ms, inclusive="left")]
        last = earlier.sort_values("timestamp").drop_duplicates("series", keep="last")
        for value in chunks(last, cuts.pieces, chance):
            add("lookback", before_ms, job.start_ms, value)
    for start_ms, end_ms in pairwise(edges):
        inside = samples[samples["timestamp"].between(start_ms, end_ms, inclusive="left")]
        for value in chunks(inside, cuts.pieces, chance):
            add("chunk", start_ms, end_ms, value)
        add("marker", start_ms, end_ms)
    if job.ends:
        add("end", job.start_ms, job.end_ms)
    return found


def chunks(samples: pd.DataFrame, pieces: int, chance: random.Random) -> list[bytes]:
    """Pack samples; a series may have several rows, in any order within a chunk; chunks follow one another in time."""
    packed: list[list[pd.DataFrame]] = [[] for _ in range(pieces)]
    for _, series in samples.groupby("series"):
        ordered = series.sort_values("timestamp")
        cuts = sorted({0, len(ordered), *(chance.randint(0, len(ordered)) for _ in range(pieces - 1))})
        rows = [ordered.iloc[first:last] for first, last in pairwise(cuts)]
        for row, number in zip(rows, sorted(chance.choices(range(pieces), k=len(rows))), strict=True):
            packed[number].append(row)
    for rows in packed:
        chance.shuffle(rows)
    return [encoded(rows) for rows in packed if rows]


def encoded(rows: list[pd.DataFrame]) -> bytes:
    def names(of: Callable[[pd.DataFrame], str]) -> pa.DictionaryArray:
        return pa.array([of(row) for row in rows]).dictionary_encode()

    return wire.encode_series(
        SeriesColumns(
            namespace=names(lambda row: row["namespace"].iloc[0]),
            pod=names(lambda row: row["pod"].iloc[0]),
            service=names(lambda row: service_of(row["pod"].iloc[0])),
            metric=names(lambda row: row["metric"].iloc[0]),
            type=names(lambda row: row["type"].iloc[0]),
            labels=pa.array(
                [[("series", str(row["series"].iloc[0]))] for row in rows], wire.SCHEMA.field("labels").type
            ),
            fingerprint=np.array([row["fingerprint"].iloc[0] for row in rows], np.uint64),
            offsets=np.cumsum([0, *map(len, rows)]),
            timestamps_ms=np.concatenate([row["timestamp"].to_numpy(np.int64) for row in rows]),
            values=np.concatenate([row["value"].to_numpy(float) for row in rows]),
        )
    )


def interleaved(streams: list[list[Message]], cuts: Cuts) -> list[Message]:
    """Mix the streams of several jobs, each in its order; some messages come twice."""
    chance, left, mixed = random.Random(cuts.seed), [list(stream) for stream in streams], []
    while left := [stream for stream in left if stream]:
        stream = chance.choice(left)
        for _ in range(chance.choice([1, 1, 3, 100])):
            if stream:
                mixed += [stream[0]] * (1 + (chance.random() < cuts.repeats and kind_of(stream[0]) != "end"))
                del stream[0]
    return mixed


def kind_of(message: Message) -> str:
    return dict(message[0])["kind"].decode()


def end_of(message: Message) -> int:
    return int(dict(message[0])["end"])


# ------------------------------------------------------------------------------------ worker


@dataclass(slots=True)
class Worker:
    """Feeds one partition to a pipeline as `stream_app.app` does, and dies wherever chance wants it to."""

    view: View
    stream: list[Message]
    cuts: Cuts
    written: list[tuple[str, bytes, bytes]] = field(default_factory=list)
    """Topic, key and value."""

    def run(self) -> Worker:
        chance, commit = random.Random(self.cuts.seed + 1), (0, "")
        crashes = sorted(chance.randint(0, 2 * len(self.stream)) for _ in range(self.cuts.crashes))
        steps = 0
        pipeline = self._started(commit)
        while pipeline.next_offset < len(self.stream):
            for emission in pipeline.feed(pipeline.next_offset, self._item(pipeline.next_offset)):
                steps += 1
                if crashes and steps >= crashes[0]:
                    break
                if emission.outputs or emission.final or chance.random() < 0.3:
                    commit = self._written(emission)
            else:
                steps += 1
                if chance.random() < 0.05:
                    commit = self._written(pipeline.idle_emission())
            if crashes and steps >= crashes[0]:
                del crashes[0]
                pipeline = self._started(commit)
        ends = {dict(headers)["job"] for headers, _ in self.stream if dict(headers).get("kind") == b"end"}
        if ends >= {dict(headers).get("job") for headers, _ in self.stream}:
            assert pipeline.low == len(self.stream), "a job holds back what has ended"
            assert (pipeline.open_cells, pipeline.open_windows, pipeline.held_values) == (0, 0, 0)
            assert orjson.loads(pipeline.idle_emission().metadata)["jobs"] == {}
        return self

    def records(self) -> dict[tuple[str, Identity], dict[str, Any]]:
        """Return what was written by job and identity, each at most once."""
        found: dict[tuple[str, Identity], dict[str, Any]] = {}
        for topic, key, value in self.written:
            if topic != self.view.topics.dead_letters:
                record = orjson.loads(value)
                name = record["job"], (topic, key, record["window_start"])
                assert name not in found, f"{name} was emitted twice"
                found[name] = record
        return found

    def _written(self, emission: pipeline_module.Emission) -> Commit:
        assert len(emission.metadata) < 4096
        self.written += [(output.topic, output.key or b"", output.value) for output in emission.outputs]
        return emission.offset, emission.metadata

    def _started(self, commit: Commit) -> Pipeline:
        return Pipeline(self.view, *commit, self._earlier)

    def _item(self, offset: int) -> Any:
        headers, value = self.stream[offset]
        try:
            return wire.decode(headers, value)
        except MalformedMessage as error:
            letter = dead_letter("letters", None, value, headers, topic="in", partition=0, offset=offset, error=error)
            return Unreadable(wire.header_of(headers), replace(letter, topic=self.view.topics.dead_letters))

    def _earlier(self, from_ms: int) -> EarlierResults:
        identities, results = [], []
        for topic, key, value in self.written:
            record = decode_record(value)
            if record.window_start_ms >= from_ms:
                identities.append(hash((topic, key, record.window_start_ms)))
                numbers = np.array(list(record.metrics.values()), np.float64)
                is_whole = not record.partial and not record.incomplete
                results.append(result_hash(list(record.metrics), numbers, record.samples) if is_whole else 0)
        return EarlierResults(np.array(identities, np.int64), np.array(results, np.int64))


@pytest.fixture(autouse=True)
def thresholds() -> Iterator[None]:
    """What an example sets is set back."""
    was = pipeline_module.EMISSION_RECORDS, windows_module._MERGE_ABOVE, windows_module._FORGET_ABOVE
    yield
    pipeline_module.EMISSION_RECORDS, windows_module._MERGE_ABOVE, windows_module._FORGET_ABOVE = was


def work(view: View, streams: list[list[Message]], cuts: Cuts) -> Worker:
    """Run the jobs' messages through a worker."""
    return worked(view, interleaved(streams, cuts), cuts)


def worked(view: View, stream: list[Message], cuts: Cuts) -> Worker:
    pipeline_module.EMISSION_RECORDS, windows_module._MERGE_ABOVE = cuts.emission_records, cuts.merge_above
    windows_module._FORGET_ABOVE = cuts.merge_above // 3
    return Worker(view, stream, cuts).run()


# ------------------------------------------------------------------------------------ oracle


def expected(view: View, job: Job, samples: pd.DataFrame) -> dict[Identity, dict[str, float]]:
    """Return what the oracle makes of a job, by identity."""
    made = {}
    for group_by in view.group_by:
        cells = oracle.windows(
            job.sees(samples), str(view.chunk_size), view.method, group_by, view.over_time,
            counters=view.counters, metric_methods=view.metric_methods, from_ms=job.start_ms,
        )  # fmt: skip
        for (namespace, who, window_ms), metrics in cells.items():
            made[view.topics.sink(group_by), f"{namespace}/{who}".encode(), window_ms] = metrics
    if not job.ends:
        closed_to_ms = view.chunk_size.floor_ms(job.end_ms)
        made = {identity: metrics for identity, metrics in made.items() if identity[2] < closed_to_ms}
    return made


def numbers(record: dict[str, Any]) -> dict[str, float]:
    return decode_record(orjson.dumps(record)).metrics


def assert_metrics(record: dict[str, Any], metrics: dict[str, float]) -> None:
    made = numbers(record)
    assert made.keys() == metrics.keys()
    for name, value in metrics.items():
        assert oracle.same(made[name], value), (orjson.dumps(record).decode(), name, value)


def result_of(record: dict[str, Any]) -> bytes:
    """Return the bytes of what a window holds, whoever has made it."""
    return orjson.dumps([record["metrics"], record["samples"], record["window_end"]])


Records = dict[tuple[str, Identity], dict[str, Any]]


def assert_alike(first: Records, second: Records) -> None:
    """Check that two runs have written the same bytes."""
    assert first.keys() == second.keys(), first.keys() ^ second.keys()
    for name, record in first.items():
        assert orjson.dumps(record).decode() == orjson.dumps(second[name]).decode()


# ------------------------------------------------------------------------------------- tests


@st.composite
def jobs_at_once(draw: st.DrawFn) -> tuple[View, pd.DataFrame, list[Job], Cuts, Cuts, Cuts]:
    """Jobs that adjoin one another, at windows' edges and within windows, with or without what was before them."""
    view = draw(views())
    start_ms, end_ms = draw(times(view))
    samples = sampled(draw(st.integers(0, 2**32)), view, start_ms, end_ms)
    inner = [at for at in view.chunk_size.edges_ms(start_ms, end_ms).tolist() if start_ms < at < end_ms]
    cut = st.integers(start_ms, end_ms) | (st.sampled_from(inner) if inner else st.just(start_ms))
    edges = sorted({start_ms, end_ms, *draw(st.lists(cut, max_size=3))})
    jobs = []
    for number, (first_ms, last_ms) in enumerate(pairwise(edges)):
        looks_back, ends = draw(st.booleans()), draw(st.booleans()) or draw(st.booleans())
        jobs.append(Job(f"job-{number}", first_ms, last_ms, looks_back, ends))
    return view, samples, jobs, draw(all_cuts()), draw(all_cuts()), draw(all_cuts())


@many
@given(jobs_at_once())
def test_how_samples_come_does_not_show(scenario: tuple[View, pd.DataFrame, list[Job], Cuts, Cuts, Cuts]) -> None:
    """Records are the oracle's, each once, partial where a job cuts them, and the same bytes however they were cut."""
    view, samples, jobs, *cuts = scenario
    first, second = (
        work(view, [messages(job, samples, how) for job in jobs], how).records() for how in cuts[:2]
    )  # fmt: skip
    assert_alike(first, second)
    wanted = {(job.name, i): metrics for job in jobs for i, metrics in expected(view, job, samples).items()}
    assert first.keys() == wanted.keys()
    named = {job.name: job for job in jobs}
    for (name, identity), record in first.items():
        assert_metrics(record, wanted[name, identity])
        assert record["partial"] == (not named[name].whole(record["window_start"], record["window_end"]))
        assert "incomplete" not in record
    one = Job("one", jobs[0].start_ms, jobs[-1].end_ms, looks_back=True)
    alone = work(view, [messages(one, samples, cuts[2])], cuts[2]).records()
    for (name, identity), record in first.items():
        if not record["partial"] and (named[name].looks_back or not view.reductions.looks_back):
            assert result_of(record) == result_of(alone["one", identity])


@st.composite
def rechecks(draw: st.DrawFn) -> tuple[View, pd.DataFrame, pd.DataFrame, list[Job], Cuts, Cuts]:
    """A live job, its recheck that begins later, and a job that reads a part of the time again."""
    view = draw(views(("10s", "1m", "7m", "1h")))
    start_ms, end_ms = draw(times(view))
    everything = sampled(draw(st.integers(0, 2**32)), view, start_ms, end_ms)
    late = np.random.default_rng(draw(st.integers(0, 2**32))).random(len(everything)) < draw(st.sampled_from([0, 0.1]))
    points = sorted({start_ms, end_ms, *draw(st.lists(st.integers(start_ms, end_ms), max_size=3))})
    begin_ms = draw(st.sampled_from(points[:-1]))
    looks_back = draw(st.booleans())
    live = Job("live", start_ms, end_ms, looks_back, recheck="again", is_cut_at=tuple(points))
    again = Job("again", begin_ms, end_ms, looks_back, revision=1, recheck="again")
    edges = sorted({draw(st.integers(start_ms, end_ms)), draw(st.integers(start_ms, end_ms)) + 1})
    third = Job("third", edges[0], edges[-1] + (len(edges) == 1), draw(st.booleans()), revision=2)
    return view, everything, everything[~late], [live, again, third], draw(all_cuts()), draw(all_cuts())


def behind(live: list[Message], again: list[Message], seed: int) -> list[Message]:
    """Mix a live job's messages and its recheck's, which follows and ends first."""
    chance, mixed, covered_ms = random.Random(seed), [], 0
    *ahead, last = live
    while ahead or again:
        may_follow = again and (end_of(again[0]) <= covered_ms or not ahead)
        source = again if may_follow and (not ahead or chance.random() < 0.5) else ahead
        mixed.append(source.pop(0))
        if source is ahead and kind_of(mixed[-1]) == "marker":
            covered_ms = end_of(mixed[-1])
    return [*mixed, last]


@many
@given(rechecks())
def test_only_what_changed_is_said_again(
    scenario: tuple[View, pd.DataFrame, pd.DataFrame, list[Job], Cuts, Cuts],
) -> None:
    """A recheck and a later job say just the whole windows that are not yet said so, wherever a worker restarts."""
    view, everything, in_time, (live, again, third), *cuts = scenario
    found = []
    for how in cuts:
        first = messages(live, in_time, how)
        first = [
            # The recheck is named from where it begins.
            ([h for h in headers if h[0] != "recheck" or int(dict(headers)["start"]) >= again.start_ms], value)
            if kind_of((headers, value)) != "end"
            else (headers, value)
            for headers, value in first
        ]
        stream = behind(first, messages(again, everything, how), how.seed)
        found.append(worked(view, [*stream, *messages(third, everything, how)], how).records())
    assert_alike(*found)
    plain = replace(cuts[0], crashes=0, repeats=0.0)
    known = {}
    for job, samples in ((live, in_time), (again, everything), (third, everything)):
        bare = replace(job, name="bare", revision=0, recheck="")
        would = {
            name[1]: record for name, record in work(view, [messages(bare, samples, plain)], plain).records().items()
        }
        wanted = expected(view, job, samples)
        assert would.keys() == wanted.keys()
        said = {identity: record for (name, identity), record in found[0].items() if name == job.name}
        for identity, record in would.items():
            assert_metrics(record, wanted[identity])
            before, news = known.get(identity), True
            if job is again:
                of_live = found[0].get(("live", identity))
                news = not record["partial"] and (of_live is None or result_of(of_live) != result_of(record))
                news |= not record["partial"] and of_live is not None and of_live["partial"]
            elif job is third:
                news = before is None if record["partial"] else before != result_of(record)
            assert (identity in said) == news, (job.name, record, before)
            if news:
                assert result_of(said[identity]) == result_of(record)
                assert (said[identity]["partial"], said[identity]["revision"]) == (record["partial"], job.revision)
        for identity, record in said.items():
            if not record["partial"]:
                known[identity] = result_of(record)
            else:
                known.setdefault(identity, b"partial")
        assert said.keys() <= would.keys()


@st.composite
def losses(draw: st.DrawFn) -> tuple[View, pd.DataFrame, list[Job], list[tuple[float, bool]], Cuts]:
    """Two jobs, of which one loses messages on their way, or finds them spoiled."""
    view = draw(views(("10s", "1m", "7m", "1h")))
    start_ms, end_ms = draw(times(view))
    samples = sampled(draw(st.integers(0, 2**32)), view, start_ms, end_ms)
    lost = draw(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.booleans()), min_size=1, max_size=4))
    jobs = [Job("one", start_ms, end_ms, looks_back=True), Job("other", start_ms, end_ms, draw(st.booleans()))]
    return view, samples, jobs, lost, draw(all_cuts())


@many
@given(losses())
def test_what_is_missing_is_told(
    scenario: tuple[View, pd.DataFrame, list[Job], list[tuple[float, bool]], Cuts],
) -> None:
    """A window that a loss may have touched says so, and is the oracle's where it does not."""
    view, samples, (one, other), lost, cuts = scenario
    sent = messages(one, samples, cuts)
    spoiled = {int(at * (len(sent) - 1)): is_spoiled for at, is_spoiled in lost}
    came = [
        (headers, value[: len(value) // 2] if spoiled.get(number) else value)
        for number, (headers, value) in enumerate(sent)
        if number not in spoiled or (spoiled[number] and value)
    ]
    is_hurt = came != sent
    stream_of_other = messages(other, samples, cuts)
    stream = interleaved([came, stream_of_other], cuts)
    worker = worked(view, stream, cuts)
    found = worker.records()
    letters = [value for topic, _, value in worker.written if topic == view.topics.dead_letters]
    readable = {value for _, value in [*sent, *stream_of_other]}
    assert letters == [value for _, value in stream if value not in readable], "each once, wherever a worker restarts"
    for job in (one, other):
        wanted = expected(view, job, samples)
        for (name, identity), record in found.items():
            if name != job.name:
                continue
            is_told = "incomplete" in record
            assert is_told <= (is_hurt and job is one)
            if not record["partial"]:
                assert not is_told
                assert_metrics(record, wanted[identity])
    # What the loss cannot have touched is whole: more than a range and what is looked back to away from it.
    touched = touched_by(sent, {at for at in spoiled if sent[at] not in came}, one)
    for identity in expected(view, one, samples):
        start_ms, end_ms = view.chunk_size.edges_ms(identity[2], identity[2] + 1).tolist()
        reach_ms = start_ms - LOOKBACK_MS * view.reductions.looks_back
        if one.whole(start_ms, end_ms) and not any(a < end_ms and reach_ms < b for a, b in touched):
            assert not found["one", identity]["partial"]


def touched_by(sent: list[Message], lost: set[int], job: Job) -> list[tuple[int, int]]:
    """Return the stretches that a loss makes doubtful: from its own range's start to the end of the next that came."""
    touched = []
    for at in lost:
        following = next((end_of(m) for number, m in enumerate(sent) if number > at and number not in lost), job.end_ms)
        touched.append((int(dict(sent[at][0])["start"]), max(following, end_of(sent[at]))))
    return touched


def one_series(stamps: np.ndarray, values: np.ndarray, number: int = 0, pod: str = "db-0") -> pd.DataFrame:
    return pd.DataFrame({"timestamp": stamps, "value": values}).assign(
        namespace="shop", pod=pod, metric="cpu", series=number, fingerprint=np.uint64(number), type="gauge"
    )


@pytest.mark.parametrize("method", ["sum", "mean"])
def test_ten_million_values_are_added_to_the_last_digit(method: str) -> None:
    """Also where half of them are so large that the others are below their last bit."""
    generator, count, each = np.random.default_rng(7), 10_000_000, 250_000
    values = generator.normal(size=count) + np.where(generator.random(count) < 0.5, 1e15, 0.0)
    start_ms = ChunkSize.parse("1d").floor_ms(SUMMER_ENDS_MS)
    pipeline = Pipeline(View(ChunkSize.parse("1d"), method), 0, "")
    for number in range(count // each):
        at = start_ms + number * each
        frame = one_series(np.arange(at, at + each), values[number * each : (number + 1) * each])
        header = Header("job", TimeRange(at, at + each), number, "test")
        assert not pipeline.feed(number, wire.decode(wire.headers("chunk", header), encoded([frame])))
    whole = TimeRange(start_ms, start_ms + count)
    ended = wire.decode(wire.headers("end", Header("job", whole, count // each, "test")), b"")
    ((output,),) = (emission.outputs for emission in pipeline.feed(count // each, ended))
    high = math.fsum(values)
    # What fsum has rounded away: a mean that is rounded once may need it.
    low = math.fsum(chain(values, [-high]))
    right = high if method == "sum" else float((Fraction(high) + Fraction(low)) / count)
    assert decode_record(output.value).metrics == {"cpu": right}


def test_no_python_function_is_called_for_a_series_or_a_sample() -> None:
    """Sixteen times the series with four times the samples each call nothing oftener: all of it is column work."""

    def calls(series: int, samples: int) -> Counter[str]:
        stamps = np.sort(np.random.default_rng(7).choice(59_999, samples, replace=False)) + SUMMER_ENDS_MS
        pods = [one_series(stamps, np.ones(samples), number, PODS[number % 4]) for number in range(series)]
        spans = TimeRange(SUMMER_ENDS_MS, SUMMER_ENDS_MS + 60_000)
        chunk = wire.decode(wire.headers("chunk", Header("job", spans, 0, "test")), encoded(pods))
        end = wire.decode(wire.headers("end", Header("job", spans, 1, "test")), b"")
        pipeline, called = Pipeline(View(ChunkSize.parse("10s"), "median", "mean"), 0, ""), Counter[str]()
        sys.setprofile(lambda frame, event, _: called.update([frame.f_code.co_qualname] * (event == "call")))
        try:
            for offset, message in enumerate((chunk, end)):
                pipeline.feed(offset, message)
        finally:
            sys.setprofile(None)
        return called

    calls(8, 100)
    assert calls(8, 100) == calls(128, 400)
