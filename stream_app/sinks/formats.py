"""Which sinks of records there are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from ingestor.core.errors import ConfigError
from stream_app.sinks.base import Sink
from stream_app.sinks.checkpoint import Storage
from stream_app.sinks.csv_files import CsvSink
from stream_app.sinks.csv_style import CsvStyle
from stream_app.sinks.parquet_files import ParquetSink

SINKS: dict[str, Callable[[Storage, Sequence[str], CsvStyle, Collection[str]], Sink]] = {
    "csv": CsvSink,
    "parquet": lambda storage, group_by, *_: ParquetSink(storage, group_by),
}
"""``--format``, which is how files' names end -> the sink of an open storage.

The others are groupings, how CSV is written, and which columns of it are dropped at the end.
"""

PACES: dict[str, tuple[float, int]] = {"csv": (1.0, 50_000), "parquet": (20.0, 500_000)}
"""``--format`` -> how often to commit (s), and after how many rows: 100 MB of text, or of columns, at 20 metrics a row.

Files of Parquet are not added to: each commit makes new ones.
"""


def check_looks(file_format: str, style: CsvStyle, drop: Collection[str]) -> None:
    """Refuse what only CSV can look like.

    Raises:
        ConfigError: it is asked of another format.
    """
    if file_format != "csv" and (drop or style != CsvStyle()):
        raise ConfigError(
            "--missing, --time-format, --escape-formulas, --drop-empty-columns and --drop-zero-columns say how CSV "
            f"looks: leave them out with --format {file_format}"
        )
