"""Named PromQL expressions as metrics, through ``/api/v1/query_range``: a source around another one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Unpack

import numpy as np
import orjson

from ingestor.core.errors import ConfigError, QueryRejected, TooManySamples
from ingestor.core.time_range import TimeRange, iso
from ingestor.expressions import Expressions
from ingestor.selector import Selector
from ingestor.sources.base import SeriesBlock, Source, canonical_labels, tidy
from ingestor.sources.http import HttpSettings
from ingestor.sources.http_query import HttpQuerySource

MOST_POINTS = 11_000
"""A series and request; Prometheus refuses more.

Source: prometheus/prometheus web/api/v1/api.go, queryRange.
"""

_NOT_SERIES = {
    "scalar": "it gives one number, which belongs to no pod: write a vector, like sum by (namespace, pod) (…)",
    "matrix": "it gives ranges of samples, not one value an instant: put a function like rate() around it",
    "string": "it gives a text",
}


class WithExpressions:
    """A `Source` that gives another one's metrics and, as metrics like any other, named expressions.

    Args:
        source: who gives everything but the expressions; its owner closes it.
        url: the API that evaluates the expressions; that of *source*.
        expressions: their names and PromQL. Neither selector nor preset narrows them.
        step_ms: the distance of an expression's points.
        settings: as those of `HttpApi`.

    Raises:
        ConfigError: the step is not positive, or what `HttpApi` says.

    **Alignment.** An expression is evaluated at whole multiples of the step since the epoch
    (``t = k * step``), never relative to where a range begins. However time is cut into ranges, each point
    is in exactly one of them, with the same value: where it is evaluated depends on nothing but the step.
    A step of 7 s does not begin anew at a minute or a day. A range that no multiple lies in holds no
    point. What an expression looks back at (``[5m]``) lies before its point, also where that is before
    the range's start.
    """

    def __init__(
        self, source: Source, url: str, expressions: Expressions, step_ms: int, **settings: Unpack[HttpSettings]
    ) -> None:
        if step_ms <= 0:
            raise ConfigError("the step of expressions must be positive: write it like 15s")
        self._source = source
        self._expressions = expressions.by_name
        self._step_ms = step_ms
        self._api = _RangeQueries(url, **settings)

    @property
    def name(self) -> str:
        return self._source.name

    def check(self) -> int:
        """Evaluate each expression once, so that wrong ones are told at the start.

        Returns:
            The backend's clock, Unix milliseconds.

        Raises:
            ConfigError: nothing answers there (see `HttpApi.check`), or the backend cannot read an
                expression, or one gives no series; all of these expressions in one message.
            TooManySamples: an expression is too large for a single instant.
        """
        now_ms = self._api.check()
        faults = []
        for name, promql in self._expressions.items():
            try:
                self._api.check_series(name, promql, now_ms)
            except QueryRejected as error:
                faults.append(f"the expression {name} cannot be used: {error}")
            except TooManySamples as error:
                raise TooManySamples(f"the expression {name} is too large for a single instant: {error}") from error
        if faults:
            raise ConfigError("; ".join(faults))
        return now_ms

    def close(self) -> None:
        """Close the connections that expressions are asked through; *source* stays as it is."""
        self._api.close()

    def now_ms(self) -> int:
        return self._source.now_ms()

    def metric_names(self, selector: Selector, time_range: TimeRange) -> list[str]:
        """Return the sorted names of *source*'s metrics and of all expressions.

        Raises:
            ConfigError: a metric has an expression's name: nobody could tell the two apart.
        """
        names = self._source.metric_names(selector, time_range)
        if taken := sorted(self._expressions.keys() & set(names)):
            raise ConfigError(
                f"{', '.join(taken)}: a metric of {selector} has the name of an expression: rename the expression"
            )
        return sorted([*names, *self._expressions])

    def count_series(self, selector: Selector, at_ms: int) -> int:
        return self._source.count_series(selector, at_ms)

    def metric_types(self) -> dict[str, str]:
        return self._source.metric_types() | dict.fromkeys(self._expressions, "gauge")

    def label_sets(self, selectors: Sequence[str], time_range: TimeRange) -> list[dict[str, str]]:
        return self._source.label_sets(selectors, time_range)

    def fetch(self, selector: Selector, metric: str, time_range: TimeRange) -> SeriesBlock:
        promql = self._expressions.get(metric)
        if promql is None:
            return self._source.fetch(selector, metric, time_range)
        parts = _requests(time_range, self._step_ms)
        blocks = [self._api.points(metric, promql, points) for points in parts]
        return tidy(_joined(blocks), time_range)

    def streams(self, time_range: TimeRange) -> bool:
        return self._source.streams(time_range)

    def fetch_together(
        self, selector: Selector, metrics: Sequence[str], time_range: TimeRange, most_samples: int
    ) -> SeriesBlock:
        return self._source.fetch_together(selector, metrics, time_range, most_samples)


class _RangeQueries(HttpQuerySource):
    """The two ways in which an expression is asked for."""

    name = "query-range"

    def check_series(self, name: str, promql: str, at_ms: int) -> None:
        """See that an expression gives series.

        Raises:
            QueryRejected: it does not.
        """
        data = self._data("POST", "query", {"query": promql, "time": iso(at_ms)}, sized=True)
        if not isinstance(data, dict) or not isinstance(data.get("result"), list):
            raise self._not_prometheus("JSON without a result")
        kind = data.get("resultType")
        if kind != "vector":
            raise QueryRejected(_NOT_SERIES.get(str(kind), f"it gives a {kind}, not a vector"))
        _renamed([orjson.dumps(series.get("metric", {})) for series in data["result"]], name)

    def points(self, name: str, promql: str, times_ms: range) -> SeriesBlock:
        """Evaluate an expression at each of *times_ms*, at most `MOST_POINTS`."""
        # Both ends are points. The step has its unit because Prometheus takes 1.001, in seconds, for 1,000 ms.
        asked = {"query": promql, "start": iso(times_ms[0]), "end": iso(times_ms[-1]), "step": f"{times_ms.step}ms"}
        try:
            block = self._matrix("query_range", asked)
            return replace(block, label_sets=_renamed(block.label_sets, name))
        except QueryRejected as error:
            raise QueryRejected(f"the expression {name} cannot be used: {error}") from error


def _requests(time_range: TimeRange, step_ms: int) -> Iterator[range]:
    """Yield the points in [start, end), in portions that one request may ask for."""
    first_ms = -(-time_range.start_ms // step_ms) * step_ms
    points = range(first_ms, time_range.end_ms, step_ms)
    for at in range(0, len(points), MOST_POINTS):
        yield points[at : at + MOST_POINTS]


def _renamed(label_sets: list[bytes], name: str) -> list[bytes]:
    """Return each label set with the expression's name as the metric's.

    Raises:
        QueryRejected: two series differ in nothing but the metric's name.
    """
    named: list[dict[str, Any]] = [orjson.loads(labels) | {"__name__": name} for labels in label_sets]
    spelt = [canonical_labels(orjson.dumps(labels)) for labels in named]
    if len(set(spelt)) < len(spelt):
        raise QueryRejected(
            "some of its series differ in their metric's name only: aggregate them, like sum by (namespace, pod) (…)"
        )
    return spelt


def _joined(blocks: list[SeriesBlock]) -> SeriesBlock:
    """Return blocks that follow one another in time as one."""
    if len(blocks) == 1:
        return blocks[0]
    numbers: dict[bytes, int] = {}
    series = [
        np.repeat(
            np.array([numbers.setdefault(labels, len(numbers)) for labels in block.label_sets], np.int64),
            np.diff(block.offsets),
        )
        for block in blocks
    ]
    which = np.concatenate([np.empty(0, np.int64), *series])
    # Stable: within a series the blocks' order stays, which is that of time.
    order = np.argsort(which, kind="stable")
    offsets = np.zeros(len(numbers) + 1, np.int64)
    np.cumsum(np.bincount(which, minlength=len(numbers)), out=offsets[1:])
    return SeriesBlock(
        list(numbers),
        offsets,
        np.concatenate([np.empty(0, np.int64), *(block.timestamps_ms for block in blocks)])[order],
        np.concatenate([np.empty(0, np.float64), *(block.values for block in blocks)])[order],
        sum(block.histograms for block in blocks),
        _RangeQueries.name,
    )
