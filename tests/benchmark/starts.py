"""How long a user waits for the programs themselves."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from pathlib import Path

from pipeline import Place, python, topics_made, wait_for_line

from ingestor.core.topics import Topics

_NAMES = itertools.count()


def help_s(module: str) -> float:
    """Return the seconds that a command takes to say how it is used."""
    began = time.perf_counter()
    subprocess.run([Path(sys.executable).parent / module, "--help"], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def ready_s(place: Place) -> float:
    """Return the seconds from a worker's command to its being ready, with compiled kernels in the cache."""
    topics = Topics(f"bench-start-{next(_NAMES)}")
    where = ["--bootstrap-servers", place.kafka.bootstrap_servers, "--topic-prefix", topics.prefix]
    view = ["--chunk-size", "1m", "--method", "mean", "--web-listen-address", "none"]
    with topics_made(place.kafka, topics):
        began = time.perf_counter()
        log_path = place.folder / f"{topics.prefix}.log"
        with python(["-m", "stream_app", "worker", *where, *view], log_path) as worker:
            wait_for_line(worker, "worker is ready")
            return time.perf_counter() - began
