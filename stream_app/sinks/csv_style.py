"""How cells of CSV files are spelled. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from ingestor.core.time_range import iso

ISO, EPOCH_S, EPOCH_MS = TIME_FORMATS = ("iso", "epoch-s", "epoch-ms")

AS_THEY_ARE, ESCAPED = FORMULAS = ("as-they-are", "escaped")

# What Excel, LibreOffice or Google Sheets begin a formula at, or leave out before one; and what escapes it.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", " ", "'")

_WORDS = {"empty": "", "nan": "NaN"}

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_NUMBER = re.compile(r"-?([0-9]+)(\.[0-9]*)?([eE][+-]?[0-9]+)?", re.ASCII)
_SECONDS = re.compile(rb"([0-9]+)(?:\.([0-9]{3}))?")


@dataclass(frozen=True, slots=True)
class CsvStyle:
    """The choices that a storage is bound to."""

    absent: str = ""
    """What stands where a record has no value; never spelled as a value is, but for NaN."""

    time_format: str = ISO
    """One of ``TIME_FORMATS``, of a window's start: in UTC, or since the Unix epoch."""

    formulas: str = AS_THEY_ARE
    """One of ``FORMULAS``: what becomes of names that spreadsheets would take for a formula."""

    def options(self) -> dict[str, str]:
        """Return what a storage remembers: what is not the default, as before there was a choice."""
        chosen = {"missing": self.absent, "time_format": self.time_format, "formulas": self.formulas}
        default = {"missing": "", "time_format": ISO, "formulas": AS_THEY_ARE}
        return {name: value for name, value in chosen.items() if value != default[name]}

    def written(self, name: str) -> str:
        """Return the text of a name's cell, before any quotes.

        An apostrophe stands before what begins with one, too: so every text can be read back.
        """
        return f"'{name}" if self.formulas == ESCAPED and name.startswith(_FORMULA) else name

    def read(self, text: str) -> str:
        """Return the name that *written* made *text* of."""
        return text[1:] if self.formulas == ESCAPED and text.startswith("'") else text

    def time_writer(self) -> Callable[[int], str]:
        """Return what spells a time in ms, which is not before the epoch."""
        return _WRITERS[self.time_format]

    def time_reader(self) -> Callable[[bytes], int]:
        """Return what reads such a time back; it raises ValueError where there is none."""
        return _READERS[self.time_format]


def absent_text(missing: str) -> str:
    """Read ``--missing``: ``empty``, ``nan`` or a number; return what stands in an absent cell.

    Raises:
        ValueError: it is none of these.
    """
    if missing in _WORDS:
        return _WORDS[missing]
    if not _NUMBER.fullmatch(missing) or float(missing) in (float("inf"), float("-inf")):
        raise ValueError(f"{missing!r} is not empty, nan or a number like 0 or -1")
    return _unlike_a_value(missing)


def _unlike_a_value(number: str) -> str:
    """Return *number* in a spelling that no value has: those are spelled as ``repr`` does.

    So what a pod reported and what stands for nothing can be told apart, by us too
    where columns without a value are dropped.
    """
    if number != repr(float(number)):
        return number
    mantissa, exponent_mark, exponent = number.partition("e")
    return f"{mantissa}{'' if '.' in mantissa else '.'}0{exponent_mark}{exponent}"


def _seconds(time_ms: int) -> str:
    seconds, ms = divmod(time_ms, 1000)
    return f"{seconds}.{ms:03}" if ms else str(seconds)


def _from_seconds(text: bytes) -> int:
    match = _SECONDS.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a time in seconds")
    return int(match[1]) * 1000 + int(match[2] or 0)


def _from_iso(text: bytes) -> int:
    moment = datetime.fromisoformat(text.decode())
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} is not a time in UTC")
    delta = moment - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1000 + delta.microseconds // 1000


_WRITERS: dict[str, Callable[[int], str]] = {ISO: iso, EPOCH_S: _seconds, EPOCH_MS: str}
_READERS: dict[str, Callable[[bytes], int]] = {ISO: _from_iso, EPOCH_S: _from_seconds, EPOCH_MS: int}
