"""What the Parquet sink promises beside what all sinks do: readers, types, names, and refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from math import inf, isnan, nan, sin
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from record_columns import columns
from sink_scenario import START_MS, TOPIC, VIEW, expected, found, long_scenario, open_parquet, play, record

from ingestor.core.errors import SinkError
from stream_app.records import Record
from stream_app.sinks.base import Sink

PATHS = [Path(__file__).parents[2], Path(__file__).parents[1], Path(__file__).parent]

READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    "pandas": lambda folder: pd.read_parquet(folder),  # noqa: PLW0108 - as people write it
    "pyarrow": lambda folder: ds.dataset(folder, partitioning="hive").to_table().to_pandas(),
    "polars": lambda folder: pl.read_parquet(
        f"{folder}/**/*.parquet", hive_partitioning=True, missing_columns="insert"
    ).to_pandas(),
    "duckdb": lambda folder: duckdb.sql(f"from read_parquet('{folder}/**/*.parquet', union_by_name = true)").df(),
}
"""In one line each."""

Rows = dict[tuple[str, ...], dict[str, float]]


def write(folder: Path, *commits: list[Record], group_by: tuple[str, ...] = ("pod",)) -> None:
    sink = open_parquet(folder, group_by)
    at = 0
    for records in commits:
        sink.write(columns(records, at))
        at += len(records)
        sink.commit({TOPIC: {0: at}}, VIEW)
    sink.finish()
    sink.close()


def rows(frame: pd.DataFrame) -> Rows:
    """Return values by namespace, service, date, timestamp and pod; what is null is left out."""
    names = [name for name in ("namespace", "service", "date", "timestamp", "pod") if name in frame.columns]
    metrics = [name for name in frame.columns if name not in names]
    times = frame["timestamp"].astype("datetime64[ms, UTC]").astype("int64")
    dates = frame["date"].astype(str).str.slice(0, 10)
    keys = list(frame.assign(timestamp=times, date=dates)[names].astype(str).itertuples(index=False, name=None))
    assert len(set(keys)) == len(keys)
    return {
        key: {name: value for name, value in zip(metrics, values, strict=True) if not pd.isna(value)}
        for key, values in zip(keys, frame[metrics].to_numpy().tolist(), strict=True)
    }


def oracle(*commits: list[Record]) -> Rows:
    """Return what `rows` must find in records of which each has a key of its own."""
    found: Rows = {}
    for one in (one for records in commits for one in records):
        date = f"{pd.Timestamp(one.window_start_ms, unit='ms'):%Y-%m-%d}"
        pod = () if one.pod is None else (one.pod,)
        found[one.namespace or "_", one.service, date, str(one.window_start_ms), *pod] = one.metrics
    return found


@pytest.mark.parametrize("reader", READERS)
def test_the_whole_in_one_line(reader: str, tmp_path: Path) -> None:
    """Each reader sees every row and column once: of many services, days, commits, metrics that came later."""
    day = 1_440
    first = [record(m, p, service=s, cpu=m / 7, rss=1e16) for m in (0, 1) for p in "ab" for s in ("api", "api-2")]
    second = [record(m + day, p, cpu=m / 7, net=float(m)) for m in (0, 1) for p in "ab"]
    third = [record(m, "c", service="web", namespace="a", **{'requests{code="500"}': 1.5}) for m in range(3)]
    fourth = [record(5, p, service="api-2", cpu=1.0, late=2.0) for p in "ab"]
    write(tmp_path, first, second, third, fourth)
    assert rows(READERS[reader](tmp_path)) == oracle(first, second, third, fourth)


@pytest.mark.parametrize("reader", READERS)
def test_names_come_back(reader: str, tmp_path: Path) -> None:
    """Whatever a namespace or service is called, readers decode it; nothing is ``_``."""
    odd = ["", "a/b", "../up", "100%", "a=b", "x y", "ünï", "%41", "tail."]
    records = [record(0, f"{name}-1", service=name, namespace=name, cpu=float(i)) for i, name in enumerate(odd) if name]
    records.append(record(0, "x", service="api", namespace="", rss=1.0))
    write(tmp_path, records)
    assert rows(READERS[reader](tmp_path)) == oracle(records)
    assert not list(tmp_path.parent.glob("up*"))


def test_a_very_long_name_is_cut(tmp_path: Path) -> None:
    """Names that no file system takes keep their beginning, and are still told apart."""
    long = "ä" * 60 + "x" * 190
    write(tmp_path, [record(0, "p", service=long + end, cpu=1.0) for end in "ab"])
    services = set(pd.read_parquet(tmp_path)["service"])
    assert len(services) == 2
    assert all(long.startswith(service.partition("~")[0]) for service in services)


def test_metrics_that_are_called_like_columns(tmp_path: Path) -> None:
    """Column and folder names stay what they are; such metrics are called ``metric.…``."""
    metrics = {"timestamp": 1.0, "pod": 2.0, "date": 3.0, "service": 4.0, "metric.pod": 5.0, "cpu": 6.0}
    write(
        tmp_path, [record(0, "p", **{name: value for name, value in metrics.items() if name not in ("pod", "service")})]
    )
    frame = pd.read_parquet(tmp_path)
    assert frame["metric.timestamp"].tolist() == [1.0]
    assert frame["metric.date"].tolist() == [3.0]
    assert frame["metric.metric.pod"].tolist() == [5.0]
    assert frame["pod"].tolist() == ["p"]


def test_values_and_types(tmp_path: Path) -> None:
    """Absent is null, NaN is NaN, infinities are infinities; times are UTC; texts are no categories."""
    write(tmp_path, [record(0, "a", cpu=nan, rss=inf), record(0, "b", cpu=-inf), record(0, "c", cpu=-0.0, rss=5e-324)])
    table = ds.dataset(tmp_path / "namespace=prod/service=api", partitioning="hive").to_table()
    assert [str(table.schema.field(name).type) for name in ("timestamp", "pod", "cpu")] == [
        "timestamp[ms, tz=UTC]",
        "string",
        "double",
    ]
    cpu, rss = table["cpu"].to_pylist(), table["rss"].to_pylist()
    assert isnan(cpu[0])
    assert (cpu[1], str(cpu[2])) == (-inf, "-0.0")
    assert rss == [inf, None, 5e-324]
    frame = pd.read_parquet(tmp_path / "namespace=prod/service=api")
    assert (str(frame["timestamp"].dtype), str(frame["pod"].dtype)) == ("datetime64[ms, UTC]", "str")
    assert frame["timestamp"].tolist() == [pd.Timestamp(START_MS, unit="ms", tz="UTC")] * 3


def test_both_groupings(tmp_path: Path) -> None:
    """Pods and services have a folder each, which is one table."""
    pods = [record(0, "a", cpu=1.0), record(0, "b", cpu=2.0)]
    services = [record(0, None, cpu=3.0), record(1, None, service="web", cpu=4.0, pods=2.0)]
    write(tmp_path, pods + services, group_by=("pod", "service"))
    for reader in READERS.values():
        assert rows(reader(tmp_path / "group=pod").drop(columns="group", errors="ignore")) == oracle(pods)
        assert rows(reader(tmp_path / "group=service").drop(columns="group", errors="ignore")) == oracle(services)


def test_services_alone(tmp_path: Path) -> None:
    services = [record(0, None, cpu=3.0), record(1, None, cpu=4.0)]
    write(tmp_path, services, group_by=("service",))
    assert rows(pd.read_parquet(tmp_path)) == oracle(services)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda content: content + b"mine", "bytes, and had"),
        (lambda content: content[:-5], "bytes, and had"),
        (lambda content: content[:-9] + b"x" + content[-8:], "its end is another"),
        (lambda _: None, "it is gone"),
    ],
)
def test_parts_changed_by_hand_are_refused(tmp_path: Path, edit: Callable[[bytes], bytes | None], message: str) -> None:
    """What someone else did to a part is neither overwritten nor built upon."""
    write(tmp_path, [record(0, "a", cpu=1.0)])
    (path,) = tmp_path.glob("namespace=*/*/*/part-*")
    content = edit(path.read_bytes())
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(SinkError, match=message):
        open_parquet(tmp_path)
    if content is not None:
        assert path.read_bytes() == content


def test_a_part_that_is_damaged_inside_is_refused_when_it_is_merged(tmp_path: Path) -> None:
    """A wrong byte among the data comes to light before it is written anew, and the part stays as it was found."""
    write(tmp_path, [record(m, f"pod-{p}", cpu=sin(9 * m + p)) for m in range(200) for p in range(9)])
    (path,) = tmp_path.glob("namespace=*/*/*/part-*")
    content = bytearray(path.read_bytes())
    assert len(content) > 5_000, "what is looked at each time is the end"
    content[100] ^= 1
    path.write_bytes(content)
    sink = open_parquet(tmp_path)
    sink.write(columns([record(3, "pod-1", cpu=1.0, revision=1)], 900))
    with pytest.raises(SinkError, match="changed by something else"):
        sink.commit({TOPIC: {0: 901}}, VIEW)
    sink.close()
    assert path.read_bytes() == content


def test_a_part_that_goes_while_we_run_is_refused(tmp_path: Path) -> None:
    sink = open_parquet(tmp_path)
    play(sink, [record(0, "a", cpu=1.0)], 1)
    (path,) = tmp_path.glob("namespace=*/*/*/part-*")
    path.unlink()
    sink.write(columns([record(0, "b", cpu=1.0)], 1))
    with pytest.raises(SinkError, match="it is gone"):
        sink.commit({TOPIC: {0: 2}}, VIEW)
    sink.close()


def test_a_file_that_is_not_ours_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "namespace=prod/service=api/date=2026-11-23/part-00000001-0001.parquet"
    path.parent.mkdir(parents=True)
    path.write_text("precious")
    sink = open_parquet(tmp_path)
    with pytest.raises(SinkError, match="not written from here"):
        play(sink, [record(0, "a", cpu=1.0)], 1)
    sink.close()
    assert path.read_text() == "precious"


def test_a_full_disk_leaves_the_last_commit(tmp_path: Path) -> None:
    """A refused write is one line that says what to do, and readers see what was committed."""
    program = f"""
import resource
from ingestor.core.errors import SinkError
from sink_scenario import *
folder = Path({str(tmp_path)!r})
sink = open_parquet(folder)
records = long_scenario(4000)
play(sink, records[:400], 100)
before = found(folder)
resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, 8_000))
try:
    play(sink, records, 4000)
except SinkError as error:
    print(error)
    assert found(folder) == before
"""
    assert "free some space" in run(program)
    sink = open_parquet(tmp_path)
    play(sink, long_scenario(4000), 400)
    sink.close()
    assert found(tmp_path) == expected(long_scenario(4000))


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """Where a folder should be made there is a file: the line names it, and nothing is lost."""
    (tmp_path / "namespace=prod").write_text("in the way")
    sink: Sink = open_parquet(tmp_path)
    with pytest.raises(SinkError, match="namespace=prod cannot be written"):
        play(sink, [record(0, "a", cpu=1.0)], 1)
    sink.close()
    (tmp_path / "namespace=prod").unlink()
    sink = open_parquet(tmp_path)
    play(sink, [record(0, "a", cpu=1.0)], 1)
    sink.close()
    assert found(tmp_path) == expected([record(0, "a", cpu=1.0)])


def test_many_services_with_few_open_files(tmp_path: Path) -> None:
    """A commit of a thousand services opens no more than some files at a time."""
    program = f"""
import resource
from sink_scenario import *
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
sink = open_parquet(Path({str(tmp_path)!r}))
play(sink, [record(m, "p", service=f"s{{i}}", cpu=float(m)) for m in (0, 1) for i in range(1000)], 1000)
print(sink.file_count)
"""
    assert run(program) == "2000\n"
    files = list(tmp_path.glob("namespace=prod/*/*/part-*"))
    assert sum(pq.read_metadata(path).num_rows for path in files) == 2000


def run(program: str) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, PATHS))}
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment)
    return done.stdout
