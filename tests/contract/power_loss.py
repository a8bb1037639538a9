"""What a power loss may leave of a folder: what was flushed, and any of what was not."""

from __future__ import annotations

import os
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from system_calls import is_change

Left = frozenset[tuple[str, bytes | None]]
"""Paths of a folder, and contents; None: a folder."""

END = "at the end"
"""Of what is followed."""

Place = tuple[int, str]
"""A folder's number, and a name in it."""

Contents = Mapping[int, bytes | None]
"""By the number of a file or folder, which stays its own under any name; None: a folder."""


@dataclass(frozen=True, slots=True)
class _Naming:
    """What a call has done to names: all of it survives, or nothing."""

    folder: int
    """Once this one is flushed, it is durable."""
    names: dict[Place, int | None]


@dataclass(frozen=True, slots=True)
class Moment:
    """A folder between two calls, and what of it is durable."""

    root: int
    names: Mapping[Place, int]
    contents: Contents
    durable_names: Mapping[Place, int]
    durable: Contents
    passed: Mapping[int, tuple[bytes, ...]]
    """What files have held since they were flushed, and do not any more: the disk may have that."""
    pending: tuple[_Naming, ...]

    def left(self) -> Iterator[Left]:
        """Yield what a power loss may leave.

        Of names that were not flushed: none, all, those of the first calls, all but one, only one. Of contents that
        were not flushed: none, all, a part, zeros, those of all files but one, or what one of them held before.
        """
        pending = self.pending
        kept, lost, *torn = self._all_contents()
        yield self._tree((), lost)
        for contents in (kept, lost, *torn):
            yield self._tree(pending, contents)
        for number, naming in enumerate(pending):
            yield self._tree(pending[:number], kept)
            yield self._tree(pending[:number] + pending[number + 1 :], kept)
            yield self._tree([naming], kept)

    def here(self) -> Left:
        """Return what a process that is killed leaves."""
        return self._tree(self.pending, self.contents)

    def durable_here(self) -> Left:
        """Return what is left at least."""
        return self._tree((), self.durable)

    def _all_contents(self) -> Iterator[Contents]:
        dirty = {
            number: (content, self.durable[number] or b"")
            for number, content in self.contents.items()
            if content is not None and content != self.durable[number]
        }
        common = {number: _common_bytes(*both) for number, both in dirty.items()}
        yield self.contents
        yield self.durable
        yield {**self.contents, **{n: now[: (common[n] + len(now)) // 2] for n, (now, _) in dirty.items()}}
        yield {**self.contents, **{n: now[: common[n]].ljust(len(now), b"\0") for n, (now, _) in dirty.items()}}
        for number, (_, was) in dirty.items():
            yield {**self.contents, number: was}
        for number, before in self.passed.items():
            for was in before:
                yield {**self.contents, number: was}

    def _tree(self, namings: Iterable[_Naming], contents: Contents) -> Left:
        names: dict[Place, int | None] = dict(self.durable_names)
        for naming in namings:
            names |= naming.names
        inside: dict[int, list[tuple[str, int]]] = defaultdict(list)
        for (folder, name), number in names.items():
            if number is not None:
                inside[folder].append((name, number))
        tree: dict[str, bytes | None] = {}
        todo = [("", self.root)]
        while todo:
            path, number = todo.pop()
            for name, child in inside[number]:
                tree[below := f"{path}{name}"] = contents[child]
                if contents[child] is None:
                    todo.append((f"{below}/", child))
        return frozenset(tree.items())


class Disk:
    """A folder that is followed; what it has at first is durable.

    Args:
        root: the folder.
        kept: a folder beside it, for links that keep a file's number its own.
    """

    def __init__(self, root: Path, kept: Path) -> None:
        self._root, self._kept = root, kept
        kept.mkdir()
        self._number = root.stat().st_ino
        self._durable: dict[int, bytes | None] = {}
        self._passed: dict[int, tuple[bytes, ...]] = {}
        self._names, self._contents = self._found()
        self._durable = dict(self._contents)
        self._durable_names: dict[Place, int] = dict(self._names)
        self._pending: list[_Naming] = []

    @classmethod
    def restarted(cls, moment: Moment, root: Path, kept: Path) -> Disk:
        """Return a folder as it is after a kill, with what was durable; nothing else is."""
        write(dict(moment.here()), root)
        disk = cls(root, kept)
        # What was is known by what it was called; what has no name any more has a number that nobody has.
        renumbered = {moment.root: disk._number}
        todo = [moment.root]
        while todo:
            folder = todo.pop()
            for (of, name), number in moment.names.items():
                if of == folder:
                    renumbered[number] = disk._names[renumbered[of], name]
                    todo.append(number)

        def new(number: int) -> int:
            return renumbered.get(number, -number)

        def place(at: Place) -> Place:
            return new(at[0]), at[1]

        disk._contents |= {new(number): content for number, content in moment.contents.items()}
        disk._durable = {new(number): content for number, content in moment.durable.items()}
        disk._passed = {new(number): before for number, before in moment.passed.items()}
        disk._durable_names = {place(at): new(number) for at, number in moment.durable_names.items()}
        disk._pending = [
            _Naming(
                new(naming.folder),
                {place(at): None if number is None else new(number) for at, number in naming.names.items()},
            )
            for naming in moment.pending
        ]
        return disk

    def moment(self) -> Moment:
        return Moment(
            self._number,
            dict(self._names),
            dict(self._contents),
            dict(self._durable_names),
            dict(self._durable),
            dict(self._passed),
            tuple(self._pending),
        )

    @contextmanager
    def followed(self, on_change: Callable[[Moment], None], on_flush: Callable[[Moment, str], bool]) -> Iterator[None]:
        """Follow this thread's calls; nothing else may change the folder.

        Args:
            on_change: told of all that is new, or newly durable.
            on_flush: told just before something is flushed, and by which lines; returns whether that is to be. Told
                at the end, too.
        """
        fsync, thread = os.fsync, threading.get_ident()

        def step(_: FrameType, event: str, function: Any) -> None:
            if event == "c_return" and is_change(function):
                sys.setprofile(None)
                self._look(on_change)
                sys.setprofile(step)

        def flush(descriptor: int) -> None:
            assert threading.get_ident() == thread, "so many files that threads flush them"
            sys.setprofile(None)
            self._look(on_change)
            if on_flush(self.moment(), _lines()):
                self._flush(os.fstat(descriptor).st_ino)
                on_change(self.moment())
            sys.setprofile(step)

        os.fsync = flush
        sys.setprofile(step)
        try:
            yield
        finally:
            sys.setprofile(None)
            os.fsync = fsync
        self._look(on_change)
        on_flush(self.moment(), END)

    def _look(self, on_change: Callable[[Moment], None]) -> None:
        """Note what has changed since the last time, which is a call's work."""
        names, contents = self._found()
        if names == self._names and all(self._contents.get(number, b"-") == now for number, now in contents.items()):
            return
        gone = {number: at for at, number in self._names.items() if names.get(at) != number}
        for at, number in names.items():
            if self._names.get(at) == number:
                continue
            named: dict[Place, int | None] = {at: number}
            if number in gone:
                named[gone[number]] = None
            self._pending.append(_Naming(at[0], named))
        for at in self._names.keys() - names.keys():
            if self._names[at] not in names.values():
                self._pending.append(_Naming(at[0], {at: None}))
        for number, now in contents.items():
            if (was := self._contents.get(number)) not in (None, now, self._durable[number]):
                self._passed[number] = (*self._passed.get(number, ()), was)
        self._names = names
        self._contents |= contents
        on_change(self.moment())

    def _flush(self, number: int) -> None:
        if self._contents.get(number) is not None:
            self._durable[number] = self._contents[number]
            self._passed.pop(number, None)
            return
        pending: list[_Naming] = []
        for naming in self._pending:
            if naming.folder != number:
                pending.append(naming)
                continue
            for at, named in naming.names.items():
                if named is None:
                    self._durable_names.pop(at, None)
                else:
                    self._durable_names[at] = named
            # What came before must not come after it.
            pending = [
                _Naming(other.folder, {at: named for at, named in other.names.items() if at not in naming.names})
                for other in pending
            ]
        self._pending = [naming for naming in pending if naming.names]

    def _found(self) -> tuple[dict[Place, int], dict[int, bytes | None]]:
        names: dict[Place, int] = {}
        contents: dict[int, bytes | None] = {}
        todo = [(self._number, self._root)]
        while todo:
            folder, path = todo.pop()
            for entry in os.scandir(path):
                number = names[folder, entry.name] = entry.inode()
                if entry.is_dir():
                    contents[number] = None
                    todo.append((number, Path(entry.path)))
                else:
                    contents[number] = Path(entry.path).read_bytes()
                if number not in self._durable:
                    self._durable[number] = None if entry.is_dir() else b""
                    if not entry.is_dir():
                        os.link(entry.path, self._kept / str(number))
        return names, contents


def write(tree: Mapping[str, bytes | None], root: Path) -> None:
    root.mkdir(parents=True)
    for path, content in sorted(tree.items()):
        if content is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(content)


@contextmanager
def unflushed() -> Iterator[None]:
    """Wait for no disk."""
    fsync = os.fsync
    os.fsync = lambda _: None
    try:
        yield
    finally:
        os.fsync = fsync


def _common_bytes(one: bytes, other: bytes) -> int:
    """Return how long both are the same from their beginning."""
    differ = (place for place, both in enumerate(zip(one, other, strict=False)) if both[0] != both[1])
    return next(differ, min(len(one), len(other)))


def _lines() -> str:
    """Return which line of the program has something flushed, and which one has called for that."""
    frame: FrameType | None = sys._getframe(2)
    lines: list[str] = []
    while frame is not None and len(lines) < 2:
        if not frame.f_code.co_name.startswith("_flush"):
            lines.append(f"{frame.f_code.co_name.strip('<>')}-{frame.f_lineno}")
        frame = frame.f_back
    return "-of-".join(lines)
