"""A storage folder whose files and reading position change together, or not at all.

A commit, in order; the process may die, and the machine lose power, between any two steps:

1. whole new versions of files are written aside, under ``.stream-app/staged``;
2. the lengths that files are about to grow to are noted in ``.stream-app/growing.json``;
3. what is new is appended to the files; all of this is flushed to disk;
4. ``.stream-app/checkpoint.json`` is replaced: THE commit. It has the reading position,
   each file's length, and which staged files are to take whose place;
5. the staged files are renamed.

At the start step 5 is done again, and what lies beyond a file's length is cut off if
step 2 announced it. A new file is staged too: so a file that the checkpoint does not
know was never ours, and is not touched.
"""

from __future__ import annotations

import fcntl
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from ingestor.core.errors import ConfigError, SinkError
from stream_app.sinks.base import Offsets, View

FORMAT_VERSION = 1

OWN_FOLDER = ".stream-app"
"""Everything in the storage that is not a file for users."""

_STAGED = f"{OWN_FOLDER}/staged"

_TAIL_BYTES = 4096
"""So much of a file's end is known by its checksum: an editor rarely leaves it as it was."""

_FLUSHERS = 8
"""Threads that wait for the disk; journaling file systems flush many waiting files in one go."""

_FEW_FILES = 8
"""Below this, threads cost more than they save."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a storage is bound to for good; offsets mean nothing anywhere else."""

    cluster: str
    topics: dict[str, str]
    """Each topic's id by its name: a topic that was deleted and made again has another."""
    options: dict[str, str]
    """What decides how files look: format and grouping."""


@dataclass(frozen=True, slots=True)
class FileState:
    """A file as of the last commit."""

    length: int
    tail_bytes: int
    tail_crc: int
    note: Any
    """What the sink wants to remember of the file; JSON."""


@dataclass(slots=True)
class _Checkpoint:
    identity: Identity
    generation: int = 0
    view: View | None = None
    offsets: Offsets = field(default_factory=dict)
    files: dict[str, FileState] = field(default_factory=dict)
    staged: dict[str, str] = field(default_factory=dict)
    """Name under ``staged`` by the path that it is to take."""


class Storage:
    """A folder of files that only this process writes.

    Paths are relative to the folder, with forward slashes. After an error only
    ``close`` is of use: the next start puts things right.
    """

    def __init__(self, folder: Path) -> None:
        """Make the folder, and lock it.

        Raises:
            ConfigError: the folder cannot be made or written, or another process writes it.
        """
        self.folder = folder
        self._own = folder / OWN_FOLDER
        self._staged_folder = folder / _STAGED
        # Joined by hand where it is done for each of thousands of files: a Path costs as much as the call.
        self._prefix = f"{folder}/"
        try:
            self._staged_folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self._own / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(f"{folder} cannot be written ({error.strerror}): choose another --storage") from error
        try:
            self._take_lock()
        except BaseException:
            os.close(self._lock)
            raise
        self._now = _Checkpoint(Identity("", {}, {}))
        self._next_files: dict[str, FileState] = {}
        self._appends: dict[str, bytes] = {}
        self._staged: dict[str, str] = {}
        self._grown: set[str] = set()

    @property
    def offsets(self) -> Mapping[str, Mapping[int, int]]:
        return self._now.offsets

    @property
    def view(self) -> View | None:
        return self._now.view

    @property
    def files(self) -> Mapping[str, FileState]:
        """All files as of the last commit."""
        return self._now.files

    def open(self, identity: Identity) -> None:
        """Bring the files to what the last commit says.

        Raises:
            ConfigError: the storage belongs to another topic, cluster, format or grouping.
            SinkError: a file was changed by something else.
        """
        checkpoint = self._read_checkpoint()
        if checkpoint is not None:
            self._check_identity(checkpoint.identity, identity)
        with self._sink_errors():
            self._now = checkpoint or _Checkpoint(identity)
            self._rename(self._now.staged)
            for leftover in self._staged_folder.iterdir():
                leftover.unlink()
            self._check_files()

    def path(self, name: str) -> Path:
        return self.folder / name

    @contextmanager
    def reading(self, name: str) -> Iterator[BinaryIO]:
        """Open a file that is there.

        Raises:
            SinkError: it was changed by something else, or cannot be read.
        """
        with self._sink_errors():
            try:
                file = self.path(name).open("rb")
            except FileNotFoundError:
                raise self._changed(name, "it is gone") from None
            with file:
                self._check_length(name, os.fstat(file.fileno()).st_size)
                try:
                    yield file
                except ValueError as error:
                    raise self._changed(name, str(error)) from error

    def append(self, name: str, data: bytes, note: Any) -> None:
        """Let the next commit add *data* to the end of a file that is there."""
        was = self._now.files[name]
        tail = data[-_TAIL_BYTES:]
        self._appends[name] = data
        self._next_files[name] = FileState(was.length + len(data), len(tail), zlib.crc32(tail), note)

    def replace(self, name: str, parts: Iterable[bytes], note: Any) -> None:
        """Let the next commit put a file of *parts* in the place of what is there, if anything.

        Raises:
            SinkError: there is no space, or a file of this name is there that is not ours.
        """
        # A name of this commit alone: the checkpoint that is in force must not know it.
        temporary = f"{self._now.generation + 1}-{len(self._staged)}"
        if name not in self._now.files:
            self._check_place(name)
        with self._sink_errors(), (self._staged_folder / temporary).open("w+b") as file:
            self._staged[name] = temporary
            file.writelines(parts)
            file.flush()
            length = file.tell()
            self._next_files[name] = FileState(length, *_tail(file, length), note)

    def commit(self, offsets: Mapping[str, Mapping[int, int]], view: View | None) -> None:
        """Make all appends and replacements durable together with *offsets* and *view*.

        Raises:
            SinkError: the disk is full or broken, or a file was changed by something else.
        """
        now, copied = self._now, {topic: dict(at) for topic, at in offsets.items()}
        if not self._next_files and copied == now.offsets and view == now.view:
            return
        generation = now.generation + 1
        following = _Checkpoint(now.identity, generation, view, copied, now.files | self._next_files, self._staged)
        with self._sink_errors():
            try:
                self._write_files(generation)
                written = _written_aside(self._own / "checkpoint.json", _encoded(following))
            except BaseException:
                self._take_back()
                raise
            # From here on nothing is taken back: the new checkpoint may be in force.
            _put_in_place(written)
            self._now = following
            self._rename(self._staged)
        self._next_files, self._appends, self._staged, self._grown = {}, {}, {}, set()

    def close(self) -> None:
        """Let another process have the folder."""
        os.close(self._lock)

    def _check_place(self, name: str) -> None:
        """Find out now that a new file cannot have its name: after the commit it would be too late."""
        with self._sink_errors():
            _make_folder(self.path(name).parent)
            with suppress(FileNotFoundError):
                self.path(name).lstat()
                raise SinkError(
                    f"{self.path(name)} was not written from here: move it away, or choose another --storage"
                )

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._lock, 32, 0).decode(errors="replace").strip() or "unknown"
            raise ConfigError(
                f"{self.folder} is being written by another process (pid {holder}): "
                "stop that one, or choose another --storage"
            ) from error
        except OSError as error:
            raise ConfigError(
                f"{self.folder} cannot be locked ({error.strerror}): choose a --storage on a local disk"
            ) from error
        try:
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            raise ConfigError(f"{self.folder} cannot be written ({error.strerror}): free some space") from error

    def _read_checkpoint(self) -> _Checkpoint | None:
        path = self._own / "checkpoint.json"
        try:
            return _decoded(orjson.loads(path.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SinkError(
                f"{path} cannot be read ({error!r}): restore it, or choose another --storage to write all files anew"
            ) from error

    def _check_identity(self, was: Identity, asked: Identity) -> None:
        differences = [
            f"{name} is {asked_value!r}, was {was_value!r}"
            for name, asked_value, was_value in (
                *((o, asked.options.get(o), was.options.get(o)) for o in sorted(asked.options | was.options)),
                ("cluster", asked.cluster, was.cluster),
                *((f"topic {t}", asked.topics.get(t), was.topics.get(t)) for t in sorted(asked.topics | was.topics)),
            )
            if asked_value != was_value
        ]
        if differences:
            raise ConfigError(f"{self.folder} holds other data ({'; '.join(differences)}): choose another --storage")

    def _check_files(self) -> None:
        """Cut what a commit that did not happen has appended, and refuse files that are not as we left them."""
        growing = self._read_growing()
        for name, state in self._now.files.items():
            path = self.path(name)
            try:
                file = path.open("r+b")
            except FileNotFoundError:
                raise self._changed(name, "it is gone") from None
            with file:
                length = os.fstat(file.fileno()).st_size
                if not state.length < length <= growing.get(name, 0):
                    self._check_length(name, length)
                if _tail(file, state.length, state.tail_bytes) != (state.tail_bytes, state.tail_crc):
                    raise self._changed(name, "its end is another")
                if length != state.length:
                    file.truncate(state.length)
                    os.fsync(file.fileno())

    def _check_length(self, name: str, length: int) -> None:
        if length != (had := self._now.files[name].length):
            raise self._changed(name, f"it has {length} bytes, and had {had}")

    def _read_growing(self) -> dict[str, int]:
        """Return the lengths that files were about to reach when the process died, if it did."""
        try:
            growing = orjson.loads((self._own / "growing.json").read_bytes())
        except FileNotFoundError:
            return {}
        lengths: dict[str, int] = growing["files"] if growing["generation"] == self._now.generation + 1 else {}
        return lengths

    def _write_files(self, generation: int) -> None:
        _for_each(lambda temporary: _flush(f"{self._prefix}{_STAGED}/{temporary}"), self._staged.values())
        if self._staged:
            _flush(self._staged_folder)
        if self._appends:
            lengths = {name: self._next_files[name].length for name in self._appends}
            noted = orjson.dumps({"generation": generation, "files": lengths})
            _put_in_place(_written_aside(self._own / "growing.json", noted))
        _for_each(self._append, self._appends)

    def _append(self, name: str) -> None:
        descriptor = os.open(self._prefix + name, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            self._check_length(name, os.fstat(descriptor).st_size)
            self._grown.add(name)
            rest = memoryview(self._appends[name])
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _take_back(self) -> None:
        """Leave the files as of the last commit, as far as the disk lets us; the next start does the rest."""
        with suppress(OSError):
            for name in self._grown:
                os.truncate(self.path(name), self._now.files[name].length)
            # What a file has beyond its length is now no longer ours to cut.
            (self._own / "growing.json").unlink(missing_ok=True)
        for temporary in self._staged.values():
            with suppress(OSError):
                (self._staged_folder / temporary).unlink()

    def _rename(self, staged: Mapping[str, str]) -> None:
        """Put staged files in their places; those that are not there any more have been."""
        folders = {self.path(name).parent for name in staged}
        for folder in folders:
            _make_folder(folder)
        for name, temporary in staged.items():
            with suppress(FileNotFoundError):
                os.replace(f"{self._prefix}{_STAGED}/{temporary}", self._prefix + name)  # noqa: PTH105 - see _prefix
        for folder in (*folders, self._staged_folder) if staged else ():
            _flush(folder)

    def _changed(self, name: str, how: str) -> SinkError:
        return SinkError(
            f"{self.path(name)} was changed by something else ({how}): put it back as it was, "
            "or choose another --storage to write all files anew from what Kafka still has"
        )

    @contextmanager
    def _sink_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SinkError(
                f"{error.filename or self.folder} cannot be written ({error.strerror}): free some space or mend "
                "the disk, and start again; nothing is lost, all goes on from the last commit"
            ) from error


def _encoded(checkpoint: _Checkpoint) -> bytes:
    fields = {"version": FORMAT_VERSION} | {name: getattr(checkpoint, name) for name in _Checkpoint.__slots__}
    return orjson.dumps(fields, option=orjson.OPT_NON_STR_KEYS)


def _decoded(fields: dict[str, Any]) -> _Checkpoint:
    if fields["version"] != FORMAT_VERSION:
        raise ConfigError(f"the storage was written by another version of podstream ({fields['version']}): update it")
    return _Checkpoint(
        identity=Identity(**fields["identity"]),
        generation=fields["generation"],
        view=View(**fields["view"]) if fields["view"] else None,
        offsets={topic: {int(p): at for p, at in offsets.items()} for topic, offsets in fields["offsets"].items()},
        files={name: FileState(**state) for name, state in fields["files"].items()},
        staged=fields["staged"],
    )


def _tail(file: BinaryIO, length: int, tail_bytes: int = _TAIL_BYTES) -> tuple[int, int]:
    """Return size and checksum of the last *tail_bytes* before *length*."""
    tail_bytes = min(tail_bytes, length)
    file.seek(length - tail_bytes)
    return tail_bytes, zlib.crc32(file.read(tail_bytes))


def _written_aside(path: Path, data: bytes) -> Path:
    """Write what *path* is to hold under another name, to disk, and return that name."""
    aside = path.with_name(path.name + ".new")
    with aside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return aside


def _put_in_place(aside: Path) -> None:
    aside.replace(aside.with_suffix(""))
    _flush(aside.parent)


def _flush(path: Path | str) -> None:
    """Wait until a file, or a folder's names, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir()
        _flush(folder.parent)


def _for_each(work: Callable[[str], None], names: Iterable[str]) -> None:
    """Do *work* for each name, several at a time where there are many; all are over when this returns or raises."""
    todo = list(names)
    if len(todo) <= _FEW_FILES:
        for name in todo:
            work(name)
        return

    def share(first: int) -> None:
        for name in todo[first::_FLUSHERS]:
            work(name)

    with ThreadPoolExecutor(_FLUSHERS) as pool:
        futures = [pool.submit(share, first) for first in range(_FLUSHERS)]
    for future in futures:
        future.result()
