"""Compares what the dashboard says with what is in the files and on the anomalies' topic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import requests
from tables import Table

_TIMEOUT_S = 20.0
_MOST = {"per_page": 50, "pods": 200}
"""What the API gives in one answer at most: the demo has four services."""


class Place(NamedTuple):
    """Which value is meant."""

    namespace: str
    pod: str
    metric: str
    start_ms: int


@dataclass(frozen=True, slots=True)
class Shown:
    """What the dashboard says of all pods, in the windows that all of its answers have."""

    from_ms: int
    values: dict[Place, float]
    anomalies: frozenset[tuple[str, int]]
    """Pods, and the starts of the windows in which they were ill."""
    problems: tuple[str, ...]
    """What it says is wrong with the pipeline."""


class Dashboard:
    """The JSON API of the demo's worker."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session = requests.Session()
        # A proxy from the environment does not know our loopback.
        self._session.trust_env = False

    def is_up(self) -> bool:
        """Tell whether its pages are there."""
        try:
            return self._session.get(self._url, timeout=_TIMEOUT_S).ok
        except requests.ConnectionError:
            return False

    def shown(self) -> Shown:
        """Ask for everything.

        Raises:
            requests.RequestException: it does not answer.
        """
        listed = self._get("services", _MOST)
        pods = [
            self._get(f"pods/{service['namespace'] or '_'}/{pod['pod']}", {})
            for service in listed["services"]
            for pod in service["pods"]
        ]
        told = self._get("anomalies", {"limit": 1_000})["anomalies"]
        # The newest windows are kept: between two answers one may have left.
        from_ms = max((pod["windows"][0] for pod in pods), default=0)
        return Shown(
            from_ms,
            {place: value for pod in pods for place, value in _values(pod) if place.start_ms >= from_ms},
            frozenset((verdict["pod"], verdict["window_start"]) for verdict in told),
            tuple(_problems(self._get("pipeline", {}))),
        )

    def _get(self, path: str, parameters: dict[str, int]) -> Any:
        answer = self._session.get(f"{self._url}/api/{path}", params=parameters, timeout=_TIMEOUT_S)
        answer.raise_for_status()
        return answer.json()


def differences(shown: Shown, tables: Mapping[str, Table], until_ms: int, ill: frozenset[tuple[str, int]]) -> list[str]:
    """Return in a line each where the dashboard and the rest of the demo do not say the same.

    Args:
        shown: what the dashboard says.
        tables: the files, ``namespace/service.csv``.
        until_ms: windows that start here or later are still on their way.
        ill: what stands on the anomalies' topic.
    """
    written = {
        place: value
        for file, table in tables.items()
        for place, value in _cells(file.split("/")[0], table)
        if shown.from_ms <= place.start_ms < until_ms
    }
    on_pages = {place: value for place, value in shown.values.items() if place.start_ms < until_ms}
    places = sorted(place for place in written.keys() | on_pages.keys() if written.get(place) != on_pages.get(place))
    values = [f"{place}: {on_pages.get(place)} is shown, {written.get(place)} in the file" for place in places]
    # Of earlier anomalies the dashboard has read some thousand verdicts back.
    missing = {(pod, start_ms) for pod, start_ms in ill - shown.anomalies if start_ms >= shown.from_ms}
    anomalies = [f"anomaly of {pod} at {start_ms}" for pod, start_ms in sorted(missing | (shown.anomalies - ill))]
    nothing = [] if written else ["nothing is shown of the files' newest windows"]
    return [*nothing, *values, *anomalies, *shown.problems]


def _values(pod: dict[str, Any]) -> Iterator[tuple[Place, float]]:
    for metric, told in pod["metrics"].items():
        for start_ms, value in zip(pod["windows"], told["history"], strict=True):
            if value is not None:
                yield Place(pod["namespace"], pod["pod"], metric, start_ms), float(value)


def _cells(namespace: str, table: Table) -> Iterator[tuple[Place, float]]:
    for start_ms, row in zip(table.starts_ms(), table.rows, strict=True):
        for metric, text in zip(table.metrics(), row[2:], strict=True):
            if text:
                yield Place(namespace, row[1], metric, start_ms), float(text)


def _problems(pipeline: dict[str, Any]) -> Iterator[str]:
    worker = pipeline["worker"]
    yield from filter(None, (pipeline["reading"]["problem"], worker["not_ready"], worker["not_healthy"]))
    if pipeline["dead_letters"] or pipeline["unreadable"]:
        yield "messages could not be read"
    if [job["job"] for job in pipeline["jobs"] if not job["ended"]] != ["live"]:
        yield "the job that runs is not the one called live"
