"""What local servers that speak HTTP share: their URL, and the wait until this very server answers."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import requests
import yaml

from ingestor.core.errors import ConfigError
from ingestor.local.processes import Child, PortTakenError
from ingestor.local.server import Server

START_TIMEOUT_S = 180.0
"""A start takes well below a second; replaying a large write-ahead log on a busy machine takes longer."""


class HttpServer(Server):
    """A `Server` with an HTTP API, and a configuration as Prometheus has it.

    Args:
        folder: made if missing; the data goes into ``data`` below it.
        port: the listener; None chooses one at the first start, and this object keeps it.
        config: the configuration as YAML or as what that YAML means; None scrapes nothing.
        extra_args: more flags.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        config: str | Mapping[str, Any] | None = None,
        extra_args: Sequence[str] = (),
    ) -> None:
        super().__init__(folder, port)
        self._config = config
        self._extra_args = list(extra_args)

    @property
    def data_dir(self) -> Path:
        """Where the samples are."""
        return self.folder / "data"

    def _write_config(self, name: str) -> Path:
        """Write the configuration, and make the folders; return its file."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        path = self.folder / name
        config = self._config
        path.write_text(config if isinstance(config, str) else yaml.safe_dump(dict(config or {"global": {}})))
        return path

    @property
    def url(self) -> str:
        """The base URL, without a slash at its end; known from the first start on, or from the port that was given."""
        return f"http://127.0.0.1:{self.port}"

    @abstractmethod
    def _answers(self, session: requests.Session, url: str) -> bool | None:
        """Ask once: True if this server is ready, False if another one has the port, None if it is too early."""

    def _wait_until_ready(self, child: Child, port: int) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        with requests.Session() as session:
            session.trust_env = False  # A proxy from the environment does not know our loopback.
            while time.monotonic() < deadline:
                if child.poll() is not None:
                    last_words = child.log_tail()
                    kind = PortTakenError if "address already in use" in last_words else ConfigError
                    raise kind(f"{self.name} ended while starting; {child.log_path} says:\n{last_words}")
                try:
                    ready = self._answers(session, f"http://127.0.0.1:{port}")
                except (requests.RequestException, ValueError, KeyError, TypeError):
                    ready = None
                if ready:
                    return
                if ready is False:
                    raise PortTakenError(f"another {self.name} answers on port {port}: stop it or choose another port")
                time.sleep(0.02)
        raise ConfigError(
            f"{self.name} was not ready within {START_TIMEOUT_S:.0f} s; {child.log_path} says:\n{child.log_tail()}"
        )
