"""What counters have counted in windows: Prometheus' increase, resets included, without its extrapolation."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from ingestor.core.chunk import LOOKBACK_MS, UInt64Array
from stream_app.aggregations import Float64Array, Int64Array, increases
from stream_app.states import Counted

BoolArray = npt.NDArray[np.bool_]


class Stretches(Protocol):
    """Which series and window each stretch of a counter is of; columns of shape (stretches,)."""

    @property
    def window_ms(self) -> Int64Array: ...
    @property
    def group(self) -> Int64Array: ...
    @property
    def metric(self) -> Int64Array: ...
    @property
    def samples(self) -> Int64Array: ...
    @property
    def fingerprint(self) -> UInt64Array: ...
    @property
    def first_ms(self) -> Int64Array: ...
    @property
    def last_ms(self) -> Int64Array: ...


def counted(stretches: Stretches, state: Counted) -> tuple[Float64Array, BoolArray, BoolArray]:
    """Return what each stretch has counted, whether it has counted, and whether it is its series' last one.

    A series has one stretch a window. The sample before a window counts as where its first
    increase begins, if it is not older than LOOKBACK_MS before the window's start; a single
    sample without one has counted nothing that is known.

    Source: ``increase`` of Prometheus: a value below the one before it is a reset.
    """
    order = np.lexsort((stretches.first_ms, stretches.fingerprint, stretches.metric, stretches.group))
    goes_on = np.zeros(len(order), bool)
    goes_on[1:] = (
        (stretches.fingerprint[order[1:]] == stretches.fingerprint[order[:-1]])
        & (stretches.metric[order[1:]] == stretches.metric[order[:-1]])
        & (stretches.group[order[1:]] == stretches.group[order[:-1]])
    )
    is_last = np.empty(len(order), bool)
    is_last[order] = np.append(~goes_on[1:], True)
    previous = np.empty(len(order), np.int64)
    previous[order] = np.roll(order, 1)
    has_previous = np.empty(len(order), bool)
    has_previous[order] = goes_on
    has_previous &= stretches.last_ms[previous] >= stretches.window_ms - LOOKBACK_MS
    before = state.last[previous]
    base = np.where(has_previous, before, state.first)
    # After a reset the counter has begun from zero.
    base = np.where(has_previous & (state.first < before), 0.0, base)
    value = increases(state.highs, state.lows, state.last, base)
    return value, has_previous | (stretches.samples > 1), is_last
