"""Pods' rows side by side."""

from __future__ import annotations

import numpy as np
import pytest

from ingestor.core.errors import ConfigError
from stream_app.consumer.forms import Piece, matrix
from stream_app.consumer.history import Part

_MINUTE_MS = 60_000
_YEAR_9000_MS = 221_845_392_000_000


def rows_at(*starts_ms: int) -> Part:
    rising = np.arange(len(starts_ms))
    return Part(len(starts_ms), ("cpu",), np.array(starts_ms), rising, rising, rising[:, np.newaxis] + 1.0)


def test_one_axis_of_time_without_holes() -> None:
    found = matrix([Piece("shop/a", rows_at(0, 3 * _MINUTE_MS)), Piece("shop/b", rows_at(_MINUTE_MS))], None, "1m")
    expected = [[1.0, np.nan, np.nan, 2.0], [np.nan, 1.0, np.nan, np.nan]]
    np.testing.assert_array_equal(found.values[:, :, 0], expected)
    assert found.ids == ["shop/a", "shop/b"]


def test_a_window_of_a_far_future_is_told() -> None:
    """Instead of an array that no memory has room for."""
    pieces = [Piece("shop/a", rows_at(0)), Piece("shop/b", rows_at(_YEAR_9000_MS))]
    with pytest.raises(ConfigError, match=r"2 pods, 3,697,423,201 windows from 1970-01-01T00:00:00Z to 9000-01-01T"):
        matrix(pieces, None, "1m")
