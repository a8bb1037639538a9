"""What is normal for a service, learned online with river, and how far from it a pod is.

Pure: frames in, verdicts out.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from river.base import AnomalyDetector
from river.stats import RollingIQR, RollingQuantile

COUNTER_ENDINGS = ("_total", "_count", "_sum", "_bucket")

WINDOW_VALUES = 300
"""What is normal is what the last values were: of a service with three pods, those of 100 windows."""

GRACE_VALUES = 60
"""A metric is judged once so many of its values were learned."""

STILL = 0.01
"""A deviation is at least this share of the normal value: a metric that stood still may change a little."""

IQR_OF_NORMAL = 1.349
"""The distance of a normal distribution's quartiles, in standard deviations."""

GROWN = ("increase", "rate")
"""How methods' names end whose values are growth already: ``mean-counters-rate``, ``sum-of-increase``."""

MAX_REASONS = 3


@dataclass(frozen=True, slots=True)
class Reason:
    """A metric that is not as it mostly is."""

    metric: str
    value: float
    normal: float
    deviation: float
    """How many standard deviations it is off, with its sign."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How far a pod's window is from its service's normal."""

    score: float
    is_anomalous: bool
    reasons: tuple[Reason, ...]


def features(history: pd.DataFrame, method: str) -> pd.DataFrame:
    """Return what a model can compare: gauges as they are, counters as their growth a second since the row before.

    Args:
        history: one pod's windows in time order; a DatetimeIndex, a column a metric.
        method: what made them, as records name it.

    Returns:
        The same shape. A counter that falls was reset, and has grown from zero. NaN where there is nothing
        to tell: no value, or none before.
    """
    is_counter = np.array([name.partition("{")[0].endswith(COUNTER_ENDINGS) for name in history.columns], bool)
    if method.endswith(GROWN) or not is_counter.any():
        return history
    values, counted = history.to_numpy(copy=True), history.to_numpy()[:, is_counter]
    grown, seconds = np.diff(counted, axis=0), np.diff(history.index.to_numpy()) / np.timedelta64(1, "s")
    values[:1, is_counter] = np.nan
    values[1:, is_counter] = np.where(grown < 0, counted[1:], grown) / seconds[:, np.newaxis]
    return pd.DataFrame(values, history.index, history.columns)


class _Metric:
    """One metric's last values. Quartiles do not care about a few that are far off: ill pods may be learned, too."""

    def __init__(self) -> None:
        self._count = 0
        self._middle = RollingQuantile(0.5, WINDOW_VALUES)
        self._spread = RollingIQR(WINDOW_VALUES)

    def learn(self, value: float) -> None:
        self._count += 1
        self._middle.update(value)
        self._spread.update(value)

    def judge(self, name: str, value: float) -> Reason:
        if self._count < GRACE_VALUES:
            return Reason(name, value, value, 0.0)
        normal = self._middle.get()
        scale = max(self._spread.get() / IQR_OF_NORMAL, STILL * abs(normal))
        # What was always zero has no scale: the first other values are learned.
        return Reason(name, value, normal, (value - normal) / scale if scale else 0.0)


class LargestDeviation(AnomalyDetector):
    """A river model like any other: the score is the largest deviation of all metrics from what they mostly are.

    Values that are not finite are left out. Any other of river's detectors fits in its
    place; this one can say which metrics it means.
    """

    def __init__(self) -> None:
        self._metrics: defaultdict[str, _Metric] = defaultdict(_Metric)

    def learn_one(self, x: Mapping[str, float]) -> None:
        for name, value in x.items():
            if math.isfinite(value):
                self._metrics[name].learn(value)

    def score_one(self, x: Mapping[str, float]) -> float:
        return max((abs(reason.deviation) for reason in self.reasons(x)), default=0.0)

    def reasons(self, x: Mapping[str, float]) -> list[Reason]:
        """Return how far each known metric is off, the furthest first."""
        known = self._metrics
        found = [known[name].judge(name, value) for name, value in x.items() if name in known and math.isfinite(value)]
        return sorted(found, key=lambda reason: -abs(reason.deviation))


def judge(model: LargestDeviation, values: Mapping[str, float], threshold: float) -> Verdict:
    """Compare a window with what a service's pods mostly show, and learn it."""
    score = model.score_one(values)
    is_anomalous = score >= threshold
    reasons = [r for r in model.reasons(values) if abs(r.deviation) >= threshold] if is_anomalous else []
    model.learn_one(values)
    return Verdict(score, is_anomalous, tuple(reasons[:MAX_REASONS]))
