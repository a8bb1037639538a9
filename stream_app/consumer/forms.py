"""PURE: pods' rows in the shapes that models take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from ingestor.core.durations import ChunkSize
from ingestor.core.errors import ConfigError
from ingestor.core.time_range import iso
from stream_app.consumer.history import Float64Array, Int64Array, Part

_MOST_CELLS = 2**31
"""16 GiB."""


class Piece(NamedTuple):
    """One pod's (or service's) rows."""

    id: str
    """``namespace/pod``"""
    rows: Part


@dataclass(frozen=True, slots=True)
class Matrix:
    """Pods' windows as one array."""

    values: Float64Array
    """Shape (pods, windows, metrics); NaN for what is missing: the window, the metric, or its value."""
    ids: list[str]
    """``namespace/pod`` (``namespace/service``), in order; shape (pods,)."""
    starts: pd.DatetimeIndex
    """When the windows start, in UTC: all from the first to the last, shape (windows,)."""
    metrics: list[str]
    """Shape (metrics,)."""


def frame(rows: Part, metrics: Sequence[str] | None) -> pd.DataFrame:
    """Return one pod's rows, a column a metric."""
    names = _names([rows], metrics)
    return pd.DataFrame(_columns(rows, names), index=times(rows.starts_ms), columns=pd.Index(names, dtype=object))


def long_form(pieces: Sequence[Piece], metrics: Sequence[str] | None) -> pd.DataFrame:
    """Return a row a value: ``id``, ``time``, ``kind``, ``value``; ordered by id, metric and time; NaN is left out.

    tsfresh refuses NaN; in this form a value that is missing is a row that is missing.
    """
    names = _names([piece.rows for piece in pieces], metrics)
    ids, moments, kinds, values = [], [], [], []
    for piece in pieces:
        columns = _columns(piece.rows, names).T
        kind, row = np.nonzero(~np.isnan(columns))
        ids.append(np.full(len(kind), piece.id, object))
        moments.append(piece.rows.starts_ms[row])
        kinds.append(np.array(names, object)[kind])
        values.append(columns[kind, row])
    return pd.DataFrame(
        {
            "id": np.concatenate(ids) if ids else np.empty(0, object),
            "time": times(np.concatenate(moments) if moments else np.empty(0, np.int64)),
            "kind": np.concatenate(kinds) if kinds else np.empty(0, object),
            "value": np.concatenate(values) if values else np.empty(0),
        }
    )


def wide_form(pieces: Sequence[Piece], metrics: Sequence[str] | None) -> pd.DataFrame:
    """Return a row a pod and window: a MultiIndex (``id``, ``timestamp``), in order; a column a metric."""
    names = _names([piece.rows for piece in pieces], metrics)
    counts = [piece.rows.size for piece in pieces]
    starts = np.concatenate([piece.rows.starts_ms for piece in pieces]) if pieces else np.empty(0, np.int64)
    values = np.concatenate([_columns(piece.rows, names) for piece in pieces]) if pieces else np.empty((0, len(names)))
    ids = np.repeat(np.array([piece.id for piece in pieces], object), counts)
    index = pd.MultiIndex.from_arrays([ids, times(starts)], names=["id", "timestamp"])
    return pd.DataFrame(values, index=index, columns=pd.Index(names, dtype=object))


def matrix(pieces: Sequence[Piece], metrics: Sequence[str] | None, chunk_size: str) -> Matrix:
    """Return the rows of all pods side by side, on one axis of time without holes.

    Raises:
        ConfigError: the windows are a time zone's calendar's, whose rules are not installed; or the array is too large.
    """
    names = _names([piece.rows for piece in pieces], metrics)
    starts = [piece.rows.starts_ms for piece in pieces if piece.rows.size]
    axis = np.empty(0, np.int64)
    if starts:
        first_ms, last_ms = min(int(own[0]) for own in starts), max(int(own[-1]) for own in starts)
        windows = _chunk_size(chunk_size)
        _refuse_huge(len(pieces), first_ms, last_ms, windows, len(names))
        axis = windows.edges_ms(first_ms, last_ms + 1)[:-1]
    values = np.full((len(pieces), len(axis), len(names)), np.nan)
    for pod, (_, rows) in enumerate(pieces):
        values[pod, np.searchsorted(axis, rows.starts_ms)] = _columns(rows, names)
    return Matrix(values, [piece.id for piece in pieces], times(axis), names)


def times(starts_ms: Int64Array) -> pd.DatetimeIndex:
    """Return moments in UTC; in nanoseconds, which all libraries take."""
    moments = starts_ms.astype("datetime64[ms]").astype("datetime64[ns]")
    return pd.DatetimeIndex(moments, name="timestamp").tz_localize("UTC")


def _refuse_huge(pods: int, first_ms: int, last_ms: int, chunk_size: ChunkSize, metrics: int) -> None:
    """See that an array is of a size that is meant: one window far from all others makes it huge."""
    windows = (last_ms - first_ms) // chunk_size.longest_ms + 1
    if pods * windows * max(metrics, 1) > _MOST_CELLS:
        raise ConfigError(
            f"{pods} pods, {windows:,} windows from {iso(first_ms)} to {iso(last_ms)} and {metrics} metrics are more "
            f"than {_MOST_CELLS:,} cells: read less at once (start, until, metrics), or take long() or wide()"
        )


def _chunk_size(text: str) -> ChunkSize:
    try:
        return ChunkSize.parse(text)
    except ModuleNotFoundError as error:
        raise ConfigError(f"windows of {text} need the rules of time zones: pip install {error.name}") from error


def _names(all_rows: Sequence[Part], metrics: Sequence[str] | None) -> list[str]:
    return sorted({name for rows in all_rows for name in rows.names}) if metrics is None else list(metrics)


def _columns(rows: Part, names: Sequence[str]) -> Float64Array:
    """Return the columns of some metrics, NaN where there is none, shape (rows, names)."""
    place = {name: at for at, name in enumerate(rows.names)}
    there = [at for at, name in enumerate(names) if name in place]
    values = np.full((rows.size, len(names)), np.nan)
    values[:, there] = rows.values[:, [place[names[at]] for at in there]]  # noqa: PD011 - no frame
    return values
