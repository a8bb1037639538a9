"""The words for what is made of samples: methods, what comes first for each series, and which metric gets what."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

Method = str
"""One of METHODS, or a quantile: ``p`` and a percentage, like ``p99.9``."""
OverTime = Literal["pooled", "last", "mean", "increase", "rate"]
Counters = Literal["raw", "increase", "rate"]
GroupBy = Literal["pod", "service"]

METHODS = ("sum", "mean", "median", "min", "max", "count", "stddev", "last")
OVER_TIME: tuple[OverTime, ...] = ("pooled", "last", "mean", "increase", "rate")
COUNTERS: tuple[Counters, ...] = ("raw", "increase", "rate")
GROUP_BY: tuple[GroupBy, ...] = ("pod", "service")

MAX_HELD_VALUES = 50_000_000
"""Samples in memory one by one at most, by default, for median and quantiles: 400 MB, and three times that while a
large window closes."""

_QUANTILE = re.compile(r"p(100|[0-9]{1,2}(?:\.[0-9]{1,6})?)")

_OF_EACH = {
    "last": "each series' last sample",
    "mean": "each series' mean",
    "increase": "each series' increase",
    "rate": "each series' rate",
}


def parse_method(text: str) -> Method:
    """Read a method's name; a quantile comes back as short as it can be written.

    Raises:
        ValueError: there is no such method; the message names all.
    """
    if text in METHODS:
        return text
    if match := _QUANTILE.fullmatch(text):
        return f"p{float(match[1]):.6f}".rstrip("0").rstrip(".")
    raise ValueError(f"{text!r} is not a method: write {', '.join(METHODS)}, or a quantile like p50, p90 or p99.9")


def quantile_of(method: Method) -> float | None:
    """Return the quantile in [0, 1] that a method stands for; None where it is another one."""
    match = _QUANTILE.fullmatch(method)
    # Not float(…) / 100: 99.9 / 100 is above 0.999, and would reach for the largest of 1,001 samples.
    return float(Decimal(match[1]) / 100) if match else None


def method_name(method: Method, over_time: OverTime = "pooled", counters: Counters = "raw") -> str:
    """Return how records name what was done: ``mean``, ``mean-of-last``, ``sum-counters-rate``."""
    of = "" if over_time == "pooled" else f"-of-{over_time}"
    return f"{method}{of}{'' if counters == 'raw' else f'-counters-{counters}'}"


@dataclass(frozen=True, slots=True)
class Reduction:
    """How the samples of one cell become one value: first each series over time, then the method across the series."""

    method: Method
    over_time: OverTime = "pooled"
    """``pooled``: all samples at once."""

    @property
    def looks_back(self) -> bool:
        """Whether samples before a window count."""
        return self.over_time in ("increase", "rate")


@dataclass(frozen=True, slots=True)
class Reductions:
    """What a view does with which metric."""

    method: Method
    over_time: OverTime = "pooled"
    counters: Counters = "raw"
    """What comes first for each series of a counter; ``raw``: what comes first for all others too."""
    metric_methods: tuple[tuple[str, Method], ...] = ()
    """Regular expressions for whole metric names, and the method of what they match; the first one counts."""

    def of(self, metric: str, kind: str) -> Reduction:
        """Return what is done with a metric of the type *kind*; a split one goes by its name before the brace."""
        name = metric.partition("{")[0]
        own = (method for pattern, method in self.metric_methods if re.fullmatch(pattern, name))
        is_counted = kind == "counter" and self.counters != "raw"
        over_time: OverTime = self.counters if is_counted and self.counters != "raw" else self.over_time
        return Reduction(next(own, self.method), over_time)

    @property
    def looks_back(self) -> bool:
        """Whether samples before a window may count."""
        return self.counters != "raw" or Reduction(self.method, self.over_time).looks_back

    @property
    def name(self) -> str:
        """How records name the method."""
        return method_name(self.method, self.over_time, self.counters)

    def in_words(self) -> str:
        """Say what was understood: ``mean of all samples, of counters the rate``."""
        words = f"{self.method} of {_OF_EACH.get(self.over_time, 'all samples')}"
        if self.counters != "raw":
            words += f", of counters {self.method} of {_OF_EACH[self.counters]}"
        return words + "".join(f", {method} of {pattern}" for pattern, method in self.metric_methods)
