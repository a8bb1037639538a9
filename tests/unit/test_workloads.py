"""The service of a pod, from its name."""

import re

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from ingestor.workloads import service_of

ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
CUT_AT = 58

DEPLOYMENTS = [
    ("web-7d9f8b6c5-x2x4z", "web"),
    ("checkout-7c9f8b6d5-x2x4z", "checkout"),
    ("api-7d9f8b6c5-8vx7t", "api"),
    ("coredns-5d78c9869d-kz4lm", "coredns"),
    ("coredns-66bc5c9577-zkqtv", "coredns"),
    ("metrics-server-6d94bc8694-xwk2p", "metrics-server"),
    ("ingress-nginx-controller-7799c6795f-qbdnl", "ingress-nginx-controller"),
    ("cert-manager-webhook-5bb6bc5c7d-hjkqz", "cert-manager-webhook"),
    ("kubernetes-dashboard-57bbdc5f89-nmzbr", "kubernetes-dashboard"),
    ("redis-2-7d9f8b6c5-x2x4z", "redis-2"),
    ("web-8456789456-bcdfg", "web"),
    ("svc-00001-deployment-66bc5c5b5d-9x8vq", "svc-00001-deployment"),
    # Hashes of 8, 7 and 6 characters: the decimal uint32 was a small one.
    ("web-f7d9b6c5-x2x4z", "web"),
    ("web-5d4f8c7-x2x4z", "web"),
    ("web-5d4f8c-x2x4z", "web"),
    # The workload's own name looks like a hash or a suffix.
    ("7d9f8b6c5-x2x4z", "7d9f8b6c5"),
    ("x2x4z-7d9f8b6c5-x2x4z", "x2x4z"),
    ("web-7d9f8b6c5-7d9f8b6c5-x2x4z", "web-7d9f8b6c5"),
    ("kube-scheduler-extender-7d9f8b6c5-x2x4z", "kube-scheduler-extender"),
    ("kube-apiserver-operator-67d9f9f8cb-2h7mz", "kube-apiserver-operator"),
    # A word is a suffix where a hash stands before it.
    ("web-7d9f8b6c5-https", "web"),
    # Kubernetes before 1.8 wrote the hash as a number.
    ("nginx-deployment-2431957303-gvk4x", "nginx-deployment"),
    ("kube-dns-806549836-sxlhb", "kube-dns"),
    # Argo Rollouts makes ReplicaSets in the same way.
    ("rollouts-demo-687d76d795-w5bqh", "rollouts-demo"),
]
BARE_SUFFIXES = [
    ("node-exporter-tz6kd", "node-exporter"),
    ("kube-proxy-x2x4z", "kube-proxy"),
    ("kube-proxy-windows-x2x4z", "kube-proxy-windows"),
    ("calico-node-bcdfg", "calico-node"),
    ("fluent-bit-24567", "fluent-bit"),
    ("kube-prometheus-stack-prometheus-node-exporter-9zvkr", "kube-prometheus-stack-prometheus-node-exporter"),
    ("migrate-4v9kq", "migrate"),
    ("pi-xk2pr", "pi"),
    ("frontend-b2zdv", "frontend"),
]
CRON_JOBS = [
    ("backup-28391040-k8v2d", "backup"),
    ("etcd-backup-29384645-zzzzz", "etcd-backup"),
    ("hello-1609459200-8vx7t", "hello"),
    ("report-2024-28391040-k8v2d", "report-2024"),
    ("backup-28391040-3-k8v2d", "backup"),
    ("backup-28391040-https", "backup"),
]
INDEXED_JOBS = [
    ("train-3-k8v2d", "train"),
    ("train-0-k8v2d", "train"),
    ("resnet-worker-127-w4zmk", "resnet-worker"),
    # OpenShift's DeploymentConfig numbers its ReplicationControllers.
    ("router-1-b2zdv", "router"),
    ("batch-007-k8v2d", "batch-007"),
]
STATEFUL_SETS = [
    ("postgres-0", "postgres"),
    ("kafka-broker-2", "kafka-broker"),
    ("web-12", "web"),
    ("v1-0", "v1"),
    ("elasticsearch-master-0", "elasticsearch-master"),
    ("prometheus-kube-prometheus-stack-prometheus-0", "prometheus-kube-prometheus-stack-prometheus"),
    ("redis-node-9999", "redis-node"),
    ("app-mssql-0", "app-mssql"),
    ("web-7d9f8b6c5-0", "web-7d9f8b6c5"),
    ("etcd-0", "etcd"),
    ("kube-apiserver-0", "kube-apiserver"),
    ("spark-pi-exec-1", "spark-pi-exec"),
]
STATIC_PODS = [
    ("kube-apiserver-minikube", "kube-apiserver"),
    ("kube-apiserver-ip-10-0-1-23.ec2.internal", "kube-apiserver"),
    ("kube-controller-manager-master-0", "kube-controller-manager"),
    ("kube-scheduler-kind-control-plane", "kube-scheduler"),
    ("kube-apiserver-prod-control-plane-x2x4z", "kube-apiserver"),
    ("kube-proxy-gke-prod-default-pool-1a2b3c4d-w7rk", "kube-proxy"),
    ("kube-proxy-ip-10-0-1-23", "kube-proxy"),
    ("etcd-kind-control-plane", "etcd-kind-control-plane"),
]
WHOLE = [
    "web",
    "nginx",
    "web-cache",
    "nginx-proxy",
    "redis-xyzzy",
    "redis-master",
    "kube-apiserver",
    "kube-proxy",
    "web-7d9f8b6c5",
    "web-https",
    "my-httpd",
    "legacy-mssql",
    "spark-pi-1a2b3c-driver",
    "node-07",
    "node-00",
    "job-28391040",
    "hello-world-5x2kd-1234567890",
    "web-x2x4",
    "web-x2x4z2",
    "web-x0x4z",
    "web-X2X4Z",
    "web--x2x4z",
    "webx2x4z",
    "0",
    "-0",
    "--0",
    "x2x4z",
    "-x2x4z",
    "-7d9f8b6c5-x2x4z-",
    "web-7d9f8b6c5-x2x4z\n",
    "postgres-٣",
]
LONG = "a-release-with-a-rather-long-name-for-its-telemetry-pipeline"
CUT = [
    # 47 characters: of the hash, all ten are left, but no dash.
    (f"{LONG[:47]}-7d9f8b6c5bx2x4z", LONG[:47]),
    (f"{LONG[:50]}-7d9f8b6x2x4z", LONG[:50]),
    (f"{LONG[:56]}-7x2x4z", LONG[:56]),
    (f"{LONG[:57]}-x2x4z", LONG[:57]),
    (f"{LONG[:58]}x2x4z", LONG[:58]),
    (f"{LONG[:50]}-2839104k8v2d", LONG[:50]),
]
KNOWN = [
    *DEPLOYMENTS,
    *BARE_SUFFIXES,
    *CRON_JOBS,
    *INDEXED_JOBS,
    *STATEFUL_SETS,
    *STATIC_PODS,
    *((name, name) for name in WHOLE),
    *CUT,
]


@pytest.mark.parametrize(("pod", "service"), KNOWN)
def test_known_names(pod, service):
    """Names as clusters have them give the workload that made them."""
    assert service_of(pod) == service


def test_the_names_that_were_cut_have_the_length_that_kubernetes_gives():
    """The table's own examples of cut names are 63 characters long."""
    assert {len(pod) for pod, _ in CUT} == {63}


def safe_text(low: int, high: int) -> st.SearchStrategy[str]:
    return st.text(ALPHABET, min_size=low, max_size=high)


# Segments that are hashes, numbers and words on purpose: names made of what the rules look for.
SEGMENTS = st.one_of(
    st.from_regex(r"[a-z0-9]{1,10}", fullmatch=True),
    safe_text(5, 10),
    st.integers(0, 10**10).map(str),
    st.sampled_from(["kube-apiserver", "kube-proxy", "https", "web", "v2"]),
)
NAMES = st.lists(SEGMENTS, min_size=1, max_size=4).map("-".join).filter(lambda name: len(name) <= 46)
SUFFIXES = safe_text(5, 5)
REAL_HASHES = st.integers(10**5, 2**32 - 1).map(lambda n: "".join(ALPHABET[ord(digit) % 27] for digit in str(n)))
HASHES = safe_text(8, 10) | REAL_HASHES
UNIX_TIMES = st.one_of(st.integers(25_000_000, 40_000_000), st.integers(1_400_000_000, 2_400_000_000)).map(str)

WORD = re.compile("dhcpd|html5|httpd|https|mssql|nfsv4|pgsql")
STATIC = re.compile("kube-(apiserver|controller-manager|scheduler|proxy)-")
ENDS_LIKE_A_HASH = re.compile(f".+-([{ALPHABET}]{{8,10}}|[4-9bcdf]{{6,7}})")
ENDS_LIKE_AN_INDEX = re.compile(r".+-(0|[1-9]\d{0,9})")
ENDS_LIKE_A_TIME = re.compile(r".+-[1-9]\d{7,9}")


@given(NAMES, HASHES, SUFFIXES)
@settings(max_examples=80, deadline=None)
def test_any_deployment_is_found(name, pod_hash, suffix):
    """No name of a Deployment, however much it looks like a hash itself, misleads."""
    assert service_of(f"{name}-{pod_hash}-{suffix}") == name


@given(NAMES, st.integers(0, 2**32 - 1), SUFFIXES)
@settings(max_examples=50, deadline=None)
def test_any_deployment_with_a_decimal_hash_is_found(name, number, suffix):
    """Numbers of any length are hashes too, but on static pods' names and a CronJob's times."""
    assume(not STATIC.match(name) and not ENDS_LIKE_A_TIME.fullmatch(name) and not WORD.fullmatch(suffix))
    assert service_of(f"{name}-{number}-{suffix}") == name


@given(NAMES, UNIX_TIMES, SUFFIXES)
@settings(max_examples=80, deadline=None)
def test_any_cron_job_is_found(name, time, suffix):
    """No name of a CronJob misleads, not even one that ends in a time."""
    assert service_of(f"{name}-{time}-{suffix}") == name


@given(NAMES, SUFFIXES)
@settings(max_examples=80, deadline=None)
def test_any_daemon_set_or_job_is_found(name, suffix):
    """A suffix alone is taken off, unless the name ends in what another kind would have put there."""
    assume(not ENDS_LIKE_A_HASH.fullmatch(name) and not ENDS_LIKE_AN_INDEX.fullmatch(name))
    assume(not re.match("kube-(apiserver|controller-manager|scheduler)-", name) and not WORD.fullmatch(suffix))
    assert service_of(f"{name}-{suffix}") == name


@given(NAMES, st.integers(0, 99_999), SUFFIXES)
@settings(max_examples=50, deadline=None)
def test_any_indexed_job_is_found(name, index, suffix):
    """Index and suffix are taken off, unless the name ends in a CronJob's time."""
    assume(not ENDS_LIKE_A_TIME.fullmatch(name) and not STATIC.match(name) and not WORD.fullmatch(suffix))
    assert service_of(f"{name}-{index}-{suffix}") == name


@given(NAMES, st.integers(0, 9_999))
@settings(max_examples=50, deadline=None)
def test_any_stateful_set_is_found(name, ordinal):
    """The ordinal is taken off, whatever stands before it."""
    assume(not STATIC.match(name))
    assert service_of(f"{name}-{ordinal}") == name


@given(st.from_regex(r"[a-z][a-z0-9-]{38,55}[a-z0-9]", fullmatch=True), REAL_HASHES, SUFFIXES)
@settings(max_examples=80, deadline=None)
def test_a_name_that_kubernetes_cut_is_found(name, pod_hash, suffix):
    """As long as the workload's name was not cut itself, nothing of it is lost."""
    if len(name) == CUT_AT - 1:  # The hash is gone: the name looks like a DaemonSet's.
        assume(not ENDS_LIKE_A_HASH.fullmatch(name) and not ENDS_LIKE_AN_INDEX.fullmatch(name))
        assume(not WORD.fullmatch(suffix))
    assert service_of(f"{name}-{pod_hash}-"[:CUT_AT] + suffix) == name


@given(st.one_of(st.text(), NAMES, st.text(ALPHABET + "013-.kube", max_size=70)))
@example("kube-proxy-")
@settings(max_examples=100, deadline=None)
def test_the_service_is_a_beginning_of_the_pods_name(pod):
    """Whatever is given, the service is a prefix of it, and not empty unless it is."""
    service = service_of(pod)
    assert pod.startswith(service)
    assert bool(service) == bool(pod)
