"""What both command lines share: settings from file and environment, logs, errors, exit codes."""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import signal
import sys
import threading
from contextlib import suppress
from typing import Any, Literal

import click

from ingestor.core.errors import ConfigError, IngestorError
from ingestor.interrupts import EXIT_INTERRUPTED
from ingestor.logs import JsonFormatter, LogFormat, TextFormatter
from ingestor.settings import Command

log = logging.getLogger(__name__)

_OUR_PACKAGES = ("ingestor", "stream_app")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Source: glibc's malloc.h."""

_REPEAT_S = 10.0
_REPEATS_KEPT = 1000


def run(group: click.Group, environment_prefix: str) -> None:
    """Run a command line: one line a failure, never a traceback; 2 for what was asked wrongly."""
    _give_memory_back()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        # From here on it is said who was interrupted.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = group.main(standalone_mode=False, auto_envvar_prefix=environment_prefix)
    except click.ClickException as error:
        if _logs_are_json():
            fail(ConfigError(error.format_message()))
        else:
            error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        say("interrupted")
        code = EXIT_INTERRUPTED
    except IngestorError as error:
        fail(error)
        code = error.exit_code
    except Exception as error:
        # Whoever runs this gets a line, not a traceback.
        fail(IngestorError(f"{type(error).__name__}: {error} (--log-level debug shows where)"))
        logging.getLogger("ingestor").debug("unexpected", exc_info=True)
        code = IngestorError.exit_code
    sys.stdout.flush()
    # Requests in flight and librdkafka's threads must not hold an interrupted process.
    os._exit(code if isinstance(code, int) else 0)


def fail(error: IngestorError) -> None:
    """Say in one line what went wrong."""
    if _logs_are_json():
        log.error("failed", extra={"error": str(error), "exit_code": error.exit_code})
        return
    click.echo(f"{click.style('error:', fg='red', bold=True)} {error}", err=True)


def say(text: str) -> None:
    """Write to standard error, wrapped at words where it is a terminal; an event where logs are JSON."""
    if _logs_are_json():
        log.info(text)
        return
    if sys.stderr.isatty():
        text = click.wrap_text(text, shutil.get_terminal_size().columns)
    click.echo(text, err=True)


def stop_on_signals() -> threading.Event:
    """Return an event that SIGTERM and the first Ctrl-C set; the second Ctrl-C ends at once."""
    stop = threading.Event()

    def on_signal(number: int, _: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            os._exit(EXIT_INTERRUPTED)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    return stop


class SpelledGroup(click.Group):
    """A group that also takes the batch scripts' spellings: ``--start_time``, ``--chunk_size`` and the like."""

    command_class = Command

    _SPELLINGS = {  # noqa: RUF012 - a constant
        "--start_time": "--start",
        "--end_time": "--end",
        "--storage_path": "--storage",
        "--chunk_size": "--chunk-size",
    }

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(self._respelled(ctx, args)))

    def _respelled(self, ctx: click.Context, args: list[str]) -> Any:
        previous = ""
        for arg in args:
            flag, equals, value = arg.partition("=")
            if flag == "--chunk_size" or previous == "--chunk_size":
                size = arg if previous == "--chunk_size" else value
                if size != "m" and size.lstrip("0123456789") == "m":
                    # There it meant a month, here a minute: a silent change of meaning would be the worst of all.
                    ctx.fail(
                        f"--chunk_size {size} meant {size[:-1]} month(s) in the batch scripts and would mean "
                        f"minutes here: write {size[:-1]}mo or {size[:-1]}t"
                    )
            yield self._SPELLINGS.get(flag, flag) + equals + value
            previous = arg


def set_up_logging(level: str, log_format: LogFormat = "text") -> None:
    """Log events with their fields to standard error, one line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    handler.addFilter(_OtherLibrariesOncePer(_REPEAT_S))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for package in _OUR_PACKAGES:
        logging.getLogger(package).setLevel(level.upper())


def _logs_are_json() -> bool:
    """Whether standard error holds JSON, which other lines would spoil."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers)


def _give_memory_back() -> None:
    """Keep hardly any memory that is free: a backfill's or a replaying worker's peak is 370 MB then, not 430."""
    # Arrow's own pools keep what they had at their peak. Read when pyarrow is loaded.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    with suppress(OSError, AttributeError):
        # glibc learns to keep blocks of up to 32 MB, unless it is told from where on they are mapped.
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 1_000_000)
        # But 16 MB of what is smaller stay: given back and taken again, the system clears it each time.
        libc.mallopt(_M_TRIM_THRESHOLD, 16_000_000)


class _OtherLibrariesOncePer(logging.Filter):
    """Lets a message of another library through once in so many seconds: a broker that is away makes a hundred each."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds
        self._last: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] in _OUR_PACKAGES:
            return True
        key = record.name, str(record.msg)
        if record.created - self._last.get(key, 0.0) < self._seconds:
            return False
        if len(self._last) > _REPEATS_KEPT:
            self._last.clear()
        self._last[key] = record.created
        return True


Presence = Literal["terminal", "log", "json"]


def presence(*, as_json: bool) -> Presence:
    """Return how to show progress: a bar on a terminal, log lines elsewhere, JSON lines when asked."""
    if as_json:
        return "json"
    return "terminal" if sys.stderr.isatty() and not _logs_are_json() else "log"
