"""What people write who need the same files once: prometheus-api-client and pandas, a minute and a metric at a time.

``batch_scripts.py URL START_MS MINUTES STORAGE``. Prints ``first`` and ``done``, then waits to be ended.
"""

from __future__ import annotations

import signal
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import pandas as pd
from prometheus_api_client import MetricRangeDataFrame, PrometheusConnect

MINUTE = timedelta(minutes=1)


def main() -> None:
    url, start_ms, minutes, storage = sys.argv[1:]
    start = datetime.fromtimestamp(int(start_ms) / 1000, UTC)
    prometheus = PrometheusConnect(url)
    folder = Path(storage)
    folder.mkdir()
    click.echo("first")
    rows: dict[str, list[pd.DataFrame]] = {}
    metrics = prometheus.all_metrics()
    for minute in range(int(minutes)):
        begin = start + minute * MINUTE
        columns = {metric: mean for metric in metrics if (mean := mean_of(prometheus, metric, begin)) is not None}
        wide = pd.DataFrame(columns).rename_axis("pod").reset_index()
        wide.insert(0, "timestamp", begin.strftime("%Y-%m-%dT%H:%M:%SZ"))
        for service, of_service in wide.groupby(wide["pod"].str.rsplit("-", n=2).str[0]):
            rows.setdefault(str(service), []).append(of_service)
    for service, frames in rows.items():
        pd.concat(frames).to_csv(folder / f"{service}.csv", index=False)
    click.echo("done")
    signal.pause()


def mean_of(prometheus: PrometheusConnect, metric: str, begin: datetime) -> pd.Series | None:
    """Return each pod's mean over a minute."""
    data = prometheus.get_metric_range_data(
        metric, {"namespace": "prod"}, start_time=begin, end_time=begin + MINUTE, chunk_size=MINUTE
    )
    return MetricRangeDataFrame(data).groupby("pod")["value"].mean() if data else None


if __name__ == "__main__":
    main()
