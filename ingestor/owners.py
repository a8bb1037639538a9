"""Which workload pods belong to, asked of kube-state-metrics' owner metrics in the backend."""

from __future__ import annotations

from collections.abc import Collection

from ingestor.core.time_range import TimeRange
from ingestor.selector import Matcher, Selector, any_of
from ingestor.sources.base import Source
from ingestor.workloads import OWNED_KINDS, POD_OWNER, Name, Owner, OwnerMetric, owners, workload_of

BATCH = 300
"""So many objects are asked for at once: some ten kilobytes of names, which backends look up one by one."""

ALL_ABOVE = 3_000
"""For more objects than that, one request for all that there are is less work than ten for these."""


class Owners:
    """Looks up the workloads of pods; remembers nothing.

    Args:
        source: who is asked.
    """

    def __init__(self, source: Source) -> None:
        self._source = source

    def look_up(self, pods: Collection[Name], time_range: TimeRange) -> dict[Name, str]:
        """Return the service of each of *pods* (namespace, name) that an owner metric tells of in *time_range*.

        Pods that it does not tell of are left out: their names have to do (`workloads.service_of`).

        Raises:
            SourceError: as the source says.
        """
        pod_owners = self._owners(POD_OWNER, set(pods), time_range)
        their_owners = {
            kind: self._owners(
                metric,
                {(namespace, owner.name) for (namespace, _), owner in pod_owners.items() if owner.kind == kind},
                time_range,
            )
            for kind, metric in OWNED_KINDS.items()
        }
        services = {pod: workload_of(pod, pod_owners, their_owners) for pod in pod_owners}
        return {pod: service for pod, service in services.items() if service is not None}

    def _owners(self, metric: OwnerMetric, wanted: set[Name], time_range: TimeRange) -> dict[Name, Owner]:
        names = sorted({name for _, name in wanted})
        if len(names) > ALL_ABOVE:
            rows = self._source.label_sets([str(_selector(metric))], time_range)
        else:
            rows = self._rows_of(metric, names, time_range)
        return {name: owner for name, owner in owners(rows, metric.label).items() if name in wanted}

    def _rows_of(self, metric: OwnerMetric, names: list[str], time_range: TimeRange) -> list[dict[str, str]]:
        rows: list[dict[str, str]] = []
        for at in range(0, len(names), BATCH):
            rows += self._source.label_sets(_selectors(metric, names[at : at + BATCH]), time_range)
            is_first_of_several = at == 0 and len(names) > BATCH
            if is_first_of_several and not rows and not self._source.metric_names(_selector(metric), time_range):
                # Nobody runs kube-state-metrics; else these pods could just be in a namespace that it leaves out.
                break
        return rows


def _selectors(metric: OwnerMetric, names: list[str]) -> list[str]:
    """Return what finds *names* however kube-state-metrics was scraped.

    Without ``honor_labels``, ``pod`` is its own on every row: where that one is asked for, all rows would come.
    """
    wanted, plain, exported = any_of(names), metric.label, f"exported_{metric.label}"
    return [
        str(_selector(metric, Matcher(plain, "=~", wanted), Matcher(exported, "=", ""))),
        str(_selector(metric, Matcher(exported, "=~", wanted))),
    ]


def _selector(metric: OwnerMetric, *matchers: Matcher) -> Selector:
    return Selector((Matcher("__name__", "=", metric.metric), *matchers))
