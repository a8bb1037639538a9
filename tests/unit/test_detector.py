"""The example ML service's detector: what is normal is learned, and what is not is found and named."""

from __future__ import annotations

import random

import numpy as np
import pandas as pd
import programs
import pytest

detector = programs.modules("ml_service")["detector"]

TIMES = pd.date_range("2026-11-23T12:00Z", periods=4, freq="1min")


def trained(threshold: float = 6.0, windows: int = 200) -> detector.Normal:
    normal, chance = detector.Normal(threshold), random.Random(3)
    for _ in range(windows):
        normal.judge({"queue_depth": 4 + chance.random(), "memory": 2e9 + 1e6 * chance.random(), "limit": 8.0})
    return normal


def test_counters_become_rates_and_resets_begin_at_zero() -> None:
    """Growth a second since the window before, as Prometheus counts it; gauges stay."""
    history = pd.DataFrame(
        {"requests_total": [60.0, 180.0, 30.0, np.nan], 'hits_total{code="500"}': [1.0, 1.0, 7.0, 7.0], "queue": 5.0},
        index=TIMES,
    )
    found = detector.features(history)
    np.testing.assert_array_equal(found["requests_total"], [np.nan, 2.0, 0.5, np.nan])
    np.testing.assert_array_equal(found['hits_total{code="500"}'], [np.nan, 0.0, 0.1, 0.0])
    np.testing.assert_array_equal(found["queue"], [5.0] * 4)


def test_an_outlier_is_found_and_named() -> None:
    """The verdict says which metric, what it is and what it mostly is; the others are not blamed."""
    verdict = trained().judge({"queue_depth": 60.0, "memory": 2.0005e9, "limit": 8.0})
    assert verdict.is_anomalous
    (worst, *_) = verdict.reasons
    assert worst.metric == "queue_depth"
    assert worst.normal == pytest.approx(4.5, abs=0.3)
    assert verdict.score == worst.deviation
    assert len(verdict.reasons) == 1


def test_what_was_learned_is_normal() -> None:
    verdict = trained().judge({"queue_depth": 4.2, "memory": 2.0007e9, "limit": 8.0})
    assert not verdict.is_anomalous
    assert verdict.reasons == ()


def test_an_anomaly_is_not_learned() -> None:
    """A pod that stays ill stays an anomaly, while others of its service are well."""
    normal = trained()
    for _ in range(100):
        assert normal.judge({"queue_depth": 60.0}).is_anomalous
        assert not normal.judge({"queue_depth": 4.5}).is_anomalous


def test_what_lasts_for_all_becomes_normal() -> None:
    """A new version that needs more is no anomaly for ever."""
    normal = trained()
    verdicts = [normal.judge({"queue_depth": 60.0}).is_anomalous for _ in range(detector.NEW_NORMAL * 4)]
    assert verdicts[0]
    assert not verdicts[-1]


def test_nothing_is_judged_before_it_is_known() -> None:
    normal = detector.Normal(6.0)
    for value in range(detector.GRACE_VALUES):
        assert normal.judge({"queue_depth": float(value % 3) * 1000}).score == 0.0


def test_still_and_large_metrics_and_odd_values_raise_no_alarm() -> None:
    """What never changed may change a little, large numbers keep their digits, NaN and infinities are left out."""
    normal = detector.Normal(6.0)
    for step in range(200):
        verdict = normal.judge({"replicas": 100.0, "bytes": 1e15 + step % 2, "odd": float("nan"), "more": float("inf")})
        assert verdict.score < 6.0
    assert not normal.judge({"replicas": 101.0, "bytes": 1e15 + 1}).is_anomalous
    assert normal.judge({"replicas": 200.0}).is_anomalous
