"""What must be done to a kind of cluster's series so that they mean what people think. Pure.

The labels are those of cAdvisor in the kubelet (``lib/metrics/prometheus.go`` of google/cadvisor, and the
kubelet's own label function), of kube-state-metrics (its ``docs/metrics``) and of what Prometheus makes of
them (kube-prometheus, the community's Helm charts).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from ingestor.re2 import compile_re2
from ingestor.selector import Labels, Matcher, Selector


@dataclass(frozen=True, slots=True)
class Preset:
    """Extra matchers for a metric's query, a rewrite of each series' labels, and other names of the same labels."""

    name: str
    description: str
    matchers: Callable[[str], tuple[str, ...]]
    rewrite: Callable[[Labels], Labels]
    older_names: Labels
    """How labels were called once, by their name of today; ``pod`` is one of them, or there is none."""

    def readings(self, selector: Selector) -> tuple[Reading, ...]:
        """Return the ways to ask for what *selector* means: every series is in one of them, none in two.

        The first asks with the labels' names of today. The second asks for the series without a pod that have the
        older names; a cluster of today has none. A selector that lets series without any pod through, which rules
        may give one, needs a third for them.
        """
        today = Reading(selector, {}, self.matchers)
        if not self.older_names:
            return (today,)
        older_pod = self.older_names["pod"]
        no_pod, no_older = Matcher("pod", "=", ""), Matcher(older_pod, "=", "")
        renamed = Selector(_renamed(selector.matchers, self.older_names))
        older = Reading(_narrowed(renamed, Matcher(older_pod, "!=", ""), no_pod), self.older_names, self.matchers)
        if any(m.name == "pod" and not _admits_nothing(m) for m in selector.matchers):
            return (today, older)
        return (
            Reading(_narrowed(selector, Matcher("pod", "!=", "")), {}, self.matchers),
            older,
            Reading(_narrowed(selector, no_pod, no_older), {}, self.matchers),
        )


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to ask: its selector lists metrics and counts series, `for_metric` fetches samples."""

    selector: Selector
    older_names: Labels
    """What the labels of the preset's matchers are called in these series, where it is not their own name."""
    matchers: Callable[[str], tuple[str, ...]]

    def for_metric(self, metric: str) -> Selector:
        """Return the selector of one metric's series, without the metric's name."""
        added = Selector(()).with_matchers(*self.matchers(metric)).matchers
        return _narrowed(self.selector, *_renamed(added, self.older_names))


def _renamed(matchers: tuple[Matcher, ...], names: Labels) -> tuple[Matcher, ...]:
    return tuple(Matcher(names.get(m.name, m.name), m.op, m.value) for m in matchers)


def _narrowed(selector: Selector, *matchers: Matcher) -> Selector:
    return Selector(selector.matchers + tuple(m for m in matchers if m not in selector.matchers))


def _admits_nothing(matcher: Matcher) -> bool:
    """Whether a series without the label passes; where we cannot read its expression, it may."""
    if matcher.op in ("=", "!="):
        return (matcher.value == "") == (matcher.op == "=")
    try:
        return (compile_re2(matcher.value).fullmatch("") is not None) == (matcher.op == "=~")
    except ValueError:
        return True


# cAdvisor gives these for each container, for the pause container and for the pod as a whole. Not
# container_network_*, which only the pause container has, under whatever name. Not container_blkio_*,
# of which kube-prometheus keeps the pod's sum alone.
_DUPLICATED_BY_CADVISOR = re.compile(
    r"container_(cpu|file_descriptors|fs|hugetlb|last_seen|memory|oom_events|perf|pressure|processes|referenced"
    r"|sockets|spec|start_time|tasks_state|threads|ulimits)(_.*)?"
)

# Kinds of objects that kube-state-metrics describes, other than pods. Their series have no pod of their
# own; with a pod label they have got that of kube-state-metrics itself.
_OBJECTS = re.compile(
    "kube_(certificatesigningrequest|clusterrole|clusterrolebinding|configmap|cronjob|daemonset|deployment|endpoint"
    "|endpointslice|horizontalpodautoscaler|hpa|ingress|ingressclass|job|lease|limitrange|mutatingadmissionpolicy"
    "|mutatingadmissionpolicybinding|mutatingwebhookconfiguration|namespace|networkpolicy|node|persistentvolume"
    "|persistentvolumeclaim|poddisruptionbudget|replicaset|replicationcontroller|resourcequota|role|rolebinding"
    "|secret|service|serviceaccount|statefulset|storageclass|validatingadmissionpolicy"
    "|validatingadmissionpolicybinding|validatingwebhookconfiguration|volumeattachment)_.*"
)

# Metrics that name the pod they describe, so that a pod label which nothing replaced is that pod.
_OF_PODS = re.compile(r"kube_pod_|container_")

_EXPORTED = {f"exported_{name}": name for name in ("namespace", "pod", "container")}

_BEFORE_1_16 = {"pod": "pod_name", "container": "container_name"}


def _kubernetes_matchers(metric: str) -> tuple[str, ...]:
    if _DUPLICATED_BY_CADVISOR.fullmatch(metric):
        return ('container!=""', 'container!="POD"')
    if _OBJECTS.fullmatch(metric):
        return ('exported_pod!=""',)
    return ()


def _kubernetes_rewrite(labels: Labels) -> Labels:
    if not labels.get("pod") and labels.get("pod_name"):
        labels = {name: value for name, value in labels.items() if name not in _BEFORE_1_16.values()} | {
            name: labels[older] for name, older in _BEFORE_1_16.items() if labels.get(older) and not labels.get(name)
        }
    return _without_exported(labels)


def _without_exported(labels: Labels) -> Labels:
    """Undo what a scrape without honor_labels does to labels that the target has too.

    ``exported_namespace`` without ``exported_pod`` is the pod's only in metrics about pods: elsewhere it is of
    another object, which the target itself, a pod with that ``pod`` label, tells about.
    """
    if not labels.get("exported_pod") and not _OF_PODS.match(labels.get("__name__", "")):
        return labels
    exported = {name: labels[found] for found, name in _EXPORTED.items() if labels.get(found)}
    if not exported:
        return labels
    kept = {name: value for name, value in labels.items() if name.removeprefix("exported_") not in exported}
    return kept | exported


PRESETS: dict[str, Preset] = {
    "kubernetes": Preset(
        "kubernetes",
        'of cAdvisor\'s container_* series those with container="" or "POD" are left out (its sums over a pod, and '
        "the pause container), except container_network_* and container_blkio_*; kube_* series that describe no pod "
        "(kube_deployment_* and the like) are left out; exported_namespace, exported_pod and exported_container "
        "become namespace, pod and container; so do pod_name and container_name (Kubernetes before 1.16) where "
        "there is no pod",
        _kubernetes_matchers,
        _kubernetes_rewrite,
        _BEFORE_1_16,
    ),
    "none": Preset("none", "series are taken as they are", lambda _: (), lambda labels: labels, {}),
}
