"""A file system that is full, or that cannot be written: one line, and nothing lost once there is room."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import files
import pandas as pd
import pytest
from commands import backfill, run, stream_app, view_flags, view_of, wait_until_windowed, worker

from ingestor.local.kafka import LocalKafka
from ingestor.local.prometheus import LocalPrometheus
from ingestor.options import cluster_arguments

# A mount namespace of our own: nothing is mounted where anybody else sees it, and it goes with the shell.
UNSHARE = ["unshare", "--map-root-user", "--mount", "bash", "-euc"]

SCRIPT = """
mount -t tmpfs -o size={size},{mode} none {folder}
{command} || echo "ended with $?"
mount -o remount,rw,size=64m {folder}
{command}
cp -r {folder}/. {kept}
"""


@pytest.fixture
def can_mount(tmp_path: Path) -> None:
    """Skip where the system lets nobody but root mount anything."""
    tried = subprocess.run([*UNSHARE, f"mount -t tmpfs none {tmp_path}"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no small file system without root: run this as root ({tried.stderr.strip()})")


@pytest.mark.usefixtures("can_mount")
@pytest.mark.parametrize(
    ("size", "mode", "code", "words"),
    [("120k", "rw", 1, "free some space"), ("64m", "ro", 2, "cannot be written")],
    ids=["full", "read-only"],
)
def test_a_file_system_that_refuses(
    kafka: LocalKafka,
    prometheus: LocalPrometheus,
    samples: pd.DataFrame,
    tmp_path: Path,
    size: str,
    mode: str,
    code: int,
    words: str,
) -> None:
    """`stream-app files` ends with what to do; the same command, once that is done, writes the oracle's files."""
    view = view_of("storage", "1m", "mean")
    run(backfill(prometheus, kafka, "storage"))
    with worker(kafka, view, tmp_path / "worker.log") as child:
        wait_until_windowed(kafka, view, child)
    folder, kept = tmp_path / "small", tmp_path / "kept"
    folder.mkdir()
    kept.mkdir()
    where = ["--topic-prefix", view.topics.prefix, *cluster_arguments(kafka.cluster)]
    sink = stream_app("files", "--storage", str(folder), "--until-idle", "--idle", "1ms", *where, *view_flags(view))
    script = SCRIPT.format(
        size=size,
        mode=mode,
        folder=shlex.quote(str(folder)),
        kept=shlex.quote(str(kept)),
        command=shlex.join(sink),
    )
    done = run([*UNSHARE, script])
    assert f"ended with {code}" in done.stdout
    (told,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert str(folder) in told
    assert words in told
    files.assert_equal_to_oracle(files.read(kept, pods=True), samples, "1m", "mean", "pod")
