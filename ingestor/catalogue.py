"""What each label set means, worked out once and remembered by its bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from ingestor.core.arrow import as_column, maps, texts
from ingestor.core.chunk import Int64Array, UInt64Array
from ingestor.core.topics import message_key, partition_of
from ingestor.selector import Labels
from ingestor.workloads import Pod

_FORGET_ABOVE = 2_000_000
_FORGET_ABOVE_BYTES = 1_000_000_000
"""Series, and bytes of labels, remembered at most; beyond it a new catalogue begins. That bounds the memory of a
year of pod churn, and keeps the labels below what Arrow's 32-bit offsets can reach."""

_TAKE_IN_ROWS = 20_000
"""As Python objects a series needs kilobytes, as columns some hundred bytes."""

_SUFFIX_TYPES = {"_total": "counter", "_count": "counter", "_sum": "counter", "_bucket": "counter"}


@dataclass(frozen=True, slots=True)
class Meaning:
    """How a series' labels are read."""

    rewrite: Callable[[Labels], Labels | None]
    """What the preset and the relabeling do to labels; None: the series is left out."""
    column: Callable[[str, Labels], str] = lambda metric, _: metric
    """The name under which a metric's series are aggregated together."""
    service_label: str = ""
    """A label that names the pod's service; empty: none."""
    without_pod: bool = False
    """Whether series without a pod are read: those go by their job and instance."""


class Catalogue:
    """Numbers series, and knows the columns and the partition of each.

    A series of a pod that was not seen before has no partition until the pod is placed.

    Args:
        partitions: of the range-chunk topic.
        meaning: how labels are read.
        types: metric name to type, as far as the backend says.
    """

    def __init__(self, partitions: int, meaning: Meaning, types: Mapping[str, str]) -> None:
        self._partitions = partitions
        self._meaning = meaning
        self._types = types
        self._ids: dict[bytes, int] = {}
        self._names = {field: _Pool() for field in ("namespace", "pod", "service", "metric", "type")}
        self._places = _Places()
        self._unplaced: dict[Pod, tuple[int, str]] = {}
        self._metric_names: dict[int, str] = {}
        self._type_codes: tuple[Mapping[str, str], npt.NDArray[np.int32]] = types, np.empty(0, np.int32)
        self._new_rows: list[tuple[int, int, int, list[tuple[str, str]]]] = []
        self._place = np.empty(0, np.int32)
        self._metric = np.empty(0, np.int32)
        self._fingerprints = np.empty(0, np.uint64)
        self._labels = [maps([])]
        self._label_bytes = 0
        self.without_pod = 0

    def ids(self, label_sets: list[bytes]) -> Int64Array:
        """Return the number of each label set (a JSON object's bytes); -1: it is left out."""
        known = self._ids
        return np.array([known[s] if s in known else self._learn(s) for s in label_sets], np.int64)

    def unplaced(self) -> dict[Pod, str]:
        """Return the pods that have no service yet, each with what the service label says ("": nothing)."""
        return {pod: label for pod, (_, label) in self._unplaced.items()}

    def place(self, services: Mapping[Pod, str]) -> None:
        """Give pods their services, for as long as they are remembered."""
        for pod, service in services.items():
            number, _ = self._unplaced.pop(pod)
            partition = partition_of(message_key(pod.namespace, service), self._partitions)
            self._places.settle(number, self._names["service"].code(service), partition)

    def learn_types(self, types: Mapping[str, str]) -> None:
        """Take newer types; those of series that are known change too."""
        self._types = types

    @property
    def is_large(self) -> bool:
        """Whether so much is remembered that it is time for a new catalogue."""
        return len(self._ids) > _FORGET_ABOVE or self._label_bytes > _FORGET_ABOVE_BYTES

    def partition(self, ids: Int64Array) -> Int64Array:
        """Return the partition of each series, whose pods must all be placed."""
        self._take_in()
        partition: Int64Array = self._places.columns()[3][self._place[ids]].astype(np.int64)
        return partition

    def fingerprint(self, ids: Int64Array) -> UInt64Array:
        """Return the hash of each series' metric and labels, after their rewriting."""
        self._take_in()
        return self._fingerprints[ids]

    def columns(self, ids: Int64Array) -> dict[str, Any]:
        """Return the series columns of a chunk, one row an id."""
        self._take_in()
        namespace, pod, service, _ = self._places.columns()
        place, metric = self._place[ids], self._metric[ids]
        codes = {"namespace": namespace[place], "pod": pod[place], "service": service[place], "metric": metric}
        columns: dict[str, Any] = {field: self._names[field].dictionary(code) for field, code in codes.items()}
        if len(self._labels) > 1:
            # In one piece: out of several, each take would join them all anew.
            self._labels = [pa.concat_arrays(self._labels)]
        return columns | {
            "type": self._types_of(metric),
            "labels": self._labels[0].take(as_column(ids, pa.int64())),
            "fingerprint": self._fingerprints[ids],
        }

    def _learn(self, label_set: bytes) -> int:
        labels = self._meaning.rewrite(orjson.loads(label_set))
        place = None if labels is None else self._place_of(labels)
        if labels is None or place is None:
            self.without_pod += labels is not None
            self._ids[label_set] = -1
            return -1
        name = labels.pop("__name__", "")
        metric = self._names["metric"].code(self._meaning.column(name, labels))
        self._metric_names[metric] = name
        pairs = sorted(labels.items())
        digest = hashlib.blake2b(orjson.dumps([name, pairs]), digest_size=8).digest()
        number = len(self._fingerprints) + len(self._new_rows)
        self._new_rows.append((place, metric, int.from_bytes(digest, "little"), pairs))
        self._ids[label_set] = number
        self._label_bytes += len(label_set)
        if len(self._new_rows) >= _TAKE_IN_ROWS:
            self._take_in()
        return number

    def _place_of(self, labels: Labels) -> int | None:
        """Return the number of the pod, or of the job and instance that have none; None: left out."""
        namespace, name = labels.get("namespace", ""), labels.get("pod", "")
        if not name:
            return self._place_without_pod(namespace, labels) if self._meaning.without_pod else None
        pod = Pod(namespace, name)
        codes = self._names["namespace"].code(namespace), self._names["pod"].code(name)
        number, is_new = self._places.number(pod, *codes)
        waiting = self._unplaced.get(pod)
        if is_new or (waiting is not None and not waiting[1]):
            # Any series of the pod may be the one with the label.
            self._unplaced[pod] = number, labels.get(self._meaning.service_label, "")
        return number

    def _place_without_pod(self, namespace: str, labels: Labels) -> int:
        job, instance = labels.get("job", ""), labels.get("instance", "")
        codes = self._names["namespace"].code(namespace), self._names["pod"].code("")
        number, is_new = self._places.number((namespace, job, instance), *codes)
        if is_new:
            partition = partition_of(message_key(job, instance), self._partitions)
            self._places.settle(number, self._names["service"].code(job), partition)
        return number

    def _types_of(self, metric: npt.NDArray[np.int32]) -> pa.DictionaryArray:
        pool, types = self._names["type"], self._types
        of_types, codes = self._type_codes
        # Newer types may be learned meanwhile: codes stay with those that they are of.
        if of_types is not types or len(codes) < len(self._metric_names):
            names = (self._metric_names[code] for code in range(len(self._metric_names)))
            codes = np.array([pool.code(_type(name, types)) for name in names], np.int32)
            self._type_codes = types, codes
        return pool.dictionary(codes[metric])

    def _take_in(self) -> None:
        """Append what was learned to the columns, all at once."""
        if not self._new_rows:
            return
        places, metrics, fingerprints, labels = zip(*self._new_rows, strict=True)
        self._new_rows = []
        self._place = np.concatenate([self._place, np.array(places, np.int32)])
        self._metric = np.concatenate([self._metric, np.array(metrics, np.int32)])
        self._fingerprints = np.concatenate([self._fingerprints, np.array(fingerprints, np.uint64)])
        self._labels.append(maps(labels))


def _type(metric: str, types: Mapping[str, str]) -> str:
    if known := types.get(metric):
        return known
    return next((kind for suffix, kind in _SUFFIX_TYPES.items() if metric.endswith(suffix)), "unknown")


class _Places:
    """Where series go: a row a pod, or a job and instance."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, ...], int] = {}
        self._rows: list[list[int]] = []
        self._columns = np.empty((4, 0), np.int32)

    def number(self, identity: tuple[str, ...], namespace: int, pod: int) -> tuple[int, bool]:
        """Return the number of a place, and whether it is new."""
        number = self._numbers.setdefault(identity, len(self._rows))
        if is_new := number == len(self._rows):
            self._rows.append([namespace, pod, -1, -1])
        return number, is_new

    def settle(self, number: int, service: int, partition: int) -> None:
        self._rows[number][2:] = service, partition
        self._columns = np.empty((4, 0), np.int32)

    def columns(self) -> npt.NDArray[np.int32]:
        """Return codes of namespace, pod and service, and the partition: shape (4, places)."""
        if self._columns.shape[1] != len(self._rows):
            self._columns = np.array(self._rows, np.int32).reshape(-1, 4).T
        return self._columns


class _Pool:
    """The distinct values of one column."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self._names: list[str] = []

    def code(self, name: str) -> int:
        code = self._codes.setdefault(name, len(self._names))
        if code == len(self._names):
            self._names.append(name)
        return code

    def dictionary(self, codes: Any) -> pa.DictionaryArray:
        """Return the values of *codes*, with a dictionary of only what they use."""
        # Codes are dense: to mark them takes a tenth of the time of sorting them.
        is_used = np.zeros(len(self._names), np.bool_)
        is_used[codes] = True
        used = np.flatnonzero(is_used)
        indices = np.empty(len(self._names), np.int32)
        indices[used] = np.arange(len(used), dtype=np.int32)
        names = [self._names[code] for code in used.tolist()]
        return pa.DictionaryArray.from_arrays(as_column(indices[codes], pa.int32()), texts(names))
