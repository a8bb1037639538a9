"""Which records are wanted, and which of their metrics: known from the key where that is enough."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from ingestor.core.topics import NO_NAMESPACE
from stream_app.records import Record

_REMEMBERED = 100_000
"""Names and keys that are not looked at again: about 20 MB of each at most."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for; names are globs as a shell has them (``cart-*``), none: all. An empty namespace is ``_``."""

    namespaces: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    pods: tuple[str, ...] = ()
    """Records of services have no pod: where pods are asked for, they are left out."""

    metrics: tuple[str, ...] = ()
    """Other metrics are taken out of records, and records that have no other are left out; those without any say that
    all are missing."""

    chunk_size: str | None = None
    """As records spell it."""

    method: str | None = None
    """As records spell it: ``mean-of-last``."""

    from_ms: int | None = None
    """Windows that start earlier are left out."""


class RecordFilter:
    """Lets through what is wanted."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._namespace, self._service = any_of(wanted.namespaces), any_of(wanted.services)
        self._pod, self._metric = any_of(wanted.pods), any_of(wanted.metrics)
        self._known: tuple[dict[bytes, bool], dict[bytes, bool]] = {}, {}

    def may_be_wanted(self, key: bytes | None, *, of_service: bool) -> bool:
        """Tell from a record's key alone whether the record is worth reading.

        Args:
            key: ``namespace/pod``, or ``namespace/service`` where *of_service*.
            of_service: what the topic has.
        """
        if key is None:
            return True
        known = self._known[of_service]
        wanted = known.get(key)
        if wanted is None:
            if len(known) >= _REMEMBERED:
                known.clear()
            wanted = known[key] = self._is_wanted_by_key(key, of_service=of_service)
        return wanted

    def wanted(self, record: Record) -> Record | None:
        """Return the record with the metrics that are wanted, or None where it is not."""
        asked = self._wanted
        if asked.from_ms is not None and record.window_start_ms < asked.from_ms:
            return None
        if asked.chunk_size not in (None, record.chunk_size) or asked.method not in (None, record.method):
            return None
        if not self.wants(record.namespace, record.pod, record.service):
            return None
        if not asked.metrics:
            return record
        metrics = {name: record.metrics[name] for name in self.metrics(tuple(record.metrics))}
        return replace(record, metrics=metrics) if metrics or not record.metrics else None

    def wants(self, namespace: str, pod: str | None, service: str) -> bool:
        """Tell whether records of a pod, or where *pod* is None of a service, are wanted."""
        if not (self._namespace(namespace or NO_NAMESPACE) and self._service(service)):
            return False
        return self._pod(pod) if pod is not None else not self._wanted.pods

    def metrics(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Return those of a record's metrics that are wanted, in their order."""
        return tuple(filter(self._metric, names)) if self._wanted.metrics else names

    def _is_wanted_by_key(self, key: bytes, *, of_service: bool) -> bool:
        if of_service and self._wanted.pods:
            return False
        namespace, slash, name = key.decode("utf-8", "replace").partition("/")
        if not slash or "/" in name:
            # Where the namespace ends cannot be told.
            return True
        return self._namespace(namespace) and (self._service if of_service else self._pod)(name)


def any_of(globs: Iterable[str]) -> Callable[[str], bool]:
    """Return whether a text is one of *globs*, or matches one; without any, all do."""
    exact = frozenset(globs)
    if not exact:
        return lambda _: True
    matching = re.compile("|".join(map(fnmatch.translate, sorted(exact)))).match
    # A name may have brackets of its own: http_requests_total{path="[id]"}.
    return lru_cache(_REMEMBERED)(lambda text: text in exact or matching(text) is not None)
