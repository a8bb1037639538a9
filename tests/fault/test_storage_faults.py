"""A file system that fills or becomes read-only amid the work: one line, and nothing is lost once that is mended."""

from __future__ import annotations

import random
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pod_topic
import pytest
from commands import PATIENCE_S, run, wait_for_line
from test_commit_points import written

from ingestor.local.kafka import LocalKafka
from ingestor.local.processes import Child
from ingestor.options import cluster_arguments
from stream_app.records import decode_record

# A mount namespace of our own: nothing is mounted where anybody else sees it, and it goes with its last process.
UNSHARE = ["unshare", "--map-root-user", "--mount", "bash", "-euc"]

HASTY = """
from stream_app.sinks.formats import PACES
PACES["parquet"] = PACES["csv"]
from stream_app.cli import main
main()
"""
"""The program, which commits Parquet as often as CSV."""

MINUTES = 2_000


class SmallDisk:
    """A folder with a file system of 200 kB in it, which only those see whom this one starts."""

    def __init__(self, folder: Path, holder: int) -> None:
        self._folder, self._holder = folder, holder

    @property
    def seen(self) -> Path:
        """The folder, for us."""
        return Path(f"/proc/{self._holder}/root{self._folder}")

    def command(self, *command: str) -> list[str]:
        return ["nsenter", "--target", str(self._holder), "--user", "--mount", *command]

    def do(self, script: str) -> None:
        run(self.command("bash", "-euc", script.format(folder=shlex.quote(str(self._folder)))))


@contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk]:
    # It ends with what it reads: however the test ends.
    mount = f"mount -t tmpfs -o size=200k none {shlex.quote(str(folder))}; echo mounted; exec cat"
    with subprocess.Popen([*UNSHARE, mount], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"mounted\n"
        yield SmallDisk(folder, holder.pid)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """Skip where the system lets nobody but root mount anything."""
    folder = tmp_path / "small"
    folder.mkdir()
    tried = subprocess.run([*UNSHARE, f"mount -t tmpfs none {folder}"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no small file system without root: run this as root ({tried.stderr.strip()})")
    with small_disk(folder) as mounted:
        yield mounted


# What is mounted over the folder is what is found there from now on; a file system with an open lock stays as it is.
FAULTS = {
    "full": ("", "free some space", "No space left on device", "mount -o remount,size=64m {folder}"),
    "read-only": (
        "mount --bind {folder} {folder}; mount -o remount,bind,ro {folder}",
        "mend the disk",
        "Read-only file system",
        "umount {folder}; mount -o remount,size=64m {folder}",
    ),
}


@pytest.mark.parametrize("file_format", ["csv", "parquet"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_system_that_refuses_amid_the_work(
    kafka: LocalKafka, disk: SmallDisk, tmp_path: Path, fault: str, file_format: str
) -> None:
    """`stream-app files`, which has committed before, ends with what to do and keeps what is in its files.

    Once there is room, the same command writes all that is missing; on a read-only one it does not begin.
    """
    begin, advice, reason, mend = FAULTS[fault]
    topic, chance = pod_topic.PodTopic(kafka), random.Random(9)
    topic.make()
    values = [
        pod_topic.record(
            minute, f"{service}-{pod}", service, metrics={"cpu": chance.random(), "memory": chance.random()}
        )
        for minute in range(MINUTES)
        for service in ("cart", "orders")
        for pod in "0123"
    ]
    few = values[:80]
    sent = {(r.pod or "", r.window_start_ms): dict(r.metrics) for r in map(decode_record, values)}
    command = disk.command(
        sys.executable, "-c", HASTY, "files", "--format", file_format, "--storage", str(tmp_path / "small"),
        "--json", "--topic-prefix", topic.names.prefix, *cluster_arguments(kafka.cluster),
    )  # fmt: skip
    topic.send(*few)
    with Child(command, log_path=tmp_path / "files.log") as child:
        wait_for_line(child, f'"rows":{len(few)},')
        disk.do(begin)
        topic.send(*values[len(few) :])
        assert child.wait(PATIENCE_S) == 1, child.log_tail()
    (told,) = [line for line in child.log_path.read_text().splitlines() if line.startswith("error:")]
    for word in (str(tmp_path / "small"), reason, advice):
        assert word in told
    kept = dict(written(disk.seen, file_format))
    assert len(few) <= len(kept) < len(sent)
    assert kept.items() <= sent.items()
    until_idle = [*command, "--until-idle", "--idle", "1ms"]
    if fault == "read-only":
        assert "cannot be written" in run(until_idle, code=2).stderr
    disk.do(mend)
    run(until_idle)
    found = written(disk.seen, file_format)
    assert len(found) == len(sent)
    assert dict(found) == sent
