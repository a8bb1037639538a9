"""What every window must hold, computed the short way: pandas for the grouping, math.fsum for the sums."""

import math

import pandas as pd

from ingestor.core.durations import ChunkSize
from ingestor.workloads import service_of

AGGREGATES = {
    "sum": math.fsum,
    "mean": lambda values: math.fsum(values) / len(values),
    "median": lambda values: pd.Series(values).median(skipna=False),
}


def windows(samples: pd.DataFrame, chunk_size: str, method: str, group_by: str, over_time: str = "pooled"):
    """Return ``{(namespace, pod or service, window start ms): {metric: value}}``.

    *samples* has the columns namespace, pod, metric, series, timestamp (ms), value.
    """
    size = ChunkSize.parse(chunk_size)
    frame = samples.assign(
        window=[size.floor_ms(t) for t in samples["timestamp"]],
        who=samples["pod"] if group_by == "pod" else [service_of(pod) for pod in samples["pod"]],
    )
    if over_time == "last":
        frame = frame.sort_values("timestamp").groupby(["window", "pod", "metric", "series"]).tail(1)
    result: dict[tuple[str, str, int], dict[str, float]] = {}
    for (namespace, who, window, metric), cell in frame.groupby(["namespace", "who", "window", "metric"]):
        result.setdefault((namespace, who, window), {})[metric] = AGGREGATES[method](cell["value"].tolist())
    return result


def same(a: float, b: float) -> bool:
    """Return whether two values are equal within 1e-12, NaN being equal to itself."""
    return (math.isnan(a) and math.isnan(b)) or a == b or math.isclose(a, b, rel_tol=1e-12, abs_tol=0.0)
