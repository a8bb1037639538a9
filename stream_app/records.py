"""One pod's (or service's) aggregated metrics in one window: what the sink topics carry, as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from ingestor.core.errors import MalformedMessage
from ingestor.core.topics import message_key

RECORD_VERSION = 1

_INFINITIES = {"+Inf": float("inf"), "-Inf": float("-inf")}
_FIELDS = {
    "namespace": str,
    "service": str,
    "window_start": int,
    "window_end": int,
    "chunk_size": str,
    "method": str,
    "job": str,
    "revision": int,
    "partial": bool,
    "version": int,
    "samples": int,
    "metrics": dict,
}


@dataclass(frozen=True, slots=True)
class Record:
    """A record as read; *pod* is None in service records.

    *metrics* has a value for each metric with samples in the window: NaN is NaN here,
    infinities are infinities; a metric without samples is absent.
    """

    namespace: str
    pod: str | None
    service: str
    window_start_ms: int
    window_end_ms: int
    chunk_size: str
    method: str
    job: str
    revision: int
    partial: bool
    samples: int
    metrics: dict[str, float]
    incomplete: tuple[str, ...] = ()
    """Metrics of which the backend refused samples of the window."""


def record_key(namespace: str, pod: str | None, service: str) -> bytes:
    """Return the message key: ``namespace/pod``, or ``namespace/service`` of a service record."""
    return message_key(namespace, service if pod is None else pod)


def decode_record(value: bytes | None) -> Record:
    """Read one record; fields that are not known are ignored, for later releases may have more.

    Raises:
        MalformedMessage: not JSON, a field is missing or of another type, or another version.
    """
    try:
        fields: dict[str, Any] = orjson.loads(value or b"")
        if fields["version"] != RECORD_VERSION:
            raise MalformedMessage(f"a record has version {fields['version']}: update podstream")
        for name, kind in _FIELDS.items():
            if type(fields[name]) is not kind:
                raise MalformedMessage(f"a record's {name} is {fields[name]!r}, not of type {kind.__name__}")
        pod = fields.get("pod")
        if not (pod is None or isinstance(pod, str)):
            raise MalformedMessage(f"a record's pod is {pod!r}, not of type str")
        return Record(
            namespace=fields["namespace"],
            pod=pod,
            service=fields["service"],
            window_start_ms=fields["window_start"],
            window_end_ms=fields["window_end"],
            chunk_size=fields["chunk_size"],
            method=fields["method"],
            job=fields["job"],
            revision=fields["revision"],
            partial=fields["partial"],
            samples=fields["samples"],
            metrics=_numbers(fields["metrics"]),
            incomplete=_texts("incomplete", fields.get("incomplete", [])),
        )
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise MalformedMessage(f"not a record: {error!r}") from error


def _texts(name: str, values: Any) -> tuple[str, ...]:
    if type(values) is not list or not set(map(type, values)) <= {str}:
        raise MalformedMessage(f"a record's {name} is {values!r}, not a list of texts")
    return tuple(values)


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    if set(map(type, metrics.values())) <= {float}:
        return metrics
    return {name: _number(value) for name, value in metrics.items()}


def _number(value: Any) -> float:
    if value is None:
        return float("nan")
    if isinstance(value, str):
        return _INFINITIES[value]
    if isinstance(value, bool):
        raise TypeError(f"{value!r} is not a number")
    return float(value)
