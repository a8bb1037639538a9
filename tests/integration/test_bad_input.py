"""What is asked wrongly gets one clear line, exit code 2, and nothing is written."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from commands import WHEN, ingestor, run, stream_app

from ingestor.local.kafka import LocalKafka
from ingestor.local.processes import free_port
from ingestor.local.prometheus import LocalPrometheus


class _Answers(BaseHTTPRequestHandler):
    """Answers 401 below /secret and a page everywhere else."""

    def do_POST(self) -> None:
        body = b"<html>hello</html>"
        self.send_response(401 if self.path.startswith("/secret") else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST  # noqa: N815 - the base class names it

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def other_server() -> Iterator[str]:
    """A web server that is no Prometheus."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def assert_refused(command: list[str], *words: str) -> None:
    refused = run(command, code=2)
    last = refused.stderr.strip().splitlines()[-1]
    assert last.lower().startswith("error:")
    assert "Traceback" not in refused.stderr
    for word in words:
        assert word in last


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--method", "average"], ["--method", "average", "mean"]),
        (["--start", "10 parsecs"], ["--start", "10 parsecs", "10d"]),
        (["--start", "2026-11-23T12:00:00"], ["--start", "offset"]),
        (["--start", "1d", "--end", "2d"], ["--end", "not after", "--start"]),
        (["--end", "2100-01-01T00:00:00Z"], ["--end", "--end now"]),
        (["--chunk-size", "1 parsec"], ["--chunk-size", "1h"]),
        (["--chunk_size", "1m"], ["1mo", "1t"]),
        (["--match", "{pod"], ["--match", "{pod"]),
        (["--match", '{pod="nobody"}'], ["no metric matches", "nobody", "--match"]),
        (["--include", "("], ["--include", "regular expression"]),
        (["--include", "nothing_.*"], ["no metric matches", "--include"]),
        (["--group-by", "planet"], ["--group-by", "service"]),
        (["--bearer-token-file", "missing-token"], ["missing-token"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_flags(prometheus: LocalPrometheus, tmp_path: Path, flags: list[str], words: list[str]) -> None:
    """Each wrong flag is named, with what is allowed."""
    storage = tmp_path / "data"
    assert_refused(stream_app("dataset", "--url", prometheus.url, *WHEN, "--storage", str(storage), *flags), *words)
    assert not storage.exists()


def test_ten_faults_in_one_run(tmp_path: Path) -> None:
    """All of them are named, in the order of the file, and nothing is made."""
    storage, path = tmp_path / "data", tmp_path / "config.yml"
    keys = {
        "url": "prometheus", "start": "10 parsecs", "end": "2026-11-23", "chunk-size": "1 parsec", "method": "average",
        "group-by": "[pod, planet]", "settle": "30", "concurency": "2", "range_samples": "few", "json": "maybe",
    }  # fmt: skip
    path.write_text("\n  ".join(["dataset:", f"storage: {storage}", *(f"{k}: {v}" for k, v in keys.items())]))
    refused = run(stream_app("--config", str(path), "dataset"), code=2)
    assert "Traceback" not in refused.stderr
    first, *lines = refused.stderr[refused.stderr.index("Error: ") :].splitlines()
    assert first == "Error: 10 settings are wrong:"
    assert [line.split(": ")[2] for line in lines] == list(keys)
    assert all(line.strip().startswith(f"{path}: dataset: ") for line in lines)
    assert list(tmp_path.iterdir()) == [path]


def test_wrong_urls(other_server: str, tmp_path: Path) -> None:
    """A server that is not there, is no Prometheus, or wants a password, is told apart."""
    storage = tmp_path / "data"
    for url, words in [
        (f"http://127.0.0.1:{free_port()}", ["cannot connect", "--url"]),
        (other_server, ["Prometheus"]),
        (f"{other_server}/secret", ["401", "--bearer-token-file", "--basic-auth-file"]),
        ("prometheus:9090", ["http://"]),
    ]:
        assert_refused(stream_app("dataset", "--url", url, *WHEN, "--storage", str(storage)), *words)
    assert not storage.exists()


def test_no_broker(prometheus: LocalPrometheus, tmp_path: Path) -> None:
    """Every command says that no broker answers, and how to name one."""
    nowhere = ["--bootstrap-servers", f"127.0.0.1:{free_port()}"]
    words = [nowhere[1], "--bootstrap-servers"]
    storage = ["--storage", str(tmp_path / "data")]
    assert_refused(ingestor("backfill", "--url", prometheus.url, *WHEN, *nowhere), *words)
    assert_refused(stream_app("worker", "--web-listen-address", "none", *nowhere), *words)
    assert_refused(stream_app("files", *storage, *nowhere), *words)


def test_storage_that_cannot_be_written(kafka: LocalKafka, prometheus: LocalPrometheus, tmp_path: Path) -> None:
    """A path below a file, and a folder that holds something else, are refused."""
    (tmp_path / "file").write_text("mine")
    below_a_file = str(tmp_path / "file" / "data")
    dataset = ["dataset", "--url", prometheus.url, *WHEN, "--storage"]
    assert_refused(stream_app(*dataset, below_a_file), "--storage")
    assert_refused(stream_app("files", "--storage", below_a_file, "--bootstrap-servers", kafka.bootstrap_servers))
    assert_refused(stream_app(*dataset, str(tmp_path)), "not empty")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
