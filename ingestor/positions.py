"""Where each job stands: a compacted topic, written in the same transaction as the data."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import orjson

from ingestor.core.errors import MalformedMessage
from ingestor.core.time_range import TimeRange
from ingestor.core.topics import Topics
from ingestor.kafka import Cluster, latest_by_key

LIVE_JOB = "live"


@dataclass(frozen=True, slots=True)
class Position:
    """A job's bounds and how far it is published; ``end_ms`` is None while it has no end.

    *sequences* has the next sequence number of each partition.
    """

    job: str
    start_ms: int
    end_ms: int | None
    position_ms: int
    sequences: tuple[int, ...]
    ended: bool = False
    samples: int = 0
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def partitions(self) -> int:
        return len(self.sequences)

    def moved(self, time_range: TimeRange, samples: int, chunks: list[int]) -> Position:
        """Return the position behind *time_range*, of which each partition got so many chunks.

        A marker follows them, and behind the last range's marker that of the job's end.
        """
        ended = self.end_ms is not None and time_range.end_ms >= self.end_ms
        markers = 2 if ended else 1
        sequences = tuple(n + more + markers for n, more in zip(self.sequences, chunks, strict=True))
        return replace(
            self,
            position_ms=time_range.end_ms,
            sequences=sequences,
            samples=self.samples + samples,
            ended=ended,
        )

    def cancelled(self) -> Position:
        """Return the position behind an end that comes before the job's own."""
        return replace(self, end_ms=self.position_ms, ended=True, sequences=tuple(n + 1 for n in self.sequences))

    def to_json(self) -> bytes:
        return orjson.dumps(asdict(self))

    @classmethod
    def from_json(cls, value: bytes) -> Position:
        """Read a position.

        Raises:
            MalformedMessage: not a position.
        """
        try:
            fields = orjson.loads(value)
            return cls(**{**fields, "sequences": tuple(fields["sequences"])})
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise MalformedMessage(f"not a position: {error!r}") from error


def job_name(arguments: dict[str, Any]) -> str:
    """Name a backfill by its arguments as typed: the same command goes on where it stopped."""
    digest = hashlib.blake2b(orjson.dumps(arguments, option=orjson.OPT_SORT_KEYS), digest_size=5)
    return f"backfill-{digest.hexdigest()}"


def read_positions(cluster: Cluster, topics: Topics) -> dict[str, Position]:
    """Return the position of every job."""
    latest = latest_by_key(cluster, topics.positions)
    return {key.decode(): Position.from_json(value) for key, value in latest.items()}
