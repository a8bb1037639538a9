"""What a sink promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from stream_app.records import Record

Offsets = dict[str, dict[int, int]]
"""The next offset to read, by topic and partition."""


@dataclass(frozen=True, slots=True)
class View:
    """Which records belong together: those of one chunk size and one method."""

    chunk_size: str
    method: str

    def __str__(self) -> str:
        return f"chunk size {self.chunk_size}, method {self.method}"


class Sink(Protocol):
    """Takes records and keeps them with the position that they were read to, both or neither.

    What was written since the last commit is lost with the process, and is to be
    read again from *offsets*. A sink that has raised is only good for ``close``.
    """

    @property
    def offsets(self) -> Mapping[str, Mapping[int, int]]:
        """Where to read on, as of the last commit; a partition without records is absent."""

    @property
    def view(self) -> View | None:
        """The view of the records of the last commit, or None when there was none."""

    @property
    def file_count(self) -> int:
        """The number of files for users as of the last commit."""

    def write(self, records: Sequence[tuple[int, Record]]) -> None:
        """Take records, each with its offset; those of one partition in the order of their offsets."""

    def commit(self, offsets: Mapping[str, Mapping[int, int]], view: View | None) -> None:
        """Make all records that were written, and where to read on, durable together.

        Raises:
            SinkError: this cannot be done; all is as of the last commit, at the latest
                after the next start.
        """

    def close(self) -> None:
        """Let go of the storage without a commit."""
