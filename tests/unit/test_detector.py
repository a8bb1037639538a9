"""The example ML service's detector: what is normal is learned, and what is not is found and named."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pandas as pd
import programs
import pytest

detector = programs.modules("ml_service")["detector"]

TIMES = pd.date_range("2026-11-23T12:00Z", periods=4, freq="1min")


def trained(windows: int = 200) -> Any:
    model, chance = detector.LargestDeviation(), random.Random(3)
    for _ in range(windows):
        model.learn_one({"queue_depth": 4 + chance.random(), "memory": 2e9 + 1e6 * chance.random(), "limit": 8.0})
    return model


def judge(model: Any, **values: float) -> Any:
    return detector.judge(model, values, 6.0)


def test_counters_become_rates_and_resets_begin_at_zero() -> None:
    """Growth a second since the window before, as Prometheus counts it; gauges stay."""
    history = pd.DataFrame(
        {"requests_total": [60.0, 180.0, 30.0, np.nan], 'hits_total{code="500"}': [1.0, 1.0, 7.0, 7.0], "queue": 5.0},
        index=TIMES,
    )
    found = detector.features(history, "mean")
    np.testing.assert_array_equal(found["requests_total"], [np.nan, 2.0, 0.5, np.nan])
    np.testing.assert_array_equal(found['hits_total{code="500"}'], [np.nan, 0.0, 0.1, 0.0])
    np.testing.assert_array_equal(found["queue"], [5.0] * 4)
    for method in ("mean-counters-rate", "sum-of-increase"):
        pd.testing.assert_frame_equal(detector.features(history, method), history)


def test_an_outlier_is_found_and_named() -> None:
    """The verdict says which metric, what it is and what it mostly is; the others are not blamed."""
    verdict = judge(trained(), queue_depth=60.0, memory=2.0005e9, limit=8.0)
    assert verdict.is_anomalous
    (worst,) = verdict.reasons
    assert worst.metric == "queue_depth"
    assert worst.value == 60.0
    assert worst.normal == pytest.approx(4.5, abs=0.2)
    assert verdict.score == worst.deviation


def test_what_was_learned_is_normal() -> None:
    verdict = judge(trained(), queue_depth=4.2, memory=2.0007e9, limit=8.0)
    assert not verdict.is_anomalous
    assert verdict.reasons == ()


def test_a_pod_that_is_ill_among_others_is_found_again_and_again() -> None:
    """One window in ten is far off, from the first on: the others make what is normal."""
    model, chance = detector.LargestDeviation(), random.Random(5)
    verdicts = [
        (number % 10 == 0, judge(model, queue_depth=60.0 if number % 10 == 0 else 4 + chance.random()))
        for number in range(500)
    ]
    known = verdicts[detector.GRACE_VALUES :]
    assert all(verdict.is_anomalous == is_ill for is_ill, verdict in known)


def test_what_lasts_becomes_normal() -> None:
    """A new version that needs more is no anomaly for ever."""
    model = trained()
    verdicts = [judge(model, queue_depth=60.0 + number % 3).is_anomalous for number in range(detector.WINDOW_VALUES)]
    assert verdicts[0]
    assert not verdicts[-1]


def test_nothing_is_judged_before_it_is_known() -> None:
    model = detector.LargestDeviation()
    for value in range(detector.GRACE_VALUES):
        assert judge(model, queue_depth=float(value % 3) * 1000).score == 0.0


def test_still_and_large_metrics_and_odd_values_raise_no_alarm() -> None:
    """What never changed may change a little, large numbers keep their digits, NaN and infinities are left out."""
    model = detector.LargestDeviation()
    for step in range(200):
        values = {"replicas": 100.0, "bytes": 1e15 + step % 2, "odd": float("nan"), "more": float("inf"), "zero": 0.0}
        assert not judge(model, **values).is_anomalous
    assert not judge(model, replicas=101.0, bytes=1e15 + 1, zero=0.5).is_anomalous
    assert judge(model, replicas=200.0).is_anomalous
