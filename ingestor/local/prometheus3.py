"""Prometheus 3, built with the Go toolchain: the distributions' packages are 2.x, and people run both."""

from __future__ import annotations

from pathlib import Path

from ingestor.local.cache import cache_folder, filled_once
from ingestor.local.go_install import go_install

VERSION = "3.16.0"

# As a Go module, 3.16.0 is v0.316.0: its imports stay as they are from one major version to the next.
_COMMAND = "github.com/prometheus/prometheus/cmd/prometheus@v0.316.0"

# Service discovery for every cloud is most of what would be compiled; a list of targets in the file is always there.
_TAGS = "remove_all_sd"
_LINKER_FLAG = f"-X github.com/prometheus/common/version.Version={VERSION}"


def find_program() -> Path:
    """Return the program from the cache, or build it there.

    A build takes 3 to 4 minutes of two cores, a gigabyte of Go's own caches, and Go's module proxy. The
    web interface stays out: its files are not part of the module.

    Raises:
        ConfigError: there is no Go, or it cannot build this.
    """
    return filled_once(program_folder(), _build) / "prometheus"


def program_folder() -> Path:
    """Return where the program is cached, or will be."""
    return cache_folder() / f"prometheus-{VERSION}"


def _build(target: Path) -> None:
    go_install(f"Prometheus {VERSION}", _COMMAND, target, "-tags", _TAGS, linker_flags=[_LINKER_FLAG])
