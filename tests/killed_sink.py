"""The file sink, killed at every step of its commits; a program: ``killed_sink.py SERVERS PREFIX STORAGE FORMAT``.

Each life ends with SIGKILL before or behind the first call that brings something to disk, renames or removes it and at
which no life has ended before, and the next one goes on with what it has left; until one comes to the end of what Kafka
has. Prints what each died at.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import click

from ingestor.core.topics import Topics
from ingestor.kafka import Cluster
from stream_app.files import FilesSettings, run_files

STEPS = ("fsync", "replace", "unlink")


def main() -> None:
    servers, prefix, storage, file_format = sys.argv[1:]
    settings = FilesSettings(
        Cluster(servers), Topics(prefix), Path(storage), file_format, until_idle=True, idle_s=0.0, commit_s=0.05
    )
    died: list[str] = []
    while True:
        ear, mouth = os.pipe()
        # What is imported is imported once; clients and threads begin in the child.
        if (child := os.fork()) == 0:
            _arm(died, mouth)
            run_files(settings, threading.Event())
            os._exit(0)
        os.close(mouth)
        with os.fdopen(ear) as told:
            died.append(told.read())
        _, status = os.waitpid(child, 0)
        if (code := os.waitstatus_to_exitcode(status)) != -signal.SIGKILL:
            sys.exit(code)
        click.echo(died[-1])


def _arm(died: Collection[str], mouth: int) -> None:
    """Have this process killed at the first step that is new; several threads may do one at once."""
    lock = threading.Lock()

    def look(where: str) -> None:
        if where not in died:
            os.write(mouth, where.encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def stepping(name: str) -> Callable[..., Any]:
        call = getattr(os, name)

        def step(target: Any, *more: Any, **named: Any) -> Any:
            path = Path(f"/proc/self/fd/{target}").readlink() if isinstance(target, int) else Path(target)
            with lock:
                look(f"before {name} {path.name}")
                result = call(target, *more, **named)
                look(f"behind {name} {path.name}")
            return result

        return step

    for name in STEPS:
        setattr(os, name, stepping(name))


if __name__ == "__main__":
    main()
