"""Child processes that end with their parent, however the parent ends."""

from __future__ import annotations

import atexit
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from ingestor.core.errors import ConfigError

PIPE = subprocess.PIPE


class PortTakenError(ConfigError):
    """Another process listens on the port."""


class Child:
    """A child process in a session of its own, so that a terminal's Ctrl-C reaches only the parent.

    On Linux the kernel kills the child when the thread that called :meth:`start` ends, by whatever
    means: start it from a thread that lives as long as the child should (usually the main one).
    Elsewhere it is stopped when the interpreter exits, which SIGKILL prevents.
    """

    def __init__(
        self,
        args: Sequence[str | Path],
        *,
        log_path: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdout: int | None = None,
        death_signal: signal.Signals = signal.SIGKILL,
    ) -> None:
        """Describe the process; nothing runs yet.

        Args:
            args: program and arguments; the program is looked up on PATH.
            log_path: standard output and error are appended here.
            env: the whole environment, or None for the parent's.
            cwd: working directory, or None for the parent's.
            death_signal: what the kernel sends it when this process dies (Linux).
            stdout: ``PIPE`` to read standard output from :attr:`stdout`; the log then has only errors.
        """
        self.args = [str(arg) for arg in args]
        self.log_path = log_path
        self._env = None if env is None else dict(env)
        self._cwd = cwd
        self._stdout = stdout
        self._death_signal = death_signal
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start the process.

        Raises:
            ConfigError: there is no such program.
            RuntimeError: it is running already.
        """
        if self._process is not None and self._process.poll() is None:
            raise RuntimeError(f"{self.args[0]} is running already")
        if shutil.which(self.args[0]) is None:
            raise ConfigError(f"{self.args[0]} cannot be run: no such program")
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                guarded(self.args, self._death_signal),
                stdin=subprocess.DEVNULL,
                stdout=log if self._stdout is None else self._stdout,
                stderr=log,
                env=self._env,
                cwd=self._cwd,
                start_new_session=True,
            )
        atexit.register(self.stop)
        return self

    def stop(self, timeout_s: float = 15.0) -> int | None:
        """Ask the process to end (SIGTERM), then kill it and its group; return its exit code.

        Args:
            timeout_s: seconds between the two; a broker with data needs about one.

        Returns:
            The exit code, minus the signal's number where a signal ended it, or None if it never ran.
        """
        process = self._process
        if process is None:
            return None
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.kill()
        atexit.unregister(self.stop)
        return process.returncode

    def kill(self) -> None:
        """End the process and its group at once (SIGKILL)."""
        process = self._process
        if process is not None and process.poll() is None:
            # Not reaped yet, so the number cannot have gone to somebody else's group.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        atexit.unregister(self.stop)

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait for the process to end by itself and return its exit code.

        Raises:
            TimeoutError: it still runs after *timeout_s* seconds.
        """
        if self._process is None:
            raise RuntimeError(f"{self.args[0]} was not started")
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"{self.args[0]} still runs after {timeout_s} s") from error

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs (or was never started)."""
        return None if self._process is None else self._process.poll()

    @property
    def pid(self) -> int:
        """The process id, which is also that of its session and group."""
        if self._process is None:
            raise RuntimeError(f"{self.args[0]} was not started")
        return self._process.pid

    @property
    def stdout(self) -> IO[bytes]:
        """Standard output, when it was asked for with ``stdout=PIPE``."""
        if self._process is None or self._process.stdout is None:
            raise RuntimeError(f"{self.args[0]} has no pipe: start it with stdout=PIPE")
        return self._process.stdout

    def log_tail(self, lines: int = 20) -> str:
        """Return the log's last *lines* lines, for an error message."""
        try:
            with self.log_path.open(errors="replace") as log:
                return "".join(deque(log, lines)).strip()
        except FileNotFoundError:
            return ""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()


def run(
    args: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a short program to its end, with its output captured; it too ends with this process."""
    return subprocess.run(
        guarded([str(arg) for arg in args]),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        cwd=cwd,
        env=env,
    )


# From the kernel's prctl.h.
_PR_SET_PDEATHSIG = 1

# Runs between fork and exec as a program of its own. Popen's preexec_fn would run Python in a copy of
# this process, where the locks of other threads (librdkafka, Arrow, numba) may be held for ever.
_GUARD = f"""
import ctypes, os, signal, sys
if ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, int(sys.argv[2]), 0, 0, 0) or os.getppid() != int(sys.argv[1]):
    os._exit({128 + signal.SIGKILL})  # The parent was gone before the kernel knew whom to watch.
for number in signal.SIGPIPE, signal.SIGXFSZ:
    signal.signal(number, signal.SIG_DFL)  # Python ignores these, and exec would pass that on.
os.execvp(sys.argv[3], sys.argv[3:])
"""


def guarded(args: list[str], death_signal: signal.Signals = signal.SIGKILL) -> list[str]:
    """Return the command that becomes *args* and gets *death_signal* when this process dies; on Linux, else *args*."""
    if sys.platform != "linux":
        return args
    return [sys.executable, "-I", "-S", "-c", _GUARD, str(os.getpid()), str(int(death_signal)), *args]


_PORTS_HELD = 64
_held: deque[int] = deque()
"""Descriptors of the names that say which ports were given out here last."""


def free_port() -> int:
    """Return a TCP port on 127.0.0.1 that nobody listens on at this moment, and that no other process of ours gets.

    Below the ports that the kernel gives to outgoing connections: a client that tries to reconnect to
    a stopped server there can be given the very port it calls, connects to itself, and keeps the
    server from coming back.
    """
    while not (is_free(port := random.randint(20_000, 32_000)) and _hold(port)):  # noqa: S311 - not a secret
        pass
    return port


def _hold(port: int) -> bool:
    """Keep a port for the server that is to listen there, and to come back there; False: another process does."""
    if sys.platform != "linux":
        return True
    # A name without a file, which the kernel forgets with its last descriptor.
    name = socket.socket(socket.AF_UNIX)
    try:
        name.bind(f"\0podstream-port-{port}")
    except OSError:
        name.close()
        return False
    _held.append(name.detach())
    if len(_held) > _PORTS_HELD:
        os.close(_held.popleft())
    return True


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
