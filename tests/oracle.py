"""What every window must hold, computed the short way: pandas for the grouping, math.fsum for the sums."""

import math
import re
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pandas as pd

from ingestor.core.durations import ChunkSize
from ingestor.workloads import service_of

AGGREGATES = {
    "sum": lambda values: _sum(values),  # noqa: PLW0108 - defined below
    "mean": lambda values: _sum(values) / len(values),
    "median": lambda values: pd.Series(values).median(skipna=False),
    "min": lambda values: pd.Series(values).min(),
    "max": lambda values: pd.Series(values).max(),
    "count": len,
    "stddev": lambda values: _stddev(values),  # noqa: PLW0108 - defined below
    "last": lambda values: values[-1],
}

LOOKBACK_MS = 300_000
_COUNTER = re.compile(r".*_(total|count|sum|bucket)")


@np.errstate(invalid="ignore")
def windows(
    samples: pd.DataFrame,
    chunk_size: str,
    method: str,
    group_by: str,
    over_time: str = "pooled",
    *,
    counters: str = "raw",
    metric_methods: Sequence[tuple[str, str]] = (),
    from_ms: int = 0,
):
    """Return ``{(namespace, pod or service, window start ms): {metric: value}}``.

    *samples* has the columns namespace, pod, metric, series, timestamp (ms), value; if it has them also type, or
    else the suffix tells counters, and fingerprint, which orders the samples of one moment for *last*. Those
    before *from_ms* are only what increases begin at.
    """
    size = ChunkSize.parse(chunk_size)
    names = samples["metric"].str.partition("{")[0] if len(samples) else samples["metric"]
    frame = (
        _placed(samples, size, group_by)
        .assign(
            name=names,
            type=samples.get("type", names.map(lambda name: "counter" if _COUNTER.fullmatch(name) else "gauge")),
            fingerprint=samples.get("fingerprint", 0),
        )
        .sort_values(["timestamp", "fingerprint"], kind="stable")
    )
    result: dict[tuple[str, str, int], dict[str, float]] = {}
    for (namespace, who, name, kind, metric), column in frame.groupby(["namespace", "who", "name", "type", "metric"]):
        first = counters if kind == "counter" and counters != "raw" else over_time
        chosen = next((own for pattern, own in metric_methods if re.fullmatch(pattern, name)), method)
        values = (
            column[column["timestamp"] >= from_ms] if first == "pooled" else _of_series(column, first, size, from_ms)
        )
        for window, cell in values.groupby("window"):
            result.setdefault((namespace, who, window), {})[metric] = _aggregate(chosen, cell["value"].tolist())
    return result


def counts(samples: pd.DataFrame, chunk_size: str, group_by: str) -> dict[tuple[str, str, int], int]:
    """Return how many samples each window has, by the keys of `windows`."""
    placed = _placed(samples, ChunkSize.parse(chunk_size), group_by)
    return placed.groupby(["namespace", "who", "window"]).size().to_dict()


def _placed(samples: pd.DataFrame, size: ChunkSize, group_by: str) -> pd.DataFrame:
    return samples.assign(
        window=[size.floor_ms(t) for t in samples["timestamp"]],
        who=samples["pod"] if group_by == "pod" else [service_of(pod) for pod in samples["pod"]],
    )


def _of_series(column: pd.DataFrame, over_time: str, size: ChunkSize, from_ms: int) -> pd.DataFrame:
    """Return one value a window and series, in the order of the series' last samples."""
    rows = []
    for _, series in column.groupby(["pod", "series"]):
        stamps, values = series["timestamp"].to_numpy(), series["value"].to_numpy(float)
        for window in series["window"][stamps >= from_ms].unique():
            start_ms, end_ms = size.edges_ms(window, window + 1)
            inside = np.flatnonzero((stamps >= max(start_ms, from_ms)) & (stamps < end_ms))
            found = values[inside]
            if over_time in ("increase", "rate"):
                before = inside[0] - 1
                if before >= 0 and stamps[before] >= max(start_ms, from_ms) - LOOKBACK_MS:
                    found = np.append(values[before], found)
                if len(found) < 2:
                    continue
            value = {
                "last": lambda found=found: found[-1],
                "mean": lambda found=found: _sum(found) / len(found),
                "increase": lambda found=found: _increase(found),
                "rate": lambda found=found, s=(end_ms - start_ms) / 1000: _increase(found) / s,
            }[over_time]()
            rows.append((window, stamps[inside[-1]], series["fingerprint"].iloc[0], value))
    found = pd.DataFrame(rows, columns=["window", "timestamp", "fingerprint", "value"])
    return found.sort_values(["timestamp", "fingerprint"], kind="stable")


def _increase(values: Sequence[float]) -> float:
    """Return what a counter has grown by: a fall is a reset to zero, and as in Prometheus no NaN is one."""
    values = np.asarray(values, float)
    previous, current = values[:-1], values[1:]
    return _sum([values[-1], -values[0], *previous[current < previous]])


def _aggregate(method: str, values: list[float]) -> float:
    if method in AGGREGATES:
        return float(AGGREGATES[method](values))
    return _quantile(values, float(method.removeprefix("p")) / 100)


def _quantile(values: Sequence[float], quantile: float) -> float:
    if np.isfinite(values).all() or np.isnan(values).any():
        return float(np.quantile(values, quantile))
    # Half way from a number to infinity numpy has NaN; Prometheus has infinity.
    rank = quantile * (len(values) - 1)
    below, above, weight = sorted(values)[math.floor(rank)], sorted(values)[math.ceil(rank)], rank % 1
    return below if weight == 0 else below * (1 - weight) + above * weight


def _sum(values: Sequence[float]) -> float:
    # fsum refuses infinities of both signs, whose sum is NaN.
    return math.fsum(values) if np.isfinite(values).all() else float(np.sum(values))


def _stddev(values: Sequence[float]) -> float:
    """Return the population's deviation; exact but for the root, where pandas' own mean is too rough for 1e15 + 1."""
    if not np.isfinite(values).all():
        return math.nan
    exact = [Fraction(value) for value in values]
    return math.sqrt(sum(x * x for x in exact) / len(exact) - (sum(exact) / len(exact)) ** 2)


def same(a: float, b: float) -> bool:
    """Return whether two values are equal within 1e-12, NaN being equal to itself."""
    return (math.isnan(a) and math.isnan(b)) or a == b or math.isclose(a, b, rel_tol=1e-12, abs_tol=0.0)
