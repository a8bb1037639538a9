"""Whatever a power loss leaves of a storage, its sink goes on, and has what it had committed."""

from __future__ import annotations

import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
from power_loss import END, Disk, Left, Moment, unflushed, write
from sink_scenario import MIXED, PARTITION, SINKS, TOPIC, expected, found, late_scenario, play

from ingestor.core.errors import SinkError
from stream_app.records import Record
from stream_app.sinks.base import Sink

NOTHING = -1
"""Where a storage is before its first commit."""


class Lives:
    """Lives of one storage after another, each on a disk that may lose its power at any time.

    Args:
        kind: one of ``SINKS``.
        records: what they are given.
        folder: a new one.
        without: a flush that the disk does not do.
    """

    def __init__(self, kind: str, records: Sequence[Record], folder: Path, without: str | None = None) -> None:
        self._open, self._records, self._folder = SINKS[kind], records, folder
        self._without = without
        self._committed = NOTHING
        self._kills: dict[tuple[Left, Left], tuple[Moment, int]] = {}
        self.left: dict[Left, int] = {}
        """What power losses may leave, and the offset that was committed before."""
        self.flushes = set[str]()
        """Where in the program something was flushed."""

    def first(self) -> None:
        """Commit without a record, then write all, a few records a commit; one commit is refused for want of room."""
        root = self._folder / "disk"
        root.mkdir(parents=True)
        disk, half = Disk(root, self._folder / "kept"), len(self._records) // 2
        with self._followed(disk):
            sink = self._open(root / "data")
            sink.commit({TOPIC: {PARTITION: 0}}, None)
            self._play(sink, half, 4)
            # Of CSV in the middle of a row that is added to the only file so far.
            largest = max(path.stat().st_size for path in (root / "data").glob("[!.]*/**/*.*"))
            with no_file_above(largest + 10), pytest.raises(SinkError, match="free some space"):
                self._play(sink, half + 1, 1)
            sink.close()
            sink = self._open(root / "data")
            self._play(sink, len(self._records), 4)
            sink.complete()
            sink.close()

    def later(self) -> None:
        """Kill the first life at each of its steps, and let another one write one record more."""
        for number, (moment, committed) in enumerate(list(self._kills.values())):
            self._committed = committed
            root = self._folder / f"disk-{number}"
            disk = Disk.restarted(moment, root, self._folder / f"kept-{number}")
            with self._followed(disk):
                sink = self._open(root / "data")
                self._play(sink, min(max(offset(sink), 0) + 1, len(self._records)), 1)
                sink.close()

    def go_on(self, left: Left, folder: Path) -> None:
        """Have a sink write the rest from what is left, and compare its files with the oracle."""
        write(dict(left), folder)
        sink = self._open(folder / "data")
        try:
            assert offset(sink) >= self.left[left], "what was committed is lost"
            play(sink, self._records, 100)
        finally:
            sink.close()
        assert found(folder / "data") == expected(self._records)
        assert not list((folder / "data/.stream-app/staged").iterdir())

    def _play(self, sink: Sink, until: int, batch: int) -> None:
        self._committed = max(offset(sink), self._committed)
        while (at := max(offset(sink), 0)) < until:
            play(sink, self._records[: min(at + batch, until)], batch, complete=False)
            self._committed = offset(sink)

    @contextmanager
    def _followed(self, disk: Disk) -> Iterator[None]:
        def change(moment: Moment) -> None:
            self._kills.setdefault((moment.here(), moment.durable_here()), (moment, self._committed))

        def flush(moment: Moment, where: str) -> bool:
            for left in moment.left():
                self.left[left] = max(self._committed, self.left.get(left, NOTHING))
            self.flushes.add(where)
            return where != self._without

        with disk.followed(change, flush):
            yield


@pytest.mark.parametrize(
    ("kind", "records"),
    [("csv", MIXED), ("csv", late_scenario(6, 7)), ("parquet", MIXED)],
    ids=["csv", "csv-late", "parquet"],
)
def test_a_power_loss_at_any_step_loses_and_doubles_nothing(kind: str, records: list[Record], tmp_path: Path) -> None:
    """In the life of a sink that a full disk refuses once, and in the next life of one that was killed at any step: a
    restart reaches the oracle's files, and begins where the last commit was.

    What a next life does differently is the storage's own, and the same for both formats.
    """
    lives = Lives(kind, records, tmp_path / "lives")
    lives.first()
    of_first = len(lives.left)
    assert of_first > 200
    if kind == "csv":
        lives.later()
        assert len(lives.left) > 2 * of_first
    click.echo(f"  {of_first} states of the disk, {len(lives.left) - of_first} more after kills")
    with unflushed():
        for number, left in enumerate(lives.left):
            lives.go_on(left, tmp_path / f"left-{number}")


def test_each_flush_is_needed(tmp_path: Path) -> None:
    """Left out, any one call that brings something to disk would let a power loss do harm: the test above can fail, and
    nothing is waited for in vain.
    """
    harmless = set[str]()
    for kind in SINKS:
        whole = Lives(kind, MIXED, tmp_path / kind)
        whole.first()
        if kind == "csv":
            whole.later()
            harmless = whole.flushes - {END}
        harmless = {where for where in harmless if not _does_harm(kind, where, whole.left, tmp_path / kind / where)}
    assert not harmless


def _does_harm(kind: str, without: str, known: dict[Left, int], folder: Path) -> bool:
    """Tell whether some sink does not go on from what is left, less what is known to be harmless."""
    lives, number = Lives(kind, MIXED, folder, without), 0
    for live in (lives.first, lives.later):
        live()
        for left, committed in lives.left.items():
            if committed <= known.get(left, NOTHING - 1):
                continue
            number += 1
            try:
                with unflushed():
                    lives.go_on(left, folder / f"left-{number}")
            except (SinkError, AssertionError, ValueError) as error:
                click.echo(f"  without {without}: {str(error).splitlines()[0]}")
                return True
    return False


def offset(sink: Sink) -> int:
    return sink.offsets.get(TOPIC, {}).get(PARTITION, NOTHING)


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
