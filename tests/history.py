"""A few hours of a small cluster, made from a seed: what Prometheus is given, and what the oracle is given."""

import random
from pathlib import Path

import pandas as pd

from ingestor.core.time_range import TimeRange

END_MS = 1_795_435_237_000
"""Not on a window's edge, nor is the start: the first and the last window are cut."""

HOURS = 2
START_MS = END_MS - HOURS * 3_600_000 - 11_000
TIME = TimeRange(START_MS, END_MS)
INTERVAL_MS = 15_000

PODS = [
    *[("shop", f"web-7d9f8b6c5-{suffix}") for suffix in ("x2x4z", "8vx7t", "k8v2d")],
    *[("shop", f"cart-5c689d88bb-{suffix}") for suffix in ("q2w9z", "7hxkd")],
    *[("data", f"postgres-{ordinal}") for ordinal in range(3)],
    ("data", "report-8zk2f"),
    ("", "lonely"),
]
METRICS = ["container_memory_rss", "http_requests_total", "queue_depth", "temperature_celsius"]
VANISHES, APPEARS, HAS_GAPS = "web-7d9f8b6c5-8vx7t", "cart-5c689d88bb-7hxkd", "postgres-1"


def samples(seed: int = 1) -> pd.DataFrame:
    """Return all samples: columns namespace, pod, metric, series, timestamp (ms), value."""
    generator = random.Random(seed)
    rows = []
    for namespace, pod in PODS:
        phase = generator.randrange(INTERVAL_MS)
        for metric in METRICS:
            series = ["200", "500"] if metric == "http_requests_total" else [""]
            for code in series:
                total = 0.0
                for t in range(START_MS + phase, END_MS, INTERVAL_MS):
                    if _is_silent(pod, t, generator):
                        continue
                    total += generator.random() * 1e3
                    value = total if metric == "http_requests_total" else _gauge(metric, generator)
                    rows.append((namespace, pod, metric, code, t, value))
    return pd.DataFrame(rows, columns=["namespace", "pod", "metric", "series", "timestamp", "value"])


def _is_silent(pod: str, t: int, generator: random.Random) -> bool:
    age = (t - START_MS) / (END_MS - START_MS)
    if pod == VANISHES:
        return age > 0.4
    if pod == APPEARS:
        return age < 0.7
    if pod == HAS_GAPS:
        return 0.2 < age < 0.3 or generator.random() < 0.3
    return pod == "report-8zk2f" and not 0.5 < age < 0.55


def _gauge(metric: str, generator: random.Random) -> float:
    if metric == "queue_depth":
        return float(generator.randrange(40))
    # Seventeen digits, and magnitudes that lose all of a naive sum's small values.
    return generator.uniform(-1, 1) * 10.0 ** generator.randrange(-9, 17)


def write_openmetrics(frame: pd.DataFrame, path: Path) -> None:
    """Write *frame* as promtool reads it."""
    with path.open("w") as file:
        for metric, part in frame.groupby("metric"):
            family, kind = (
                (metric.removesuffix("_total"), "counter") if metric.endswith("_total") else (metric, "gauge")
            )
            file.write(f"# TYPE {family} {kind}\n")
            for row in part.itertuples():
                labels = {"namespace": row.namespace, "pod": row.pod, "container": "app", "code": row.series}
                shown = ",".join(f'{name}="{value}"' for name, value in labels.items() if value)
                file.write(f"{metric}{{{shown}}} {row.value!r} {row.timestamp / 1000:.3f}\n")
        file.write("# EOF\n")
