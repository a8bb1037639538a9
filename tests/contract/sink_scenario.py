"""Records, a sink that takes them, and what must then be in the files; a program too, which tests kill."""

from __future__ import annotations

import csv
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from urllib.parse import unquote

import pyarrow.parquet as pq
from record_columns import columns

from ingestor.core.time_range import iso
from stream_app.records import Record
from stream_app.sinks.base import Sink, View
from stream_app.sinks.checkpoint import Identity, Storage
from stream_app.sinks.csv_files import CsvSink
from stream_app.sinks.csv_style import CsvStyle
from stream_app.sinks.parquet_files import ParquetSink
from stream_app.sinks.part_store import Limits

TOPIC, PARTITION = "metrics.pods", 0
VIEW = View("1m", "mean")
PLAIN = CsvStyle()
MINUTE_MS = 60_000
START_MS = 1_795_435_200_000

Files = dict[str, dict[tuple[str, ...], dict[str, str]]]
"""Cells by column, by timestamp and pod, by path; empty cells are left out."""


def identity(**options: str) -> Identity:
    return Identity("cluster-1", {TOPIC: "topic-1"}, {"format": "csv", **options})


def opened(folder: Path, group_by: Sequence[str], file_format: str, **options: str) -> Storage:
    storage = Storage(folder)
    try:
        storage.open(identity(group_by=",".join(group_by), format=file_format, **options))
    except BaseException:
        storage.close()
        raise
    return storage


def open_csv(
    folder: Path, group_by: Sequence[str] = ("pod",), style: CsvStyle = PLAIN, drop: Collection[str] = ()
) -> CsvSink:
    return CsvSink(opened(folder, group_by, "csv", **style.options()), group_by, style, drop)


def open_parquet(folder: Path, group_by: Sequence[str] = ("pod",), limits: Limits | None = None) -> ParquetSink:
    return ParquetSink(opened(folder, group_by, "parquet"), group_by, limits)


def open_small_parquet(folder: Path) -> ParquetSink:
    """With parts so small, and so little written anew, that few rows show all that a store does."""
    return open_parquet(folder, limits=Limits(part_cells=24, rewritten_per_row=1, rewritten_per_commit=1))


SINKS: dict[str, Callable[[Path], Sink]] = {"csv": open_csv, "parquet": open_small_parquet}


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


MIXED = [
    record(0, "a", cpu=0.1, rss=1e16),
    record(0, "b", cpu=0.2, rss=2.0),
    record(1, "a", cpu=0.3, rss=3.0),
    record(1, "b", cpu=0.4),
    record(0, "x", service="web", cpu=1.0),
    record(2, "a", cpu=0.5, rss=5.0),
    record(2, "b", cpu=0.6, new=1.0),
    record(3, "a", cpu=0.7, partial=True),
    record(3, "b", cpu=0.8, new=2.0),
    record(0, "c", cpu=0.9),
    record(3, "a", cpu=1.1, revision=1),
    record(3, "a", cpu=1.2),
    record(4, "a", cpu=1.3),
    record(1, "x", service="web", cpu=2.0, new=1.0),
]
"""Rows of all kinds."""


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
    files = _found_in_parquet(folder)
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


def _found_in_parquet(folder: Path) -> Files:
    files: Files = {}
    for path in sorted(folder.glob("namespace=*/service=*/date=*/part-*.parquet")):
        table = pq.ParquetFile(path).read()
        fixed = [name for name in ("timestamp", "pod") if name in table.column_names]
        cells = [table[name].to_pylist() for name in fixed]
        times = [iso(ms) for ms in table["timestamp"].cast("int64").to_pylist()]
        keys = list(zip(times, *cells[1:], strict=True))
        assert [key[::-1] for key in keys] == sorted({key[::-1] for key in keys}), path
        service = "/".join(unquote(part.partition("=")[2]) for part in path.relative_to(folder).parts[:2])
        rows = files.setdefault(service, {})
        assert not rows.keys() & set(keys), path
        for key, row in zip(keys, table.drop_columns(fixed).to_pylist(), strict=True):
            rows[key] = {name: repr(value) for name, value in row.items() if value is not None}
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
    # format, folder, number of records, records a commit, "late" where it is history behind live data, how many of the
    # records to write; who is to leave some waits to be killed
    sink = SINKS[sys.argv[1]](Path(sys.argv[2]))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    count = int(sys.argv[3])
    scenario = late_scenario(100, count) if "late" in sys.argv else long_scenario(count)
    until = int(sys.argv[6])
    play(sink, scenario[:until], int(sys.argv[4]), complete=until >= len(scenario))
    if until < len(scenario):
        signal.pause()
    sink.close()
    sys.stdout.write("done\n")
