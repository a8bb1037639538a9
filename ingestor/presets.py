"""What must be done to a kind of cluster's series so that they mean what people think."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

Labels = dict[str, str]

_DUPLICATED_BY_CADVISOR = re.compile(r"container_(cpu|memory|fs)_")
_EXPORTED = ("namespace", "pod", "container")


@dataclass(frozen=True, slots=True)
class Preset:
    """Extra matchers for a metric's query, and a rewrite of each series' labels."""

    name: str
    description: str
    matchers: Callable[[str], tuple[str, ...]]
    rewrite: Callable[[Labels], Labels]


def _kubernetes_matchers(metric: str) -> tuple[str, ...]:
    if _DUPLICATED_BY_CADVISOR.match(metric):
        return ('container!=""', 'container!="POD"')
    return ()


def _kubernetes_rewrite(labels: Labels) -> Labels:
    """Undo what a scrape without honor_labels does to kube-state-metrics' own labels."""
    if not labels.get("exported_pod"):
        return labels
    exported = {name: labels[f"exported_{name}"] for name in _EXPORTED if f"exported_{name}" in labels}
    kept = {name: value for name, value in labels.items() if name not in {f"exported_{e}" for e in exported}}
    return kept | exported


PRESETS: dict[str, Preset] = {
    "kubernetes": Preset(
        "kubernetes",
        'container_cpu_*, container_memory_* and container_fs_* without a container (container="" or "POD": '
        "cAdvisor's sums over the pod, and its pause container) are left out; exported_namespace, exported_pod and "
        "exported_container (kube-state-metrics) become namespace, pod and container",
        _kubernetes_matchers,
        _kubernetes_rewrite,
    ),
    "none": Preset("none", "series are taken as they are", lambda _: (), lambda labels: labels),
}
