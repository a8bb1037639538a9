"""The oracle itself, against numbers worked out by hand."""

import math

import pandas as pd
import pytest
from oracle import same, windows

T0 = 1_795_435_200_000
WEB, API = ("shop", "web-0"), ("shop", "api-0")


def frame(*series, **more):
    """Return a frame of series: pod, metric, and samples as (second, value)."""
    rows = [
        ("shop", pod, metric, number, T0 + 1000 * second, value)
        for number, (pod, metric, samples) in enumerate(series)
        for second, value in samples
    ]
    return pd.DataFrame(rows, columns=["namespace", "pod", "metric", "series", "timestamp", "value"]).assign(**more)


EIGHT = frame(
    ("web-0", "cpu", [(0, 4.0), (10, 2.0), (20, 5.0), (30, 4.0)]),
    ("web-0", "cpu", [(5, 9.0), (15, 4.0), (25, 7.0), (35, 5.0)]),
)


@pytest.mark.parametrize(
    ("method", "value"),
    [
        ("sum", 40), ("mean", 5), ("median", 4.5), ("min", 2), ("max", 9), ("count", 8), ("stddev", 2), ("last", 5),
        ("p25", 4), ("p50", 4.5), ("p90", 7.6), ("p99.9", 8.986),
    ],
)  # fmt: skip
def test_methods(method, value):
    """Of 2 4 4 4 5 5 7 9, the last of which is 5."""
    (metrics,) = windows(EIGHT, "1m", method, "pod").values()
    assert same(metrics["cpu"], value)


@pytest.mark.parametrize(
    ("over_time", "method", "value"),
    [
        ("last", "sum", 9), ("last", "count", 2), ("mean", "sum", 10), ("mean", "max", 6.25),
        # 2 (reset), 3, 4 (reset); 4 (reset), 3, 5 (reset).
        ("increase", "sum", 21), ("increase", "max", 12), ("rate", "sum", 21 / 60),
    ],
)  # fmt: skip
def test_each_series_first(over_time, method, value):
    """The method is applied to one value a series."""
    (metrics,) = windows(EIGHT, "1m", method, "pod", over_time).values()
    assert same(metrics["cpu"], value)


COUNTED = frame(
    ("api-0", "requests_total", [(0, 1.0), (30, 4.0), (60, 6.0), (90, 1.0)]),
    ("api-0", "queue", [(0, 1.0), (30, 4.0), (60, 6.0), (90, 1.0)]),
    ("api-0", "once_total", [(75, 8.0)]),
)


def test_counters():
    """Only counters are counted, from the sample before the window; one sample alone is nothing."""
    assert windows(COUNTED, "1m", "sum", "pod", counters="increase") == {
        (*API, T0): {"requests_total": 3, "queue": 5},
        (*API, T0 + 60_000): {"requests_total": 3, "queue": 7},
    }
    by_type = windows(COUNTED.assign(type="gauge"), "1m", "sum", "pod", counters="increase")
    assert by_type[*API, T0 + 60_000] == {"requests_total": 7, "queue": 7, "once_total": 8}


def test_samples_before_the_start():
    """They belong to no window; an increase begins at the last one, if it is not older than five minutes."""
    made = windows(COUNTED, "1m", "sum", "pod", counters="increase", from_ms=T0 + 60_000)
    assert made == {(*API, T0 + 60_000): {"requests_total": 3, "queue": 7}}
    for second, expected in ((-270, 6), (-271, 4)):
        samples = frame(("api-0", "requests_total", [(second, 1.0), (30, 3.0), (40, 7.0)]))
        (found,) = windows(samples, "1m", "sum", "pod", counters="increase", from_ms=T0 + 30_000).values()
        assert found == {"requests_total": expected}


def test_increase_over_nan():
    """A NaN in the middle vanishes, one at an end stays."""
    for values, expected in (([1, math.nan, 4], 3), ([1, 4, math.nan], math.nan), ([math.nan, 4, 5], math.nan)):
        samples = frame(("api-0", "requests_total", list(enumerate(map(float, values)))))
        (metrics,) = windows(samples, "1m", "sum", "pod", counters="increase").values()
        assert same(metrics["requests_total"], expected)


def test_a_metric_of_its_own():
    """The first pattern that is the whole name counts; a split metric goes by the name before its brace."""
    samples = frame(
        ("web-0", 'queue{name="a"}', [(0, 1.0), (10, 5.0)]),
        ("web-0", "queues", [(0, 1.0), (10, 5.0)]),
    )
    own = [("queue", "max"), ("queue.*", "count"), (".*", "sum")]
    assert windows(samples, "1m", "mean", "pod", metric_methods=own) == {
        (*WEB, T0): {'queue{name="a"}': 5, "queues": 2}
    }


def test_last_of_one_moment():
    """Of samples of the same moment the one with the largest fingerprint is the last."""
    samples = frame(("web-0", "cpu", [(0, 1.0), (10, 2.0)]), ("web-0", "cpu", [(10, 3.0)]), fingerprint=[5, 5, 4])
    assert windows(samples, "1m", "last", "pod") == {(*WEB, T0): {"cpu": 2}}


def test_a_service_pools_its_pods():
    """And a rate is of the window's real length."""
    samples = frame(
        ("web-0", "requests_total", [(0, 0.0), (3600, 900.0)]), ("web-1", "requests_total", [(0, 0.0), (7200, 1800.0)])
    )
    made = windows(samples, "1d@Europe/Berlin", "sum", "service", counters="rate")
    assert made == {("shop", "web", T0 - 13 * 3_600_000): {"requests_total": 2700 / 86_400}}
