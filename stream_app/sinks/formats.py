"""Which sinks of records there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stream_app.sinks.base import Sink
from stream_app.sinks.checkpoint import Storage
from stream_app.sinks.csv_files import CsvSink

SINKS: dict[str, Callable[[Storage, Sequence[str]], Sink]] = {"csv": CsvSink}
"""``--format`` -> the sink of an open storage and groupings."""
