"""Scripts of ``tests/golden``: samples in, records out, in a language that an operator can read.

::

    case a counter that is reset in the middle of a window      # a title; what follows is its own world
    load 15s from 2026-11-23T12:00:00Z                          # a sample every 15 s
      http_requests_total{pod="api-0"} counter 1 2 _ 4 stale 1  # _: none; stale: Prometheus' end of a series
      queue{pod="api-0"} 1+1x3 NaN +Inf 7x2 _x4                 # 1 2 3 4 NaN +Inf 7 7 7, then four times nothing
    view 1m mean by pod                                         # or: view 1d@Europe/Berlin p99.9 of last by pod,service
      12:00:00 pod/api-0 http_requests_total 7/3                # counters rate with queue=max
      12:01:00 pod/api-0 http_requests_total 1 partial          # then partial, incomplete=*, job=NAME

A time without a date is of the day of the first ``load``; days and longer windows are written FROM..TO. A
series is in the namespace ``shop`` unless it says another one. Without more, one job reads all that is
loaded as one range, from the first load's start to one interval after its last value. Else, before the views:

``read FROM TO [every 30s] [as JOB] [lookback]``
    A job reads in ranges of a length; its name is ``job``. Several reads of a job go on with it. *lookback*:
    with each series' last sample of the five minutes before.
``split METRIC=LABEL,…``
    As ``--split-by``.
``refuse METRIC FROM TO``
    The backend gives none of these samples, and the markers say so.
``lose FROM TO``
    Messages of ranges that begin there are lost on their way, with their numbers.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import oracle
import orjson
import pandas as pd

from ingestor import packing, presets
from ingestor.catalogue import Catalogue, Meaning
from ingestor.core import wire
from ingestor.core.chunk import Header, Refused
from ingestor.core.durations import ChunkSize, parse_duration_ms, parse_time
from ingestor.core.time_range import TimeRange, iso
from ingestor.sources.base import STALE_MARKER_BITS, SeriesBlock, canonical_labels, tidy
from ingestor.splitting import Splits
from ingestor.workloads import service_of
from stream_app.pipeline import Pipeline
from stream_app.records import Record, decode_record
from stream_app.view import View

PARTITIONS = 3
LOOKBACK_MS = 300_000
JOB = "job"

_SERIES = re.compile(r"(?P<metric>\w+)\{(?P<labels>[^}]*)\}\s+(?:(?P<type>counter|gauge)\s+)?(?P<values>.*)")
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_REPEATED = re.compile(r"(?P<first>[^x]*?)(?P<step>[+-][\d.]+)?x(?P<times>\d+)")
_VIEW = re.compile(
    r"(?P<size>\S+) (?P<method>\S+)(?: of (?P<over_time>\S+))? by (?P<group_by>\S+)"
    r"(?: counters (?P<counters>\S+))?(?: with (?P<metric_methods>.+))?"
)
_STALE = np.array([STALE_MARKER_BITS], np.int64).view(np.float64)[0]


@dataclass(frozen=True, slots=True)
class Read:
    """A stretch of time that a job reads."""

    ranges: list[TimeRange]
    job: str = JOB
    lookback: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """One cell of one record."""

    where: str
    value: float
    flags: tuple[str, ...] = ()
    text: str = ""
    """How the script spells the value."""

    def __str__(self) -> str:
        return " ".join([self.where, self.text or f"{self.value:.17g}", *self.flags])


def spelt(made: list[Line], expected: list[Line]) -> list[str]:
    """Return lines as text, values that are right spelt as in the script."""
    right = {(line.where, line.flags): line for line in expected}
    found = [(line, right.get((line.where, line.flags))) for line in made]
    return [str(known if known and oracle.same(line.value, known.value) else line) for line, known in found]


@dataclass(slots=True)
class Case:
    """A world of samples, how they are read, and what each view must make of them."""

    name: str
    day: str = ""
    start_ms: int = 0
    end_ms: int = 0
    series: list[tuple[bytes, list[int], list[float]]] = field(default_factory=list)
    types: dict[str, str] = field(default_factory=dict)
    splits: list[str] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    lost: list[TimeRange] = field(default_factory=list)
    views: dict[str, list[str]] = field(default_factory=dict)

    def expected(self, text: str) -> list[Line]:
        """Return the lines of the view *text*, sorted."""
        at = self._time_of(_chunk_size(text))
        return sorted((self._line(line, at) for line in self.views[text]), key=_order)

    def made(self, text: str, *, restarts: bool = False) -> list[Line]:
        """Return what a worker makes, in the same order; with *restarts* it starts again before each message."""
        view = view_of(text)
        records = [record for stream in self.streams() for record in _records(stream, view, restarts=restarts)]
        assert {record.method for record in records} <= {_method_name(text)}
        at = self._time_of(view.chunk_size)
        return sorted((line for record in records for line in _lines(record, at)), key=_order)

    def by_oracle(self, text: str) -> list[Line]:
        """Return what the oracle makes of the samples that arrive; without flags but the job's name."""
        fields, size = _matched(_VIEW, text), _chunk_size(text)
        options = {name: fields[name] for name in ("over_time", "counters") if fields[name]}
        at, lines = self._time_of(size), []
        for job, (from_ms, samples) in self._arriving().items():
            for group_by in fields["group_by"].split(","):
                made = oracle.windows(
                    samples, fields["size"], fields["method"], group_by,
                    metric_methods=_metric_methods(fields), from_ms=from_ms, **options,
                )  # fmt: skip
                for (namespace, who, start_ms), metrics in made.items():
                    window = at(start_ms, int(size.edges_ms(start_ms, start_ms + 1)[1]))
                    where = f"{window} {_who(namespace, group_by, who)}"
                    flags = (f"job={job}",) if job != JOB else ()
                    lines += [Line(f"{where} {metric}", value, flags) for metric, value in metrics.items()]
        return sorted(lines, key=_order)

    def _arriving(self) -> dict[str, tuple[int, pd.DataFrame]]:
        """Return each job's start, and its samples as `oracle.windows` takes them, those before the start too."""
        samples, found = self._frame(), {}
        for job in {read.job: None for read in self.all_reads}:
            reads = [read for read in self.all_reads if read.job == job]
            ranges = [r for read in reads for r in read.ranges if not self.is_lost(r)]
            start_ms = ranges[0].start_ms
            if reads[0].lookback:
                ranges.append(TimeRange(start_ms - LOOKBACK_MS, start_ms))
            inside = [any(r.start_ms <= t < r.end_ms for r in ranges) for t in samples["timestamp"]]
            found[job] = start_ms, samples[inside]
        return found

    def _frame(self) -> pd.DataFrame:
        """Return what is loaded, but stale markers and what is refused."""
        column, rows = Splits.parse(self.splits).column, []
        for number, (label_set, *samples) in enumerate(self.series):
            labels = orjson.loads(label_set)
            metric = labels.pop("__name__")
            digest = hashlib.blake2b(orjson.dumps([metric, sorted(labels.items())]), digest_size=8).digest()
            who = labels["namespace"], labels["pod"], column(metric, labels), number, self.types[metric]
            fingerprint = int.from_bytes(digest, "little")
            for stamp, value in zip(*self.given(label_set, *samples), strict=True):
                if np.float64(value).view(np.int64) != STALE_MARKER_BITS:
                    rows.append((*who, fingerprint, stamp, value))
        names = ["namespace", "pod", "metric", "series", "type", "fingerprint", "timestamp", "value"]
        return pd.DataFrame(rows, columns=names)

    @property
    def all_reads(self) -> list[Read]:
        """What is read, said or not."""
        return self.reads or [Read([TimeRange(self.start_ms, self.end_ms)])]

    def is_lost(self, time_range: TimeRange) -> bool:
        """Tell whether the messages of a range are lost."""
        return any(lost.start_ms <= time_range.start_ms < lost.end_ms for lost in self.lost)

    def given(self, label_set: bytes, stamps: list[int], values: list[float]) -> tuple[list[int], list[float]]:
        """Return what the backend does not refuse of a series."""
        metric = orjson.loads(label_set)["__name__"]
        refused = [r for r in self.refused if r.metric == metric]
        kept = [i for i, t in enumerate(stamps) if not any(r.start_ms <= t < r.end_ms for r in refused)]
        return [stamps[i] for i in kept], [values[i] for i in kept]

    def streams(self) -> list[list[tuple[Any, bytes]]]:
        """Return each partition's messages, in order."""
        return _Poller(self).streams()

    def time_ms(self, text: str) -> int:
        """Read a time, or a time of the case's day."""
        return parse_time(f"{self.day}T{text}Z" if re.match(r"\d\d:", text) else text, 0).time_ms

    def _time_of(self, size: ChunkSize) -> Callable[[int, int | None], str]:
        """Return how the view's windows are written."""

        def calendar(time_ms: int) -> str:
            moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=time_ms)
            return moment.astimezone(ZoneInfo(size.timezone)).isoformat(timespec="minutes").replace("+00:00", "Z")

        def clock(time_ms: int) -> str:
            return iso(time_ms).removeprefix(f"{self.day}T").removesuffix("Z")

        if size.unit in ("d", "w", "mo", "y"):
            return lambda start_ms, end_ms: f"{calendar(start_ms)}..{'?' if end_ms is None else calendar(end_ms)}"
        return lambda start_ms, _: clock(start_ms)

    def _line(self, line: str, at: Callable[[int, int | None], str]) -> Line:
        time, who, metric, value, *flags = line.split()
        first, _, last = time.partition("..")
        when = at(self.time_ms(first), self.time_ms(last) if last else None)
        dividend, _, divisor = value.partition("/")
        return Line(f"{when} {who} {metric}", float(dividend) / float(divisor or 1), tuple(flags), value)


def _order(line: Line) -> tuple[str, tuple[str, ...]]:
    return line.where, line.flags


def cases(path: Path) -> list[Case]:
    """Read a script.

    Raises:
        ValueError: a line is not understood; the message names it.
    """
    found: list[Case] = []
    block: Callable[[str], None] | None = None
    for number, whole in enumerate(path.read_text().splitlines(), 1):
        line = re.sub(r"(^|\s)#.*", "", whole).rstrip()
        if not line:
            continue
        try:
            if line.startswith(" "):
                assert block, "an indented line belongs to load or view"
                block(line.strip())
            else:
                word, _, rest = line.partition(" ")
                if word == "case":
                    found.append(Case(f"{path.stem}: {rest}"))
                block = _COMMANDS[word](found[-1], rest)
        except (AssertionError, AttributeError, IndexError, KeyError, ValueError) as error:
            raise ValueError(f"{path.name}:{number}: {whole.strip()}: {error!r}") from error
    return found


def view_of(text: str) -> View:
    """Read what is behind the word ``view``."""
    fields = _matched(_VIEW, text)
    more: dict[str, Any] = {name: fields[name] for name in ("over_time", "counters") if fields[name]}
    if pairs := _metric_methods(fields):
        more["metric_methods"] = pairs
    group_by: Any = tuple(fields["group_by"].split(","))
    return View(ChunkSize.parse(fields["size"]), fields["method"], group_by=group_by, **more)


def _chunk_size(text: str) -> ChunkSize:
    return ChunkSize.parse(text.partition(" ")[0])


def _metric_methods(fields: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    pairs = [pair.rpartition("=") for pair in (fields["metric_methods"] or "").split()]
    return tuple((regex, method) for regex, _, method in pairs)


def _method_name(text: str) -> str:
    fields = _matched(_VIEW, text)
    over_time = f"-of-{fields['over_time']}" if fields["over_time"] else ""
    return fields["method"] + over_time + (f"-counters-{fields['counters']}" if fields["counters"] else "")


def _load(case: Case, text: str) -> Callable[[str], None]:
    every, _, start = text.partition(" from ")
    case.day = case.day or start[:10]
    start_ms, every_ms = case.time_ms(start), parse_duration_ms(every)
    case.start_ms = min(start_ms, case.start_ms or start_ms)

    def series(line: str) -> None:
        fields = _matched(_SERIES, line)
        labels = {"__name__": fields["metric"], "namespace": "shop", **dict(_LABEL.findall(fields["labels"]))}
        values = list(_values(fields["values"]))
        case.end_ms = max(case.end_ms, start_ms + len(values) * every_ms)
        kept = [(start_ms + i * every_ms, value) for i, value in enumerate(values) if value is not None]
        stamps, numbers = [stamp for stamp, _ in kept], [value for _, value in kept]
        case.series.append((canonical_labels(orjson.dumps(labels)), stamps, numbers))
        case.types[fields["metric"]] = fields["type"] or case.types.get(fields["metric"], "gauge")

    return series


def _values(text: str) -> Iterator[float | None]:
    for word in text.split():
        match = _REPEATED.fullmatch(word)
        first, times = (match["first"], int(match["times"])) if match else (word, 0)
        if first == "_":
            yield from [None] * max(1, times)
        elif first == "stale":
            yield _STALE
        else:
            step = float(match["step"] or 0) if match else 0.0
            yield from [float(first) + i * step if i else float(first) for i in range(times + 1)]


def _read(case: Case, text: str) -> None:
    first, last, *words = text.split()
    options = dict(zip(words[::2], words[1::2], strict=False))
    start_ms, end_ms = case.time_ms(first), case.time_ms(last)
    every_ms = parse_duration_ms(options["every"]) if "every" in options else end_ms - start_ms
    ranges = [TimeRange(at, min(at + every_ms, end_ms)) for at in range(start_ms, end_ms, every_ms)]
    case.reads.append(Read(ranges, options.get("as", JOB), lookback=words[-1:] == ["lookback"]))


def _refuse(case: Case, text: str) -> None:
    metric, first, last = text.split()
    case.refused.append(Refused(metric, case.time_ms(first), case.time_ms(last)))


def _lose(case: Case, text: str) -> None:
    first, last = text.split()
    case.lost.append(TimeRange(case.time_ms(first), case.time_ms(last)))


def _view(case: Case, text: str) -> Callable[[str], None]:
    _matched(_VIEW, text)
    return case.views.setdefault(text, []).append


_COMMANDS: dict[str, Callable[[Case, str], Callable[[str], None] | None]] = {
    "case": lambda _, __: None,
    "load": _load,
    "split": lambda case, text: case.splits.append(text),
    "read": _read,
    "refuse": _refuse,
    "lose": _lose,
    "view": _view,
}


def _matched(pattern: re.Pattern[str], text: str) -> dict[str, Any]:
    match = pattern.fullmatch(text)
    if match is None:
        raise ValueError(f"it must look like {pattern.pattern}")
    return match.groupdict()


class _Poller:
    """Makes of a case's samples what the poller makes of a backend's."""

    def __init__(self, case: Case) -> None:
        self._case = case
        column = Splits.parse(case.splits).column
        self._catalogue = Catalogue(PARTITIONS, Meaning(presets.PRESETS["none"].rewrite, column), case.types)
        self._streams: list[list[tuple[Any, bytes]]] = [[] for _ in range(PARTITIONS)]
        self._sequences: dict[tuple[str, int], int] = {}
        self._jobs: dict[str, TimeRange] = {}

    def streams(self) -> list[list[tuple[Any, bytes]]]:
        case = self._case
        for read in case.all_reads:
            if read.lookback:
                start_ms = read.ranges[0].start_ms
                before = TimeRange(start_ms - LOOKBACK_MS, start_ms)
                self._send(read.job, before, "lookback", self._packed(before, last_only=True))
            for time_range in read.ranges:
                self._send(read.job, time_range, "chunk", self._packed(time_range))
                self._send(read.job, time_range, "marker", [[b""]] * PARTITIONS)
            first = self._jobs.get(read.job, read.ranges[0])
            self._jobs[read.job] = TimeRange(first.start_ms, read.ranges[-1].end_ms)
        for job, whole in self._jobs.items():
            self._send(job, whole, "end", [[b""]] * PARTITIONS)
        return self._streams

    def _send(self, job: str, time_range: TimeRange, kind: str, partitions: list[list[bytes]]) -> None:
        incomplete = [
            Refused(metric, max(start_ms, time_range.start_ms), min(end_ms, time_range.end_ms))
            for metric, start_ms, end_ms in self._case.refused
            if kind == "marker" and start_ms < time_range.end_ms and time_range.start_ms < end_ms
        ]
        is_lost = kind != "end" and self._case.is_lost(time_range)
        for partition, values in enumerate(partitions):
            for value in values:
                sequence = self._sequences.get((job, partition), 0)
                self._sequences[job, partition] = sequence + 1
                header = Header(job, time_range, sequence, "golden")
                if not is_lost:
                    self._streams[partition].append((wire.headers(kind, header, incomplete), value))

    def _packed(self, time_range: TimeRange, *, last_only: bool = False) -> list[list[bytes]]:
        """Return the range's chunks of each partition."""
        series = [(label_set, *self._case.given(label_set, *rest)) for label_set, *rest in self._case.series]
        lengths = [len(stamps) for _, stamps, _ in series]
        block = SeriesBlock(
            [label_set for label_set, _, _ in series],
            np.cumsum([0, *lengths]),
            np.array([stamp for _, stamps, _ in series for stamp in stamps], np.int64),
            np.array([value for _, _, values in series for value in values], np.float64),
        )
        block = tidy(block, time_range)
        if last_only:
            last = block.offsets[1:] - 1
            offsets = np.arange(len(last) + 1)
            block = SeriesBlock(block.label_sets, offsets, block.timestamps_ms[last], block.values[last])
        ids = self._catalogue.ids(block.label_sets)
        self._catalogue.place({pod: service_of(pod.name) for pod in self._catalogue.unplaced()})
        fetched = packing.FetchedSeries(ids, block.offsets, block.timestamps_ms, block.values)
        return packing.pack(time_range, "golden", [fetched], self._catalogue, PARTITIONS).partitions


def _records(stream: list[tuple[Any, bytes]], view: View, *, restarts: bool) -> Iterator[Record]:
    commit, fed = (0, ""), 0
    pipeline = Pipeline(view, *commit)
    for number in range(len(stream)):
        if restarts:
            pipeline, fed = Pipeline(view, *commit), commit[0]
        for offset in range(fed, number + 1):
            for emission in pipeline.feed(offset, wire.decode(*stream[offset])):
                yield from (decode_record(output.value) for output in emission.outputs)
                commit = emission.offset, emission.metadata
        fed = number + 1


def _lines(record: Record, at: Callable[[int, int | None], str]) -> Iterator[Line]:
    group_by, name = ("service", record.service) if record.pod is None else ("pod", record.pod)
    where = f"{at(record.window_start_ms, record.window_end_ms)} {_who(record.namespace, group_by, name)}"
    flags = [
        *["partial"] * record.partial,
        *[f"incomplete={','.join(record.incomplete)}"] * bool(record.incomplete),
        *[f"job={record.job}"] * (record.job != JOB),
    ]
    for metric, value in record.metrics.items():
        yield Line(f"{where} {metric}", value, tuple(flags))


def _who(namespace: str, group_by: str, name: str) -> str:
    return f"{group_by}/{name}" if namespace == "shop" else f"{group_by}/{namespace or '_'}/{name}"
