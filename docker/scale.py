"""What a number of active series needs: ``python docker/scale.py 250000`` prints rows like those of docker/scale.md."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

SERIES = (10_000, 100_000, 1_000_000, 10_000_000)
DAY_S = 86_400

SCRAPE_S = 15
WINDOW_S = 60
MOST_OF_ONE_PROMETHEUS = 1_000_000
"""What one poller was seen to keep up with; more is several Prometheus servers, each with a poller and a prefix."""
PARTITIONS = 8
WORKERS = 2
"""One would do: the other takes over."""

CHUNK_BYTES_A_SERIES, CHUNK_BYTES_A_SAMPLE = 58, 3.7
"""In each range: what tells a series, and each of its samples."""
RECORD_BYTES_A_CELL = 17
"""Of a pod's record with 100 metrics, in lz4; 45 as JSON."""
POLLER_CPU_S_A_SERIES, PROMETHEUS_CPU_S_A_SERIES = 3.4e-6, 8.5e-6
"""In each range."""
WORKER_CPU_S_A_SERIES, WORKER_CPU_S_A_SAMPLE, WORKER_CPU_S_A_MESSAGE = 0.8e-6, 0.12e-6, 1e-3
"""In each range: decoding and adding up, and what a message costs whatever is in it."""
RANGE_SAMPLES = 2_000_000
"""What a range aims at (`--range-samples`): of many series it is shorter than the poll interval."""
MESSAGE_BYTES = 900_000
POLLER_BYTES, POLLER_BYTES_A_SERIES = 150e6, 900
WORKER_BYTES, WORKER_BYTES_A_CELL = 170e6, 500


@dataclass(frozen=True, slots=True)
class Needs:
    """What the pipeline takes at a number of active series; each of them makes one cell of a window."""

    pollers: int
    partitions: int
    workers: int
    poller_cores: float
    """Of all pollers, as everything below is of all of its kind."""
    prometheus_cores: float
    worker_cores: float
    poller_gb: float
    worker_gb: float
    chunk_mb_a_s: float
    record_mb_a_s: float
    chunk_gb_a_day: float
    record_gb_a_day: float


def needs(series: int, poll_s: int = 15) -> Needs:
    """Return what *series* active series need that are scraped every 15 s, polled every *poll_s*, in windows of 1 m."""
    pollers = max(1, math.ceil(series / MOST_OF_ONE_PROMETHEUS))
    partitions, workers = pollers * PARTITIONS, pollers * WORKERS
    range_s = max(SCRAPE_S, min(poll_s, RANGE_SAMPLES * pollers // series * SCRAPE_S))
    samples = series * range_s / SCRAPE_S
    range_bytes = series * CHUNK_BYTES_A_SERIES + samples * CHUNK_BYTES_A_SAMPLE
    # At least a chunk and a marker in each partition.
    messages = max(range_bytes / MESSAGE_BYTES, partitions) + partitions
    worker_cpu_s = WORKER_CPU_S_A_SERIES * series + WORKER_CPU_S_A_SAMPLE * samples + WORKER_CPU_S_A_MESSAGE * messages
    chunks, records = range_bytes / range_s, series * RECORD_BYTES_A_CELL / WINDOW_S
    return Needs(
        pollers,
        partitions,
        workers,
        POLLER_CPU_S_A_SERIES * series / range_s,
        PROMETHEUS_CPU_S_A_SERIES * series / range_s,
        worker_cpu_s / range_s,
        (pollers * POLLER_BYTES + series * POLLER_BYTES_A_SERIES) / 1e9,
        (workers * WORKER_BYTES + series * WORKER_BYTES_A_CELL) / 1e9,
        chunks / 1e6,
        records / 1e6,
        chunks * DAY_S / 1e9,
        records * DAY_S / 1e9,
    )


def row(series: int, poll_s: int) -> str:
    """Return a line of the table."""
    need = needs(series, poll_s)
    cores = (need.poller_cores, need.prometheus_cores, need.worker_cores)
    numbers = (*cores, need.poller_gb, need.worker_gb, need.chunk_mb_a_s, need.record_mb_a_s)
    cells = [f"{series:,}", f"{poll_s} s", need.pollers, need.partitions, need.workers, *map(_short, numbers)]
    cells += [f"{need.chunk_gb_a_day:,.0f} GB", f"{need.record_gb_a_day:,.0f} GB"]
    return f"| {' | '.join(map(str, cells))} |"


def _short(number: float) -> str:
    if number < 0.005:
        return "< 0.01"
    return f"{number:.2f}" if number < 10 else f"{number:.0f}"


if __name__ == "__main__":
    for count in [int(text) for text in sys.argv[1:]] or SERIES:
        for poll in (15, 60):
            print(row(count, poll))
