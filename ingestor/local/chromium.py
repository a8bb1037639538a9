"""Chromium, in which the tests look at the dashboard: found on PATH, or unpacked from the distribution's packages."""

from __future__ import annotations

import shutil
from pathlib import Path

from ingestor.local.cache import cache_folder, filled_once
from ingestor.local.debian import unpack_with_dependencies

_NAMES = ("chromium", "chromium-browser", "google-chrome")

FLAGS = (
    # Root has no sandbox; what is looked at are our own pages.
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--no-proxy-server"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
"""For looking at pages of this machine, and talking to nobody else."""

_START = """#!/bin/sh
# The browser out of this folder, with the libraries and fonts that were unpacked beside it.
here=$(dirname "$(readlink -f "$0")")
for folder in "$here"/usr/lib/*-linux-gnu* "$here"/usr/lib/*-linux-gnu*/pulseaudio "$here"/lib/*-linux-gnu*; do
    [ -d "$folder" ] && LD_LIBRARY_PATH="$folder:$LD_LIBRARY_PATH"
done
export LD_LIBRARY_PATH
[ -f "$here/etc/fonts/fonts.conf" ] && export FONTCONFIG_SYSROOT="$here"
exec "$here/usr/lib/chromium/chromium" "$@"
"""


def find_program() -> Path:
    """Return the program: from PATH, else from the cache, else out of the distribution's packages.

    Raises:
        ConfigError: none of the three ways works; the message has the line to type.
    """
    return on_path() or filled_once(program_folder(), _unpack_packages) / "start"


def on_path() -> Path | None:
    """Return the program from PATH, if it is there."""
    return next((Path(found) for name in _NAMES if (found := shutil.which(name))), None)


def program_folder() -> Path:
    """Return where the program is cached, or will be."""
    return cache_folder() / "chromium"


def _unpack_packages(target: Path) -> None:
    advice = "no Chromium here: apt-get install chromium (as root), or put chromium on PATH"
    # A page without fonts has no widths to look at.
    unpack_with_dependencies(["chromium", "fonts-dejavu-core"], target, advice)
    start = target / "start"
    start.write_text(_START)
    start.chmod(0o755)
