"""Raw samples through ``/api/v1/query`` with a range selector: the way that every backend offers."""

from __future__ import annotations

import re
from dataclasses import replace

from ingestor.core.errors import QueryRejected, SourceUnavailable
from ingestor.core.time_range import TimeRange, iso
from ingestor.selector import Selector
from ingestor.sources.base import SeriesBlock, tidy
from ingestor.sources.http import HttpApi, described
from ingestor.sources.query_json import read_matrix

# Thanos, for a time of which no store has anything.
_HARMLESS_WARNING = re.compile(r"No StoreAPIs matched")


class HttpQuerySource(HttpApi):
    """A `Source` over the query API of Prometheus, Thanos, Mimir or VictoriaMetrics."""

    name = "query"

    def fetch(self, selector: Selector, metric: str, time_range: TimeRange) -> SeriesBlock:
        # At end - 1 ms, Prometheus 3 gives (start - 1, end - 1], 2.x [start - 1, end - 1]: `tidy` cuts
        # off the difference. The time is written as RFC 3339 because seconds as a float are not exact.
        query = f"{selector.for_metric(metric)}[{time_range.length_ms}ms]"
        body = self._request("POST", "query", {"query": query, "time": iso(time_range.end_ms - 1)}, sized=True)
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
        return tidy(replace(answer.block, source=self.name), time_range)
