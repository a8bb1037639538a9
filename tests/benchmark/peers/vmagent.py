"""vmagent's stream aggregation: remote writes in, a mean a minute, pod and metric out; neither Prometheus nor Kafka.

Its windows are of the wall clock, whatever the samples' times are: all that is checked is that it has taken in every
sample, and that means came out.
"""

from __future__ import annotations

import http.client
import http.server
import itertools
import shutil
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import cluster
import pyarrow as pa
import requests
from peers.messages import label_sets, samples
from peers.result import Result
from processes import usage

from ingestor.core.errors import ConfigError
from ingestor.local.cache import cache_folder, filled_once
from ingestor.local.processes import Child, free_port, run
from ingestor.sources.remote_read import _field

VERSION = "1.148.8"
_COMMAND = f"github.com/VictoriaMetrics/VictoriaMetrics/app/vmagent@v{VERSION}"
_SAMPLES_A_REQUEST = 2000
_SENDERS = 2
_TIMEOUT_S = 180.0
_HEADERS = {"Content-Encoding": "snappy", "Content-Type": "application/x-protobuf"}


def find_program() -> Path:
    """Return vmagent from PATH or the cache, or build it there, which takes a few minutes.

    Raises:
        ConfigError: there is no Go, or it cannot build this.
    """
    if (found := shutil.which("vmagent")) is not None:
        return Path(found)
    return filled_once(cache_folder() / f"vmagent-{VERSION}", _build) / "vmagent"


def _build(target: Path) -> None:
    if shutil.which("go") is None:
        raise ConfigError("there is no Go on PATH to build vmagent with")
    target.mkdir()
    done = run(["env", f"GOBIN={target}", "go", "install", "-p", "2", _COMMAND])
    if not (target / "vmagent").exists():
        raise ConfigError(f"go cannot build vmagent {VERSION}: {done.stderr.strip().splitlines()[-1:]}")


def measure(folder: Path, minutes: int) -> Result:
    """Aggregate the samples of some minutes."""
    program = find_program()
    number = cluster.Length(minutes).samples
    requests_ = list(_requests(minutes))
    with _receiver() as (port, bodies):
        folder.mkdir()
        config = folder / "aggregation.yml"
        config.write_text("- interval: 1m\n  by: [pod]\n  outputs: [avg]\n")
        listen = free_port()
        command = [
            program,
            f"-httpListenAddr=127.0.0.1:{listen}",
            f"-remoteWrite.url=http://127.0.0.1:{port}/write",
            "-remoteWrite.forcePromProto",
            f"-remoteWrite.streamAggr.config={config}",
            f"-remoteWrite.tmpDataPath={folder / 'queue'}",
        ]
        with Child(command, log_path=folder / "vmagent.log") as child:
            _wait_until(lambda: _answers(listen), child, "it does not answer")
            # The interval that it starts in, it drops.
            _wait_until(lambda: time.time() % 60 < 1, child, "time stands still")
            _wait_until(lambda: time.time() % 60 > 2, child, "time stands still")
            before, began = usage(child.pid), time.perf_counter()
            _post(listen, requests_)
            wall_s = time.perf_counter() - began
            _wait_until(lambda: bodies, child, "no means came")
            time.sleep(1.0)
            after, matched = usage(child.pid), _matched(listen)
        if matched != number:
            raise click.ClickException(f"vmagent has taken in {matched:,} samples of {number:,}")
        return Result("vmagent", number, wall_s, after.cpu_s - before.cpu_s, after.peak_bytes)


def _requests(minutes: int) -> Iterator[bytes]:
    heads = [
        b"".join(_field(1, _field(1, name.encode()) + _field(2, text.encode())) for name, text in labels.items())
        for labels in label_sets()
    ]
    stream = samples(minutes)
    while part := list(itertools.islice(stream, _SAMPLES_A_REQUEST)):
        series = (
            _field(1, heads[number] + _field(2, b"\x09" + struct.pack("<d", value) + _field(2, time_ms)))
            for number, _, time_ms, value in part
        )
        yield pa.compress(b"".join(series), codec="snappy", asbytes=True)


def _post(port: int, bodies: list[bytes]) -> None:
    waiting, refused = iter(bodies), list[int]()
    lock = threading.Lock()

    def send() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while True:
            with lock:
                body = next(waiting, None)
            if body is None:
                return
            connection.request("POST", "/api/v1/write", body, _HEADERS)
            answer = connection.getresponse()
            answer.read()
            if answer.status >= http.HTTPStatus.MULTIPLE_CHOICES:
                refused.append(answer.status)

    threads = [threading.Thread(target=send) for _ in range(_SENDERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if refused:
        raise click.ClickException(f"vmagent refuses samples: {refused[0]}")


@contextmanager
def _receiver() -> Iterator[tuple[int, list[bytes]]]:
    bodies: list[bytes] = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(http.HTTPStatus.NO_CONTENT)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port, bodies
    finally:
        server.shutdown()
        server.server_close()


def _answers(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/health", timeout=1).ok
    except requests.ConnectionError:
        return False


def _matched(port: int) -> int:
    lines = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=5).text.splitlines()
    return sum(int(line.split()[-1]) for line in lines if line.startswith("vm_streamaggr_matched_samples_total"))


def _wait_until(arrived: Callable[[], object], child: Child, complaint: str) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while not arrived():
        if child.poll() is not None or time.monotonic() > deadline:
            raise click.ClickException(f"vmagent: {complaint}: {child.log_tail()}")
        time.sleep(0.05)
