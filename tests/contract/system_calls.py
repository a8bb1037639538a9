"""Which calls to the system could change a file."""

from __future__ import annotations

import io
from types import BuiltinFunctionType
from typing import Any

_NAMES = {
    "open",
    "write",
    "writelines",
    "flush",
    "fsync",
    "replace",
    "rename",
    "unlink",
    "truncate",
    "ftruncate",
    "mkdir",
}


def is_change(function: Any) -> bool:
    """Tell it of what a profiler is told of."""
    return (
        function.__name__ in _NAMES
        and isinstance(function, BuiltinFunctionType)
        and (function.__module__ in ("posix", "_io", "io") or isinstance(function.__self__, io.BufferedIOBase))
    )
