"""The file sink as ``stream-app dataset`` runs it: beside the worker, then to the end of what is committed.

A program of its own: ``file_sink.py BOOTSTRAP_SERVERS TOPIC_PREFIX STORAGE FORMAT``. SIGTERM says that the worker
is done; it prints ``ready`` before, and ``done`` when the files are whole.
"""

from __future__ import annotations

import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

import click

from ingestor.core.topics import Topics
from ingestor.kafka import Cluster
from stream_app.files import FilesSettings, run_files


def main() -> None:
    servers, prefix, storage, file_format = sys.argv[1:]
    settings = FilesSettings(Cluster(servers), Topics(prefix), Path(storage), file_format, idle_s=0.0)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    click.echo("ready")
    run_files(settings, stop)
    run_files(replace(settings, until_idle=True), threading.Event())
    click.echo("done")
    # Its memory and time are read before it ends.
    signal.pause()


if __name__ == "__main__":
    main()
