"""The workload that a pod belongs to, read off the pod's name."""

from __future__ import annotations

import re
from typing import NamedTuple

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
