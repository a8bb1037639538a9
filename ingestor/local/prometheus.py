"""Prometheus and promtool: found on PATH, or taken out of the distribution's package without installing it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import yaml

from ingestor.core.errors import ConfigError
from ingestor.local.cache import cache_folder, filled_once
from ingestor.local.processes import Child, PortTakenError, run
from ingestor.local.server import Server

START_TIMEOUT_S = 60.0
"""A start takes well below a second; replaying a large write-ahead log on a busy machine takes longer."""


@dataclass(frozen=True, slots=True)
class Binaries:
    """Paths of the two programs."""

    prometheus: Path
    promtool: Path


class LocalPrometheus(Server):
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
    ) -> None:
        """Describe the server; nothing runs yet.

        Args:
            folder: made if missing.
            port: the listener; None chooses one at the first start, and this object keeps it.
            config: the configuration as YAML or as what that YAML means; None scrapes nothing.
            extra_args: more flags; a repeated flag is an error of Prometheus.
        """
        super().__init__(folder, port)
        self._config = config
        self._extra_args = list(extra_args)

    @property
    def data_dir(self) -> Path:
        """Where the blocks are."""
        return self.folder / "data"

    def _launch(self, port: int) -> Child:
        binaries = find_binaries()
        self.data_dir.mkdir(parents=True, exist_ok=True)
        text = self._config if isinstance(self._config, str) else yaml.safe_dump(dict(self._config or {"global": {}}))
        (self.folder / "prometheus.yml").write_text(text)
        return Child(self._command(binaries, port), log_path=self.folder / "prometheus.log").start()

    def _wait_until_ready(self, child: Child, port: int) -> None:
        _wait_until_ready(child, port, self.data_dir)

    @property
    def url(self) -> str:
        """The base URL, without a slash at its end; known from the first start on, or from the port that was given."""
        return f"http://127.0.0.1:{self.port}"

    def _command(self, binaries: Binaries, port: int) -> list[str | Path]:
        return [
            binaries.prometheus,
            f"--config.file={self.folder / 'prometheus.yml'}",
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
    """Download the distribution's package with lists and caches of our own, and keep its two programs.

    Installing it would need root, and would start a service on port 9090.
    """
    advice = "no Prometheus here: apt-get install prometheus (as root), or put prometheus and promtool on PATH"
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise ConfigError(advice)
    scratch = target.parent
    settings = {
        "Dir::State::lists": scratch / "lists",
        "Dir::Cache": scratch / "cache",
        "APT::Sandbox::User": "",  # Root's apt would download as a user who cannot enter our folder.
        "Debug::NoLocking": "1",  # The system's lock file is root's.
        "Acquire::Languages": "none",
    }
    apt = ["apt-get", "-q", *(part for key, value in settings.items() for part in ("-o", f"{key}={value}"))]
    for folder in ("lists/partial", "cache/archives/partial"):
        (scratch / folder).mkdir(parents=True)
    # Its exit code says nothing: one unreachable third-party source is a failure to it.
    update = run([*apt, "update"])
    download = run([*apt, "download", "prometheus"], cwd=scratch)
    packages = list(scratch.glob("prometheus_*.deb"))
    if download.returncode != 0 or len(packages) != 1:
        output = (update.stdout + update.stderr + download.stderr).splitlines()
        reasons = [line for line in output if "Failed to fetch" in line or line.startswith("E:")]
        raise ConfigError(f"{advice} ({reasons[0] if reasons else 'apt-get download failed'})")
    unpack = run(["dpkg-deb", "-x", packages[0], scratch / "root"])
    if unpack.returncode != 0:
        raise ConfigError(f"{advice} ({unpack.stderr.strip()})")
    target.mkdir()
    for name in ("prometheus", "promtool"):
        (scratch / "root" / "usr" / "bin" / name).rename(target / name)
        if not os.access(target / name, os.X_OK):
            raise ConfigError(f"{advice} (the package's {name} cannot be run)")


def _wait_until_ready(child: Child, port: int, data_dir: Path) -> None:
    """Return when this very server is ready.

    Raises:
        PortTakenError: somebody else listens there.
        ConfigError: the process ended, or the time is up.
    """
    base = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + START_TIMEOUT_S
    with requests.Session() as session:
        session.trust_env = False  # A proxy from the environment does not know our loopback.
        while time.monotonic() < deadline:
            if child.poll() is not None:
                last_words = child.log_tail()
                kind = PortTakenError if "address already in use" in last_words else ConfigError
                raise kind(f"Prometheus ended while starting; {child.log_path} says:\n{last_words}")
            try:
                if session.get(f"{base}/-/ready", timeout=1.0).ok:
                    flags = session.get(f"{base}/api/v1/status/flags", timeout=5.0).json()
                    if flags["data"]["storage.tsdb.path"] == str(data_dir):
                        return
                    raise PortTakenError(f"another Prometheus answers on port {port}: stop it or choose another port")
            except (requests.RequestException, ValueError, KeyError, TypeError):
                pass
            time.sleep(0.02)
    raise ConfigError(
        f"Prometheus was not ready within {START_TIMEOUT_S:.0f} s; {child.log_path} says:\n{child.log_tail()}"
    )
