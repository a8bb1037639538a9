"""What compares records with the oracle sees all that can be wrong of them: else the fault tests would show nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import records

from ingestor.core.time_range import TimeRange
from stream_app.records import Record

T0 = 1_795_435_200_000
POD = "web-7d9f8b6c5-x2x4z"
SAMPLES = pd.DataFrame(
    [("shop", POD, "cpu", "", T0 + at_ms, value) for at_ms, value in ((30_000, 1.0), (45_000, 3.0), (60_000, 5.0))],
    columns=["namespace", "pod", "metric", "series", "timestamp", "value"],
)
JOB = TimeRange(T0 + 30_000, T0 + 120_000)
CUT, WHOLE = (
    Record("shop", POD, "web", T0 + at, T0 + at + 60_000, "1m", "mean", "job", 0, partial, samples, {"cpu": value})
    for at, partial, samples, value in ((0, True, 2, 2.0), (60_000, False, 1, 5.0))
)


def compared(*found: Record, job: TimeRange | None = JOB) -> records.Compared:
    return records.compare(found, SAMPLES, "1m", "mean", "pod", job)


def test_what_is_right_is_so() -> None:
    assert compared(CUT, WHOLE).is_right


@pytest.mark.parametrize(
    "changed",
    [
        {"window_end_ms": T0 + 120_001},
        {"chunk_size": "60s"},
        {"method": "sum"},
        {"service": "web-7d9f8b6c5"},
        {"partial": True},
        {"samples": 2},
        {"incomplete": ("cpu",)},
        {"metrics": {"cpu": 5.1}},
        {"metrics": {"cpu": 5.0, "memory": 1.0}},
        {"metrics": {}},
    ],
)
def test_what_is_wrong_is_named(changed: dict[str, Any]) -> None:
    (name,) = changed
    assert compared(CUT, replace(WHOLE, **changed)).wrong == [("shop", POD, T0 + 60_000, name)]


def test_cut_windows_are_partial_and_no_others() -> None:
    key = ("shop", POD, T0, "partial")
    assert compared(replace(CUT, partial=False), WHOLE).wrong == [key]
    assert compared(CUT, WHOLE, job=None).wrong == [key]


def test_missing_doubled_and_extra() -> None:
    one = compared(CUT, CUT, replace(CUT, pod="web-0", service="web"))
    assert [one.missing, one.doubled] == [[("shop", POD, T0 + 60_000)], [("shop", POD, T0)]]
    assert one.extra == [("shop", "web-0", T0)]
