"""Names of namespaces and services as names of folders and files.

Any text becomes a relative path that stays inside the storage, that no other
text becomes, and that can be read back. Kubernetes' own names are unchanged.

For Parquet they are folders of Hive's layout, which every reader decodes by itself.
"""

from __future__ import annotations

import re
from collections.abc import Container
from hashlib import blake2b
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


def hive(key: str, value: str) -> str:
    """Return the name of the folder of all rows with *value*, as Hive's readers take it apart.

    Nothing is ``_``: Hive's own word for it becomes a null, which pandas cannot read among texts. Of a
    value that is too long for a folder's name its beginning is left, and a digest.
    """
    text = NO_NAMESPACE if value == "" else _escape(value) if value == NO_NAMESPACE else quote(value, safe="")
    if len(text) > _PIECE_BYTES:
        begin = re.sub("%.?$", "", text[:_PIECE_BYTES])
        text = f"{begin}~{blake2b(value.encode(), digest_size=8).hexdigest()}"
    return f"{key}={text}"


def column_name(name: str, taken: Container[str], kind: str) -> str:
    """Return *name* as a column beside those that are *taken*: where it is one of them, ``kind.`` comes before it.

    So it does where *name* begins with that itself: no two names become one.
    """
    return f"{kind}.{name}" if name in taken or name.startswith(f"{kind}.") else name


def name_of_column(column: str, taken: Container[str], kind: str) -> str:
    """Return the name that `column_name` made *column* of."""
    name = column.removeprefix(f"{kind}.")
    return name if column_name(name, taken, kind) == column else column


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
