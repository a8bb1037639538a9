"""PURE: the answers of the JSON API, out of what the board knows.

Times are Unix milliseconds, as in records. A value that is missing is null; what a pod reported as NaN or
infinite is ``"NaN"``, ``"+Inf"`` or ``"-Inf"``. Lists have bounds, and what is left out is counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from ingestor.core.topics import NO_NAMESPACE
from stream_app.consumer.history import Int64Array
from stream_app.dashboard.board import Board, Verdict
from stream_app.dashboard.store import (
    MOST_WINDOWS,
    Key,
    Pod,
    columns,
    means,
    metrics_between,
    partial_windows,
    spelled,
    spelled_value,
)

MOST_METRICS = 6
MOST_SERVICES = 50
MOST_PODS = 200
MOST_CHARTS = 60
MOST_NAMES = 1_000
_LONGEST_WORD = 300
_MOST_MEANS = 1_000
"""Pods that a mean over time is made of at most: with more it would take too long."""

SORTS = ("name", "value", "anomalies")

_SHOWN_FIRST = ("cpu", "memory_working_set", "memory", "requests")
"""What people look for first, in metrics' names."""
_SHOWN_AT_FIRST = 3

Query = Mapping[str, Sequence[str]]
"""A request's parameters."""


class BadQuery(Exception):
    """A parameter's value cannot be; the message says which can."""


class NotFound(Exception):
    """Nothing is known of what was asked for."""


@dataclass(frozen=True, slots=True)
class ServicesQuery:
    """What ``/api/services`` is asked for."""

    words: tuple[str, ...]
    """Each must be in ``namespace/service/pod``, in any case."""
    namespace: str | None
    service: str | None
    metrics: tuple[str, ...]
    """Empty: a few that most pods have."""
    sort: str
    page: int
    per_page: int
    pods: int
    """So many of each service."""
    pod_page: int
    windows: int

    @classmethod
    def read(cls, query: Query) -> ServicesQuery:
        """Read the parameters; those that are not known are ignored.

        Raises:
            BadQuery: one has a value that cannot be.
        """
        return cls(
            words=tuple(_one(query, "q").lower().split()),
            namespace=_name_of(query, "namespace"),
            service=_name_of(query, "service"),
            metrics=_metrics(query),
            sort=_choice(query, "sort", SORTS),
            page=_number(query, "page", 1, 1_000_000),
            per_page=_number(query, "per_page", 10, MOST_SERVICES),
            pods=_number(query, "pods", 5, MOST_PODS),
            pod_page=_number(query, "pod_page", 1, 1_000_000),
            windows=_number(query, "windows", 60, MOST_WINDOWS),
        )


def services(board: Board, query: ServicesQuery) -> dict[str, Any]:
    """Return a page of services, and of each some pods, with the newest values and those before.

    ``values`` are those of the pod's newest window, ``history`` those of the windows in ``windows``;
    a service's are the means of its pods' finite values.
    """
    names = board.pods.metric_names()
    metrics = query.metrics or _first_metrics(names)
    found = [chosen for key, pods in board.pods.services() if (chosen := _matching(key, pods, query))]
    shown = _Shown(board, metrics, board.pods.axis(query.windows), query.sort)
    found.sort(key=shown.service_order)
    first = (query.page - 1) * query.per_page
    return {
        **_common(board),
        "windows": shown.axis.tolist(),
        "metrics": list(metrics),
        "known_metrics": [{"name": name, "pods": pods} for name, pods in sorted(names.items())[:MOST_NAMES]],
        "namespaces": sorted({namespace for (namespace, _), _ in board.pods.services()})[:MOST_NAMES],
        "services_total": sum(1 for _ in board.pods.services()),
        "pods_total": len(board.pods),
        "services_found": len(found),
        "pods_found": sum(len(service.pods) for service in found),
        "page": query.page,
        "pages": max(1, math.ceil(len(found) / query.per_page)),
        "services": [shown.service(service, query) for service in found[first : first + query.per_page]],
    }


def pod(board: Board, namespace: str, name: str, query: Query) -> dict[str, Any]:
    """Return one pod's windows: ``metric`` (repeatable) chooses metrics, ``q`` those with a text in their names.

    Raises:
        NotFound: it has no window of late.
        BadQuery: a parameter has a value that cannot be.
    """
    found = board.pods.pod(namespace, name)
    if found is None:
        raise NotFound(f"nothing is known of {namespace or '_'}/{name}: it has no window of late")
    axis = board.pods.axis(_number(query, "windows", MOST_WINDOWS, MOST_WINDOWS))
    text = _one(query, "q").lower()
    chosen = _metrics(query, MOST_CHARTS)
    names = [metric for metric in chosen or metrics_between(found, axis) if text in metric.lower()]
    values = columns(found, names[:MOST_CHARTS], axis)
    last = found.last
    said = [verdict for (at, of, _, _), verdict in board.anomalies.items() if (at, of) == (found.namespace, found.name)]
    return {
        **_common(board),
        "namespace": found.namespace,
        "pod": found.name,
        "service": found.service,
        "window_start": last.window_start_ms,
        "window_end": last.window_end_ms,
        "samples": last.samples,
        "partial": last.partial,
        "incomplete": list(last.incomplete[:MOST_NAMES]),
        "revision": last.revision,
        "job": last.job,
        "is_silent": _is_silent(board, found),
        "windows": axis.tolist(),
        "partial_windows": partial_windows(found, axis),
        "metrics_total": len(names),
        "metrics": {
            metric: {"value": _value(last.metrics, metric), "history": spelled(values[at])}
            for at, metric in enumerate(names[:MOST_CHARTS])
        },
        "verdict": _verdict(board.verdicts.get((found.namespace, found.name))),
        "anomalies": [_verdict(verdict) for verdict in said],
    }


def anomalies(board: Board, query: Query) -> dict[str, Any]:
    """Return the newest anomalies, the latest window first; ``namespace``, ``service``, ``q`` and ``limit`` choose."""
    words = tuple(_one(query, "q").lower().split())
    namespace, service = _one(query, "namespace"), _one(query, "service")
    found = [
        verdict
        for verdict in board.anomalies.values()
        if (not namespace or verdict.namespace == namespace)
        and (not service or verdict.service == service)
        and _has(words, f"{verdict.namespace}/{verdict.service}/{verdict.pod}")
    ]
    found.sort(key=lambda verdict: (-verdict.start_ms, -verdict.score))
    limit = _number(query, "limit", 100, 1_000)
    return {
        **_common(board),
        "topic": f"{board.view.topics.prefix}.anomalies",
        "has_topic": board.has_anomaly_topic,
        "pods_judged": len(board.verdicts),
        "pods_anomalous": sum(verdict.is_anomalous for verdict in board.verdicts.values()),
        "found": len(found),
        "anomalies": [_verdict(verdict) for verdict in found[:limit]],
    }


def pipeline(board: Board, now_ms: int, now_s: float) -> dict[str, Any]:
    """Return where jobs stand, what each partition has, and dead letters: what the topics tell."""
    jobs = sorted(board.jobs.items(), key=lambda job: (bool(job[1].get("ended")), job[1]["start_ms"], job[0]))
    return {
        **_common(board),
        "now": now_ms,
        "topics": {"prefix": board.view.topics.prefix, "records": _sink(board)},
        "jobs": [_job(name, position, now_ms) for name, position in islice(jobs, MOST_PODS)],
        "jobs_total": len(jobs),
        "records_per_s": board.records.per_s(now_s),
        "newest_window_ends": {str(partition): end_ms for partition, end_ms in sorted(board.newest_end_ms.items())},
        "windows_kept": board.pods.windows,
        "unreadable": board.unreadable,
        "other_views": sorted(board.pods.others),
        "dead_letters": [asdict(letter) for letter in sorted(board.letters, key=lambda letter: -letter.time_ms)],
    }


def changed(board: Board) -> dict[str, Any]:
    """Return what an event of ``/api/stream`` says: that there is something new, and of when."""
    return {"version": board.version, **_common(board)}


def _common(board: Board) -> dict[str, Any]:
    reading, pods = board.reading, board.pods
    return {
        "view": {"chunk_size": str(pods.chunk_size), "method": pods.method, "of": _of(board)},
        "newest_window_start": pods.newest_ms,
        "newest_window_end": pods.newest_end_ms,
        "anomalous": sum(1 for _ in islice((v for v in board.verdicts.values() if v.is_anomalous), MOST_NAMES)),
        "has_jobs": bool(board.jobs),
        "reading": {
            "is_live": reading.is_live,
            "share": 1.0 if not reading.wanted else round(min(reading.done / reading.wanted, 1.0), 3),
            "problem": reading.problem,
        },
    }


def _of(board: Board) -> str:
    return "pod" if "pod" in board.view.group_by else "service"


def _sink(board: Board) -> str:
    return board.view.topics.sink(_of(board))


@dataclass(frozen=True, slots=True)
class _Service:
    namespace: str
    name: str
    pods: list[Pod]


def _matching(key: Key, pods: Mapping[str, Pod], query: ServicesQuery) -> _Service | None:
    """Return a service with those of its pods that are asked for; None: it has none."""
    namespace, service = key
    if query.namespace not in (None, namespace) or query.service not in (None, service):
        return None
    words = [word for word in query.words if word not in f"{namespace}/{service}".lower()]
    if not words:
        return _Service(namespace, service, list(pods.values()))
    found = [pod for name, pod in pods.items() if _has(words, f"{namespace}/{service}/{name}")]
    return _Service(namespace, service, found) if found else None


def _has(words: Sequence[str], text: str) -> bool:
    lower = text.lower()
    return all(word in lower for word in words)


class _Shown:
    """How services and pods are shown: which metrics, when, in which order."""

    def __init__(self, board: Board, metrics: Sequence[str], axis: Int64Array, sort: str) -> None:
        self._board, self._metrics, self.axis = board, metrics, axis
        self.service_order: Callable[[_Service], tuple[Any, ...]]
        self._pod_order: Callable[[Pod], tuple[Any, ...]]
        if sort == "value" and metrics:
            self._pod_order = self._by_value
            self.service_order = lambda service: (min(map(self._by_value, service.pods)), _name(service))
        elif sort == "anomalies":
            self._pod_order = self._by_anomaly
            self.service_order = lambda service: (min(map(self._by_anomaly, service.pods)), _name(service))
        else:
            # What has ended is looked at last.
            self._pod_order = lambda pod: (_is_silent(board, pod), pod.name)
            self.service_order = _name

    def service(self, service: _Service, query: ServicesQuery) -> dict[str, Any]:
        pods, board = service.pods, self._board
        first = (query.pod_page - 1) * query.pods
        shown = sorted(pods, key=self._pod_order)[first : first + query.pods]
        return {
            "namespace": service.namespace,
            "service": service.name,
            "pods_found": len(pods),
            "pod_pages": max(1, math.ceil(len(pods) / query.pods)),
            "silent": sum(_is_silent(board, pod) for pod in pods),
            "anomalous": sum(board.is_anomalous((pod.namespace, pod.name)) is not None for pod in pods),
            "values": {metric: self._mean(pods, metric) for metric in self._metrics},
            "history": self._mean_history(pods),
            "pods": [self._pod(pod) for pod in shown],
        }

    def _pod(self, pod: Pod) -> dict[str, Any]:
        values = columns(pod, self._metrics, self.axis)
        last = pod.last
        return {
            "pod": pod.name,
            "window_start": last.window_start_ms,
            "window_end": last.window_end_ms,
            "is_silent": _is_silent(self._board, pod),
            "partial": last.partial,
            "incomplete": bool(last.incomplete),
            "anomaly": _verdict(self._board.is_anomalous((pod.namespace, pod.name))),
            "values": {metric: _value(last.metrics, metric) for metric in self._metrics},
            "history": {metric: spelled(values[at]) for at, metric in enumerate(self._metrics)},
        }

    def _mean(self, pods: Sequence[Pod], metric: str) -> float | str | None:
        """Return the mean of the newest values: of those pods that have one in the newest window."""
        newest_ms = self._board.pods.newest_ms
        now = [
            value
            for pod in pods
            if pod.last.window_start_ms == newest_ms and math.isfinite(value := pod.last.metrics.get(metric, math.nan))
        ]
        return spelled_value(sum(now) / len(now)) if now else None

    def _mean_history(self, pods: Sequence[Pod]) -> dict[str, list[Any]]:
        if len(pods) > _MOST_MEANS:
            return {}
        values = means(pods, self._metrics, self.axis)
        return {metric: spelled(values[at]) for at, metric in enumerate(self._metrics)}

    def _by_value(self, pod: Pod) -> tuple[Any, ...]:
        value = pod.last.metrics.get(self._metrics[0], -math.inf)
        # NaN has no order.
        return (math.inf if math.isnan(value) else -value, pod.name)

    def _by_anomaly(self, pod: Pod) -> tuple[Any, ...]:
        verdict = self._board.is_anomalous((pod.namespace, pod.name))
        return (0.0 if verdict is None or math.isnan(verdict.score) else -verdict.score, pod.name)


def _name(service: _Service) -> tuple[str, str]:
    return service.namespace, service.name


def _is_silent(board: Board, pod: Pod) -> bool:
    """Tell whether a pod has no record of the newest two windows: partitions do not close windows at once."""
    newest_ms = board.pods.newest_ms
    return newest_ms is not None and pod.last.window_start_ms < newest_ms - board.pods.chunk_size.longest_ms


def _first_metrics(names: Mapping[str, int]) -> tuple[str, ...]:
    """Choose a few metrics that most pods have, what people look for first."""

    def order(name: str) -> tuple[int, int, str]:
        rank = next((at for at, part in enumerate(_SHOWN_FIRST) if part in name), len(_SHOWN_FIRST))
        return (rank if 2 * names[name] >= most else len(_SHOWN_FIRST) + 1, -names[name], name)

    most = max(names.values(), default=0)
    return tuple(sorted(names, key=order)[:_SHOWN_AT_FIRST])


def _value(metrics: Mapping[str, float], name: str) -> float | str | None:
    value = metrics.get(name)
    return None if value is None else spelled_value(value)


def _verdict(verdict: Verdict | None) -> dict[str, Any] | None:
    if verdict is None:
        return None
    return {
        "namespace": verdict.namespace,
        "pod": verdict.pod,
        "service": verdict.service,
        "window_start": verdict.start_ms,
        "window_end": verdict.end_ms,
        "revision": verdict.revision,
        "method": verdict.method,
        "score": spelled_value(verdict.score),
        "anomalous": verdict.is_anomalous,
        "reasons": [
            {"metric": told.metric}
            | {name: spelled_value(getattr(told, name)) for name in ("value", "normal", "deviation")}
            for told in verdict.reasons
        ],
    }


def _job(name: str, position: Mapping[str, Any], now_ms: int) -> dict[str, Any]:
    ended = bool(position.get("ended"))
    error = str(position.get("last_error") or "")
    return {
        "job": name,
        "revision": position.get("revision", 0),
        "start": position["start_ms"],
        "end": position["end_ms"],
        "position": position["position_ms"],
        "ended": ended,
        "lag_s": None if ended else round((now_ms - position["position_ms"]) / 1000, 3),
        "samples": position.get("samples", 0),
        "samples_per_s": 0.0 if ended else position.get("samples_per_s", 0.0),
        "updated": position.get("updated_ms", 0),
        "last_error": error[:_LONGEST_WORD] or None,
        "last_error_at": position.get("last_error_ms", 0) if error else None,
        "incomplete": [str(metric) for metric in islice(position.get("incomplete") or (), MOST_PODS)],
    }


def _one(query: Query, name: str) -> str:
    given = query.get(name) or ("",)
    return given[0][:_LONGEST_WORD]


def _name_of(query: Query, name: str) -> str | None:
    given = query.get(name)
    return None if not given else ("" if given[0] == NO_NAMESPACE else given[0])


def _metrics(query: Query, most: int = MOST_METRICS) -> tuple[str, ...]:
    given = tuple(dict.fromkeys(query.get("metric") or ()))
    if len(given) > most:
        raise BadQuery(f"metric is given {len(given)} times: {most} are shown at most")
    return given


def _number(query: Query, name: str, default: int, most: int) -> int:
    text = _one(query, name)
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= most):
        raise BadQuery(f"{name} is {text!r}: give a whole number from 1 to {most}")
    return int(text)


def _choice(query: Query, name: str, choices: Sequence[str]) -> str:
    text = _one(query, name) or choices[0]
    if text not in choices:
        raise BadQuery(f"{name} is {text!r}: give {', '.join(choices)}")
    return text
