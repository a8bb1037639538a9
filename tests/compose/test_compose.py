"""The compose file as it is, on a real Docker daemon: its own images, on stand-ins for those that it takes from others.

Only windows are shorter than a user's, ports and data are elsewhere. The tests go on from one another.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import chunks
import files
import oracle
import pandas as pd
import pytest
import records
import requests
import stand_ins

from ingestor.core.errors import ConfigError
from ingestor.core.time_range import floor_ms
from ingestor.core.topics import Topics
from ingestor.kafka import Cluster
from ingestor.local.cache import cache_folder
from ingestor.local.docker import DockerDaemon
from ingestor.local.processes import free_port
from ingestor.workloads import service_of

# The first test builds the images: minutes, more of them where other tests run beside it.
pytestmark = pytest.mark.timeout(1200)

PROJECT = "podstream-proof"
USER = 1000
CHUNK_SIZE, CHUNK_MS = "10s", 10_000
OURS = {
    "podstream/ingestor:0.1.0": "docker/ingestor.Dockerfile",
    "podstream/stream-app:0.1.0": "docker/stream_app.Dockerfile",
    "podstream/ml-service:0.1.0": "docker/ml_service/Dockerfile",
}
PROGRAMS = ("poller", "worker-0", "worker-1", "files", "ml-service")
WITH_HEALTH = {"kafka", "prometheus", "workload", "poller", "worker-0", "worker-1"}
ALWAYS_RUNNING = (("shop", "checkout"), ("shop", "cart"), ("backend", "orders-db"))
WAIT_S = 120.0

# Windows of a minute would make this a test of ten.
OVERRIDE = {
    "version": "2.4",
    "services": {w: {"environment": {"STREAM_APP_WORKER_CHUNK_SIZE": CHUNK_SIZE}} for w in ("worker-0", "worker-1")},
}


class Containers:
    """A copy of what the compose file needs, and the containers that it makes."""

    def __init__(self, daemon: DockerDaemon, folder: Path) -> None:
        self._daemon = daemon
        self.folder = folder
        self.data = folder / "data"
        self.data.mkdir(parents=True)
        os.chown(self.data, USER, USER)
        shutil.copy(stand_ins.ROOT / "docker-compose.yml", folder)
        shutil.copytree(stand_ins.ROOT / "docker", folder / "docker")
        (folder / "override.yml").write_text(json.dumps(OVERRIDE))
        self.ports = {name: free_port() for name in ("KAFKA", "PROMETHEUS", "DASHBOARD")}
        lines = [f"PODSTREAM_{name}_PORT={port}" for name, port in self.ports.items()]
        (folder / ".env").write_text("\n".join([*lines, f"PODSTREAM_DATA={self.data}", ""]))
        self.cluster = Cluster(f"127.0.0.1:{self.ports['KAFKA']}")

    def compose(self, *arguments: str) -> CompletedProcess[str]:
        own = ("--project-name", PROJECT, "--file", "docker-compose.yml", "--file", "override.yml")
        done = self._daemon.compose(*own, *arguments, cwd=self.folder)
        assert done.returncode == 0, f"{arguments}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
        return done

    def docker(self, *arguments: str) -> str:
        done = self._daemon.docker(*arguments)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout

    def id_of(self, service: str) -> str:
        [one] = self.compose("ps", "--quiet", service).stdout.split()
        return one

    def facts(self) -> dict[str, dict[str, Any]]:
        """Return what Docker knows of each container, by service."""
        ids = self.compose("ps", "--quiet").stdout.split()
        facts = json.loads(self.docker("inspect", *ids))
        return {one["Config"]["Labels"]["com.docker.compose.service"]: one for one in facts}

    def logs(self) -> str:
        return self.compose("logs", "--no-color", "--tail", "15").stdout

    def get(self, server: str, path: str, **parameters: str) -> Any:
        with requests.Session() as session:
            session.trust_env = False
            answer = session.get(f"http://127.0.0.1:{self.ports[server]}/{path}", params=parameters, timeout=20)
        answer.raise_for_status()
        return answer.json() if "json" in answer.headers["Content-Type"] else answer.text

    def query(self, query: str, time_ms: int) -> list[dict[str, Any]]:
        return self.get("PROMETHEUS", "api/v1/query", query=query, time=f"{time_ms / 1000:.3f}")["data"]["result"]

    def samples(self, until_ms: int) -> pd.DataFrame:
        """Return what Prometheus holds of pods before a time."""
        rows = []
        for name in self.get("PROMETHEUS", "api/v1/label/__name__/values", **{"match[]": '{pod!=""}'})["data"]:
            for series in self.query(f'{name}{{pod!=""}}[1h]', until_ms - 1):
                labels = series["metric"]
                who = (labels["namespace"], labels["pod"], labels.pop("__name__"), chunks.series_name(labels))
                rows += [(*who, round(stamp * 1000), float(value)) for stamp, value in series["values"]]
        return chunks.frame([row for row in rows if row[4] < until_ms])


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """Build what the compose file names, and take it up."""
    daemon = DockerDaemon(cache_folder() / "docker-images")
    try:
        daemon.start()
    except ConfigError as error:
        pytest.skip(f"THE COMPOSE FILE IS NOT TESTED: {error}")
    folder = tmp_path_factory.mktemp("compose")
    with _stopped(daemon):
        stand_ins.make(daemon, folder)
        for image, dockerfile in OURS.items():
            stand_ins.build(daemon, stand_ins.ROOT, image, "--file", dockerfile)
        daemon.docker("image", "prune", "--force")
        made = Containers(daemon, folder / "project")
        made.compose("down", "--volumes", "--remove-orphans")
        try:
            made.compose("up", "--detach")
            yield made
        finally:
            sys.stderr.write(made.logs())
            made.compose("down", "--volumes", "--timeout", "10")


@contextmanager
def _stopped(daemon: DockerDaemon) -> Iterator[None]:
    try:
        yield
    finally:
        daemon.stop()


def test_what_is_optional_stays_away(containers: Containers) -> None:
    """docker-compose 1.29 takes the whole file; without a profile only the pipeline comes up."""
    every = set(containers.compose("config", "--services").stdout.split())
    assert every - containers.facts().keys() == {"grafana", "kafka-ui"}


def test_all_containers_are_well_and_may_do_little(containers: Containers) -> None:
    """Whoever can tell how they are is healthy; nobody is root, writes to its image or takes memory without end."""

    def health() -> dict[str, str]:
        states = {name: one["State"] for name, one in containers.facts().items()}
        return {name: state["Health"]["Status"] for name, state in states.items() if "Health" in state}

    wait_until(lambda: health() == dict.fromkeys(WITH_HEALTH, "healthy"), health)
    for name, facts in containers.facts().items():
        host, state = facts["HostConfig"], facts["State"]
        assert state["Running"], name
        assert (host["ReadonlyRootfs"], host["CapDrop"]) == (True, ["ALL"]), name
        assert host["Memory"] > 0, name
        status = Path(f"/proc/{state['Pid']}/status").read_text()
        [uids] = [line.split()[1:] for line in status.splitlines() if line.startswith("Uid:")]
        assert "0" not in uids, f"{name} runs as root"


def test_files_are_what_prometheus_holds(containers: Containers) -> None:
    """Every window of every pod, in Kafka and in the files: none missing, doubled, wrong or extra."""
    assert_nothing_lost_or_twice(containers)


def test_the_dashboard_is_there_and_true(containers: Containers) -> None:
    """The published port shows the pods that the files have, and both workers with all partitions."""
    assert "<!doctype html>" in containers.get("DASHBOARD", "").lower()

    def missing() -> set[tuple[str, str]]:
        services = containers.get("DASHBOARD", "api/services")["services"]
        shown = {(service["namespace"], pod["pod"]) for service in services for pod in service["pods"]}
        return {(namespace, pod) for namespace, pod, _ in files.read(containers.data, pods=True)} - shown

    # It begins to read when somebody looks.
    wait_until(lambda: not missing(), missing)
    pipeline = containers.get("DASHBOARD", "api/pipeline")
    assert sorted(len(worker["partitions"]) for worker in pipeline["group"]["workers"]) == [4, 4]


@pytest.mark.parametrize("board", ["pipeline", "pods"])
def test_every_query_of_the_grafana_dashboards_finds_something(containers: Containers, board: str) -> None:
    """No panel is empty: each asks for series that this Prometheus has."""
    text = (containers.folder / "docker/grafana/dashboards" / f"{board}.json").read_text()
    for name, value in {"$namespace": "shop", "$pod": ".+", "$metric": "http_requests_total"}.items():
        text = text.replace(name, value)
    queries = {t["expr"] for panel in json.loads(text)["panels"] for t in panel.get("targets", ())}
    assert queries

    def empty() -> set[str]:
        return {query for query in queries if not containers.query(query, time.time_ns() // 1_000_000)}

    wait_until(lambda: not empty(), empty)


def test_kills_down_and_up_lose_and_double_nothing(containers: Containers) -> None:
    """After SIGKILL to a worker and the files, `down`, and `up` again, Kafka and files are what Prometheus holds."""
    for service in ("worker-0", "files"):
        containers.docker("kill", containers.id_of(service))
    containers.compose("down", "--timeout", "10")
    assert not containers.compose("ps", "--quiet").stdout.split()
    containers.compose("up", "--detach")
    assert_nothing_lost_or_twice(containers)


@pytest.mark.parametrize("service", PROGRAMS)
def test_sigterm_ends_a_container_before_docker_loses_patience(containers: Containers, service: str) -> None:
    """Five seconds are enough to end in order: Docker's SIGKILL would show as 137."""
    one = containers.id_of(service)
    containers.docker("stop", "--time", "5", one)
    [facts] = json.loads(containers.docker("inspect", one))
    assert facts["State"]["ExitCode"] in (0, 143)


def assert_nothing_lost_or_twice(containers: Containers) -> None:
    """Compare records and files with Prometheus' own samples, for all windows up to now."""
    until_ms = floor_ms(time.time_ns() // 1_000_000, CHUNK_MS) + CHUNK_MS

    def behind() -> list[tuple[str, str]]:
        newest: dict[tuple[str, str], int] = {}
        for namespace, pod, start_ms in files.read(containers.data, pods=True):
            service = (namespace, service_of(pod))
            newest[service] = max(newest.get(service, 0), start_ms)
        return [service for service in ALWAYS_RUNNING if newest.get(service, 0) < until_ms]

    wait_until(lambda: not behind(), lambda: (behind(), containers.logs()))
    samples = containers.samples(until_ms)
    expected = oracle.windows(samples, CHUNK_SIZE, "mean", "pod")
    # Files of pods that come and go may be a commit behind those that were waited for.
    wait_until(lambda: len(_before(files.read(containers.data, pods=True), until_ms)) >= len(expected), "files")
    files.assert_equal_to_oracle(
        _before(files.read(containers.data, pods=True), until_ms), samples, CHUNK_SIZE, "mean", "pod"
    )
    found = [r for r in records.read(containers.cluster, Topics().pods) if r.window_start_ms < until_ms]
    compared = records.compare(found, samples, CHUNK_SIZE, "mean", "pod")
    assert compared.is_right, compared


def _before(cells: dict[tuple[str, str, int], Any], until_ms: int) -> dict[tuple[str, str, int], Any]:
    return {key: metrics for key, metrics in cells.items() if key[2] < until_ms}


def wait_until(is_so: Callable[[], bool], found: Any) -> None:
    """Wait for a condition; *found* says what there is instead."""
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline, found() if callable(found) else found
        time.sleep(0.5)
