"""A source that waits and asks again while its backend cannot be reached, and whose clock does not jump."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tenacity

from ingestor.core.errors import IngestorError, SourceUnavailable
from ingestor.core.time_range import TimeRange
from ingestor.selector import Selector
from ingestor.sources.base import SeriesBlock, Source
from ingestor.sources.steady import SteadyClock
from ingestor.telemetry import RequestKind, Telemetry

_Answer = TypeVar("_Answer")

log = logging.getLogger(__name__)

_backoff_s = tenacity.wait_exponential_jitter(multiplier=0.5, max=30.0)

_MOST_ASKED_S = 300.0
"""A backend that asks for more is asked again all the same: its date may be a broken gateway's."""


class RetryingSource:
    """Passes every question on, again and again while the answer is `SourceUnavailable`.

    Args:
        source: who answers.
        stop: when set, the last error is raised at once.
        patience_s: give up after so many seconds of one question; None: never.
        on_error: is told each time, in whatever thread asked.
        telemetry: is told how long each answer took.
        clock: what the backend's clock has said before.
    """

    def __init__(
        self,
        source: Source,
        stop: threading.Event,
        patience_s: float | None,
        on_error: Callable[[IngestorError], None] = lambda _: None,
        telemetry: Telemetry | None = None,
        clock: SteadyClock | None = None,
    ) -> None:
        self._source, self._stop = source, stop
        self._clock = clock or SteadyClock()
        self._telemetry = telemetry or Telemetry("")
        self._on_error = on_error
        self._retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(SourceUnavailable),
            wait=_wait_s,
            stop=tenacity.stop_when_event_set(stop)
            | (tenacity.stop_never if patience_s is None else tenacity.stop_after_delay(patience_s)),
            sleep=tenacity.sleep_using_event(stop),
            before_sleep=self._before_asking_again,
            reraise=True,
        )

    @property
    def name(self) -> str:
        return self._source.name

    def now_ms(self) -> int:
        return self._ask("clock", self._clock.ask, self._source.now_ms)

    def metric_names(self, selector: Selector, time_range: TimeRange) -> list[str]:
        return self._ask("names", self._source.metric_names, selector, time_range)

    def count_series(self, selector: Selector, at_ms: int) -> int:
        return self._ask("count", self._source.count_series, selector, at_ms)

    def metric_types(self) -> dict[str, str]:
        return self._ask("metadata", self._source.metric_types)

    def label_sets(self, selectors: Sequence[str], time_range: TimeRange) -> list[dict[str, str]]:
        return self._ask("label_sets", self._source.label_sets, selectors, time_range)

    def fetch(self, selector: Selector, metric: str, time_range: TimeRange) -> SeriesBlock:
        return self._ask("samples", self._source.fetch, selector, metric, time_range)

    def streams(self, time_range: TimeRange) -> bool:
        return self._source.streams(time_range)

    def fetch_together(
        self, selector: Selector, metrics: Sequence[str], time_range: TimeRange, most_samples: int
    ) -> SeriesBlock:
        """Ask once: whatever fails, the metrics are asked for one by one, and those that fail then again."""
        try:
            with self._telemetry.request("samples"):
                return self._source.fetch_together(selector, metrics, time_range, most_samples)
        except SourceUnavailable as error:
            self._stop.wait(_asked_s(error))
            raise

    def _before_asking_again(self, state: tenacity.RetryCallState) -> None:
        log_retry(state)
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, IngestorError):
            self._on_error(error)

    def _ask(self, kind: RequestKind, question: Callable[..., _Answer], *arguments: Any) -> _Answer:
        def ask() -> _Answer:
            with self._telemetry.request(kind):
                return question(*arguments)

        # A copy counts its own attempts: questions are asked from several threads, for years.
        return self._retrying.copy()(ask)


def log_retry(state: tenacity.RetryCallState) -> None:
    """Log why something is tried again, and when."""
    error = state.outcome.exception() if state.outcome else None
    wait_s = state.next_action.sleep if state.next_action else 0.0
    log.warning("trying again", extra={"error": str(error), "in_s": round(wait_s, 1)})


def _wait_s(state: tenacity.RetryCallState) -> float:
    """Return the exponential wait, or as long as the backend asked for, within reason."""
    error = state.outcome.exception() if state.outcome else None
    return max(_backoff_s(state), _asked_s(error))


def _asked_s(error: BaseException | None) -> float:
    """Return how long a backend that is not available wants not to be asked."""
    asked_s = error.retry_after_s if isinstance(error, SourceUnavailable) else None
    return min(asked_s or 0.0, _MOST_ASKED_S)
