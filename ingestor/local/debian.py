"""Programs out of the distribution's packages, without installing them: that would need root, and start services."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess

from ingestor.core.errors import ConfigError
from ingestor.local.processes import run


def take_programs(package: str, programs: Sequence[str], target: Path, advice: str) -> None:
    """Download a package with lists and caches of our own, and keep some of its programs.

    Args:
        package: its name in the distribution.
        programs: names in the package's ``/usr/bin``.
        target: the folder to make; downloads are left beside it.
        advice: how to get the programs otherwise, for the error message.

    Raises:
        ConfigError: *advice*, and why this way does not work.
    """
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise ConfigError(advice)
    scratch = target.parent
    apt = _apt(scratch)
    # Its exit code says nothing: one unreachable third-party source is a failure to it.
    update = run([*apt, "update"])
    download = run([*apt, "download", package], cwd=scratch)
    packages = list(scratch.glob(f"{package}_*.deb"))
    if download.returncode != 0 or len(packages) != 1:
        raise _failed(advice, update, download)
    unpack = run(["dpkg-deb", "-x", packages[0], scratch / "root"])
    if unpack.returncode != 0:
        raise ConfigError(f"{advice} ({unpack.stderr.strip()})")
    target.mkdir()
    for name in programs:
        (scratch / "root" / "usr" / "bin" / name).rename(target / name)
        if not os.access(target / name, os.X_OK):
            raise ConfigError(f"{advice} (the package's {name} cannot be run)")


def unpack_with_dependencies(packages: Sequence[str], target: Path, advice: str, *, whole: bool = False) -> None:
    """Download packages and all that they need and the system has not, and unpack it as a root of its own.

    Args:
        packages: names in the distribution.
        target: the folder to make; downloads are left beside it.
        advice: how to get the packages otherwise, for the error message.
        whole: unpack also what the system has: the root of a container.

    Raises:
        ConfigError: *advice*, and why this way does not work.
    """
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise ConfigError(advice)
    apt = _apt(target.parent)
    update = run([*apt, "update"])
    # Told to install and to stop before that: so it looks at what the system has, and needs no root.
    options = ["--yes", "--no-install-recommends", "--download-only"]
    if whole:
        options += ["-o", "Dir::State::status=/dev/null"]
    download = run([*apt, *options, "install", *packages])
    if download.returncode != 0:
        raise _failed(advice, update, download)
    target.mkdir()
    for archive in sorted((target.parent / "cache" / "archives").glob("*.deb")):
        unpack = run(["dpkg-deb", "-x", archive, target])
        if unpack.returncode != 0:
            raise ConfigError(f"{advice} ({unpack.stderr.strip()})")


def _apt(scratch: Path) -> list[str | Path]:
    """Return the beginning of apt-get's command lines, with lists and caches of our own."""
    settings = {
        "Dir::State::lists": scratch / "lists",
        "Dir::Cache": scratch / "cache",
        "APT::Sandbox::User": "",  # Root's apt would download as a user who cannot enter our folder.
        "Debug::NoLocking": "1",  # The system's lock file is root's.
        "Acquire::Languages": "none",
    }
    for folder in ("lists/partial", "cache/archives/partial"):
        (scratch / folder).mkdir(parents=True)
    return ["apt-get", "-q", *(part for key, value in settings.items() for part in ("-o", f"{key}={value}"))]


def _failed(advice: str, update: CompletedProcess[str], download: CompletedProcess[str]) -> ConfigError:
    output = (update.stdout + update.stderr + download.stderr).splitlines()
    reasons = [line for line in output if "Failed to fetch" in line or line.startswith("E:")]
    return ConfigError(f"{advice} ({reasons[0] if reasons else 'apt-get download failed'})")
