"""PURE: what a group's commit says: where to read on, and in words of ours what has been processed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from stream_app.consumer.views import View

_MOST_BYTES = 4_000
"""Kafka's own bound is 4,096 (``offset.metadata.max.bytes``)."""


class Front(NamedTuple):
    """How far a job's records have come."""

    start_ms: int
    end_ms: int
    """Of its latest window."""
    written_ms: int
    """When Kafka took its latest record."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """Where reading of a partition begins, and what of it is delivered."""

    offset: int
    """Where reading begins."""
    processed: int = 0
    """What is below is history, and is not delivered."""
    from_ms: int = 0
    """Below *was_end*, windows that start earlier are history too."""
    was_end: int = 0
    fronts: Mapping[str, Front] = field(default_factory=dict)
    """By job."""


@dataclass(frozen=True, slots=True)
class Commit:
    """What is stored with the group."""

    offset: int
    """The oldest record that a window which is not processed yet may look back at."""
    metadata: str


def encode(topic_id: str, view: View | None, beginning: Beginning) -> Commit:
    """Return the commit that lets another member begin so."""
    jobs = sorted(beginning.fronts.items(), key=lambda job: job[1].written_ms)
    while True:
        fields: dict[str, Any] = {
            "topic": topic_id,
            "processed": beginning.processed,
            "jobs": {job: tuple(front) for job, front in jobs},
        }
        if view is not None:
            fields["view"] = tuple(view)
        if beginning.processed < beginning.was_end:
            fields |= {"from": beginning.from_ms, "was_end": beginning.was_end}
        metadata = orjson.dumps(fields).decode()
        # The job that has been silent for longest is the one that is least needed.
        if len(metadata.encode()) <= _MOST_BYTES or not jobs:
            return Commit(beginning.offset, metadata)
        del jobs[0]


class Committed(NamedTuple):
    """A commit as it was read."""

    topic_id: str
    view: View | None
    beginning: Beginning


def decode(commit: Commit) -> Committed | None:
    """Read a commit, or return None where it is not of ours."""
    try:
        fields = orjson.loads(commit.metadata)
        return Committed(
            fields["topic"],
            View(*fields["view"]) if "view" in fields else None,
            Beginning(
                commit.offset,
                int(fields["processed"]),
                int(fields.get("from", 0)),
                int(fields.get("was_end", 0)),
                {job: Front(*map(int, front)) for job, front in fields["jobs"].items()},
            ),
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
        return None
