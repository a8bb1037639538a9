"""Prometheus and promtool: found on PATH, or taken out of the distribution's package without installing it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from ingestor.core.errors import ConfigError
from ingestor.local.cache import cache_folder, filled_once
from ingestor.local.debian import take_programs
from ingestor.local.http_server import HttpServer
from ingestor.local.processes import Child, run


@dataclass(frozen=True, slots=True)
class Binaries:
    """Paths of the two programs."""

    prometheus: Path
    promtool: Path


class LocalPrometheus(HttpServer):
    """A Prometheus on 127.0.0.1 only, with its data in a folder, that never forgets (retention 100 years).

    It ends with this process (see :class:`~ingestor.local.processes.Child`). The folder gets
    ``prometheus.yml``, ``prometheus.log`` and ``data``; blocks made by :func:`create_blocks` go into ``data``.
    """

    name = "Prometheus"

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        config: str | Mapping[str, Any] | None = None,
        extra_args: Sequence[str] = (),
        program: Path | None = None,
    ) -> None:
        """Describe the server; nothing runs yet.

        Args:
            folder: as those of `HttpServer`, and so are *port*, *config* and *extra_args*.
            port: the listener.
            config: what it scrapes.
            extra_args: a repeated flag is an error of Prometheus.
            program: another Prometheus than that of :func:`find_binaries`.
        """
        super().__init__(folder, port=port, config=config, extra_args=extra_args)
        self._program = program

    def _launch(self, port: int) -> Child:
        return Child(self._command(port), log_path=self.folder / "prometheus.log").start()

    def _answers(self, session: requests.Session, url: str) -> bool | None:
        if not session.get(f"{url}/-/ready", timeout=1.0).ok:
            return None
        flags = session.get(f"{url}/api/v1/status/flags", timeout=5.0).json()
        return bool(flags["data"]["storage.tsdb.path"] == str(self.data_dir))

    def _command(self, port: int) -> list[str | Path]:
        return [
            self._program or find_binaries().prometheus,
            f"--config.file={self._write_config('prometheus.yml')}",
            f"--storage.tsdb.path={self.data_dir}",
            "--storage.tsdb.retention.time=100y",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
            *self._extra_args,
        ]


def find_binaries() -> Binaries:
    """Return the two programs: from PATH, else from the cache, else out of the distribution's package.

    Raises:
        ConfigError: none of the three ways works; the message has the line to type.
    """
    if (found := on_path()) is not None:
        return found
    folder = filled_once(binary_folder(), _unpack_package)
    return Binaries(folder / "prometheus", folder / "promtool")


def on_path() -> Binaries | None:
    """Return the two programs from PATH, if both are there."""
    server, tool = shutil.which("prometheus"), shutil.which("promtool")
    return Binaries(Path(server), Path(tool)) if server and tool else None


def binary_folder() -> Path:
    """Return where the programs are cached, or will be."""
    return cache_folder() / "prometheus"


def create_blocks(openmetrics_file: Path, data_dir: Path) -> None:
    """Write the samples of an OpenMetrics text into TSDB blocks, which a server started later on *data_dir* serves.

    Args:
        openmetrics_file: samples with time stamps in seconds, those of one metric together, ``# EOF`` at the end.
        data_dir: :attr:`LocalPrometheus.data_dir`; made if missing. A running server sees new blocks
            only at its next compaction cycle.

    Raises:
        ConfigError: promtool refuses the file; the message is its own.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    command: list[str | Path] = [
        find_binaries().promtool,
        "tsdb",
        "create-blocks-from",
        "openmetrics",
        openmetrics_file,
        data_dir,
    ]
    done = run(command)
    if done.returncode != 0:
        raise ConfigError(f"promtool refuses {openmetrics_file}: {(done.stderr or done.stdout).strip()}")


def _unpack_package(target: Path) -> None:
    advice = "no Prometheus here: apt-get install prometheus (as root), or put prometheus and promtool on PATH"
    take_programs("prometheus", ["prometheus", "promtool"], target, advice)
