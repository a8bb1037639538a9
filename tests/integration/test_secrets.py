"""The whole job with every kind of secret: none is in anything that it prints, serves, stores or writes to Kafka."""

from __future__ import annotations

import base64
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import exporter
import pytest
import requests
from certificates import Authority
from commands import PATIENCE_S, end, ingestor, stream_app, wait_for_line
from confluent_kafka import Consumer, TopicPartition
from test_guarded_backends import BCRYPT, PASSWORD, GuardedPrometheus

from ingestor.core.topics import Topics
from ingestor.kafka import Cluster, client_config, connect, partition_counts, read_to_end
from ingestor.local.broker_security import ADMIN, BrokerSecurity
from ingestor.local.kafka import LocalKafka
from ingestor.local.processes import Child, free_port
from ingestor.options import cluster_arguments

HEADER_KEY, TOKEN = "h3ader-k3y-of-nobody", "t0ken-of-nobody"
WRONG = "wr0ng-pw-of-nobody"
TOPICS = Topics("secrets")

CONSUMER = """
import sys
from stream_app.consumer import PodConsumer

servers, ca, user, password = sys.argv[1:]
with PodConsumer(servers, topic_prefix="secrets", group="secrets.models", start="earliest", until="now", lookback="1m",
                 kafka_ca_file=ca, kafka_sasl="SCRAM-SHA-256", kafka_user=user, kafka_password_file=password) as pods:
    print(pods, vars(pods) if hasattr(pods, "__dict__") else "")
    print(sum(1 for _ in pods), "windows")
"""


@pytest.fixture
def security(tmp_path: Path) -> BrokerSecurity:
    authority = Authority(tmp_path / "authority")
    (tmp_path / "kafka-password").write_text(secrets.token_hex(16) + "\n")
    (tmp_path / "wrong-password").write_text(WRONG + "\n")
    return BrokerSecurity(authority.ca_file, authority.issue("broker"), {ADMIN: tmp_path / "kafka-password"})


@pytest.fixture
def broker(security: BrokerSecurity, tmp_path: Path) -> Iterator[LocalKafka]:
    """TLS, SCRAM and rules."""
    with LocalKafka(tmp_path / "kafka", security=security) as started:
        yield started


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[GuardedPrometheus]:
    """A password, and pods that are scraped each second."""
    port = free_port()
    config = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [
            {"job_name": "pods", "honor_labels": True, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
        ],
    }
    with (
        Child([sys.executable, exporter.__file__, str(port), "0", "60"], log_path=tmp_path / "exporter.log"),
        GuardedPrometheus(tmp_path / "prometheus", {"basic_auth_users": {"me": BCRYPT}}, config=config) as server,
    ):
        # Long enough for the poller, which stays a second behind.
        query, deadline = {"query": "app_requests_total offset 3s"}, time.monotonic() + PATIENCE_S
        while not requests.get(f"{server.url}/api/v1/query", query, auth=("me", PASSWORD), timeout=60).json()["data"][
            "result"
        ]:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield server


@contextmanager
def seen_titles() -> Iterator[set[str]]:
    """Collect the command lines of all processes of this machine."""
    titles: set[str] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):
                    titles.add(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield titles
    finally:
        done.set()
        watcher.join()


def test_no_secret_is_seen(
    broker: LocalKafka, security: BrokerSecurity, guarded: GuardedPrometheus, tmp_path: Path
) -> None:
    """Poller, history and live, worker with its pages, files and a consumer, let in by passwords, and once refused."""
    password = tmp_path / "kafka-password"
    hidden = [PASSWORD, HEADER_KEY, TOKEN, WRONG, password.read_text().strip()]
    hidden += [base64.b64encode(f"me:{one}".encode()).decode() for one in (PASSWORD, WRONG)]
    cluster = Cluster(broker.bootstrap_servers, security.client(ADMIN, "SCRAM-SHA-256"))
    where = ["--topic-prefix", TOPICS.prefix, "--log-level", "debug", *cluster_arguments(cluster)]
    window = ["--chunk-size", "2s", "--method", "mean"]
    storage, environment = (
        tmp_path / "data",
        os.environ
        | {
            name: value
            for command in ("BACKFILL", "RUN")
            for name, value in (
                (f"INGESTOR_{command}_BASIC_AUTH", f"me:{PASSWORD}"),
                (f"INGESTOR_{command}_HEADER", f"X-Key: {HEADER_KEY}"),
            )
        },
    )
    ports = {"run": free_port(), "worker": free_port()}
    read = ["--url", guarded.url, "--settle", "1s"]
    live = [*read, "--poll-interval", "1s", "--web-listen-address", f"127.0.0.1:{ports['run']}"]
    commands = {
        "run": ingestor("run", *live, *where),
        "worker": stream_app("worker", "--web-listen-address", f"127.0.0.1:{ports['worker']}", *window, *where),
        "files": stream_app("files", "--storage", str(storage), *window, *where),
    }
    printed: dict[str, str] = {}
    with seen_titles() as titles, ExitStack() as stack:
        printed["backfill"] = output(ingestor("backfill", *read, "--start", "10s", "--end", "now", *where), environment)
        children = {
            name: stack.enter_context(Child(command, log_path=tmp_path / f"{name}.log", env=environment))
            for name, command in commands.items()
        }
        wait_for_line(children["worker"], "worker is ready")
        wait_for_line(children["run"], "range published")
        wait_for_files(storage, children)
        consume = [sys.executable, "-c", CONSUMER, broker.bootstrap_servers, str(security.ca_file), ADMIN]
        printed["consumer"] = output([*consume, str(password)], environment)
        served = {f"{name}{path}": text for name, port in ports.items() for path, text in pages(port)}
        printed["status"] = output(ingestor("status", "--json", *where), environment)
        for name, child in children.items():
            end(child)
            printed[name] = child.log_path.read_text()
        no_entry = [*where, "--kafka-password-file", str(tmp_path / "wrong-password")]
        for name, command in {
            "backfill": ingestor("backfill", *read, "--start", "10s", "--end", "now", *no_entry),
            "worker": stream_app("worker", "--web-listen-address", "none", *window, *no_entry),
            "files": stream_app("files", "--storage", str(tmp_path / "none"), *no_entry),
            "status": ingestor("status", *no_entry),
            "consumer": [*consume, str(tmp_path / "wrong-password")],
        }.items():
            printed[f"{name}, refused by Kafka"] = output(command, environment, refused=True)
        for name, value in (("BASIC_AUTH", f"me:{WRONG}"), ("BEARER_TOKEN", TOKEN)):
            given = os.environ | {f"INGESTOR_BACKFILL_{name}": value}
            command = ingestor("backfill", *read, "--start", "10s", "--end", "now", *where)
            printed[f"backfill, refused by Prometheus, {name}"] = output(command, given, refused=True)
    stored = {str(path): path.read_bytes().decode(errors="replace") for path in storage.rglob("*") if path.is_file()}
    said = dict(messages(cluster))
    everything = {**printed, **served, **stored, **said, "titles": "\n".join(titles)}
    assert any("stream_app worker" in title for title in titles)
    assert all("_total" in served[f"{name}/metrics"] for name in ports)
    assert "partitions" in served["worker/api/pipeline"]
    assert any(path.endswith(".csv") for path in stored)
    assert {TOPICS.positions, TOPICS.range_chunks, TOPICS.pods} <= said.keys()
    assert all(text for name, text in printed.items() if "refused" in name)
    shown = [(name, secret) for name, text in everything.items() for secret in hidden if secret in text]
    assert not shown, shown


def output(command: list[str], environment: dict[str, str], *, refused: bool = False) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False, env=environment)
    assert (done.returncode != 0) is refused, done.stdout + done.stderr
    return done.stdout + done.stderr


def wait_for_files(storage: Path, children: dict[str, Child]) -> None:
    """Wait for a file of live windows."""
    deadline = time.monotonic() + PATIENCE_S
    while not any(len(path.read_text().splitlines()) > 3 for path in storage.glob("*/*.csv")):
        assert all(child.poll() is None for child in children.values()), [c.log_tail() for c in children.values()]
        assert time.monotonic() < deadline, [c.log_tail() for c in children.values()]
        time.sleep(0.2)


def pages(port: int) -> Iterator[tuple[str, str]]:
    """Yield all that a web port serves, by its path: of a poller some of it is not there."""
    paths = ["/metrics", "/-/ready", "/-/healthy", "/", "/pod", "/pipeline", "/anomalies", "/api/services"]
    with requests.Session() as session:
        session.trust_env = False
        for path in [*paths, "/api/pipeline", "/api/anomalies", "/api/pods/tools/lonely", "/api/nowhere"]:
            answer = session.get(f"http://127.0.0.1:{port}{path}", timeout=60)
            yield path, f"{answer.headers}\n{answer.text}"


def messages(cluster: Cluster) -> Iterator[tuple[str, str]]:
    """Yield all that is in Kafka: each topic's keys, headers and values, and what groups have committed."""
    admin = connect(cluster)
    counts = {name: count for name, count in partition_counts(admin).items() if name.startswith(TOPICS.prefix)}
    for topic, count in counts.items():
        found = [m for partition in range(count) for m in read_to_end(cluster, topic, partition)]
        yield topic, "\n".join(str((m.key(), m.headers(), m.value())) for m in found)
    for listed in admin.list_consumer_groups().result().valid:
        consumer = Consumer({**client_config(cluster), "group.id": listed.group_id})
        places = [TopicPartition(topic, partition) for topic, count in counts.items() for partition in range(count)]
        yield f"group {listed.group_id}", "\n".join(str(place.metadata) for place in consumer.committed(places, 30))
        consumer.close()
