"""What a view has written before, read back from its sink topics: for jobs that repeat others, and for lost commits."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ingestor.core.errors import MalformedMessage
from ingestor.kafka import Cluster, read_to_end
from stream_app.encoding import result_hash
from stream_app.pipeline import Identity
from stream_app.records import Record, decode_record
from stream_app.view import View

log = logging.getLogger(__name__)

Int64Array = npt.NDArray[np.int64]


class EarlierResults:
    """The last word on each window, 16 bytes a record.

    Args:
        identities: a hash of each record's identity, in the order of writing, shape (records,).
        results: a hash of each one's result, 0 where the record is partial, shape (records,).
    """

    def __init__(self, identities: Int64Array, results: Int64Array) -> None:
        # The last one counts, a partial one only where there is no other.
        order = np.lexsort((np.arange(len(results)), results != 0, identities))
        is_last = np.append(np.diff(identities[order]) != 0, True)[: len(order)]
        self._identities, self._results = identities[order[is_last]], results[order[is_last]]

    def __len__(self) -> int:
        return len(self._results)

    def get(self, identity: Identity, /) -> int | None:
        """Return the hash of a record's result; 0 where only a partial one is there, None where none is."""
        name = hash(identity)
        at = int(np.searchsorted(self._identities, name))
        return int(self._results[at]) if at < len(self._results) and self._identities[at] == name else None


def earlier_results(cluster: Cluster, view: View, partition: int, from_ms: int) -> EarlierResults:
    """Read what a view has said of windows that start at *from_ms* or later.

    Raises:
        PublishError: Kafka does not answer.
    """
    log.info("reading what was written before", extra={"partition": partition, "from_ms": from_ms})
    identities, results = array("q"), array("q")
    for topic, key, record in _records(cluster, view, partition):
        if record.window_start_ms >= from_ms:
            identities.append(hash((topic, key, record.window_start_ms)))
            values = np.array(list(record.metrics.values()), np.float64)
            is_whole = not record.partial and not record.incomplete
            results.append(result_hash(list(record.metrics), values, record.samples) if is_whole else 0)
    return EarlierResults(np.array(identities, np.int64), np.array(results, np.int64))


def has_written(cluster: Cluster, view: View, partition: int) -> bool:
    """Tell whether a view has records in a partition already.

    Raises:
        PublishError: Kafka does not answer.
    """
    return next(_records(cluster, view, partition), None) is not None


def _records(cluster: Cluster, view: View, partition: int) -> Iterator[tuple[str, bytes, Record]]:
    """Yield topic, key and content of a view's records, oldest first."""
    made = str(view.chunk_size), view.method_name
    for group_by in view.group_by:
        topic = view.topics.sink(group_by)
        for message in read_to_end(cluster, topic, partition):
            try:
                record = decode_record(message.value())
            except MalformedMessage:
                # Not ours, or not to be understood: nothing that it says can be repeated.
                continue
            if (record.chunk_size, record.method) == made:
                yield topic, message.key() or b"", record
