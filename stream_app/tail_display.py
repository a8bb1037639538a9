"""Records as lines: a table for a terminal, fields between tabs for a pipe, JSON for machines.

One record is one line, always. What names hold never moves a cursor: all that is not printable is escaped.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, Protocol

import orjson

from ingestor.core.time_range import iso
from ingestor.core.topics import NO_NAMESPACE
from stream_app.records import Record

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_GAP = "  "
_ELLIPSIS = "…"
_NUMBER_WIDTH = 13
"""What the longest number needs: ``-1.23457e-100``."""
_SHORTEST_METRIC = 5
_FLAGS_WIDTH = len("partial")

_Style = Literal["", "header", "flag", "name"]
_SGR: dict[_Style, str] = {"header": "\x1b[1m", "flag": "\x1b[33m", "name": "\x1b[36m"}
_RESET = "\x1b[0m"

_SPREAD_OUT = re.compile(rb"[\n\r\t]")
"""JSON that was written by others for people; within its strings these are escaped."""


class Lines(Protocol):
    """Makes lines of records."""

    def of(self, record: Record, value: bytes) -> bytes:
        """Return a record's line and, before it, what must be said first.

        Args:
            record: with the metrics that are shown.
            value: the message that it was read from.
        """


class JsonLines:
    """The record's own JSON as it stands on the topic, less the metrics that are not shown."""

    def __init__(self, *, all_metrics: bool, for_terminal: bool) -> None:
        self._all_metrics, self._for_terminal = all_metrics, for_terminal

    def of(self, record: Record, value: bytes) -> bytes:
        line = value
        if not self._all_metrics or _SPREAD_OUT.search(value):
            fields = orjson.loads(value)
            fields["metrics"] = {name: number for name, number in fields["metrics"].items() if name in record.metrics}
            line = orjson.dumps(fields)
        if self._for_terminal and not (text := line.decode()).isprintable():
            line = "".join(c if c.isprintable() else _json_escaped(c) for c in text).encode()
        return line + b"\n"


class PlainLines:
    """Fields between tabs: time, namespace/pod, chunk size, method, flags or ``-``, and each ``metric=value``."""

    def __init__(self, *, mixed: bool = False) -> None:
        self._mixed = mixed

    def of(self, record: Record, value: bytes) -> bytes:  # noqa: ARG002 - as in Lines
        fields = [iso(record.window_start_ms), printable(_who(record)), record.chunk_size, record.method]
        fields = [*map(printable, fields), ",".join(_flags(record, mixed=self._mixed)) or "-"]
        fields += [f"{printable(name)}={number_text(number)}" for name, number in record.metrics.items()]
        return "\t".join(fields).encode() + b"\n"


class TableLines:
    """A table as wide as the terminal; its header comes again when the columns change.

    Metrics that were chosen get columns while these fit; otherwise ``metric=value`` pairs follow, as many as fit,
    and the number of those that do not.
    """

    def __init__(self, width: Callable[[], int], *, colour: bool, chosen: bool, groupings: tuple[str, ...]) -> None:
        """Begin a table.

        Args:
            width: asked for each record: a terminal's size changes.
            colour: whether the terminal has colours.
            chosen: metrics were chosen, so that there may be few.
            groupings: ``pod``, ``service`` or both.
        """
        self._width, self._colour, self._chosen = width, colour, chosen
        self._groupings = groupings
        self._metrics: list[str] = []
        self._view: tuple[str, str] | None = None
        self._layout: _Layout | None = None

    def of(self, record: Record, value: bytes) -> bytes:  # noqa: ARG002 - as in Lines
        view = record.chunk_size, record.method
        self._view = self._view or view
        if self._chosen and not record.metrics.keys() <= set(self._metrics):
            self._metrics = sorted({*self._metrics, *record.metrics})
        layout = _Layout.of(max(1, self._width()), tuple(self._metrics))
        text = ""
        if layout != self._layout:
            self._layout = layout
            text = _line(layout.header(self._who_header()), layout.width, colour=self._colour)
        flags = _flags(record, mixed=len(self._groupings) > 1)
        if view != self._view:
            flags.append(printable(" ".join(view)))
        return (text + _line(layout.row(record, flags), layout.width, colour=self._colour)).encode()

    def _who_header(self) -> str:
        who = " OR ".join(grouping.upper() for grouping in self._groupings)
        return f"{who}, {printable(' '.join(self._view))}" if self._view else who


@dataclass(frozen=True, slots=True)
class _Layout:
    width: int
    time_format: str
    time_width: int
    who_width: int
    columns: tuple[tuple[str, int], ...]
    """Metrics and their columns' widths; none: pairs."""

    @classmethod
    def of(cls, width: int, metrics: tuple[str, ...]) -> _Layout:
        time_format, time_width = next((text, needs) for least, text, needs in _TIME_FORMATS if width >= least)
        who_width = min(48, max(12, width * 3 // 10))
        room = width - time_width - who_width - len(_GAP) - len(_GAP) - _FLAGS_WIDTH
        columns: tuple[tuple[str, int], ...] = ()
        if metrics and (most := room // len(metrics) - len(_GAP)) >= _NUMBER_WIDTH:
            columns = tuple((name, max(_NUMBER_WIDTH, min(text_width(printable(name)), most))) for name in metrics)
        return cls(width, time_format, time_width, who_width, columns)

    def header(self, who: str) -> Iterator[tuple[str, _Style]]:
        yield "TIME UTC".ljust(self.time_width) + _GAP, "header"
        yield _padded(_shortened(who, self.who_width), self.who_width), "header"
        for metric, width in self.columns:
            yield _GAP + _padded(_shortened(printable(metric), width), width, right=True), "header"
        if not self.columns:
            yield f"{_GAP}METRICS (--metric chooses)", "header"

    def row(self, record: Record, flags: list[str]) -> Iterator[tuple[str, _Style]]:
        yield _time_text(record.window_start_ms, self.time_format).ljust(self.time_width) + _GAP, ""
        yield _padded(_shortened(printable(_who(record)), self.who_width), self.who_width), ""
        for metric, width in self.columns:
            value = record.metrics.get(metric)
            yield _GAP + ("-" if value is None else number_text(value)).rjust(width), ""
        for flag in flags:
            yield _GAP if flag is flags[0] else " ", ""
            yield flag, "flag"
        if not self.columns:
            taken = self.time_width + len(_GAP) + self.who_width + sum(1 + text_width(flag) for flag in flags)
            yield from _pairs(record.metrics, self.width - taken - bool(flags))


_TIME_FORMATS = [(100, "%Y-%m-%d %H:%M:%S", 19), (60, "%m-%d %H:%M:%S", 14), (0, "%H:%M:%S", 8)]
"""From which width of the terminal on, which form, and how wide it is."""


def _pairs(metrics: dict[str, float], room: int) -> Iterator[tuple[str, _Style]]:
    """Yield as many pairs as fit, at least one, and how many did not."""
    texts = [(printable(name), number_text(value)) for name, value in metrics.items()]
    for shown, (name, value) in enumerate(texts):
        left = len(texts) - shown - 1
        # What must still fit behind this pair.
        reserve = len(f"{_GAP}+{left}") if left else 0
        over = len(_GAP) + text_width(name) + 1 + len(value) + reserve - room
        if over > 0 and shown:
            yield f"{_GAP}+{left + 1}", "flag"
            return
        if over > 0:
            name = _shortened(name, max(_SHORTEST_METRIC, text_width(name) - over))  # noqa: PLW2901
        yield f"{_GAP}{name}=", "name"
        yield value, ""
        room -= len(_GAP) + text_width(name) + 1 + len(value)
        if room < reserve:
            return


def printable(text: str) -> str:
    r"""Return *text* with everything that is not printable as ``\x1b`` or ``\u202e``: one line, one direction."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def number_text(value: float) -> str:
    """Write a number for people: six digits or, of larger ones, the whole number; at most 13 characters."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if 999_999.5 <= abs(value) < 999_999_999_999.5:
        return f"{value:.0f}"
    return f"{value or 0.0:.6g}"


def text_width(text: str) -> int:
    """Return how many columns of a terminal a printable text takes.

    Source: East Asian Width, Unicode Standard Annex 11.
    """
    if text.isascii():
        return len(text)
    return sum(map(_char_width, text))


def _char_width(char: str) -> int:
    if unicodedata.category(char) in {"Mn", "Me"}:
        return 0
    return 2 if unicodedata.east_asian_width(char) in {"W", "F"} else 1


def _shortened(text: str, width: int) -> str:
    """Cut out of the middle what is too much: a pod's name begins with its workload and ends with what is its own."""
    if text_width(text) <= width:
        return text
    room = max(0, width - 1)
    tail = _fitting(text[::-1], room // 2)[::-1]
    return _fitting(text, room - text_width(tail)) + _ELLIPSIS + tail


def _fitting(text: str, width: int) -> str:
    """Return the longest beginning of *text* that takes no more than *width* columns."""
    for at, char in enumerate(text):
        width -= _char_width(char)
        if width < 0:
            return text[:at]
    return text


def _padded(text: str, width: int, *, right: bool = False) -> str:
    space = " " * (width - text_width(text))
    return space + text if right else text + space


def _line(segments: Iterator[tuple[str, _Style]], width: int, *, colour: bool) -> str:
    """Join segments to one line that is no wider than *width*; nothing is at its end but its text."""
    line, room, spaces = "", width, ""
    for text, style in segments:
        # Spaces wait until something follows them.
        padded = spaces + text
        bare = padded.rstrip(" ")
        spaces = padded[len(bare) :]
        if bare and room < 1:
            break
        cut = text_width(bare) > room
        if cut:
            bare = _fitting(bare, room - 1) + _ELLIPSIS
        line += f"{_SGR[style]}{bare}{_RESET}" if colour and style and bare else bare
        if cut:
            break
        room -= text_width(bare)
    return line + "\n"


def _who(record: Record) -> str:
    name = record.service if record.pod is None else record.pod
    return f"{record.namespace or NO_NAMESPACE}/{name}"


def _flags(record: Record, *, mixed: bool) -> list[str]:
    flags = ["service"] if mixed and record.pod is None else []
    flags += ["partial"] * record.partial
    flags += [f"r{record.revision}"] if record.revision else []
    return [*flags, "incomplete"] if record.incomplete else flags


def _time_text(time_ms: int, time_format: str) -> str:
    try:
        return (_EPOCH + timedelta(milliseconds=time_ms)).strftime(time_format)
    except (OverflowError, ValueError):
        return iso(time_ms)


def _json_escaped(char: str) -> str:
    units = char.encode("utf-16-be")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
