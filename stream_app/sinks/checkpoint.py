"""A storage folder whose files and reading position change together, or not at all.

A commit, in order; the process may die, and the machine lose power, between any two steps:

1. whole new versions of files are written aside, under ``.stream-app/staged``;
2. the lengths that files are about to grow to are noted in ``.stream-app/growing.json``;
3. what is new is appended to the files; all of this is flushed to disk;
4. a line is added to ``.stream-app/checkpoint.log``: THE commit. It has the reading
   position, the lengths of files that have changed, which files go, and which staged files
   are to take whose place. Once the log is longer than what it adds to,
   ``.stream-app/checkpoint.json`` is replaced by the whole instead, and the log emptied;
5. folder by folder, the files that go are removed, then the staged files are renamed.

At the start the checkpoint is flushed, for who wrote it may have been killed before it
was on disk; then step 5 is done again, and what lies beyond a file's length is cut off if
step 2 announced it. A new file is staged too: so a file that the checkpoint does not
know was never ours, and is not touched. A line of the log that is not whole is a commit
that did not happen, if it is the last one.

Who reads files while step 5 is done can miss, for an instant, what moves from files that
go into one that comes, or be told that a file is gone; nobody sees it twice or in half.
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
from typing import Any, BinaryIO, NamedTuple

import orjson

from ingestor.core.errors import ConfigError, SinkError
from stream_app.sinks.base import Offsets, View

FORMAT_VERSION = 2

OWN_FOLDER = ".stream-app"
"""Everything in the storage that is not a file for users."""

_STAGED = f"{OWN_FOLDER}/staged"

_TAIL_BYTES = 4096
"""So much of a file's end is known by its checksum: an editor rarely leaves it as it was."""

_LEAST_LOG_BYTES = 1_000_000
"""A shorter log is not worth a new whole."""

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


class FileState(NamedTuple):
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
    removed: list[str] = field(default_factory=list)
    """Of the last commit: what it lets go of."""
    staged: dict[str, str] = field(default_factory=dict)
    """Of the last commit: name under ``staged`` by the path that it is to take."""

    def add(self, change: _Change) -> None:
        """Go on to the next commit."""
        self.generation, self.view, self.offsets = change.generation, change.view, change.offsets
        self.removed, self.staged = change.removed, change.staged
        self.files.update(change.files)
        for name in change.removed:
            del self.files[name]


@dataclass(frozen=True, slots=True)
class _Change:
    """What a commit changes: a line of the log. *view* and *offsets* are whole, *files* are those that are new."""

    generation: int
    view: View | None
    offsets: Offsets
    files: dict[str, FileState]
    removed: list[str]
    staged: dict[str, str]


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
            missing = [parent for parent in folder.parents if not parent.exists()]
            self._staged_folder.mkdir(parents=True, exist_ok=True)
            if not (self._own / "checkpoint.json").exists():
                # Who has made these may have died before they were on disk.
                _flush(self._own)
                _flush(folder)
                for made in (folder, *missing):
                    # Not every folder above can be flushed: we may not list it, or it is there to be mounted in.
                    with suppress(OSError):
                        _flush(made.parent)
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
        self._removed: list[str] = []
        self._grown: set[str] = set()
        self._folders: set[str] = set()
        self._whole_bytes = self._log_bytes = 0

    @property
    def generation(self) -> int:
        """The number of the last commit."""
        return self._now.generation

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
            for name in self._now.files:
                self._know_folder(name)
            self._put_in_place(self._now.removed, self._now.staged)
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

    def remove(self, name: str) -> None:
        """Let the next commit let go of a file that is there."""
        self._removed.append(name)

    def commit(self, offsets: Mapping[str, Mapping[int, int]], view: View | None) -> None:
        """Make all appends, replacements and removals durable together with *offsets* and *view*.

        Raises:
            SinkError: the disk is full or broken, or a file was changed by something else.
        """
        now, copied = self._now, {topic: dict(at) for topic, at in offsets.items()}
        if not self._next_files and not self._removed and copied == now.offsets and view == now.view:
            return
        change = _Change(now.generation + 1, view, copied, self._next_files, self._removed, self._staged)
        with self._sink_errors():
            try:
                self._write_files(change.generation)
                write_whole = not self._whole_bytes or self._log_bytes > max(_LEAST_LOG_BYTES, self._whole_bytes)
                flush = (self._prepare_whole if write_whole else self._add_to_log)(change)
            except BaseException:
                self._take_back()
                raise
            # From here on nothing is taken back: the commit may be in force.
            flush()
            now.add(change)
            self._put_in_place(change.removed, change.staged)
        self._next_files, self._appends, self._staged, self._removed, self._grown = {}, {}, {}, [], set()

    def close(self) -> None:
        """Let another process have the folder."""
        os.close(self._lock)

    def _check_place(self, name: str) -> None:
        """Find out now that a new file cannot have its name: after the commit it would be too late."""
        with self._sink_errors():
            self._make_folder_of(name)
            with suppress(FileNotFoundError):
                self.path(name).lstat()
                raise SinkError(
                    f"{self.path(name)} was not written from here: move it away, or choose another --storage"
                )

    def _make_folder_of(self, name: str) -> None:
        """Make the folder of a file, and those that it is in, and wait for the disk where they may not be on it yet."""
        folder = name.rpartition("/")[0]
        if not folder or (folder in self._folders and self.path(folder).is_dir()):
            return
        self._make_folder_of(folder)
        self.path(folder).mkdir(exist_ok=True)
        _flush(self.path(folder).parent)
        self._folders.add(folder)

    def _know_folder(self, name: str) -> None:
        """Take the folders of a committed file for flushed."""
        while (name := name.rpartition("/")[0]) and name not in self._folders:
            self._folders.add(name)

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
            whole = path.read_bytes()
            checkpoint = _decoded(orjson.loads(whole))
            path = self._own / "checkpoint.log"
            for change in self._read_log(checkpoint.generation):
                checkpoint.add(change)
            # We are to build on it, and who has written it may have died before it was on disk.
            if path.exists():
                _flush(path)
            _flush(self._own)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SinkError(
                f"{path} cannot be read ({error!r}): restore it, or choose another --storage to write all files anew"
            ) from error
        self._whole_bytes = len(whole)
        return checkpoint

    def _read_log(self, generation: int) -> Iterator[_Change]:
        """Yield what comes after *generation*, and cut off a commit that did not happen.

        Raises:
            ValueError: a line is broken that is not the last one.
        """
        path = self._own / "checkpoint.log"
        content = path.read_bytes() if path.exists() else b""
        for line in content.splitlines(keepends=True):
            change = _decoded_change(line)
            if change is None:
                if self._log_bytes + len(line) < len(content):
                    raise ValueError(f"the line at byte {self._log_bytes} is broken")
                os.truncate(path, self._log_bytes)
                return
            self._log_bytes += len(line)
            # Older ones are in the whole already, if the process died before it could empty the log.
            if change.generation > generation:
                generation += 1
                if change.generation != generation:
                    raise ValueError(f"commit {generation} is missing")
                yield change

    def _prepare_whole(self, change: _Change) -> Callable[[], None]:
        """Write all aside as it is after *change*; return what makes that the commit."""
        now = self._now
        gone = set(change.removed)
        files = {name: state for name, state in (now.files | change.files).items() if name not in gone}
        whole = _Checkpoint(
            now.identity, change.generation, change.view, change.offsets, files, change.removed, change.staged
        )
        encoded = _encoded(whole)
        aside = _written_aside(self._own / "checkpoint.json", encoded)

        def put_in_place() -> None:
            _put_in_place(aside)
            log = os.open(self._own / "checkpoint.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            os.close(log)
            self._whole_bytes, self._log_bytes = len(encoded), 0

        return put_in_place

    def _add_to_log(self, change: _Change) -> Callable[[], None]:
        """Add *change* to the log; return what brings it to disk."""
        line = _encoded_change(change)
        path = self._own / "checkpoint.log"
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _write_all(descriptor, line)
        except BaseException:
            with suppress(OSError):
                os.ftruncate(descriptor, self._log_bytes)
            os.close(descriptor)
            raise
        is_new = not self._log_bytes

        def flush() -> None:
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if is_new:
                _flush(self._own)
            self._log_bytes += len(line)

        return flush

    def _check_identity(self, was: Identity, asked: Identity) -> None:
        differences = [
            f"{name} is {_spelled(asked_value)}, was {_spelled(was_value)}"
            for name, asked_value, was_value in (
                *((o, asked.options.get(o), was.options.get(o)) for o in sorted(asked.options | was.options)),
                ("cluster", asked.cluster, was.cluster),
                *((f"topic {t}", asked.topics.get(t), was.topics.get(t)) for t in sorted(asked.topics | was.topics)),
            )
            if asked_value != was_value
        ]
        if differences:
            raise ConfigError(
                f"{self.folder} holds other data ({'; '.join(differences)}): "
                "give the flags that it was begun with, or choose another --storage"
            )

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
                # Of one that has its length again, we may have died before that was on disk.
                if name in growing:
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
            _write_all(descriptor, self._appends[name])
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _take_back(self) -> None:
        """Leave the files as of the last commit, as far as the disk lets us; the next start does the rest."""
        with suppress(OSError):
            for name in self._grown:
                with self.path(name).open("r+b") as file:
                    file.truncate(self._now.files[name].length)
                    os.fsync(file.fileno())
            # What a file has beyond its length is now no longer ours to cut.
            (self._own / "growing.json").unlink(missing_ok=True)
        for temporary in self._staged.values():
            with suppress(OSError):
                (self._staged_folder / temporary).unlink()

    def _put_in_place(self, removed: Iterable[str], staged: Mapping[str, str]) -> None:
        """Let go of files and rename the staged ones; those that are not there any more have been done before.

        What goes goes first: a reader whose list of a folder has both finds that it cannot open what went.
        """
        gone, coming = _by_folder(removed), _by_folder(staged)
        for folder in sorted(gone.keys() | coming.keys()):
            for name in gone.get(folder, ()):
                with suppress(FileNotFoundError):
                    os.unlink(self._prefix + name)  # noqa: PTH108 - see _prefix
            if names := coming.get(folder):
                self._make_folder_of(names[0])
            for name in names or ():
                with suppress(FileNotFoundError):
                    os.replace(f"{self._prefix}{_STAGED}/{staged[name]}", self._prefix + name)  # noqa: PTH105 - same
        # Not that of the staged files: a name that comes back there is a leftover, for no later commit has it.
        _for_each(self._flush_folder, sorted(gone.keys() | coming.keys()))

    def _flush_folder(self, folder: str) -> None:
        # What went may have been all that a folder had, and somebody may have tidied up since.
        with suppress(FileNotFoundError):
            _flush(self._prefix + folder)

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


def _spelled(value: str | None) -> str:
    return "the default" if value is None else repr(value)


def _encoded(checkpoint: _Checkpoint) -> bytes:
    fields = {"version": FORMAT_VERSION} | {name: getattr(checkpoint, name) for name in _Checkpoint.__slots__}
    return orjson.dumps(fields, default=tuple, option=orjson.OPT_NON_STR_KEYS)


def _decoded(fields: dict[str, Any]) -> _Checkpoint:
    if fields["version"] != FORMAT_VERSION:
        raise ConfigError(
            f"the storage was written by another version of podstream (its checkpoint has version {fields['version']}, "
            f"not {FORMAT_VERSION}): update podstream, or choose another --storage"
        )
    return _Checkpoint(
        identity=Identity(**fields["identity"]),
        generation=fields["generation"],
        view=_decoded_view(fields["view"]),
        offsets=_decoded_offsets(fields["offsets"]),
        files={name: FileState(*state) for name, state in fields["files"].items()},
        removed=fields["removed"],
        staged=fields["staged"],
    )


def _encoded_change(change: _Change) -> bytes:
    """Return a line: a checksum of what follows, and the change."""
    fields = {name: getattr(change, name) for name in _Change.__slots__}
    content = orjson.dumps(fields, default=tuple, option=orjson.OPT_NON_STR_KEYS)
    return b"%08x %b\n" % (zlib.crc32(content), content)


def _decoded_change(line: bytes) -> _Change | None:
    """Read a line; None: it is not whole."""
    content = line[9:-1]
    if line != b"%08x %b\n" % (zlib.crc32(content), content):
        return None
    fields = orjson.loads(content)
    fields["view"], fields["offsets"] = _decoded_view(fields["view"]), _decoded_offsets(fields["offsets"])
    fields["files"] = {name: FileState(*state) for name, state in fields["files"].items()}
    return _Change(**fields)


def _decoded_view(fields: dict[str, str] | None) -> View | None:
    return View(**fields) if fields else None


def _decoded_offsets(offsets: dict[str, dict[str, int]]) -> Offsets:
    return {topic: {int(p): at for p, at in partitions.items()} for topic, partitions in offsets.items()}


def _by_folder(names: Iterable[str]) -> dict[str, list[str]]:
    folders: dict[str, list[str]] = {}
    for name in names:
        folders.setdefault(name.rpartition("/")[0], []).append(name)
    return folders


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


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
