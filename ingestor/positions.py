"""Where each job stands: a compacted topic, written in the same transaction as the data."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import orjson

from ingestor.core.chunk import Refused
from ingestor.core.errors import MalformedMessage
from ingestor.core.time_range import TimeRange
from ingestor.core.topics import Topics
from ingestor.kafka import Cluster, connect, latest_by_key, partition_counts

LIVE_JOB = "live"

FOREVER_MS = 2**62
"""The end of what has none."""

_NAMED_AT_MOST = 100

_LISTS = ("sequences", "incomplete")
_KINDS: dict[str, tuple[type, ...]] = {
    "job": (str,),
    "start_ms": (int,),
    "end_ms": (int, type(None)),
    "position_ms": (int,),
    "sequences": (int,),
    "ended": (bool,),
    "samples": (int,),
    "arguments": (dict,),
    "revision": (int,),
    "incomplete": (str,),
    "updated_ms": (int,),
    "samples_per_s": (float, int),
    "last_error": (str,),
    "last_error_ms": (int,),
}
"""What each field is; of lists, each of their items."""


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
    revision: int = 0
    incomplete: tuple[str, ...] = ()
    """Metrics that the backend refused samples of for good; a hundred at most."""
    updated_ms: int = 0
    """The poller's clock when this was written; for people, not for the data path."""
    samples_per_s: float = 0.0
    last_error: str = ""
    last_error_ms: int = 0

    @property
    def partitions(self) -> int:
        return len(self.sequences)

    @property
    def claimed(self) -> TimeRange | None:
        """The time that is this job's: what it has read, and what it will."""
        end_ms = self.position_ms if self.ended else self.end_ms
        if end_ms is not None and end_ms <= self.start_ms:
            return None
        return TimeRange(self.start_ms, FOREVER_MS if end_ms is None else end_ms)

    def moved(
        self, time_range: TimeRange, samples: int, chunks: list[int], incomplete: tuple[Refused, ...] = ()
    ) -> Position:
        """Return the position behind *time_range*, of which each partition got so many chunks, lookbacks among them.

        A marker follows them, and behind the last range's marker that of the job's end.
        """
        ended = self.end_ms is not None and time_range.end_ms >= self.end_ms
        markers = 2 if ended else 1
        sequences = tuple(n + more + markers for n, more in zip(self.sequences, chunks, strict=True))
        named = sorted({*self.incomplete, *(refused.metric for refused in incomplete)})
        return replace(
            self,
            position_ms=time_range.end_ms,
            sequences=sequences,
            samples=self.samples + samples,
            ended=ended,
            incomplete=tuple(named[:_NAMED_AT_MOST]),
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
            position = cls(**fields | {name: tuple(fields.get(name, ())) for name in _LISTS})
        except (orjson.JSONDecodeError, AttributeError, TypeError) as error:
            raise MalformedMessage(f"not a position: {error!r}") from error
        for name, kinds in _KINDS.items():
            items = getattr(position, name) if name in _LISTS else [getattr(position, name)]
            # True is a number in Python, and none in a position.
            if wrong := [item for item in items if type(item) not in kinds]:
                raise MalformedMessage(f"not a position: its {name} cannot be {wrong[0]!r}")
        return position


class Written:
    """What a process may have written as jobs' positions: whatever else stands there is another's."""

    def __init__(self) -> None:
        self._by_job: dict[str, set[bytes]] = {}

    def may_stand(self, *positions: Position) -> None:
        """Note what was read, or is about to be written: a commit of which nothing is heard may have gone through."""
        for position in positions:
            self._by_job.setdefault(position.job, set()).add(position.to_json())

    def stands(self, position: Position) -> None:
        """Note what was committed."""
        self._by_job[position.job] = {position.to_json()}

    def is_anothers(self, stored: Position) -> bool:
        """Tell whether another process has written a position of a job that this one has at hand."""
        mine = self._by_job.get(stored.job)
        return mine is not None and stored.to_json() not in mine


def job_name(arguments: dict[str, Any]) -> str:
    """Name a backfill by its arguments as typed: the same command goes on where it stopped."""
    digest = hashlib.blake2b(orjson.dumps(arguments, option=orjson.OPT_SORT_KEYS), digest_size=5)
    return f"backfill-{digest.hexdigest()}"


def known_positions(cluster: Cluster, topics: Topics) -> dict[str, Position]:
    """Return the position of every job; none where the topic was never made.

    Raises:
        ConfigError: no broker answers.
    """
    return read_positions(cluster, topics) if topics.positions in partition_counts(connect(cluster)) else {}


def read_positions(cluster: Cluster, topics: Topics) -> dict[str, Position]:
    """Return the position of every job.

    Raises:
        MalformedMessage: something else is among them. What it stands for cannot be known, so nothing goes on.
    """
    latest = latest_by_key(cluster, topics.positions)
    try:
        positions = map(Position.from_json, latest.values())
        return {key.decode(): position for key, position in zip(latest, positions, strict=True)}
    except (MalformedMessage, UnicodeDecodeError) as error:
        raise MalformedMessage(
            f"{topics.positions} has a message that no podstream of this release has written ({error}): "
            "give --topic-prefix a name of its own, or delete the key"
        ) from error
