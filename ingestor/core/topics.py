"""Topic names, message keys, and the partition of a service."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_PREFIX = "metrics"

NO_NAMESPACE = "_"
"""How an empty namespace is written in keys and paths."""


@dataclass(frozen=True, slots=True)
class Topics:
    """The names of all topics of one pipeline."""

    prefix: str = DEFAULT_PREFIX

    @property
    def range_chunks(self) -> str:
        return f"{self.prefix}.range-chunks"

    @property
    def positions(self) -> str:
        return f"{self.prefix}.positions"

    @property
    def workloads(self) -> str:
        return f"{self.prefix}.workloads"

    @property
    def pods(self) -> str:
        return f"{self.prefix}.pods"

    @property
    def services(self) -> str:
        return f"{self.prefix}.services"

    @property
    def dead_letters(self) -> str:
        return f"{self.prefix}.dead-letters"

    @property
    def partitioned(self) -> tuple[str, ...]:
        """Those with a partition for each share of the pods; all have the same number."""
        return self.range_chunks, self.pods, self.services, self.dead_letters

    @property
    def compacted(self) -> tuple[str, ...]:
        """Those that keep the latest value of each key, in one partition."""
        return self.positions, self.workloads

    def sink(self, group_by: str) -> str:
        """Return the sink topic of ``pod`` or ``service`` records."""
        return {"pod": self.pods, "service": self.services}[group_by]


def message_key(namespace: str, name: str) -> bytes:
    """Return ``namespace/name``, the key of a record and the routing key of a service."""
    return f"{namespace or NO_NAMESPACE}/{name}".encode()


def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition that Kafka's Java default partitioner gives *key*.

    Source: org.apache.kafka.clients.producer.internals.BuiltInPartitioner.
    """
    return (murmur2(key) & 0x7FFFFFFF) % partitions


def murmur2(data: bytes) -> int:
    """Return the 32-bit murmur2 hash with Kafka's seed, as an unsigned number.

    Source: Austin Appleby's MurmurHash2; seed of org.apache.kafka.common.utils.Utils.
    """
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    h = 0x9747B28C ^ len(data)
    whole = len(data) & ~3
    for i in range(0, whole, 4):
        k = int.from_bytes(data[i : i + 4], "little") * m & mask
        k = (k ^ k >> 24) * m & mask
        h = (h * m & mask) ^ k
    if tail := data[whole:]:
        h = (h ^ int.from_bytes(tail, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return h ^ h >> 15
