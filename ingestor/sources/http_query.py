"""Raw samples through ``/api/v1/query`` with a range selector: the way that every backend offers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Unpack

import numpy as np

from ingestor.core.errors import QueryRejected, SourceUnavailable
from ingestor.core.time_range import TimeRange
from ingestor.selector import Selector
from ingestor.sources.base import STALE_MARKER_BITS, SeriesBlock, tidy
from ingestor.sources.http import NOT_SUPPORTED, HttpApi, HttpSettings, described, instant
from ingestor.sources.query_json import read_matrix

# Thanos, for a time of which no store has anything; and what Prometheus thinks of an expression, not of its answer.
_HARMLESS_WARNING = re.compile(r"No StoreAPIs matched|^PromQL (?:warning|info)")


class HttpQuerySource(HttpApi):
    """A `Source` over the query API of Prometheus, Thanos, Mimir or VictoriaMetrics."""

    name = "query"

    def __init__(self, url: str, **settings: Unpack[HttpSettings]) -> None:
        super().__init__(url, **settings)
        self._has_metricsql: bool | None = None

    def fetch(self, selector: Selector, metric: str, time_range: TimeRange) -> SeriesBlock:
        return self._fetch(selector.of_metrics(metric), time_range)

    def streams(self, time_range: TimeRange) -> bool:  # noqa: ARG002 - none of them
        return False

    def fetch_together(
        self,
        selector: Selector,
        metrics: Sequence[str],
        time_range: TimeRange,
        most_samples: int,  # noqa: ARG002 - the backend has its own limit
    ) -> SeriesBlock:
        return self._fetch(selector.of_metrics(*metrics), time_range)

    def _fetch(self, selector: Selector, time_range: TimeRange) -> SeriesBlock:
        # At end - 1 ms, Prometheus 3 gives (start - 1, end - 1], 2.x [start - 1, end - 1]: `tidy` cuts
        # off the difference.
        query = f"{selector}[{time_range.length_ms}ms]"
        block = self._matrix("query", {"query": query, "time": instant(time_range.end_ms - 1)})
        not_numbers = np.isnan(block.values)
        if not_numbers.any() and self._is_victoria_metrics():
            # It stores no NaN but the stale marker, and shows that one: a pod's end would look like a value.
            block.values.view(np.int64)[not_numbers] = STALE_MARKER_BITS
        return tidy(block, time_range)

    def _matrix(self, path: str, parameters: Mapping[str, str]) -> SeriesBlock:
        """Ask for a matrix, all of it; nothing is tidied yet."""
        body = self._request("POST", path, parameters, sized=True)
        try:
            answer = read_matrix(body)
        except QueryRejected as error:
            self._checked_data(body)
            raise QueryRejected(f"{self.url}: {error}") from error
        except SourceUnavailable as error:
            if not body.lstrip().startswith(b"{") and body:
                raise self._not_prometheus(described(self._connection.redacted(body))) from error
            raise SourceUnavailable(f"{self.url}: {error}") from error
        if answer.partial:
            raise SourceUnavailable(f"{self.url} gave a partial answer: a part of its storage did not answer")
        # A store behind the backend that failed is a warning there; here it would be a gap.
        if warnings := [text for text in answer.warnings if not _HARMLESS_WARNING.search(text)]:
            raise SourceUnavailable(f"{self.url} answered with a warning: {self._shown('; '.join(warnings))}")
        return replace(answer.block, source=self.name)

    def _is_victoria_metrics(self) -> bool:
        """Ask once for what only MetricsQL knows; its other marks are a header and a version that it borrows."""
        if self._has_metricsql is None:
            status, retry_s, body = self._send(
                "POST", "query", {"query": "WITH (x = 1) x"}, self.timeout_s, sized=False
            )
            if status != HTTPStatus.OK and status not in NOT_SUPPORTED:
                raise self._refusal(status, retry_s, body, sized=False)
            self._has_metricsql = status == HTTPStatus.OK
        return self._has_metricsql
