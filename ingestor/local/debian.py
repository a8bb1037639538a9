"""Programs out of the distribution's packages, without installing them: that would need root, and start services."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

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
    download = run([*apt, "download", package], cwd=scratch)
    packages = list(scratch.glob(f"{package}_*.deb"))
    if download.returncode != 0 or len(packages) != 1:
        output = (update.stdout + update.stderr + download.stderr).splitlines()
        reasons = [line for line in output if "Failed to fetch" in line or line.startswith("E:")]
        raise ConfigError(f"{advice} ({reasons[0] if reasons else 'apt-get download failed'})")
    unpack = run(["dpkg-deb", "-x", packages[0], scratch / "root"])
    if unpack.returncode != 0:
        raise ConfigError(f"{advice} ({unpack.stderr.strip()})")
    target.mkdir()
    for name in programs:
        (scratch / "root" / "usr" / "bin" / name).rename(target / name)
        if not os.access(target / name, os.X_OK):
            raise ConfigError(f"{advice} (the package's {name} cannot be run)")
