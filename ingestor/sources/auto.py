"""The fastest way that the backend offers: remote read for long ranges, the query API for all else."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Unpack

from ingestor.core.errors import SourceUnavailable
from ingestor.core.time_range import TimeRange
from ingestor.selector import Selector
from ingestor.sources.base import SeriesBlock
from ingestor.sources.http import HttpApi, HttpSettings
from ingestor.sources.http_query import HttpQuerySource
from ingestor.sources.remote_read import RemoteReadSource, RemoteReadUnsupported

log = logging.getLogger(__name__)

LONG_RANGE_MS = 30 * 60_000
"""From here on ranges are read remotely. Prometheus cuts the chunks at a range's two ends anew, whatever its
length: of 5,000 series with a sample every 15 s, 10 minutes cost backend and poller together 200 ms of CPU
by the query API and 300 by remote read, 20 minutes 260 both, 30 minutes 340 and 280, 6 hours 2,300 and 330."""


class AutoSource(HttpApi):
    """A `Source` that asks the backend once, at the first long range, whether it streams remote reads."""

    name = "auto"

    def __init__(self, url: str, **settings: Unpack[HttpSettings]) -> None:
        super().__init__(url, **settings)
        self._query = HttpQuerySource(url, **settings)
        self._remote_read = RemoteReadSource(url, **settings)
        self._asking = threading.Lock()
        self._streams: bool | None = None

    def close(self) -> None:
        super().close()
        self._query.close()
        self._remote_read.close()

    def fetch(self, selector: Selector, metric: str, time_range: TimeRange) -> SeriesBlock:
        if self.streams(time_range):
            try:
                return self._remote_read.fetch(selector, metric, time_range)
            except RemoteReadUnsupported as error:
                log.info("remote read cannot give this; asking the query API", extra={"error": str(error)})
        return self._query.fetch(selector, metric, time_range)

    def streams(self, time_range: TimeRange) -> bool:
        return time_range.length_ms >= LONG_RANGE_MS and self._has_remote_read()

    def fetch_together(
        self, selector: Selector, metrics: Sequence[str], time_range: TimeRange, most_samples: int
    ) -> SeriesBlock:
        # What cannot be read remotely is for `fetch` to find out, a metric at a time.
        source = self._remote_read if self.streams(time_range) else self._query
        return source.fetch_together(selector, metrics, time_range, most_samples)

    def _has_remote_read(self) -> bool:
        with self._asking:
            if self._streams is None:
                try:
                    self._streams = self._remote_read.is_supported()
                except SourceUnavailable as error:
                    # If the query fails too, it says so; the next long range asks again.
                    log.info("the backend did not tell whether it has remote read", extra={"error": str(error)})
                    return False
                log.info("asked for remote read", extra={"url": self.url, "streamed": self._streams})
            return self._streams
