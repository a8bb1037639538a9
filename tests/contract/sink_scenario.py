"""Records, a sink that takes them, and what must then be in the files; a program too, which tests kill."""

from __future__ import annotations

import csv
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from record_columns import columns

from ingestor.core.time_range import iso
from stream_app.records import Record
from stream_app.sinks.base import Sink, View
from stream_app.sinks.checkpoint import Identity, Storage
from stream_app.sinks.csv_files import CsvSink
from stream_app.sinks.csv_style import CsvStyle

TOPIC, PARTITION = "metrics.pods", 0
VIEW = View("1m", "mean")
PLAIN = CsvStyle()
MINUTE_MS = 60_000
START_MS = 1_795_435_200_000

Files = dict[str, dict[tuple[str, ...], dict[str, str]]]
"""Cells by column, by timestamp and pod, by path; empty cells are left out."""


def identity(**options: str) -> Identity:
    return Identity("cluster-1", {TOPIC: "topic-1"}, {"format": "csv", **options})


def open_csv(
    folder: Path, group_by: Sequence[str] = ("pod",), style: CsvStyle = PLAIN, drop: Collection[str] = ()
) -> CsvSink:
    storage = Storage(folder)
    try:
        storage.open(identity(group_by=",".join(group_by), **style.options()))
    except BaseException:
        storage.close()
        raise
    return CsvSink(storage, group_by, style, drop)


def record(
    minute: int,
    pod: str | None = "api-1",
    *,
    service: str = "api",
    namespace: str = "prod",
    partial: bool = False,
    revision: int = 0,
    **metrics: float,
) -> Record:
    start_ms = START_MS + minute * MINUTE_MS
    return Record(
        namespace=namespace,
        pod=pod,
        service=service,
        window_start_ms=start_ms,
        window_end_ms=start_ms + MINUTE_MS,
        chunk_size=VIEW.chunk_size,
        method=VIEW.method,
        job="live",
        revision=revision,
        partial=partial,
        samples=4,
        metrics=metrics,
    )


def play(sink: Sink, records: Sequence[Record], batch: int, *, complete: bool = True) -> None:
    """Give the sink what it does not have yet, *batch* records a commit; a record's offset is its index."""
    at = sink.offsets.get(TOPIC, {}).get(PARTITION, 0)
    while at < len(records):
        end = min(at + batch, len(records))
        sink.write(columns(records[at:end], at))
        sink.commit({TOPIC: {PARTITION: end}}, VIEW)
        at = end
    if complete:
        sink.complete()


def expected(records: Iterable[Record]) -> Files:
    """Apply the rule of row identity: complete beats partial, then the higher revision, then the later offset."""
    best: dict[tuple[str, tuple[str, ...]], Record] = {}
    for new in records:
        row = (iso(new.window_start_ms),) if new.pod is None else (iso(new.window_start_ms), new.pod)
        key = f"{new.namespace}/{new.service}", row
        old = best.get(key)
        if old is None or (not new.partial, new.revision) >= (not old.partial, old.revision):
            best[key] = new
    files: Files = {}
    for (name, row), one in best.items():
        files.setdefault(name, {})[row] = {metric: repr(value) for metric, value in one.metrics.items()}
    return files


def found(folder: Path) -> Files:
    """Read all files, and insist that their rows are sorted, unique and whole."""
    files: Files = {}
    for path in sorted(folder.glob("*/*.csv")):
        with path.open(newline="") as file:
            header, *rows = csv.reader(file)
        fixed = 2 if header[1:2] == ["pod"] else 1
        keys = [tuple(row[:fixed]) for row in rows]
        assert keys == sorted(set(keys)), path
        assert {len(row) for row in rows} == {len(header)}, path
        assert len(set(header)) == len(header)
        files[str(path.relative_to(folder).with_suffix(""))] = {
            key: {name: cell for name, cell in zip(header[fixed:], row[fixed:], strict=True) if cell}
            for key, row in zip(keys, rows, strict=True)
        }
    return files


def long_scenario(count: int) -> list[Record]:
    """Mostly in order; some late, revised, partial, or with a metric that is new."""
    records = []
    for i in range(count):
        minute, pod = divmod(i, 4)
        if i % 23 == 22:
            minute = max(0, minute - 3)
        metrics = {"cpu": i / 7, "rss": float(i)} | ({f"extra_{i // 400}": 1e-5 * i} if i % 50 == 49 else {})
        records.append(
            record(
                minute,
                f"pod-{pod % 3}",
                service=f"s{pod % 2}",
                partial=i % 31 == 30,
                revision=int(i % 37 == 36),
                **metrics,
            )
        )
    return records


def late_scenario(live: int, history: int) -> list[Record]:
    """Live data, and the history before it; some of it comes twice, has a new metric, or changes what is live."""
    records = [record(history + minute, pod, cpu=minute / 7) for minute in range(live) for pod in ("a", "b")]
    for minute in range(history):
        records.append(record(minute, "a", cpu=minute / 3, partial=minute % 5 == 4))
        records.append(record(minute, "b", cpu=minute / 3, rss=float(minute)) if minute % 4 == 3 else records[-1])
        if minute % 7 == 6:
            records.append(record(history + minute % live, "a", cpu=-1.0, revision=1))
            records.append(record(history + live + minute, "a", cpu=minute / 9))
            records.append(record(history + live + minute, "c", extra=1.0))
    return records


if __name__ == "__main__":
    # folder, number of records, records a commit, history or not
    sink = open_csv(Path(sys.argv[1]))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    scenario = late_scenario(100, int(sys.argv[2])) if "late" in sys.argv else long_scenario(int(sys.argv[2]))
    play(sink, scenario, int(sys.argv[3]))
    sink.close()
    sys.stdout.write("done\n")
