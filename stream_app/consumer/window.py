"""PURE: one record, as a model gets it: what it says, and its pod's history up to it."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from stream_app.consumer.forms import Piece, frame, long_form, wide_form
from stream_app.consumer.history import Rows, Snapshot, rank_of, rows_between
from stream_app.records import Record, record_key


class Window:
    """One pod's (or service's) metrics in one window, with the windows before it.

    The history is what was known when the window was delivered: what comes later changes
    nothing in it, so a window can be kept.
    """

    __slots__ = ("_from_ms", "_late", "_record", "_snapshot")

    def __init__(self, record: Record, snapshot: Snapshot, from_ms: int, *, late: bool) -> None:
        self._record, self._snapshot, self._from_ms, self._late = record, snapshot, from_ms, late

    @property
    def record(self) -> Record:
        """All that the record says."""
        return self._record

    @property
    def id(self) -> str:
        """``namespace/pod``, of service records ``namespace/service``: the record's key."""
        return record_key(self._record.namespace, self._record.pod, self._record.service).decode()

    @property
    def namespace(self) -> str:
        return self._record.namespace

    @property
    def pod(self) -> str | None:
        """None in service records."""
        return self._record.pod

    @property
    def service(self) -> str:
        return self._record.service

    @property
    def start(self) -> pd.Timestamp:
        """When the window begins, in UTC; its end is `end`, which is not part of it."""
        return pd.Timestamp(self._record.window_start_ms, unit="ms", tz="UTC")

    @property
    def end(self) -> pd.Timestamp:
        return pd.Timestamp(self._record.window_end_ms, unit="ms", tz="UTC")

    @property
    def metrics(self) -> dict[str, float]:
        """The window's own values; a metric without samples in it is absent."""
        return self._record.metrics

    @property
    def partial(self) -> bool:
        """Whether only a part of the window has been read."""
        return self._record.partial

    @property
    def incomplete(self) -> tuple[str, ...]:
        """Metrics that samples of the window are missing of; ``*``: of any."""
        return self._record.incomplete

    @property
    def revision(self) -> int:
        """Above 0: the window was read once more, and this replaces what was delivered before."""
        return self._record.revision

    @property
    def late(self) -> bool:
        """Whether this window, or a later one of this pod, was delivered before (or is history already)."""
        return self._late

    @property
    def rank(self) -> int:
        """Higher for what counts where a window comes twice."""
        return rank_of(self._record.revision, partial=self._record.partial)

    def frame(self, metrics: Sequence[str] | None = None) -> pd.DataFrame:
        """Return the windows of the lookback, this one the last.

        Args:
            metrics: the columns, in this order; None: all that have a value here, by name.

        Returns:
            A row a window that the pod has a record of, in the order of time; the index
            ``timestamp`` is the windows' starts (UTC). NaN where a metric has no value: a
            window without a record is no row, and nothing is made up. Yours to change.
        """
        return frame(self.rows(), metrics)

    def long(self, metrics: Sequence[str] | None = None) -> pd.DataFrame:
        """Return the same as tsfresh takes it: ``id``, ``time``, ``kind``, ``value``, without NaN."""
        return long_form([Piece(self.id, self.rows())], metrics)

    def wide(self, metrics: Sequence[str] | None = None) -> pd.DataFrame:
        """Return the same as sktime takes it: a MultiIndex (``id``, ``timestamp``), a column a metric."""
        return wide_form([Piece(self.id, self.rows())], metrics)

    def __repr__(self) -> str:
        more = "".join(
            [f", revision {self.revision}" if self.revision else "", *(", partial" for _ in range(self.partial))]
        )
        return f"<Window {self.id} {self.start.isoformat()}{more}>"

    def rows(self) -> Rows:
        """Return the rows of the lookback, this window's the last."""
        return rows_between(self._snapshot, self._from_ms, self._record.window_start_ms)
