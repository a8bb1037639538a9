"""An interpreter that has what pyproject's base dependencies bring, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


def base_modules() -> set[str]:
    """Return the top-level modules of what pyproject's base dependencies install."""
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names, found = [Requirement(text) for text in asked], set[str]()
    while names:
        requirement = names.pop()
        name = requirement.name.lower().replace("_", "-")
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        names += [Requirement(text) for text in metadata.requires(name) or ()]
    by_module = metadata.packages_distributions()
    return {module for module, owners in by_module.items() if {o.lower().replace("_", "-") for o in owners} & found}


ALONE = """
import importlib.abc, sys

ALLOWED = set(sys.argv.pop(1).split(",")) | sys.stdlib_module_names | {"ingestor", "stream_app"}

class OthersAreNotInstalled(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] not in ALLOWED and not name.startswith("_sysconfigdata"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, OthersAreNotInstalled())
"""


def alone(program: str, *arguments: str) -> str:
    """Run a program where nothing but the base dependencies can be imported; return what it prints."""
    # Not another environment: that would be half a minute, and a download.
    command = [sys.executable, "-c", ALONE + program, ",".join(sorted(base_modules())), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout
