"""A line of the log says all that the event was given, for people and for machines."""

from __future__ import annotations

import json
import logging
import math
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestor.logs import JsonFormatter, TextFormatter

MOMENT_S = 1_795_435_200.25
ONE_FIELD = re.compile(r' (\w+)=("(?:[^"\\]|\\.)*"|[^\s"=]+)')

# Logs what the command lines log, through the set-up that they use.
EVENTS = """
import logging, sys
from ingestor.command_line import fail, presence, say, set_up_logging
from ingestor.core.errors import ConfigError

set_up_logging("info", sys.argv[1])
log = logging.getLogger("ingestor.poller")
log.info("range published", extra={"job": "live", "samples": 120, "changed": ["url", "match"]})
log.debug("not asked for")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("it failed", extra={"error": "cannot connect to \\"é\\""})
for _ in range(100):
    logging.getLogger("kafka").warning("a broker is away")
say("preset none")
fail(ConfigError("give --url"))
"""

texts = st.text(st.characters(exclude_categories=()))
names = st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True).map("x_{}".format)


def record(event: str = "range published", /, **fields: Any) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "ingestor.poller", "levelno": 20, "levelname": "INFO", "msg": event})
    made.created = MOMENT_S
    made.__dict__.update(fields)
    return made


def logged(log_format: str) -> list[str]:
    command = [sys.executable, "-c", EVENTS, log_format]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True)
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_text_lines_are_for_people() -> None:
    """Time, level, event, fields; quotes only where a reader of key=value needs them."""
    line = TextFormatter().format(
        record(job="live", samples=120, ms=1.5, end=None, error='cannot "connect"', none="", pair="a=b", plain="a\\b/é")
    )
    assert line == (
        "2026-11-23T12:00:00Z INFO range published job=live samples=120 ms=1.5 end=None "
        r'error="cannot \"connect\"" none="" pair="a=b" plain=a\b/é'
    )


@given(st.dictionaries(names, texts))
def test_text_lines_are_read_back(fields: dict[str, str]) -> None:
    """Whatever characters a value has, the event is one line, and its fields are found in it as they were."""
    line = TextFormatter().format(record(**fields))
    assert len(line.splitlines()) == 1
    start, found = line.removeprefix("2026-11-23T12:00:00Z INFO range published"), {}
    for match in ONE_FIELD.finditer(start):
        found[match[1]] = json.loads(match[2]) if match[2].startswith('"') else match[2]
    assert found == fields
    assert "".join(match[0] for match in ONE_FIELD.finditer(start)) == start


def test_json_keeps_types() -> None:
    """Numbers stay numbers; what JSON has no word for becomes text."""
    moment = datetime(2026, 11, 23, tzinfo=UTC)
    fields = {
        "samples": 120,
        "large": 2**70,
        "seconds": 1.5,
        "streamed": True,
        "end": None,
        "changed": ("url", 1),
        "where": {"partition": 3, 4: Path("x")},
        "count": np.int64(7),
        "share": np.float32(0.5),
        "nothing": math.nan,
        "most": -math.inf,
        "path": Path("a/b"),
        "moment": moment,
        "bytes": b"a",
        "text": "é\n\"'",
    }
    line = JsonFormatter().format(record(**fields))
    assert len(line.splitlines()) == 1
    assert line.isascii()
    read = json.loads(line, parse_constant=pytest.fail)
    assert read == {
        "time": "2026-11-23T12:00:00.250Z",
        "level": "info",
        "logger": "ingestor.poller",
        "event": "range published",
        "samples": 120,
        "large": 2**70,
        "seconds": 1.5,
        "streamed": True,
        "end": None,
        "changed": ["url", 1],
        "where": {"partition": 3, "4": "x"},
        "count": 7,
        "share": 0.5,
        "nothing": "nan",
        "most": "-inf",
        "path": "a/b",
        "moment": str(moment),
        "bytes": "b'a'",
        "text": "é\n\"'",
    }
    assert (type(read["streamed"]), type(read["count"]), type(read["share"])) == (bool, int, float)


@given(st.dictionaries(names, st.recursive(texts | st.integers() | st.booleans() | st.none(), st.lists)))
def test_json_lines_are_read_back(fields: dict[str, Any]) -> None:
    """Whatever an event was given, it is one line, and one object."""
    line = JsonFormatter().format(record(**fields))
    assert len(line.splitlines()) == 1
    read = json.loads(line)
    assert {name: read[name] for name in fields} == fields


def test_json_fields_never_hide_the_event() -> None:
    """A field with the name of one of ours is kept beside it."""
    read = json.loads(JsonFormatter().format(record(event="other", level="5m", time=1, logger=None, exception="x")))
    assert (read["event"], read["level"], read["logger"]) == ("range published", "info", "ingestor.poller")
    assert [read[name] for name in ("event_", "level_", "time_", "logger_", "exception_")] == [
        "other",
        "5m",
        1,
        None,
        "x",
    ]


def test_the_command_lines_log_in_json() -> None:
    """All that they write to standard error is an object a line: events, tracebacks, advice, the last error."""
    events = [json.loads(line) for line in logged("json")]
    assert [event["event"] for event in events] == [
        "range published",
        "it failed",
        "a broker is away",
        "preset none",
        "failed",
    ]
    published, failed, library, _, ended = events
    assert (published["samples"], published["changed"]) == (120, ["url", "match"])
    assert (failed["level"], failed["error"]) == ("error", 'cannot connect to "é"')
    assert failed["exception"].startswith("Traceback (most recent call last):\n")
    assert failed["exception"].endswith("\nZeroDivisionError: division by zero")
    assert (library["level"], library["logger"]) == ("warning", "kafka")
    assert (ended["level"], ended["error"], ended["exit_code"]) == ("error", "give --url", 2)
    moments = [datetime.fromisoformat(event["time"]) for event in events]
    assert moments == sorted(moments)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["time"]) for event in events)


def test_the_command_lines_log_in_text() -> None:
    """The same as lines, with the traceback below its event."""
    lines = logged("text")
    assert re.fullmatch(
        r"\S+Z INFO range published job=live samples=120 changed=\"\['url', 'match'\]\"",
        lines[0],
    )
    assert lines[1].endswith(r'Z ERROR it failed error="cannot connect to \"é\""')
    assert lines[2] == "Traceback (most recent call last):"
    assert lines[-4] == "ZeroDivisionError: division by zero"
    assert lines[-3].endswith("Z WARNING a broker is away")
    assert lines[-2:] == ["preset none", "error: give --url"]


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["--url", "http://127.0.0.1:1", "--start", "1h"], 2, "is Prometheus running there? give --url"),
        (["--url", "http://127.0.0.1:1"], 2, "--start: is missing"),
        (["--start", "1h", "--url", "x", "--settle", "soon"], 2, "--settle: 'soon' is not a duration"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_refusal_is_an_object_too(arguments: list[str], code: int, error: str, *, first: bool) -> None:
    """Who asked for JSON gets JSON, wherever the flag stands, and whatever is wrong."""
    flag = ["--log-format", "json"]
    typed = [*flag, *arguments] if first else [*arguments, *flag]
    done = subprocess.run(
        [sys.executable, "-m", "ingestor", "backfill", *typed], capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    [line] = done.stderr.splitlines()
    event = json.loads(line)
    assert (event["event"], event["exit_code"]) == ("failed", code)
    assert error in event["error"]


def test_the_level_holds_in_both_formats() -> None:
    """Level and format are one setting: neither undoes the other."""
    command = [sys.executable, "-m", "ingestor", "backfill", "--url", "http://127.0.0.1:1", "--start", "1h"]
    for flags in (["--log-format", "json", "--log-level", "error"], ["--log-level", "error"]):
        done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
