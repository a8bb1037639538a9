"""What a view has written before, read back from its sink topics: for jobs that repeat others, and for lost commits."""

from __future__ import annotations

import logging
import re
from array import array
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt
import orjson
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from ingestor.core.errors import MalformedMessage
from ingestor.kafka import Cluster, failure, high_watermarks, read_to_end, when_settled
from stream_app.encoding import result_hash
from stream_app.pipeline import Identity
from stream_app.records import Record, decode_record
from stream_app.view import View

log = logging.getLogger(__name__)

Int64Array = npt.NDArray[np.int64]

_WENT_ON_EVERY = 10_000


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


def earlier_results(
    cluster: Cluster, view: View, partition: int, from_ms: int, went_on: Callable[[], object] = bool
) -> EarlierResults:
    """Read what a view has said of windows that start at *from_ms* or later.

    *went_on* is called from time to time.

    Raises:
        PublishError: Kafka does not answer.
    """
    log.info("reading what was written before", extra={"partition": partition, "from_ms": from_ms})
    identities, results = array("q"), array("q")
    for topic, key, record in _records(cluster, view, partition, from_ms, went_on):
        identities.append(hash((topic, key, record.window_start_ms)))
        values = np.array(list(record.metrics.values()), np.float64)
        is_whole = not record.partial and not record.incomplete
        results.append(result_hash(list(record.metrics), values, record.samples) if is_whole else 0)
    return EarlierResults(np.array(identities, np.int64), np.array(results, np.int64))


def has_written(cluster: Cluster, view: View, partition: int, went_on: Callable[[], object] = bool) -> bool:
    """Tell whether a view has records in a partition already; *went_on* is called from time to time.

    Raises:
        PublishError: Kafka does not answer.
    """
    return next(_records(cluster, view, partition, 0, went_on), None) is not None


def used_partitions(admin: AdminClient, view: View, partitions: Iterable[int]) -> set[int]:
    """Return those of *partitions* in which a sink topic of the view has ever had a message.

    Raises:
        PublishError: Kafka does not answer.
    """
    places = [(view.topics.sink(group_by), partition) for group_by in view.group_by for partition in partitions]
    try:
        ends = when_settled(lambda: high_watermarks(admin, places))
    except KafkaException as error:
        raise failure(error, "the ends of the sink topics cannot be read") from error
    return {partition for (_, partition), end in ends.items() if end > 0}


def _records(
    cluster: Cluster, view: View, partition: int, from_ms: int, went_on: Callable[[], object]
) -> Iterator[tuple[str, bytes, Record]]:
    """Yield topic, key and content of a view's records of windows from *from_ms* on, oldest first."""
    made = orjson.dumps({"chunk_size": str(view.chunk_size), "method": view.method_name})[1:-1]
    # Reading a record takes ten times as long as seeing that it is another's.
    ours = re.compile(rb'"window_start":([0-9]+),"window_end":[0-9]+,' + re.escape(made) + rb"[,}]")
    for group_by in view.group_by:
        topic = view.topics.sink(group_by)
        for number, message in enumerate(read_to_end(cluster, topic, partition)):
            if number % _WENT_ON_EVERY == 0:
                went_on()
            value = message.value() or b""
            found = ours.search(value)
            if found is None or int(found[1]) < from_ms:
                continue
            try:
                record = decode_record(value)
            except MalformedMessage:
                # Not ours, or not to be understood: nothing that it says can be repeated.
                continue
            yield topic, message.key() or b"", record
