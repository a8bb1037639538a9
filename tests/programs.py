"""The programs below docker/, which are no package, as modules."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

DOCKER = Path(__file__).parents[1] / "docker"


def modules(folder: str) -> dict[str, ModuleType]:
    """Import a folder's programs, whose plain names may also be those of the tests' own helpers."""
    path = DOCKER / folder
    names = [program.stem for program in path.glob("*.py")]
    others = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.path.insert(0, str(path))
    try:
        return {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(path))
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(others)
