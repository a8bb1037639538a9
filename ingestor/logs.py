"""How an event and its fields become a line of the log: text for people, JSON for machines."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from numbers import Integral, Real
from typing import Any, Literal

LogFormat = Literal["text", "json"]

_PLAIN_FIELDS = set(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}

# What a reader of key=value can take as it stands; all else is quoted, so that a line stays one line.
_BARE = re.compile(r'[^\s"=]+')


class TextFormatter(logging.Formatter):
    """``2026-11-23T12:00:00Z INFO range published job=live error="cannot connect"``; a traceback follows it.

    Values with spaces, quotes or the like are written as JSON writes strings.
    """

    def format(self, record: logging.LogRecord) -> str:
        fields = [f"{name}={_quoted(str(value))}" for name, value in _fields(record).items()]
        text = " ".join([_time(record, "seconds"), record.levelname, record.getMessage(), *fields])
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class JsonFormatter(logging.Formatter):
    """An object a line: ``time``, ``level``, ``logger``, ``event``, the event's fields, and ``exception``.

    Numbers, booleans, None, lists and mappings keep their types; all else, and what JSON has no
    number for, becomes text. A field that is named like one of the five gets a ``_`` at its end.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record, "milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        for name, value in _fields(record).items():
            line[f"{name}_" if name in line or name == "exception" else name] = _json_value(value)
        # In ASCII: a terminal's or a pipe's encoding must not break the line.
        return json.dumps(line)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return what the event was given as ``extra``."""
    return {name: value for name, value in record.__dict__.items() if name not in _PLAIN_FIELDS}


def _time(record: logging.LogRecord, timespec: str) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec=timespec).replace("+00:00", "Z")


def _quoted(text: str) -> str:
    if _BARE.fullmatch(text) and text.isprintable():
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _json_value(value: Any) -> Any:
    match value:
        case None | bool() | str():
            return value
        case Integral():
            return int(value)
        case Real() if math.isfinite(value):
            return float(value)
        case Mapping():
            return {str(key): _json_value(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_json_value(inner) for inner in value]
    return str(value)
