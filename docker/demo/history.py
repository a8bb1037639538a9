"""Writes the demo's past as OpenMetrics text, for ``promtool tsdb create-blocks-from openmetrics``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import metrics

INTERVAL_MS = 5_000
"""What most Prometheus servers scrape at."""

TARGET_LABELS: metrics.Labels = (("instance", "workload:8000"), ("job", "workload"))
"""What the demo's scrape adds to every series; history has it too, so that live samples go on in the same series."""


def write_history(file: TextIO, start_ms: int, end_ms: int, interval_ms: int = INTERVAL_MS) -> int:
    """Write the samples of [start_ms, end_ms] and return their number.

    Times are counted back from *end_ms*: the last scrape is at *end_ms* itself, so
    that nothing is missing between it and a server that starts then.
    """
    lines: dict[str, dict[str, list[str]]] = {name: {} for name in metrics.TYPES}
    for time_ms in _times_ms(start_ms, end_ms, interval_ms):
        stamp = f"{time_ms // 1000}.{time_ms % 1000:03d}"
        for name, labels, value in metrics.samples_at(time_ms):
            series = metrics.series_text(name, labels + TARGET_LABELS)
            lines[name].setdefault(series, []).append(f"{series} {metrics.value_text(value)} {stamp}\n")
    count = 0
    for name, of_series in lines.items():
        # OpenMetrics calls a counter's family by the name without its suffix.
        family = name.removesuffix("_total") if metrics.TYPES[name] == "counter" else name
        file.write(f"# TYPE {family} {metrics.TYPES[name]}\n# HELP {family} {metrics.HELP[name]}\n")
        for series_lines in of_series.values():
            file.writelines(series_lines)
            count += len(series_lines)
    file.write("# EOF\n")
    return count


def _times_ms(start_ms: int, end_ms: int, interval_ms: int) -> Iterator[int]:
    steps = (end_ms - start_ms) // interval_ms
    return (end_ms - step * interval_ms for step in range(steps, -1, -1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="the OpenMetrics file to write")
    parser.add_argument("--hours", type=float, default=6.0, help="how much of the past (default: %(default)s)")
    parser.add_argument("--end", type=float, help="the last sample's time in Unix seconds (default: now)")
    arguments = parser.parse_args()
    end_ms = round((time.time() if arguments.end is None else arguments.end) * 1000)
    with arguments.file.open("w", encoding="utf-8", newline="\n") as file:
        count = write_history(file, end_ms - round(arguments.hours * metrics.HOUR_MS), end_ms)
    print(f"{count} samples in {arguments.file}", file=sys.stderr)


if __name__ == "__main__":
    main()
