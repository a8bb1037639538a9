"""The workload that a pod belongs to: from kube-state-metrics' owner metrics, else read off the pod's name. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

Name = tuple[str, str]
"""Namespace and name of a pod, a ReplicaSet, a Job."""


@dataclass(frozen=True, slots=True)
class OwnerMetric:
    """One of kube-state-metrics' metrics that tell who owns an object."""

    metric: str
    label: str
    """Which label is the object's name."""


POD_OWNER = OwnerMetric("kube_pod_owner", "pod")

OWNED_KINDS = {
    "ReplicaSet": OwnerMetric("kube_replicaset_owner", "replicaset"),
    "Job": OwnerMetric("kube_job_owner", "job_name"),
    "ReplicationController": OwnerMetric("kube_replicationcontroller_owner", "replicationcontroller"),
}
"""Owners of pods that mostly have an owner themselves: a Deployment or a Rollout, a CronJob, a DeploymentConfig."""

# The second since kube-state-metrics 2.8, where a label without text is no label in Prometheus.
_NOBODY = ("<none>", "")


@dataclass(frozen=True, slots=True)
class Owner:
    """Who owns an object; both texts are empty where nobody does."""

    kind: str
    name: str


def owners(rows: Iterable[Mapping[str, str]], label: str) -> dict[Name, Owner]:
    """Return the owner of each object that an owner metric has rows of.

    Args:
        rows: the metric's label sets. Where they were scraped without ``honor_labels``, their ``namespace``
            and ``pod`` are those of kube-state-metrics itself and the object's are ``exported_…``.
        label: which label is the object's name (`OwnerMetric`).

    Of several rows of one object (several owners, several kube-state-metrics, a name that was used again)
    the controller's counts, then one that names an owner, then the first in order of kind and name.
    Source: kube-state-metrics docs/metrics/workload (pod, replicaset, job, replicationcontroller).
    """
    best: dict[Name, tuple[bool, bool, str, str]] = {}
    for row in rows:
        name = _exported(row, "namespace"), _exported(row, label)
        kind, owner = row.get("owner_kind", ""), row.get("owner_name", "")
        nobody = kind in _NOBODY or owner in _NOBODY
        rank = (True, True, "", "") if nobody else (row.get("owner_is_controller") != "true", False, kind, owner)
        if name[1] and (name not in best or rank < best[name]):
            best[name] = rank
    return {name: Owner(kind, owner) for name, (_, _, kind, owner) in best.items()}


def workload_of(
    pod: Name, pod_owners: Mapping[Name, Owner], their_owners: Mapping[str, Mapping[Name, Owner]]
) -> str | None:
    """Return the workload that *pod* belongs to, as the owner metrics tell it.

    Args:
        pod: namespace and name.
        pod_owners: the owners of pods.
        their_owners: of each of the `OWNED_KINDS`, the owners of its objects.

    Returns:
        None: nothing is known of the pod, so that its name has to do (`service_of`).

    ==============================================  =====================================================
    owner                                           service
    ==============================================  =====================================================
    StatefulSet, DaemonSet, any other controller    its name
    ReplicaSet, Job, ReplicationController          its owner's name (Deployment, Rollout, CronJob, …);
                                                    its own if it has none, or if a pod made it
    one of these, of which no row tells an owner    `service_of` the pod
    Node: a static pod                              the pod's name without the node's
    nobody                                          the pod's name, whole
    ==============================================  =====================================================

    A pod without an owner is its own service also where its name has a pattern: ``db-0`` is known
    to be no StatefulSet's, so that ``db`` would be a workload that is not there.
    """
    owner = pod_owners.get(pod)
    if owner is None:
        return None
    namespace, name = pod
    if not owner.name:
        return name
    if owner.kind == "Node":
        return name.removesuffix(f"-{owner.name}") if name != f"-{owner.name}" else name
    if owner.kind not in OWNED_KINDS:
        return owner.name
    above = their_owners.get(owner.kind, {}).get((namespace, owner.name))
    if above is None:
        return service_of(name)
    # A Job that a pod made is a workload of its own, as kubernetes-mixin's rules have it: that pod's name may change.
    return owner.name if above.kind in ("", "Pod") else above.name


def _exported(row: Mapping[str, str], label: str) -> str:
    return row.get(f"exported_{label}") or row.get(label, "")


_SAFE = "[bcdfghjklmnpqrstvwxz2456789]"
_DECIMAL_SPELT_SAFE = "[4-9bcdf]"

_NAME = r"(.*[^-])"
_SUFFIX = _SAFE + "{5}"
_HASH = f"(?:{_SAFE}{{8,10}}|{_DECIMAL_SPELT_SAFE}{{6,7}})"
_UNIX_TIME = "[1-9][0-9]{7,9}"
_INDEX = "(?:0|[1-9][0-9]{0,9})"
_ORDINAL = "(?:0|[1-9][0-9]{0,3})"
# Words that the alphabet can spell. A random suffix is one of them once in two million pods.
_NO_WORD = r"(?!(?:dhcpd|html5|httpd|https|mssql|nfsv4|pgsql)\Z)"

# Kubernetes cuts what stands before the suffix to 58 characters, so a name that was cut has 63.
_WAS_CUT = r"(?=.{63}\Z)"

# The first that fits wins; group 1 is the workload.
_RULES = tuple(
    re.compile(rule, re.DOTALL)
    for rule in (
        # Deployment.
        f"{_NAME}-{_HASH}-{_SUFFIX}",
        # CronJob, plain or with an indexed Job.
        f"{_NAME}-{_UNIX_TIME}(?:-{_INDEX})?-{_SUFFIX}",
        # Static pods of the control plane. Cluster API names its nodes with a suffix too, hence this early.
        r"(kube-(?:apiserver|controller-manager|scheduler))-.+",
        # Indexed Job; OpenShift's DeploymentConfig; Deployment with a decimal hash.
        f"{_NAME}-{_INDEX}-{_NO_WORD}{_SUFFIX}",
        # DaemonSet, Job, ReplicaSet, ReplicationController.
        f"{_NAME}-{_NO_WORD}{_SUFFIX}",
        # Static on GKE and kops, where it is no DaemonSet, which has just been seen to.
        r"(kube-proxy)-.+",
        # StatefulSet.
        f"{_NAME}-{_ORDINAL}",
        # A name that was cut within the hash or the time, then one that was cut within the workload's own name.
        f"{_WAS_CUT}{_NAME}-(?:{_DECIMAL_SPELT_SAFE}{{1,10}}|[0-9]{{1,10}}){_SUFFIX}",
        f"{_WAS_CUT}{_NAME}{_SUFFIX}",
    )
)


class Pod(NamedTuple):
    """What names a pod."""

    namespace: str
    name: str


def service_of(pod: str) -> str:
    """Return the workload that *pod* belongs to, as far as its name tells.

    Args:
        pod: the pod's name.

    Returns:
        A prefix of *pod*; empty only if *pod* is. A name without a pattern is its own service.

    ======================  ====================================  ==================
    made by                 pod                                   service
    ======================  ====================================  ==================
    Deployment              ``web-7d9f8b6c5-x2x4z``               ``web``
    Deployment before 1.8   ``web-2431957303-x2x4z``              ``web``
    DaemonSet, Job          ``node-exporter-tz6kd``               ``node-exporter``
    CronJob                 ``backup-28391040-k8v2d``             ``backup``
    indexed Job             ``train-3-k8v2d``                     ``train``
    StatefulSet             ``kafka-broker-2``                    ``kafka-broker``
    kubelet                 ``kube-apiserver-cp-1.example.com``   ``kube-apiserver``
    ======================  ====================================  ==================

    Where the rules come from. ``rand.String`` and ``rand.SafeEncodeString`` of
    k8s.io/apimachinery write with 27 characters: no vowel and no y, so that no bad
    words come about, and no 0, 1, 3, which look like vowels. The names generator of
    k8s.io/apiserver adds five of them. A ReplicaSet's hash is a decimal uint32 in
    that alphabet, so real ones use ``456789bcdf`` only: hashes of 6 and 7 characters
    (one in 430) are taken in this narrow spelling, 8 to 10 in all 27 characters,
    shorter ones (one in 43,000) not at all. A CronJob's Job ends in its scheduled time
    in Unix minutes (seconds before 1.21), an indexed Job's pod in index and suffix, a
    StatefulSet's in its ordinal, a decimal number without leading zeros.

    What a name cannot tell, and what is then assumed:

    - ``etl-2-x2x4z`` may be the DaemonSet ``etl-2``: an indexed Job is assumed.
      ``db-2`` may be a lone pod: a StatefulSet is assumed, up to ordinal 9999.
    - ``web-cache`` and ``redis-xyzzy`` hold letters outside the alphabet and stay
      whole. Five consonants are a suffix (every fifth one has no digit) unless they
      are one of the few words such as ``https`` that are in use in names.
    - A static pod's name ends in its node's. Only the three servers of the control plane and
      kube-proxy are known; ``etcd-<node>`` is not, as ``etcd-backup`` is a name too.
    - What stands before a suffix is cut to 58 characters, and the dash may go with
      it. If hash or time was cut, the workload's name is still whole and is
      returned; if the workload's name was, its first 58 characters are. Names
      that are shorter and yet have a hash glued on are not Kubernetes' and stay whole.

    Owner metrics or a label, where there are any, know better and are asked first.
    """
    for rule in _RULES:
        if match := rule.fullmatch(pod):
            return match[1]
    return pod
