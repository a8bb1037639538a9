"""A pod's history against a dictionary of rows: what counts, what is seen, what is forgotten."""

import math
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_app.consumer.history import ABSENT, Part, PodHistory, merge, ranks_of, rows_between

FOREVER = ((-1, 1 << 60),)
METRICS = st.dictionaries(
    st.sampled_from(["cpu", "memory", "disk", "net"]),
    st.one_of(st.floats(allow_nan=True, allow_infinity=True), st.just(math.nan)),
    min_size=1,
)
ROWS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2), st.booleans(), METRICS), min_size=1, max_size=40)


def part(start_ms: int, rank: int, offset: int, metrics: dict[str, float]) -> Part:
    columns = (np.array([number]) for number in (start_ms, rank, offset))
    return Part(1, tuple(metrics), *columns, np.array([list(metrics.values())]))


def rank(revision: int, *, partial: bool) -> int:
    return int(ranks_of(np.array([revision]), np.array([partial]))[0])


def contents(rows: Part) -> dict[int, dict[str, Any]]:
    """Return what rows say, without what they do not have; NaN as a text, for it is not equal to itself."""
    absent = np.float64(ABSENT).view(np.int64)
    return {
        start_ms: {
            name: str(value)
            for name, value in zip(rows.names, values, strict=True)
            if np.float64(value).view(np.int64) != absent
        }
        for start_ms, values in zip(rows.starts_ms[: rows.size].tolist(), rows.values[: rows.size], strict=True)
    }


def winners(rows: list[tuple[int, int, bool, dict[str, float]]]) -> dict[int, dict[str, str]]:
    """Of each window: complete beats partial, then the higher revision, then the later one."""
    best: dict[int, tuple[tuple[bool, int, int], dict[str, float]]] = {}
    for offset, (start, revision, is_partial, metrics) in enumerate(rows):
        standing = not is_partial, revision, offset
        if start not in best or standing > best[start][0]:
            best[start] = standing, metrics
    return {start: {name: str(np.float64(value)) for name, value in best[start][1].items()} for start in sorted(best)}


@given(ROWS)
@settings(max_examples=200)
def test_what_counts_is_kept_in_any_order(rows):
    """Whatever comes in whatever order: of each window there is one row, the best, and rows are in order of time."""
    history = PodHistory()
    for offset, (start, revision, is_partial, metrics) in enumerate(rows):
        history.add(part(start, rank(revision, partial=is_partial), offset, metrics), lambda: FOREVER)
    found = rows_between(history.snapshot(), 0, 12)
    assert contents(found) == winners(rows)
    assert list(contents(found)) == sorted(contents(found))
    assert set(found.names) == {name for row in winners(rows).values() for name in row}


@given(ROWS, st.integers(0, 12), st.integers(0, 12))
@settings(max_examples=100)
def test_a_snapshot_is_what_was_known(rows, first, last):
    """What comes later, or is forgotten later, changes nothing in a snapshot."""
    history, taken = PodHistory(), []
    for offset, (start, revision, is_partial, metrics) in enumerate(rows):
        history.add(part(start, rank(revision, partial=is_partial), offset, metrics), lambda: FOREVER)
        taken.append(history.snapshot())
    history.forget(())
    for count, snapshot in enumerate(taken, 1):
        expected = {start: row for start, row in winners(rows[:count]).items() if first <= start <= last}
        assert contents(rows_between(snapshot, first, last)) == expected


@given(st.lists(st.integers(1, 3), min_size=1, max_size=300), st.integers(1, 40))
@settings(max_examples=50)
def test_what_a_lookback_needs_is_never_forgotten(steps, lookback):
    """However many rows come, all of the last lookback are there; and room for at most some lookbacks is taken."""
    history, starts = PodHistory(), np.cumsum(steps).tolist()
    for offset, start in enumerate(starts):
        history.add(part(start, 0, offset, {"cpu": start / 7}), lambda start=start: [(start - lookback, start)])
        found = rows_between(history.snapshot(), start - lookback, start)
        assert found.starts_ms.tolist() == [s for s in starts[: offset + 1] if s >= start - lookback]
    (run,) = history.snapshot()
    assert len(run.starts_ms) <= 4 * lookback + 64


def test_metrics_that_are_gone_leave():
    """A pod whose metrics change for good is as wide as what it has now, not as all that it ever had."""
    history = PodHistory()
    for minute in range(200):
        history.add(part(minute, 0, minute, {f"metric_{minute // 20}": 1.0}), lambda at=minute: [(at - 10, at)])
    (run,) = history.snapshot()
    assert len(run.names) <= 4
    assert list(rows_between(history.snapshot(), 189, 199).names) == ["metric_9"]


def test_what_is_known_is_no_news():
    """The same once more, or what counts less, is told from what is new."""
    history = PodHistory()
    known = part(5, rank(1, partial=False), 0, {"a": 1.0, "b": math.nan})
    history.add(known, lambda: FOREVER)
    history.add(part(6, rank(0, partial=False), 1, {"c": 1.0}), lambda: FOREVER)
    assert history.is_no_news(known)
    assert history.is_no_news(part(5, rank(0, partial=False), 2, {"a": 2.0}))
    assert history.is_no_news(part(5, rank(7, partial=True), 2, {"a": 2.0}))
    assert not history.is_no_news(part(5, rank(1, partial=False), 2, {"a": 2.0, "b": math.nan}))
    assert not history.is_no_news(part(5, rank(1, partial=False), 2, {"a": 1.0}))
    assert not history.is_no_news(part(5, rank(1, partial=False), 2, {"a": 1.0, "c": math.nan}))
    assert not history.is_no_news(part(5, rank(2, partial=False), 2, {"a": 1.0, "b": math.nan}))
    assert not history.is_no_news(part(4, rank(0, partial=True), 2, {"a": 1.0}))


def test_many_late_jobs_are_put_together():
    """Rows that go back again and again do not make a run each."""
    history = PodHistory()
    for number in range(100):
        history.add(part(1_000 - number, 0, number, {"cpu": 1.0}), lambda: FOREVER)
    assert len(history.snapshot()) <= 8
    assert merge(history.snapshot()).size == 100
