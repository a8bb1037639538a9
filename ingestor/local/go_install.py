"""Programs that are built with the Go toolchain."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from ingestor.core.errors import ConfigError
from ingestor.local.processes import run


def go_install(name: str, command: str, target: Path, *flags: str, linker_flags: Sequence[str] = ()) -> None:
    """Build a program into a folder that is made for it. It takes Go's module proxy, and minutes.

    Args:
        name: what people call it, with its version.
        command: the package's path and its module's version.
        target: the folder.
        flags: of ``go install``.
        linker_flags: beside those that leave out what only debuggers need.

    Raises:
        ConfigError: there is no Go, or it cannot build this.
    """
    if shutil.which("go") is None:
        raise ConfigError(f"{name} is built with Go, and there is none on PATH: see https://go.dev/dl/")
    target.mkdir()
    done = run(
        # Two at once: linking and compiling the largest packages takes a gigabyte each.
        ["go", "install", "-p", "2", "-trimpath", "-ldflags", " ".join(["-s", "-w", *linker_flags]), *flags, command],
        cwd=target,
        env={**os.environ, "GOBIN": str(target)},
    )
    if done.returncode != 0 or not any(target.iterdir()):
        words = [line for line in done.stderr.splitlines() if not line.startswith("go: downloading")]
        raise ConfigError(f"go cannot build {name}: {' '.join(words[-3:])}")
