"""What the local servers share: a child process that listens on a port, and can be started there again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from ingestor.local.processes import Child, PortTakenError, free_port, is_free

_PORT_ATTEMPTS = 5
"""Another process can take a port between our choice and the server's start."""


class Server(ABC):
    """A server on 127.0.0.1 only, with its data in a folder; it ends with this process.

    Args:
        folder: made if missing.
        port: the listener; None chooses one at the first start, and this object keeps it.
    """

    name: ClassVar[str]

    def __init__(self, folder: Path, port: int | None) -> None:
        self.folder = folder.absolute()
        self._port = port
        self._child: Child | None = None

    @abstractmethod
    def _launch(self, port: int) -> Child:
        """Start the process."""

    @abstractmethod
    def _wait_until_ready(self, child: Child, port: int) -> None:
        """Wait until it answers; raise `PortTakenError` where somebody else has the port."""

    def start(self) -> Self:
        """Start the server and wait until it answers.

        Raises:
            ConfigError: something that it needs is missing, the port is taken, or it ended; the
                message has its last words.
        """
        if self._child is not None and self._child.poll() is None:
            raise RuntimeError(f"{self.name} is running already")
        if self._port is not None and not is_free(self._port):
            raise PortTakenError(f"port {self._port} of 127.0.0.1 is taken: stop its owner or choose another port")
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            port = self._port or free_port()
            child = self._launch(port)
            try:
                self._wait_until_ready(child, port)
            except BaseException as error:
                child.kill()
                if isinstance(error, PortTakenError) and attempt < _PORT_ATTEMPTS:
                    continue
                raise
            self._child, self._port = child, port
            break
        return self

    def stop(self, timeout_s: float = 60.0) -> None:
        """Shut the server down in order; after *timeout_s* seconds, kill it, which a broker's data may not like."""
        if self._child is not None:
            self._child.stop(timeout_s)

    def kill(self) -> None:
        """End the server as a power cut would (SIGKILL)."""
        if self._child is not None:
            self._child.kill()

    def poll(self) -> int | None:
        """Return the server's exit code, or None while it runs (or was never started)."""
        return None if self._child is None else self._child.poll()

    @property
    def port(self) -> int:
        """The listener; known from the first start on, or where it was given."""
        if self._port is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._port

    @property
    def pid(self) -> int:
        """The server's process id."""
        if self._child is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._child.pid

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
