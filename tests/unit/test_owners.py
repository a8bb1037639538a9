"""The service of a pod, from the rows of kube-state-metrics' owner metrics."""

from __future__ import annotations

import itertools
import random

import pytest
from test_workloads import KNOWN

from ingestor.workloads import OWNED_KINDS, POD_OWNER, Owner, owners, workload_of

NONE = ("<none>", "<none>", "<none>")
KSM = {"job": "kube-state-metrics", "instance": "10.1.2.3:8080", "namespace": "monitoring", "endpoint": "http"}
KSM |= {"pod": "kube-state-metrics-6c9f8b6d5-x2x4z", "container": "kube-state-metrics"}

Rows = dict[str, list[dict[str, str]]]


def row(label: str, name: str, kind: str, owner: str, controller: str = "true", namespace: str = "shop", **more: str):
    labels = {"namespace": namespace, label: name, "owner_kind": kind, "owner_name": owner}
    # Prometheus knows no label without text.
    return {k: v for k, v in (labels | {"owner_is_controller": controller} | more).items() if v}


def service(pod: str, rows: Rows, namespace: str = "shop") -> str | None:
    above = {kind: owners(rows.get(kind, []), metric.label) for kind, metric in OWNED_KINDS.items()}
    return workload_of((namespace, pod), owners(rows.get("Pod", []), POD_OWNER.label), above)


def chain(pod: str, kind: str, owner: str, above: tuple[str, str, str] | None = None) -> Rows:
    """Return the rows of a pod, and of its owner where *above* says what is told of it."""
    rows = {"Pod": [row("pod", pod, kind, owner)]}
    if above is not None:
        rows[kind] = [row(OWNED_KINDS[kind].label, owner, *above)]
    return rows


OWNED = [
    # pod, its owner, the owner's own, service
    ("web-7d9f8b6c5-x2x4z", ("ReplicaSet", "web-7d9f8b6c5"), ("Deployment", "web", "true"), "web"),
    (
        "rollouts-demo-687d76d795-w5bqh",
        ("ReplicaSet", "rollouts-demo-687d76d795"),
        ("Rollout", "rollouts-demo", "true"),
        "rollouts-demo",
    ),
    ("backup-28391040-k8v2d", ("Job", "backup-28391040"), ("CronJob", "backup", "true"), "backup"),
    ("migrate-4v9kq", ("Job", "migrate"), NONE, "migrate"),
    ("migrate-4v9kq", ("Job", "migrate"), ("", "", ""), "migrate"),
    ("workers-0-0-x2x4z", ("Job", "workers-0"), ("JobSet", "workers", "true"), "workers"),
    ("agent-9-x2x4z", ("Job", "agent-9"), ("Pod", "jenkins-7d9f8b6c5-x2x4z", "true"), "agent-9"),
    ("router-1-b2zdv", ("ReplicationController", "router-1"), ("DeploymentConfig", "router", "true"), "router"),
    ("frontend-b2zdv", ("ReplicationController", "frontend"), NONE, "frontend"),
    ("postgres-0", ("StatefulSet", "postgres"), None, "postgres"),
    ("node-exporter-tz6kd", ("DaemonSet", "node-exporter"), None, "node-exporter"),
    ("kube-apiserver-cp-1.example.com", ("Node", "cp-1.example.com"), None, "kube-apiserver"),
    ("etcd-kind-control-plane", ("Node", "kind-control-plane"), None, "etcd"),
    (
        "kube-proxy-gke-kc-demo-stage-pool-2-70aa2479-4ric",
        ("Node", "gke-kc-demo-stage-pool-2-70aa2479-4ric"),
        None,
        "kube-proxy",
    ),
    ("spark-pi-exec-1", ("Pod", "spark-pi-driver"), None, "spark-pi-driver"),
    ("build-42-main", ("TaskRun", "build-42"), None, "build-42"),
    # What names alone would get wrong.
    ("etl-2-x2x4z", ("DaemonSet", "etl-2"), None, "etl-2"),
    ("web-7d9f8b6c5-0", ("StatefulSet", "web-7d9f8b6c5"), None, "web-7d9f8b6c5"),
    ("redis-https", ("DaemonSet", "redis"), None, "redis"),
    ("db-bcdfg-7d9f8b6c5-x2x4z", ("ReplicaSet", "db-bcdfg-7d9f8b6c5"), ("Deployment", "db-bcdfg", "true"), "db-bcdfg"),
    ("web-x2x4z", ("ReplicaSet", "web"), NONE, "web"),
    ("a.b-0", ("StatefulSet", "a.b"), None, "a.b"),
    # The names were cut, the owner's was not.
    (f"{'w' * 58}x2x4z", ("ReplicaSet", f"{'w' * 63}-7d9f8b6c5"), ("Deployment", "w" * 63, "true"), "w" * 63),
    # Lone pods, of older and of newer kube-state-metrics, with and without a pattern in the name.
    ("db-0", NONE[:2], None, "db-0"),
    ("web-7d9f8b6c5-x2x4z", NONE[:2], None, "web-7d9f8b6c5-x2x4z"),
    ("debug", ("", ""), None, "debug"),
    # The owner is known, but nothing of its own: the pod's name has to do.
    ("web-7d9f8b6c5-x2x4z", ("ReplicaSet", "web-7d9f8b6c5"), None, "web"),
    ("backup-28391040-k8v2d", ("Job", "backup-28391040"), None, "backup"),
    ("router-1-b2zdv", ("ReplicationController", "router-1"), None, "router"),
    # Nodes and static pods as they cannot be: the name stays whole, and is never empty.
    ("etcd-elsewhere", ("Node", "cp-1"), None, "etcd-elsewhere"),
    ("-cp-1", ("Node", "cp-1"), None, "-cp-1"),
]


@pytest.mark.parametrize(("pod", "owner", "above", "expected"), OWNED)
def test_owners_tell_the_service(
    pod: str, owner: tuple[str, str], above: tuple[str, str, str] | None, expected: str
) -> None:
    """However kube-state-metrics was scraped."""
    rows = chain(pod, *owner, above)
    assert service(pod, rows) == expected
    exported = {
        kind: [
            {(f"exported_{k}" if k in KSM else k): v for k, v in labels.items()} | KSM | {"service": "ksm"}
            for labels in found
        ]
        for kind, found in rows.items()
    }
    assert all("exported_namespace" in labels for found in exported.values() for labels in found)
    assert service(pod, exported) == expected


def test_nothing_known_is_none() -> None:
    """No row at all, another pod's, or one of the same name in another namespace."""
    rows = chain("web-0", "StatefulSet", "web")
    assert service("web-0", {}) is None
    assert service("web-1", rows) is None
    assert service("web-0", rows, namespace="data") is None
    assert service("web-0", {"Pod": [{"namespace": "shop", "owner_kind": "StatefulSet", "owner_name": "web"}]}) is None


def test_owners_of_owners_are_of_the_same_namespace_and_kind() -> None:
    """A Job and a ReplicaSet may have one name, and so may those of two namespaces."""
    pods = [row("pod", "a-x2x4z", "ReplicaSet", "same"), row("pod", "b-x2x4z", "Job", "same")]
    pods.append(row("pod", "a-x2x4z", "ReplicaSet", "same", namespace="data"))
    rows = {
        "Pod": pods,
        "ReplicaSet": [
            row("replicaset", "same", "Deployment", "one"),
            row("replicaset", "same", "Deployment", "two", namespace="data"),
        ],
        "Job": [row("job_name", "same", "CronJob", "three")],
    }
    assert [service("a-x2x4z", rows), service("b-x2x4z", rows)] == ["one", "three"]
    assert service("a-x2x4z", rows, namespace="data") == "two"


def test_the_controller_counts_in_any_order_of_rows() -> None:
    """Then whoever is named, then the first in order; the same row of two kube-state-metrics is one."""
    controller = row("pod", "x", "StatefulSet", "z")
    others = [row("pod", "x", "Backup", "b", "false"), row("pod", "x", "Backup", "a", "false"), row("pod", "x", *NONE)]
    for rows in itertools.permutations([controller, controller | {"instance": "other"}, *others]):
        assert owners(rows, "pod") == {("shop", "x"): Owner("StatefulSet", "z")}
    for rows in itertools.permutations(others):
        assert owners(rows, "pod") == {("shop", "x"): Owner("Backup", "a")}
    for rows in itertools.permutations([row("pod", "x", "DaemonSet", "z"), controller]):
        assert owners(rows, "pod") == {("shop", "x"): Owner("DaemonSet", "z")}


@pytest.mark.parametrize(("pod", "expected"), KNOWN)
def test_known_names_are_what_is_left_where_owners_are_unknown(pod: str, expected: str) -> None:
    """A ReplicaSet of which nothing is told is no worse than no owner metric at all."""
    kind = random.Random(pod).choice(list(OWNED_KINDS))
    assert service(pod, chain(pod, kind, "whatever")) == expected
