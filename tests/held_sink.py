"""The file sink, held behind its second commit for whoever kills it: however late that is, much is left to be written.

A program: ``held_sink.py SERVERS PREFIX STORAGE FORMAT COMMIT_ROWS``. Prints the rows so far at each commit.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import click

from ingestor.core.topics import Topics
from ingestor.kafka import Cluster
from stream_app.files import FilesProgress, FilesSettings, run_files


def main() -> None:
    servers, prefix, storage, file_format, rows = sys.argv[1:]
    settings = FilesSettings(
        Cluster(servers), Topics(prefix), Path(storage), file_format, commit_s=0.02, commit_rows=int(rows)
    )
    commits: list[FilesProgress] = []

    def hold(progress: FilesProgress) -> None:
        click.echo(progress.rows)
        commits.append(progress)
        threading.Event().wait(None if len(commits) == 2 else 0)

    run_files(settings, threading.Event(), hold)


if __name__ == "__main__":
    main()
