"""Names of namespaces and services as names of folders and files.

Any text becomes a relative path that stays inside the storage, that no other
text becomes, and that can be read back. Kubernetes' own names are unchanged.
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

from ingestor.core.topics import NO_NAMESPACE

POD_SUFFIX = ".csv"
SERVICE_SUFFIX = ".service.csv"

_PIECE_BYTES = 200
"""File systems end at 255 bytes a name; a suffix and a temporary mark must fit too."""

_CONTINUED = "%"
"""At the end of a folder's name: the name goes on inside. No escape ends in a bare percent sign."""

# Windows opens a device by these names, whatever follows the first dot.
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)

_ESCAPE_OR_CHARACTER = re.compile(r"%[0-9A-F]{2}|.", re.ASCII)


def file_path(namespace: str, service: str, suffix: str) -> str:
    """Return the path of a service's file relative to the storage, with forward slashes."""
    return f"{encoded(namespace)}/{encoded(service)}{suffix}"


def encoded(name: str) -> str:
    """Return *name* as one safe file name, or as nested ones where it is very long."""
    if name == "":
        return NO_NAMESPACE
    if name == NO_NAMESPACE:
        return _escape(name)
    text = quote(name, safe="")
    for end in (".service", "."):
        # The first would meet the file of another service's records, the second is lost on Windows.
        if text.lower().endswith(end):
            text = text[: -len(end)] + _escape(text[-len(end)]) + text[len(text) - len(end) + 1 :]
    return f"{_CONTINUED}/".join(_guarded(piece) for piece in _pieces(text))


def decoded(path: str) -> str:
    """Return the name that ``encoded`` made *path* of."""
    return "" if path == NO_NAMESPACE else unquote(path.replace(f"{_CONTINUED}/", ""))


def _pieces(text: str) -> list[str]:
    """Cut into names of at most 200 bytes, never inside an escape."""
    pieces = [""]
    for part in _ESCAPE_OR_CHARACTER.findall(text):
        if len(pieces[-1]) + len(part) > _PIECE_BYTES:
            pieces.append("")
        pieces[-1] += part
    return pieces


def _guarded(piece: str) -> str:
    """Escape the first character where the name as a whole would mean something to a system or a shell."""
    if piece[0] in ".-~" or _DEVICE.match(piece):
        return _escape(piece[0]) + piece[1:]
    return piece


def _escape(character: str) -> str:
    return f"%{ord(character):02X}"
