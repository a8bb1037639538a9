"""Helm, built with the Go toolchain: with it the tests render and lint the chart in ``docker/helm``."""

from __future__ import annotations

from pathlib import Path

from ingestor.local.cache import cache_folder, filled_once
from ingestor.local.go_install import go_install

VERSION = "3.18.6"
KUBERNETES = "1.33.0"
"""What this Helm takes a cluster for, unless it is told or sees one."""

_COMMAND = f"helm.sh/helm/v3/cmd/helm@v{VERSION}"


def find_program() -> Path:
    """Return the program from the cache, or build it there.

    A build takes 2 minutes of two cores, and Go's module proxy.

    Raises:
        ConfigError: there is no Go, or it cannot build this.
    """
    return filled_once(program_folder(), _build) / "helm"


def program_folder() -> Path:
    """Return where the program is cached, or will be."""
    return cache_folder() / f"helm-{VERSION}"


def _build(target: Path) -> None:
    major, minor, _ = KUBERNETES.split(".")
    # Untold, it would be of no version, and take clusters for Kubernetes 1.20.
    versions = {"internal/version.version": f"v{VERSION}"}
    for package in ("pkg/lint/rules", "pkg/chartutil"):
        versions |= {f"{package}.k8sVersionMajor": major, f"{package}.k8sVersionMinor": minor}
    told = [f"-X helm.sh/helm/v3/{variable}={value}" for variable, value in versions.items()]
    go_install(f"Helm {VERSION}", _COMMAND, target, linker_flags=told)
