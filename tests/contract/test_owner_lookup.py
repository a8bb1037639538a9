"""Owners are looked up in a real Prometheus that holds kube-state-metrics' series, however it scraped them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ingestor.core.errors import SourceUnavailable
from ingestor.core.time_range import TimeRange
from ingestor.local.processes import free_port
from ingestor.local.prometheus import Binaries, LocalPrometheus, create_blocks
from ingestor.owners import ALL_ABOVE, BATCH, Owners
from ingestor.sources.http_query import HttpQuerySource

START_MS = 1_700_006_400_000
HOUR_MS = 3_600_000
HISTORY = TimeRange(START_MS, START_MS + HOUR_MS)

NONE = "<none>"
ODD = ["a.b", "c+d", "e(f", "g|h", "i[j]", "k{2}", "l^m$", "n*", "o?p", "back\\slash", 'quote"d', "ü", "sp ace"]
"""What none may be called in Kubernetes, and nothing may break on."""

KSM_POD = ("monitoring", "kube-state-metrics-6c9f8b6d5-x2x4z")
SCRAPED = {
    # Exported labels are what Prometheus makes of labels that the target has too.
    "honor": ({"job": "kube-state-metrics", "instance": "10.1.2.3:8080"}, ""),
    "exported": (
        {"job": "kube-state-metrics", "namespace": KSM_POD[0], "pod": KSM_POD[1], "service": "kube-state-metrics"},
        "exported_",
    ),
}

Pod = tuple[str, str]
Series = list[tuple[str, dict[str, str]]]


def cluster() -> tuple[Series, dict[Pod, str]]:
    """Return the owner metrics of some thousand pods as kube-state-metrics gives them, and what must be found."""
    generator = random.Random(3)
    series: Series = []
    services: dict[Pod, str] = {}

    def suffix(length: int) -> str:
        return "".join(generator.choices("bcdfghjklmnpqrstvwxz2456789", k=length))

    def owner(metric: str, label: str, namespace: str, name: str, kind: str, by: str) -> None:
        owned = {"owner_kind": kind, "owner_name": by, "owner_is_controller": "true" if kind != NONE else NONE}
        series.append((metric, {"namespace": namespace, label: name} | owned))

    def pod(namespace: str, name: str, kind: str, by: str, service: str) -> None:
        owner("kube_pod_owner", "pod", namespace, name, kind, by)
        services[namespace, name] = service

    for namespace in ("shop", "data"):
        for number in range(400):
            # The same ReplicaSet's name in both namespaces, owned by different kinds.
            name = f"app-{number}-x2x4z"
            replica_set = f"{name}-7d9f8b6c5"
            by = f"{namespace}-{number}"
            owner("kube_replicaset_owner", "replicaset", namespace, replica_set, "Deployment", by)
            pod(namespace, f"{replica_set}-{suffix(5)}", "ReplicaSet", replica_set, by)
            pod(namespace, f"set-{number}-0", "StatefulSet", f"set-{number}", f"set-{number}")
            job = f"run-{number}-28391040"
            owner("kube_job_owner", "job_name", namespace, job, "CronJob", f"cron-{number}")
            pod(namespace, f"{job}-{suffix(5)}", "Job", job, f"cron-{number}")
            pod(namespace, f"lone-{number}-0", NONE, NONE, f"lone-{number}-0")
        pod(namespace, "kube-apiserver-cp-1.example.com", "Node", "cp-1.example.com", "kube-apiserver")
        pod(namespace, "fresh-7d9f8b6c5-x2x4z", "ReplicaSet", "fresh-7d9f8b6c5", "fresh")
        owner(
            "kube_replicationcontroller_owner", "replicationcontroller", namespace, "router-1", "DeploymentConfig", "r"
        )
        pod(namespace, "router-1-b2zdv", "ReplicationController", "router-1", "r")
        for number, name in enumerate(ODD):
            owner("kube_replicaset_owner", "replicaset", namespace, name, "Rollout", f"odd-{number}")
            pod(namespace, f"{name}-0", "ReplicaSet", name, f"odd-{number}")
        # What those names would find if they were regular expressions.
        pod(namespace, "axb-0", "StatefulSet", "decoy", "decoy")
        pod(namespace, "kk-0", "StatefulSet", "decoy", "decoy")
    pod(*KSM_POD, "ReplicaSet", "kube-state-metrics-6c9f8b6d5", "kube-state-metrics")
    return series, services


SERIES, SERVICES = cluster()
PODS = sorted(SERVICES)


def write(path: Path, shape: str) -> None:
    target, prefix = SCRAPED[shape]
    with path.open("w", encoding="utf-8") as file:
        for metric in sorted({metric for metric, _ in SERIES}):
            file.write(f"# TYPE {metric} gauge\n")
            for found, labels in SERIES:
                if found != metric:
                    continue
                renamed = {f"{prefix}{name}" if name in ("namespace", "pod") else name: v for name, v in labels.items()}
                shown = ",".join(f'{name}="{escaped(value)}"' for name, value in (target | renamed).items())
                file.write(f"{metric}{{{shown}}} 1 {START_MS // 1000 + 60}\n")
        file.write("# EOF\n")


def escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"')


@pytest.fixture(scope="module", params=list(SCRAPED))
def clustered(
    request: pytest.FixtureRequest, prometheus_binaries: Binaries, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalPrometheus]:
    """A Prometheus with the cluster's owner metrics, scraped in either way."""
    folder = tmp_path_factory.mktemp(request.param)
    write(folder / "owners.om", request.param)
    server = LocalPrometheus(folder)
    create_blocks(folder / "owners.om", server.data_dir)
    with server:
        yield server


class Counting(HttpQuerySource):
    """A real source that keeps what was asked of it."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.asked: list[list[str]] = []
        self.answered: list[int] = []

    def label_sets(self, selectors: Sequence[str], time_range: TimeRange) -> list[dict[str, str]]:
        found = super().label_sets(selectors, time_range)
        self.asked.append(list(selectors))
        self.answered.append(len(found))
        return found


@pytest.mark.parametrize("count", [1, 7, BATCH, BATCH + 1, 1_000])
def test_services_are_found(clustered: LocalPrometheus, count: int) -> None:
    """Of just the pods that are asked for, in batches."""
    source = Counting(clustered.url)
    asked = random.Random(count).sample(PODS, count)
    assert Owners(source).look_up(asked, HISTORY) == {pod: SERVICES[pod] for pod in asked}
    pods = [selectors for selectors in source.asked if "kube_pod_owner" in selectors[0]]
    assert len(pods) == -(-len({name for _, name in asked}) // BATCH)
    # Some pods' names are in both namespaces; more must not come.
    assert max(source.answered) <= 2 * BATCH


def test_all_pods_are_asked_for_at_once(clustered: LocalPrometheus) -> None:
    """Where they are thousands; the services are the same."""
    source = Counting(clustered.url)
    made_up = {("shop", f"unknown-{number}") for number in range(ALL_ABOVE)}
    assert Owners(source).look_up(made_up | set(PODS), HISTORY) == SERVICES
    assert source.asked[0] == ['{__name__="kube_pod_owner"}']
    assert len(source.asked[0]) == 1
    assert sum("kube_pod_owner" in selectors[0] for selectors in source.asked) == 1


@pytest.mark.parametrize("name", ODD)
def test_odd_names_are_found_and_find_nothing_else(clustered: LocalPrometheus, name: str) -> None:
    """A dot is a dot."""
    source = Counting(clustered.url)
    pod = ("data", f"{name}-0")
    assert Owners(source).look_up([pod], HISTORY) == {pod: f"odd-{ODD.index(name)}"}
    assert source.answered == [2, 2]


def test_kube_state_metrics_own_pod_finds_itself_only(clustered: LocalPrometheus) -> None:
    """Without honor_labels its name is on every row."""
    source = Counting(clustered.url)
    assert Owners(source).look_up([KSM_POD], HISTORY) == {KSM_POD: "kube-state-metrics"}
    assert source.answered == [1, 0]


def test_what_is_not_told_is_left_out(clustered: LocalPrometheus) -> None:
    """Other pods, other namespaces, other times; also where a first batch finds nothing but the metric is there."""
    source = Counting(clustered.url)
    owners = Owners(source)
    known = ("shop", "set-7-0")
    assert owners.look_up([known, ("elsewhere", "set-7-0"), ("shop", "set-7-1")], HISTORY) == {known: "set-7"}
    before = TimeRange(START_MS - 2 * HOUR_MS, START_MS - HOUR_MS)
    assert owners.look_up([known], before) == {}
    unknown = [("shop", f"a-{number:04d}") for number in range(BATCH)]
    assert owners.look_up([*unknown, known], HISTORY) == {known: "set-7"}
    source.asked.clear()
    assert owners.look_up([], HISTORY) == {}
    assert source.asked == []


def test_a_backend_without_owner_metrics_is_asked_once(prometheus: LocalPrometheus) -> None:
    """However many pods there are."""
    for count in (1, BATCH, BATCH + 1, ALL_ABOVE, ALL_ABOVE + 1):
        source = Counting(prometheus.url)
        assert Owners(source).look_up([("shop", f"pod-{number}") for number in range(count)], HISTORY) == {}
        assert len(source.asked) == 1


def test_errors_are_the_sources() -> None:
    """A backend that is away is no reason to guess."""
    with pytest.raises(SourceUnavailable, match="connection refused"):
        Owners(HttpQuerySource(f"http://127.0.0.1:{free_port()}")).look_up(PODS[:1], HISTORY)
