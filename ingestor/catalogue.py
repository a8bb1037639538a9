"""What each label set means, worked out once and remembered by its bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from ingestor.core.chunk import Int64Array
from ingestor.core.topics import message_key, partition_of
from ingestor.presets import Labels

_LABELS = pa.map_(pa.string(), pa.string())

_FORGET_ABOVE = 2_000_000
_FORGET_ABOVE_BYTES = 1_000_000_000
"""Series, and bytes of labels, remembered at most; beyond it all are worked out anew. That bounds the memory of a
year of pod churn, and keeps the labels below what Arrow's 32-bit offsets can reach."""

_TAKE_IN_ROWS = 20_000
"""As Python objects a series needs kilobytes, as columns some hundred bytes."""

_LABEL_PARTS = 16

_SUFFIX_TYPES = {"_total": "counter", "_count": "counter", "_sum": "counter", "_bucket": "counter"}


class Catalogue:
    """Numbers series, and knows the columns and the partition of each.

    Args:
        partitions: of the range-chunk topic.
        rewrite: what the preset does to labels.
        service_of: the service of a pod, from its labels.
        types: metric name to type, as far as the backend says.
    """

    def __init__(
        self,
        partitions: int,
        rewrite: Callable[[Labels], Labels],
        service_of: Callable[[Labels], str],
        types: Mapping[str, str],
    ) -> None:
        self._partitions = partitions
        self._rewrite = rewrite
        self._service_of = service_of
        self._types = types
        self._clear()

    def _clear(self) -> None:
        self._ids: dict[bytes, int] = {}
        self._names = {field: _Pool() for field in ("namespace", "pod", "service", "metric", "type")}
        self._new_rows: list[tuple[list[int], int, int, list[tuple[str, str]]]] = []
        self._codes = np.empty((0, len(self._names)), np.int32)
        self._fingerprints = np.empty(0, np.uint64)
        self._partition = np.empty(0, np.int32)
        self._labels = [pa.array([], _LABELS)]
        self._label_bytes = 0
        self.without_pod = 0

    def ids(self, label_sets: list[bytes]) -> Int64Array:
        """Return the number of each label set (a JSON object's bytes); -1: it has no pod and is left out."""
        known = self._ids
        return np.array([known[s] if s in known else self._learn(s) for s in label_sets], np.int64)

    def forget_if_large(self) -> None:
        """Start afresh when too much is remembered; numbers given out before are void."""
        if len(self._ids) > _FORGET_ABOVE or self._label_bytes > _FORGET_ABOVE_BYTES:
            self._clear()

    def partition(self, ids: Int64Array) -> Int64Array:
        """Return the partition of each series."""
        self._take_in()
        return self._partition[ids].astype(np.int64)

    def columns(self, ids: Int64Array) -> dict[str, Any]:
        """Return the series columns of a chunk, one row an id."""
        self._take_in()
        columns: dict[str, Any] = {
            field: pool.dictionary(self._codes[ids, i]) for i, (field, pool) in enumerate(self._names.items())
        }
        labels = pa.chunked_array(self._labels).take(pa.array(ids)).combine_chunks()
        if isinstance(labels, pa.ChunkedArray):
            labels = pa.concat_arrays(labels.chunks) if labels.num_chunks else pa.array([], _LABELS)
        return columns | {"labels": labels, "fingerprint": self._fingerprints[ids]}

    def _learn(self, label_set: bytes) -> int:
        labels = self._rewrite(orjson.loads(label_set))
        if not labels.get("pod"):
            self._ids[label_set] = -1
            self.without_pod += 1
            return -1
        metric = labels.pop("__name__", "")
        namespace, pod, service = labels.get("namespace", ""), labels["pod"], self._service_of(labels)
        pairs = sorted(labels.items())
        codes = [
            pool.code(name)
            for pool, name in zip(
                self._names.values(), (namespace, pod, service, metric, self._type(metric)), strict=True
            )
        ]
        digest = hashlib.blake2b(orjson.dumps([metric, pairs]), digest_size=8).digest()
        partition = partition_of(message_key(namespace, service), self._partitions)
        number = len(self._partition) + len(self._new_rows)
        self._new_rows.append((codes, int.from_bytes(digest, "little"), partition, pairs))
        self._ids[label_set] = number
        self._label_bytes += len(label_set)
        if len(self._new_rows) >= _TAKE_IN_ROWS:
            self._take_in()
        return number

    def _type(self, metric: str) -> str:
        if known := self._types.get(metric):
            return known
        return next((kind for suffix, kind in _SUFFIX_TYPES.items() if metric.endswith(suffix)), "unknown")

    def _take_in(self) -> None:
        """Append what was learned to the columns, all at once."""
        if not self._new_rows:
            return
        codes, fingerprints, partitions, labels = zip(*self._new_rows, strict=True)
        self._new_rows = []
        self._codes = np.concatenate([self._codes, np.array(codes, np.int32)])
        self._fingerprints = np.concatenate([self._fingerprints, np.array(fingerprints, np.uint64)])
        self._partition = np.concatenate([self._partition, np.array(partitions, np.int32)])
        self._labels.append(pa.array(labels, _LABELS))
        if len(self._labels) > _LABEL_PARTS:
            self._labels = [pa.concat_arrays(self._labels)]


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
        used, indices = np.unique(codes, return_inverse=True)
        names = [self._names[code] for code in used.tolist()]
        return pa.DictionaryArray.from_arrays(pa.array(indices.astype(np.int32)), pa.array(names, pa.string()))
