"""A Docker daemon of our own, for the tests of the containers: on PATH, or unpacked from the distribution's packages.

It keeps to itself: a socket and data of its own, no rule in the machine's firewall, no bridge but those that
Compose makes and removes. It needs root, as every Docker daemon that limits memory on older kernels does.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess
from types import TracebackType
from typing import Self

from ingestor.core.errors import ConfigError
from ingestor.local.cache import cache_folder, filled_once
from ingestor.local.debian import unpack_with_dependencies
from ingestor.local.processes import Child, run

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
"""A daemon that ends stops its containers first."""

_PROGRAMS = ("dockerd", "docker", "docker-compose")
_ADVICE = "no Docker daemon here: apt-get install docker.io docker-compose (as root), or put dockerd on PATH"


def find_programs() -> Mapping[str, str]:
    """Return the environment in which ``dockerd``, ``docker`` and ``docker-compose`` are found and can run.

    Raises:
        ConfigError: we are not root, or they are neither on PATH nor in the cache, nor can they be unpacked.
    """
    if os.geteuid() != 0:
        raise ConfigError("a Docker daemon of our own needs root")
    if on_path():
        return dict(os.environ)
    root = filled_once(program_folder(), _unpack_packages)
    libraries = [str(folder) for folder in (*root.glob("usr/lib/*-linux-gnu*"), *root.glob("lib/*-linux-gnu*"))]
    return {
        **os.environ,
        "PATH": ":".join([f"{root}/usr/bin", f"{root}/usr/sbin", os.environ.get("PATH", ""), f"{root}/links"]),
        "LD_LIBRARY_PATH": ":".join(libraries),
        "XTABLES_LIBDIR": next((f"{folder}/xtables" for folder in libraries if Path(folder, "xtables").is_dir()), ""),
        # The distribution's docker-compose is a Python program.
        "PYTHONPATH": f"{root}/usr/lib/python3/dist-packages",
    }


def on_path() -> bool:
    """Whether all of the programs are on PATH."""
    return all(shutil.which(name) for name in _PROGRAMS)


def program_folder() -> Path:
    """Return where the programs are cached, or will be."""
    return cache_folder() / "docker"


def _unpack_packages(target: Path) -> None:
    unpack_with_dependencies(["docker.io", "docker-compose"], target, _ADVICE)
    # The daemon sets up each container's name resolution with it; installing makes the link.
    (target / "links").mkdir()
    (target / "links" / "iptables").symlink_to("../usr/sbin/iptables-nft")


class DockerDaemon:
    """A daemon that ends with this process, and its containers with it. Images and volumes stay in the folder."""

    def __init__(self, folder: Path) -> None:
        """Describe the daemon; nothing runs yet.

        Args:
            folder: made if missing; one daemon at a time.
        """
        self.folder = folder.absolute()
        self.environment: dict[str, str] = {}
        """For programs that are to find the daemon and its tools."""
        self._run = Path()
        self._child: Child | None = None

    def start(self) -> Self:
        """Start the daemon and wait until it answers.

        Raises:
            ConfigError: there is none, we are not root, the machine keeps containers apart, or it ended; the message
                has its last words.
        """
        programs = find_programs()
        self.folder.mkdir(parents=True, exist_ok=True)
        # The path of a socket is 107 characters at most.
        self._run = Path(tempfile.mkdtemp(prefix="docker."))
        host = f"unix://{self._run}/socket"
        # The old builder: the new one is a plugin that not everybody has.
        self.environment = {**programs, "DOCKER_HOST": host, "DOCKER_BUILDKIT": "0", "COMPOSE_DOCKER_CLI_BUILD": "0"}
        folders = {"data-root": self.folder / "data", "exec-root": self._run / "exec", "pidfile": self._run / "pid"}
        alone = ["--iptables=false", "--ip6tables=false", "--ip-forward=false", "--bridge=none"]
        log_path = self.folder / "docker.log"
        log_path.unlink(missing_ok=True)
        # By its path: it is looked for on this process' PATH.
        program = shutil.which("dockerd", path=self.environment["PATH"]) or "dockerd"
        command = [program, "--host", host, *(f"--{name}={path}" for name, path in folders.items()), *alone]
        env, death_signal = self.environment, signal.SIGTERM
        self._child = Child(command, log_path=log_path, env=env, death_signal=death_signal).start()
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.docker("version").returncode != 0:
            if self._child.poll() is not None or time.monotonic() > deadline:
                last_words = self._child.log_tail()
                self.stop()
                raise ConfigError(f"the Docker daemon does not run; {log_path} says:\n{last_words}")
            time.sleep(0.2)
        if self._drops_what_is_bridged():
            self.stop()
            raise ConfigError("this machine's firewall drops what containers say to one another (FORWARD is DROP)")
        return self

    def _drops_what_is_bridged(self) -> bool:
        """Whether another Docker's rules would keep our containers apart: we add none of our own."""
        filtered = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
        policy = run(["iptables", "-S", "FORWARD"], env=self.environment).stdout
        return filtered.exists() and filtered.read_text().strip() == "1" and policy.startswith("-P FORWARD DROP")

    def stop(self) -> None:
        """End the daemon and its containers."""
        if self._child is not None:
            self._child.stop(STOP_TIMEOUT_S)
        # The network of containers that had the machine's own is left mounted there.
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if str(self._run) in line]
        if mounts:
            run(["umount", *mounts])
        shutil.rmtree(self._run, ignore_errors=True)

    def docker(self, *arguments: str | Path, cwd: Path | None = None) -> CompletedProcess[str]:
        """Run ``docker`` with *arguments* to its end."""
        return run(["docker", *arguments], cwd=cwd, env=self.environment)

    def compose(self, *arguments: str | Path, cwd: Path) -> CompletedProcess[str]:
        """Run ``docker-compose`` with *arguments* to its end, in a folder with a ``docker-compose.yml``."""
        return run(["docker-compose", *arguments], cwd=cwd, env=self.environment)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
