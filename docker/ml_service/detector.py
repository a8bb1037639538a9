"""What is normal for a service, learned online with river, and how far from it a pod is.

Pure: frames in, verdicts out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd
from river.base import AnomalyDetector
from river.stats import EWMean, EWVar

COUNTER_ENDINGS = ("_total", "_count", "_sum", "_bucket")

FADING = 0.01
"""The weight of the newest value: a service of three pods has half forgotten what was 25 windows ago."""

GRACE_VALUES = 60
"""A metric is judged once so many of its values were learned."""

STILL = 0.01
"""A deviation is at least this share of the normal value: a metric that stood still may change a little."""

NEW_NORMAL = 60
"""So many anomalous windows of a service in a row are its new normal."""

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


def features(history: pd.DataFrame) -> pd.DataFrame:
    """Return what a model can compare: gauges as they are, counters as their growth a second since the row before.

    Args:
        history: one pod's windows in time order; a DatetimeIndex, a column a metric.

    Returns:
        The same shape. A counter that falls was reset, and has grown from zero. NaN where there is nothing
        to tell: no value, or none before.
    """
    counters = [name for name in history.columns if name.partition("{")[0].endswith(COUNTER_ENDINGS)]
    if not counters:
        return history
    seconds = history.index.to_series().diff().dt.total_seconds()
    grown = history[counters].diff()
    grown = grown.where(~(grown < 0), history[counters])
    return history.assign(**grown.div(seconds, axis=0))


@dataclass(slots=True)
class _Metric:
    """One metric's past, as distances from its first value: squares of large numbers would lose their digits."""

    origin: float
    count: int = 0
    mean: EWMean = field(default_factory=lambda: EWMean(FADING))
    variance: EWVar = field(default_factory=lambda: EWVar(FADING))

    def learn(self, value: float) -> None:
        self.count += 1
        self.mean.update(value - self.origin)
        self.variance.update(value - self.origin)

    def judge(self, name: str, value: float) -> Reason:
        change = value - self.origin - self.mean.get()
        normal = value - change
        scale = max(math.sqrt(max(self.variance.get(), 0.0)), STILL * abs(normal))
        # What was always zero has no scale: the first other value is learned.
        is_known = self.count >= GRACE_VALUES and scale > 0
        return Reason(name, value, normal, change / scale if is_known else 0.0)


class LargestDeviation(AnomalyDetector):
    """A river model like any other: the score is the largest deviation of all metrics from what they mostly are.

    Values that are not finite are left out. Any other of river's detectors fits in its
    place; this one can say which metrics it means.
    """

    def __init__(self) -> None:
        self._metrics: dict[str, _Metric] = {}

    def learn_one(self, x: Mapping[str, float]) -> None:
        for name, value in x.items():
            if math.isfinite(value):
                self._metrics.setdefault(name, _Metric(value)).learn(value)

    def score_one(self, x: Mapping[str, float]) -> float:
        return max((abs(reason.deviation) for reason in self.reasons(x)), default=0.0)

    def reasons(self, x: Mapping[str, float]) -> list[Reason]:
        """Return how far each known metric is off, the furthest first."""
        known = self._metrics
        found = [known[name].judge(name, value) for name, value in x.items() if name in known and math.isfinite(value)]
        return sorted(found, key=lambda reason: -abs(reason.deviation))


class Normal:
    """What one service's pods mostly show."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._model = LargestDeviation()
        self._anomalous_in_a_row = 0

    def learn(self, values: Mapping[str, float]) -> None:
        """Take values for normal."""
        self._model.learn_one(values)

    def judge(self, values: Mapping[str, float]) -> Verdict:
        """Compare a window with the normal, and learn it unless it is an anomaly."""
        score = self._model.score_one(values)
        is_anomalous = score >= self._threshold
        reasons = self._model.reasons(values)[:MAX_REASONS] if is_anomalous else []
        self._anomalous_in_a_row = self._anomalous_in_a_row + 1 if is_anomalous else 0
        if not is_anomalous or self._anomalous_in_a_row > NEW_NORMAL:
            self.learn(values)
        return Verdict(score, is_anomalous, tuple(reason for reason in reasons if abs(reason.deviation) > 1))
