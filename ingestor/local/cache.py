"""Folders in the user's cache that are filled once: whole or not at all, by one process at a time."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Callable
from pathlib import Path

from ingestor.core.errors import ConfigError


def cache_folder() -> Path:
    """Return this project's folder in the user's cache (``$XDG_CACHE_HOME/podstream`` on Linux).

    Raises:
        ConfigError: the packages of the extra ``local`` are not installed.
    """
    try:
        import platformdirs  # noqa: PLC0415 - an optional package
    except ImportError as error:
        raise missing_extra("platformdirs") from error
    return platformdirs.user_cache_path("podstream")


def filled_once(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Return *folder*, after letting *fill* make it if it is not there yet.

    Args:
        folder: what is wanted; when it exists it is complete.
        fill: called with the path of a folder to make, beside *folder*. It may leave other
            files next to that path: they are deleted.

    Raises:
        ConfigError: the cache cannot be written, or *fill* says so.
    """
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_name(f"{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.is_dir():
                with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as scratch:
                    new = Path(scratch) / "new"
                    fill(new)
                    new.rename(folder)
    except OSError as error:
        raise ConfigError(f"cannot fill {folder}: {error.strerror or error}; XDG_CACHE_HOME chooses another") from error
    return folder


def missing_extra(package: str) -> ConfigError:
    """Return the error that tells how to get the optional *package*."""
    return ConfigError(f"{package} is not installed: pip install 'podstream[local]' or give --bootstrap-servers")
