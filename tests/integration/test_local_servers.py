"""The servers that everything else is tested against keep their data, and leave nothing running."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import astuple
from pathlib import Path

import pytest
import requests
from commands import PATIENCE_S, run
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from ingestor.core.errors import ConfigError
from ingestor.local import helm, prometheus3, victoria_metrics
from ingestor.local.debian import take_programs
from ingestor.local.kafka import LocalKafka
from ingestor.local.processes import PIPE, Child, PortTakenError, free_port
from ingestor.local.prometheus import Binaries, LocalPrometheus, create_blocks, find_binaries
from ingestor.local.victoria_metrics import LocalVictoriaMetrics

# Prints the process ids of a broker and a Prometheus that it has started, then waits to be killed.
PARENT = """
import sys, time
from pathlib import Path
from ingestor.local.kafka import LocalKafka
from ingestor.local.prometheus import LocalPrometheus

folder = Path(sys.argv[1])
with LocalKafka(folder / "kafka") as kafka, LocalPrometheus(folder / "prometheus", config=None) as prometheus:
    print(kafka.pid, prometheus.pid, flush=True)
    time.sleep(600)
"""


def test_kafka_keeps_data_through_a_stop_and_a_sigkill(tmp_path: Path) -> None:
    """What was acknowledged is there after a shutdown and after a SIGKILL, on the same port."""
    broker = LocalKafka(tmp_path / "a folder, with a comma")
    with broker:
        servers = broker.bootstrap_servers
        admin = AdminClient({"bootstrap.servers": servers})
        admin.create_topics([NewTopic("kept", 1, 1)])["kept"].result(PATIENCE_S)
        produce(servers, "kept", b"first")
        broker.stop()
        broker.start()
        produce(servers, "kept", b"second")
        broker.kill()
        broker.start()
        assert broker.bootstrap_servers == servers
        assert consume(servers, "kept", count=2) == [b"first", b"second"]


def test_each_new_folder_is_a_cluster_of_its_own(kafka: LocalKafka, tmp_path: Path) -> None:
    """Two folders never share a cluster id, so a checkpoint of one is not taken for the other's."""
    with LocalKafka(tmp_path) as other:
        ids = {
            AdminClient({"bootstrap.servers": broker.bootstrap_servers}).list_topics(timeout=10).cluster_id
            for broker in (kafka, other)
        }
    assert len(ids) == 2


def test_a_taken_port_is_told(kafka: LocalKafka, tmp_path: Path) -> None:
    """A port that was asked for is never exchanged for another one, nor is its owner's answer believed."""
    taken = int(kafka.bootstrap_servers.rpartition(":")[2])
    with pytest.raises(PortTakenError, match=str(taken)):
        LocalKafka(tmp_path / "kafka", port=taken).start()
    with pytest.raises(PortTakenError, match=str(taken)):
        LocalPrometheus(tmp_path / "prometheus", port=taken, config=None).start()
    with pytest.raises(PortTakenError, match=str(taken)):
        LocalVictoriaMetrics(tmp_path / "victoria-metrics", port=taken).start()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can tie a process to its parent's life")
def test_servers_die_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    """SIGKILL of the process that started them leaves neither Kafka nor Prometheus behind."""
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        try:
            assert len(pids) == 2
            assert all(is_running(pid) for pid in pids)
        finally:
            parent.kill()
    for pid in pids:
        wait_for(lambda pid=pid: not is_running(pid))


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    """Stopping is bounded in time."""
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    )
    with Child([sys.executable, "-c", code], log_path=tmp_path / "log", stdout=PIPE) as child:
        assert child.stdout.readline() == b"ready\n"
        assert child.stop(timeout_s=0.2) == -signal.SIGKILL


def test_a_child_ends_in_order_and_its_output_is_kept(tmp_path: Path) -> None:
    """SIGTERM comes first; the log holds both streams, and a child of one's own has its own session."""
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "print('out', flush=True); print('err', file=sys.stderr, flush=True); time.sleep(60)"
    )
    with Child([sys.executable, "-c", code], log_path=tmp_path / "log") as child:
        wait_for(lambda: "err" in child.log_tail())
        assert os.getsid(child.pid) == child.pid
        assert child.stop() == 7
    assert child.log_tail().split() == ["out", "err"]


def test_a_missing_program_is_told(tmp_path: Path) -> None:
    """A user reads one line, not a traceback."""
    with pytest.raises(ConfigError, match="no-such-program"):
        Child(["no-such-program"], log_path=tmp_path / "log").start()


def test_ports_are_not_those_of_outgoing_connections() -> None:
    """A client that reconnects to a stopped server cannot be given that server's port."""
    assert all(1024 < free_port() < 32768 for _ in range(100))


HOLDS = """
import sys
from ingestor.local.processes import _hold

print(_hold(int(sys.argv[1])))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has names without files")
def test_a_port_is_given_out_once() -> None:
    """Between our choice and the server's start no other process of ours chooses it; later ones may."""
    port = free_port()
    command = [sys.executable, "-c", HOLDS]
    assert run([*command, str(port)]).stdout == "False\n"
    for _ in range(100):
        free_port()
    assert run([*command, str(port)]).stdout == "True\n"


def test_prometheus_is_fetched_once(prometheus_binaries: Binaries) -> None:
    """The second question is answered from PATH or the cache."""
    made = [(path, path.stat().st_ino, path.stat().st_mtime_ns) for path in astuple(prometheus_binaries)]
    assert find_binaries() == prometheus_binaries
    assert made == [(path, path.stat().st_ino, path.stat().st_mtime_ns) for path in astuple(prometheus_binaries)]


def test_prometheus_serves_blocks_made_from_openmetrics(tmp_path: Path) -> None:
    """History written years ago is served, also after a restart on the same folder and port."""
    text = tmp_path / "history.om"
    text.write_text('# TYPE cpu gauge\ncpu{pod="a"} 1.5 1600000000\ncpu{pod="a"} 2.5 1600000015\n# EOF\n')
    server = LocalPrometheus(tmp_path / "prometheus", config={"global": {"scrape_interval": "15s"}})
    create_blocks(text, server.data_dir)
    with server:
        url = server.url
        for _ in range(2):
            answer = requests.get(f"{url}/api/v1/query", {"query": "cpu[1m]", "time": "1600000020"}, timeout=10).json()
            (series,) = answer["data"]["result"]
            assert series["metric"] == {"__name__": "cpu", "pod": "a"}
            assert series["values"] == [[1600000000, "1.5"], [1600000015, "2.5"]]
            server.kill()
            server.start()
        assert server.url == url


def test_victoria_metrics_serves_what_was_imported(tmp_path: Path) -> None:
    """History written years ago is served at once, also after a restart on the same folder and port."""
    need(victoria_metrics.on_path() or victoria_metrics.program_folder())
    text = tmp_path / "history.txt"
    text.write_text('cpu{pod="a"} 1.5 1600000000000\ncpu{pod="a"} 2.5 1600000015000\n')
    with LocalVictoriaMetrics(tmp_path / "a folder, with a comma") as server:
        url = server.url
        server.import_text(text)
        for _ in range(2):
            answer = requests.get(f"{url}/api/v1/query", {"query": "cpu[1m]", "time": "1600000020"}, timeout=10).json()
            (series,) = answer["data"]["result"]
            assert series["metric"] == {"__name__": "cpu", "pod": "a"}
            assert series["values"] == [[1600000000, "1.5"], [1600000015, "2.5"]]
            server.stop()
            server.start()
        assert server.url == url


def test_prometheus_3_serves_the_blocks_of_prometheus_2(tmp_path: Path) -> None:
    """The program that Go built runs where the distribution's does, on blocks that its promtool made."""
    need(prometheus3.program_folder())
    text = tmp_path / "history.om"
    text.write_text('# TYPE cpu gauge\ncpu{pod="a"} 1.5 1600000000\n# EOF\n')
    server = LocalPrometheus(tmp_path / "prometheus", program=prometheus3.find_program())
    create_blocks(text, server.data_dir)
    with server:
        build = requests.get(f"{server.url}/api/v1/status/buildinfo", timeout=10).json()["data"]
        assert build["version"] == prometheus3.VERSION
        answer = requests.get(f"{server.url}/api/v1/query", {"query": "cpu[1m]", "time": "1600000020"}, timeout=10)
        assert answer.json()["data"]["result"][0]["values"] == [[1600000000, "1.5"]]


def test_what_the_tests_read_from_is_missed_loudly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Go or without a distribution that has the package, one line says what to do; no folder is left."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    for built in (prometheus3, helm):
        with pytest.raises(ConfigError, match="is built with Go, and there is none on PATH"):
            built.find_program()
        assert not built.program_folder().exists()
    with pytest.raises(ConfigError, match="no VictoriaMetrics here: apt-get install victoria-metrics"):
        victoria_metrics.find_program()
    assert not victoria_metrics.program_folder().exists()


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="no apt-get: packages come from Debian and its likes")
def test_a_package_that_cannot_be_had_is_told(tmp_path: Path) -> None:
    """The advice comes first, and apt's own reason behind it."""
    with pytest.raises(ConfigError, match=r"^do this \(.+\)$"):
        take_programs("podstream-has-no-such-package", ["x"], tmp_path / "new", "do this")
    assert not (tmp_path / "new").exists()


def test_promtool_says_what_it_dislikes(tmp_path: Path) -> None:
    """A text that is no OpenMetrics is refused in promtool's words."""
    text = tmp_path / "broken.om"
    text.write_text("this is not a metric\n")
    with pytest.raises(ConfigError, match=r"promtool refuses .*broken\.om"):
        create_blocks(text, tmp_path / "data")


def need(path: Path) -> None:
    """Skip where a server that only tests need is not there."""
    if not path.exists():
        pytest.skip(f"no {path}: python -m ingestor.local fetch --backends gets it, or says why not")


def produce(servers: str, topic: str, value: bytes) -> None:
    producer = Producer({"bootstrap.servers": servers, "acks": "all"})
    producer.produce(topic, value)
    assert producer.flush(PATIENCE_S) == 0


def consume(servers: str, topic: str, count: int) -> list[bytes]:
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "reader", "auto.offset.reset": "earliest"})
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        messages = consumer.consume(count, timeout=PATIENCE_S)
        return [value for message in messages if (value := message.value()) is not None]
    finally:
        consumer.close()


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie (its new parent may be slow to reap it)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_for(condition) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
