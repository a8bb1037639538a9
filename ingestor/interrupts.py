"""Signals that come while a program is still being loaded: it ends at once and in order, for nothing has begun."""

from __future__ import annotations

import os
import signal

EXIT_INTERRUPTED = 130


def end_on_signals() -> None:
    """End the process at SIGTERM and Ctrl-C, until a command has its own way of ending.

    Python would print a traceback of its imports at Ctrl-C. And SIGTERM is nothing to the first process of a
    container, which has no way of its own to end: Kubernetes would wait for the grace period.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        # What whoever started us has chosen to ignore, as a shell does for its background, stays ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)


def _end(*_: object) -> None:
    os._exit(EXIT_INTERRUPTED)
