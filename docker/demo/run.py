"""``make demo``: the whole pipeline on this machine, from a real Prometheus through a real Kafka into files.

Six hours of a small cluster's history and what it shows live go through the same
path. Once live windows are in the files, compares files and dashboard with Prometheus.
Then a terminal keeps the dashboard until Ctrl-C; elsewhere the demo ends by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import check
import history
import metrics
import requests
import tables
from confluent_kafka import KafkaException
from dashboard import Dashboard, differences
from rich.console import Console

from ingestor.core.durations import ChunkSize
from ingestor.core.errors import ConfigError, IngestorError
from ingestor.core.time_range import floor_ms
from ingestor.kafka import Cluster
from ingestor.local.kafka import LocalKafka
from ingestor.local.processes import PIPE, Child, free_port
from ingestor.local.prometheus import LocalPrometheus, create_blocks
from ingestor.options import cluster_arguments
from ingestor.web import listening, url_of

DEMO = Path(__file__).resolve().parent

HISTORY_HOURS = 6
CHUNK_SIZE = ChunkSize.parse("10s")
CHUNK_MS = 10_000
LIVE_WINDOWS = 2
CHECKED_CELLS = 20

FETCH_TIMEOUT_S = 900.0
"""The first start downloads a broker and a server; on a slow line that takes minutes."""

# Of what follows, each is many times what it takes: a machine may be busy, and what has failed says so by itself.
HISTORY_TIMEOUT_S = 300.0
"""Takes a few seconds; the first run on a machine also compiles the kernels."""

LIVE_TIMEOUT_S = 240.0
"""Two windows of 10 s, the wait for late scrapes, and the polls: 30 to 40 s."""

PAGES_TIMEOUT_S = 240.0
"""A worker's start takes some seconds."""

SAME_TIMEOUT_S = 120.0
"""The dashboard reads half an hour of ten pods in a second."""

MODEL_TIMEOUT_S = 240.0
"""Six hours of three pods take some seconds."""

DASHBOARD_PORT = 6066
"""The worker's own default: what the documents say is what the demo has."""

WATCHED_SERVICE = "cart"
"""Whose normal the ML service learns: the demo need not wait for the others."""

LOOK_EVERY_S = 0.1
LIVE_LOOK_EVERY_S = 0.5

MARKER = ".podstream-demo"
"""This file says that a folder is the demo's, and holds the lock of the demo that uses it."""

ALWAYS_RUNNING = ("shop/checkout.csv", "shop/cart.csv", "backend/orders-db.csv")
"""The files that get a row in every window; the report's pods come and go."""

SHOWN_FILE = "backend/orders-db.csv"
SHOWN_ROWS = 6
WIDTH = 80

LIVE_METRICS = {
    "shop/checkout.csv": "queue_depth",
    "shop/cart.csv": "queue_depth",
    "backend/orders-db.csv": "db_connections",
    "backend/stock-report.csv": "report_rows_total",
}
"""What ``--live`` prints of each file."""

NEXT_COMMAND = r"""  .venv/bin/stream-app dataset --url http://YOUR-PROMETHEUS:9090 \
      --start 10d --end now --chunk-size 1m --method mean --storage ./dataset"""

console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


class DemoError(Exception):
    """The demo cannot go on. The message is one line; *logs* are worth reading."""

    def __init__(self, message: str, *logs: Child) -> None:
        super().__init__(message)
        self.logs = logs


def main() -> int:
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, end_at_sigterm)
    try:
        with demo_folder(arguments.data) as folder:
            run(folder, live=arguments.live)
    except KeyboardInterrupt:
        console.print("stopped")
        return 130
    except DemoError as error:
        report_failure(str(error), {child.log_path: child.log_tail(8) for child in error.logs})
    except IngestorError as error:
        report_failure(str(error), {})
    else:
        return 0
    return 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__.split("\n\n")[1])
    parser.add_argument("--live", action="store_true", help="go on printing new windows until Ctrl-C")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("data/demo"),
        metavar="DIR",
        help="where the files go (default: ./%(default)s)",
    )
    return parser.parse_args()


def end_at_sigterm(_number: int, _frame: object) -> NoReturn:
    """End as on an error, so that everything that was started is stopped."""
    sys.exit(128 + signal.SIGTERM)


# --- the folder ---


@contextlib.contextmanager
def demo_folder(folder: Path) -> Iterator[Path]:
    """Make *folder*, or empty it if an earlier demo made it; no other demo can use it meanwhile.

    Raises:
        DemoError: the folder holds something that is not the demo's, or is in use.
    """
    with contextlib.ExitStack() as stack:
        shown = shown_path(folder)
        # Only what is done here: what is done in the folder has errors of its own.
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / MARKER).is_file() and any(folder.iterdir()):
                raise DemoError(f"{shown} is not empty and not the demo's own: give another folder with --data")
            marker = stack.enter_context((folder / MARKER).open("w", encoding="utf-8"))
            fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
            marker.write("Made by docker/demo/run.py, which deletes everything in this folder at its next start.\n")
            marker.flush()
            empty(folder)
            (folder / "logs").mkdir()
        except BlockingIOError:
            raise DemoError(f"another demo is running in {shown}: end it, or give --data another folder") from None
        except OSError as error:
            reason = error.strerror or error
            raise DemoError(f"{shown} cannot be used ({reason}): give another folder with --data") from error
        yield folder


def empty(folder: Path) -> None:
    """Delete what earlier demos left, but for the marker, which is locked."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARKER:
            path.unlink()


def shown_path(path: Path) -> str:
    """Write a path as people would type it here."""
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(absolute)


# --- the story ---


@dataclass(frozen=True, slots=True)
class Running:
    """The whole pipeline, with its children by what they are called."""

    folder: Path
    url: str
    """Prometheus'."""
    dashboard_url: str
    cluster: Cluster
    children: dict[str, Child]
    started_s: float
    """``time.monotonic()`` when the ingestor was started."""
    history_start_ms: int
    live_start_ms: int
    """Windows that start here or later can only have been fetched live."""

    @property
    def first_live_window_ms(self) -> int:
        return -(-self.live_start_ms // CHUNK_MS) * CHUNK_MS

    def table(self, file: str, tail_bytes: int | None = None) -> tables.Table | None:
        return tables.read(self.folder / file, tail_bytes)

    def tables(self) -> dict[str, tables.Table]:
        files = sorted(path.relative_to(self.folder).as_posix() for path in self.folder.glob("*/*.csv"))
        return {file: table for file in files if (table := self.table(file)) is not None}

    def check_children(self) -> None:
        """Raise DemoError when a process that should run has ended."""
        for name, child in self.children.items():
            if (code := child.poll()) is not None:
                raise DemoError(f"{name} ended by itself (exit code {code})", child)


def run(folder: Path, *, live: bool) -> None:
    """Start everything, wait, check, show; whatever happens, stop everything and delete the scratch folder."""
    listener = dashboard_listener()
    console.print(f"Dashboard: {url_of(listener)}", style="bold")
    console.print("It answers in a few seconds, and for as long as this demo runs.\n")
    steps = Steps()
    with tempfile.TemporaryDirectory(prefix="podstream-demo.") as scratch_name, contextlib.ExitStack() as stack:
        scratch = Path(scratch_name)
        try:
            running = start(folder, scratch, listener, stack, steps)
            wait_for_pages(running, steps)
            history_s = wait_for_history(running, steps)
            wait_for_live_windows(running, steps)
            published = verify(running, steps)
            wait_for_model(running, steps)
            verify_dashboard(running, steps)
            show_files(running)
            show_speed(published, history_s)
            show_next_steps()
            if live:
                follow(running)
            if sys.stdin.isatty() and sys.stdout.isatty():
                stay(running)
        finally:
            # From here on another Ctrl-C would only leave things behind.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            keep_server_logs(scratch, folder / "logs")


def dashboard_listener() -> socket.socket:
    """Return what holds the dashboard's port until the worker takes it: two demos never say the same address."""
    try:
        return listening(("127.0.0.1", DASHBOARD_PORT))
    except ConfigError:
        listener = listening(("127.0.0.1", free_port()))
        console.print(f"port {DASHBOARD_PORT} is taken: the dashboard gets one that is free")
        return listener


def start(folder: Path, scratch: Path, listener: socket.socket, stack: contextlib.ExitStack, steps: Steps) -> Running:
    """Start the servers, and on them the pipeline."""
    logs = folder / "logs"
    fetch_servers(logs, steps)

    # Prometheus first, and at once: what passes between the end of its history and its first scrape is nowhere.
    history_end_ms = time.time_ns() // 1_000_000
    history_start_ms = history_end_ms - HISTORY_HOURS * metrics.HOUR_MS
    openmetrics = scratch / "history.txt"
    with openmetrics.open("w", encoding="utf-8", newline="\n") as file:
        written = history.write_history(file, history_start_ms, history_end_ms)
    exporter = Child([sys.executable, DEMO / "workload.py", "--port", "0"], log_path=logs / "workload.log", stdout=PIPE)
    stack.enter_context(exporter)
    prometheus = LocalPrometheus(scratch / "prometheus", config=scrape_config(target_of(exporter)))
    create_blocks(openmetrics, prometheus.data_dir)
    stack.enter_context(prometheus)
    steps.done(f"Prometheus has a small cluster's last {HISTORY_HOURS} hours: {written:,} samples")
    kafka = stack.enter_context(LocalKafka(scratch / "kafka"))
    steps.done(f"Apache Kafka answers on {kafka.bootstrap_servers}")

    started_s, live_start_ms = time.monotonic(), time.time_ns() // 1_000_000
    children = {"the exporter": exporter}
    dashboard_url = url_of(listener)
    listener.close()
    for name, log, arguments in pipeline_commands(prometheus.url, kafka.cluster, folder, dashboard_url):
        child = Child([sys.executable, *arguments], log_path=logs / log, env=clean_environment())
        children[name] = stack.enter_context(child)
    steps.done("the ingestor, a worker, the file writer and an ML service are started")
    return Running(
        folder, prometheus.url, dashboard_url, kafka.cluster, children, started_s, history_start_ms, live_start_ms
    )


def fetch_servers(logs: Path, steps: Steps) -> None:
    """Download the servers at the first start on this machine."""
    with Child([sys.executable, "-m", "ingestor.local", "fetch"], log_path=logs / "fetch.log") as fetch:
        deadline, said = time.monotonic() + FETCH_TIMEOUT_S, 0
        while (code := fetch.poll()) is None:
            lines = fetch.log_tail(100).splitlines()
            for line in lines[said:]:
                steps.done(line)
            said = len(lines)
            if time.monotonic() > deadline:
                raise DemoError(f"the servers are not there after {FETCH_TIMEOUT_S:.0f} s", fetch)
            time.sleep(LOOK_EVERY_S)
        if code != 0:
            raise DemoError("the servers cannot be fetched", fetch)


def target_of(exporter: Child) -> str:
    """Return host and port from the exporter's first line."""
    line = exporter.stdout.readline().decode()
    if "http://" not in line:
        raise DemoError("the exporter did not start", exporter)
    return line.split("http://")[1].split("/")[0]


def scrape_config(target: str) -> dict[str, Any]:
    """Return a configuration that scrapes the exporter into the series that the history has."""
    labels = dict(history.TARGET_LABELS)
    scrape = {
        "job_name": labels["job"],
        "honor_labels": True,
        "scrape_interval": "2s",
        "scrape_timeout": "2s",
        "static_configs": [{"targets": [target], "labels": {"instance": labels["instance"]}}],
    }
    return {"scrape_configs": [scrape]}


def pipeline_commands(url: str, cluster: Cluster, folder: Path, dashboard_url: str) -> list[tuple[str, str, list[str]]]:
    """Return what runs as name, log file, and arguments of Python."""
    kafka = cluster_arguments(cluster)
    window = ["--chunk-size", str(CHUNK_SIZE), "--method", "mean"]
    web = ["--web-listen-address", dashboard_url.removeprefix("http://")]
    since = ["--start", f"{HISTORY_HOURS}h", "--settle", "5s", "--poll-interval", "2s"]
    return [
        ("the ingestor", "ingestor.log", ["-m", "ingestor", "run", "--url", url, *kafka, *since]),
        ("the worker", "worker.log", ["-m", "stream_app", "worker", *kafka, *window, "--slot", "0", *web]),
        ("the file writer", "files.log", ["-m", "stream_app", "files", *kafka, "--storage", str(folder)]),
        (
            "the ML service",
            "ml-service.log",
            [
                str(DEMO.parent / "ml_service" / "main.py"),
                *("--bootstrap-servers", cluster.bootstrap_servers, "--start", "earliest"),
                *("--namespace", "shop", "--service", WATCHED_SERVICE),
            ],
        ),
    ]


def clean_environment() -> dict[str, str]:
    """Return the environment without settings that are meant for somebody's real pipeline."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("INGESTOR_", "STREAM_APP_"))}


def wait_for_pages(running: Running, steps: Steps) -> None:
    """Wait until the dashboard answers, and say where."""
    dashboard = Dashboard(running.dashboard_url)
    wait_until(dashboard.is_up, PAGES_TIMEOUT_S, "the dashboard does not answer", running)
    steps.done(f"the dashboard answers: {running.dashboard_url}")


def wait_for_history(running: Running, steps: Steps) -> float:
    """Wait until all files have reached the history's end; return the seconds since the ingestor was started."""
    last_ms = running.live_start_ms - metrics.MINUTE_MS

    def arrived() -> bool:
        return all(last_start_ms(running, file) >= last_ms for file in ALWAYS_RUNNING)

    with steps.waiting("history on its way ..."):
        wait_until(arrived, HISTORY_TIMEOUT_S, "history is not in the files", running)
    seconds = time.monotonic() - running.started_s
    rows = sum(len(table.rows) for table in running.tables().values())
    steps.done(f"history is in the files: {rows:,} rows")
    return seconds


def wait_for_live_windows(running: Running, steps: Steps) -> None:
    """Wait until every file of a running service has windows that were fetched live."""
    seen_ms = running.first_live_window_ms
    for _ in range(LIVE_WINDOWS):

        def arrived(start_ms: int = seen_ms) -> bool:
            return all(last_start_ms(running, file) >= start_ms for file in ALWAYS_RUNNING)

        with steps.waiting(f"the window that starts at {tables.clock(seen_ms)} ends soon ..."):
            wait_until(arrived, LIVE_TIMEOUT_S, f"the live window {tables.clock(seen_ms)} is not in the files", running)
        steps.done(f"live: the window {tables.clock(seen_ms)} to {tables.clock(seen_ms + CHUNK_MS)} is in the files")
        seen_ms += CHUNK_MS


def last_start_ms(running: Running, file: str) -> int:
    table = running.table(file, tail_bytes=4096)
    return table.starts_ms()[-1] if table and table.rows else 0


def wait_until(arrived: Callable[[], bool], timeout_s: float, complaint: str, running: Running) -> None:
    """Look until *arrived*.

    Raises:
        DemoError: a child ended, or the time is up.
    """
    deadline = time.monotonic() + timeout_s
    while not arrived():
        running.check_children()
        if time.monotonic() > deadline:
            raise DemoError(f"{complaint} after {timeout_s:.0f} s", *running.children.values())
        time.sleep(LOOK_EVERY_S)


def verify(running: Running, steps: Steps) -> check.Published:
    """Compare records and files with Prometheus: the history, the first live window, and the seam between them.

    Raises:
        DemoError: something is missing, doubled or wrong.
    """
    prometheus = check.Prometheus(running.url)
    until_ms = running.first_live_window_ms + CHUNK_MS
    children = running.children.values()
    try:
        published = check.records_until(running.cluster, until_ms, floor_ms(running.live_start_ms - CHUNK_MS, CHUNK_MS))
        expected = prometheus.samples(running.history_start_ms - metrics.HOUR_MS, until_ms)
        cells = check.random_cells(running.tables(), until_ms, CHECKED_CELLS, seed=running.live_start_ms)
        different = check.differences(cells, prometheus, CHUNK_SIZE)
    except (check.DoubledError, requests.RequestException, KafkaException) as error:
        raise DemoError(f"checking failed: {error}", *children) from error
    if published.samples != expected:
        raise DemoError(f"the records stand for {published.samples:,} samples, Prometheus has {expected:,}", *children)
    steps.done(
        f"checked: all {expected:,} samples up to {tables.clock(until_ms)} are in {published.records:,} records, once"
    )
    if different:
        raise DemoError(f"{len(different)} of {len(cells)} cells differ: {different[0]}", *children)
    steps.done(f"checked: {len(cells)} cells equal Prometheus' own samples")
    return published


def wait_for_model(running: Running, steps: Steps) -> None:
    """Wait until the ML service has judged the first live window, and look whom it has found.

    Raises:
        DemoError: it has not found the pod that falls ill, or has found another.
    """
    judged = check.Judged()

    def arrived() -> bool:
        nonlocal judged
        judged = check.judged(running.cluster)
        return judged.last_ms >= running.first_live_window_ms

    with steps.waiting("the ML service is judging the history ..."):
        wait_until(arrived, MODEL_TIMEOUT_S, "the ML service has not judged the live window", running)
    # A machine that is too busy to scrape in time makes live windows that are unlike all others.
    pods = judged.pods(floor_ms(running.live_start_ms - CHUNK_MS, CHUNK_MS))
    if pods != {metrics.SICK_POD}:
        found = ", ".join(sorted(pods)) or "nobody"
        raise DemoError(f"the ML service has found {found}, not {metrics.SICK_POD}", *running.children.values())
    steps.done(f"ML service: {metrics.SICK_POD} was ill {judged.times} times (logs/ml-service.log)")


def verify_dashboard(running: Running, steps: Steps) -> None:
    """Compare what the dashboard shows with files and anomalies, once it has read what they have.

    Raises:
        DemoError: it shows something else.
    """
    dashboard = Dashboard(running.dashboard_url)
    until_ms = running.first_live_window_ms + LIVE_WINDOWS * CHUNK_MS
    values, different = 0, [""]

    def is_same() -> bool:
        nonlocal values, different
        shown = dashboard.shown()
        values = len(shown.values)
        different = differences(shown, running.tables(), until_ms, check.judged(running.cluster).ill)
        return not different

    try:
        with steps.waiting("the dashboard is compared with the files ..."):
            wait_until(is_same, SAME_TIMEOUT_S, "the dashboard does not show what is in the files", running)
    except requests.RequestException as error:
        raise DemoError(f"the dashboard fails: {error}", *running.children.values()) from error
    except DemoError as error:
        raise DemoError(f"{error}: {different[0]}", *error.logs) from error
    steps.done(f"checked: {values:,} values on the dashboard equal the files', anomalies too")


class Steps:
    """Prints what is done, with the seconds since the beginning."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()

    def done(self, text: str) -> None:
        console.print(f"{time.monotonic() - self._started_s:5.1f} s  {text}")

    @contextlib.contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Show what is being waited for, on a terminal only."""
        with console.status(text) if console.is_terminal else contextlib.nullcontext():
            yield


# --- what is shown ---


def show_files(running: Running) -> None:
    found = running.tables()
    rows = [
        (shown_path(running.folder / file), f"{len(t.rows):,}", f"{len(t.pods()):,}", str(len(t.metrics())))
        for file, t in found.items()
    ]
    console.print()
    print_aligned(("file", "rows", "pods", "metrics"), rows, left=1)
    table = found[SHOWN_FILE]
    last = tables.Table(table.columns, table.rows[-SHOWN_ROWS:])
    columns = tables.fitting_columns(last, WIDTH)
    hidden = len(table.columns) - len(columns)
    console.print(f"\nthe end of {shown_path(running.folder / SHOWN_FILE)} ({hidden} wider columns are not shown)")
    print_aligned([last.columns[i] for i in columns], [[row[i] for i in columns] for row in last.rows], left=2)


def print_aligned(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> None:
    first, *others = tables.aligned(header, rows, left)
    console.print(first, style="bold")
    for line in others:
        console.print(line)


def show_speed(published: check.Published, history_s: float) -> None:
    count, seconds = published.history_samples, published.history_s
    console.print(
        f"\n{count:,} samples of history from Prometheus into files in {history_s:.1f} s, starts\n"
        f"included; from the first message to the last record {seconds:.2f} s:\n{count / seconds:,.0f} samples/s"
    )


def show_next_steps() -> None:
    console.print("\nyour own cluster, in one command:", style="bold")
    console.print(NEXT_COMMAND)


def stay(running: Running) -> NoReturn:
    """Keep everything running, for who looks at the dashboard, until Ctrl-C."""
    console.print(f"\nThe dashboard is live until Ctrl-C: {running.dashboard_url}", style="bold")
    while True:
        running.check_children()
        time.sleep(LIVE_LOOK_EVERY_S)


def follow(running: Running) -> NoReturn:
    """Print every new window until Ctrl-C."""
    console.print("\nlive until Ctrl-C:", style="bold")
    newest = {file: last_start_ms(running, file) for file in LIVE_METRICS}
    printed = dict(newest)
    while True:
        for file, metric in LIVE_METRICS.items():
            table = running.table(file, tables.TAIL_BYTES)
            if table is None:
                continue
            starts = table.starts_ms()
            # Those of the look before: their rows are all there by now.
            for start_ms in sorted({start for start in starts if printed[file] < start <= newest[file]}):
                rows = [row for start, row in zip(starts, table.rows, strict=True) if start == start_ms]
                console.print(live_line(file, metric, start_ms, tables.Table(table.columns, rows)))
                printed[file] = start_ms
            newest[file] = max(starts, default=0)
        running.check_children()
        time.sleep(LIVE_LOOK_EVERY_S)


def live_line(file: str, metric: str, start_ms: int, window: tables.Table) -> str:
    """Return what one window of one service shows: its pods, and a metric's mean over them."""
    column = window.columns.index(metric)
    values = [float(row[column]) for row in window.rows if row[column]]
    pods = len(window.rows)
    mean = f"{metric} {sum(values) / len(values):,.1f}" if values else ""
    return (
        f"{tables.clock(start_ms)}  {file.removesuffix('.csv'):<18}  {pods} pod{'s' * (pods != 1):<1}  {mean}".rstrip()
    )


# --- the end ---


def keep_server_logs(scratch: Path, logs: Path) -> None:
    """Copy the servers' logs out of the folder that is about to be deleted."""
    for path in scratch.glob("*/*.log"):
        shutil.copyfile(path, logs / path.name)


def report_failure(message: str, logs: dict[Path, str]) -> None:
    console.print(f"error: {message}", style="red")
    for path, tail in logs.items():
        console.print(f"\nsee {shown_path(path)}, which ends with:")
        console.print("\n".join(f"  {line}" for line in (tail or "(nothing)").splitlines()))


if __name__ == "__main__":
    sys.exit(main())
