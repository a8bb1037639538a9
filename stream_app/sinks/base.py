"""What a sink promises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from stream_app.records import Records

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

    def write(self, records: Records) -> None:
        """Take records; what they say of a window's pod or service is kept by the rule of row identity:

        complete beats partial, then the higher revision, then the later offset.
        """

    def commit(self, offsets: Mapping[str, Mapping[int, int]], view: View | None) -> None:
        """Make all records that were written, and where to read on, durable together.

        Files may not show all of it yet: see *is_behind*.

        Raises:
            SinkError: this cannot be done; all is as of the last commit, at the latest
                after the next start.
        """

    @property
    def is_behind(self) -> bool:
        """Whether files do not show yet all that the last commit holds, because that would have cost too much."""

    def complete(self) -> None:
        """Bring the files to what the last commit holds; to be called after one.

        Raises:
            SinkError: this cannot be done.
        """

    def finish(self) -> None:
        """Do `complete`, and what is done once, where nothing more is to come.

        Raises:
            SinkError: this cannot be done.
        """

    def close(self) -> None:
        """Let go of the storage without a commit."""
