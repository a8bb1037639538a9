"""A backend's clock that jumps for a moment leads nobody astray; one that was set is followed."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestor.backend_clock import HOLDS_S, TOLERANCE_MS, BackendClock, Judged, Reading
from ingestor.core.time_range import iso
from ingestor.sources.steady import SteadyClock

START_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
POLL_S = 15.0


def true_ms(at_s: float) -> int:
    return START_MS + round(at_s * 1000)


class Polls:
    """Asks every 15 s for the clock, which is so much ahead of the true one."""

    def __init__(self) -> None:
        self.clock, self.at_s = BackendClock(), 0.0
        self.ask(0)

    def ask(self, ahead_ms: int) -> Judged:
        self.at_s += POLL_S
        return self.clock.judge(Reading(true_ms(self.at_s) + ahead_ms, self.at_s, self.at_s))

    def error_ms(self, ahead_ms: int) -> int:
        """Return by how much the time to go by is ahead of the true one."""
        return self.ask(ahead_ms).now_ms - true_ms(self.at_s)


def test_a_jump_ahead_is_told_once_and_not_believed() -> None:
    """The time goes on as it was expected, and is the backend's at once when that is back; the next jump is news."""
    polls = Polls()
    assert polls.ask(0) == Judged(true_ms(polls.at_s), true_ms(polls.at_s))
    assert polls.ask(HOUR_MS) == Judged(true_ms(polls.at_s), true_ms(polls.at_s), "ahead")
    again = [polls.ask(HOUR_MS).news for _ in range(10)]
    assert again == [""] * 10
    assert polls.error_ms(HOUR_MS) == 0
    assert polls.error_ms(20) == 20
    polls.at_s += HOLDS_S
    assert polls.ask(HOUR_MS).news == "ahead"


def test_what_has_stayed_is_believed() -> None:
    """A clock that was set right, either way, is gone by after five minutes, and that is told."""
    for step_ms in (HOUR_MS, -HOUR_MS):
        polls = Polls()
        told = [polls.ask(step_ms) for _ in range(21)]
        # It has been there since the first of these readings.
        assert [judged.news for judged in told] == ["ahead" if step_ms > 0 else "behind", *[""] * 19, "held"]
        assert polls.error_ms(step_ms) == step_ms
        assert polls.ask(0).news == ("behind" if step_ms > 0 else "ahead")


def test_a_clock_that_jumps_on_has_not_stayed() -> None:
    """Readings that agree neither with what was believed nor with one another are never believed."""
    polls = Polls()
    errors = [polls.error_ms(HOUR_MS * number) for number in range(1, 100)]
    assert errors == [0] * 99


def test_two_clocks_that_answer_in_turn() -> None:
    """The one that was heard first counts, however long that goes on, and it is told once."""
    polls = Polls()
    answers = [(polls.ask(ahead_ms), polls.at_s) for _ in range(200) for ahead_ms in (HOUR_MS, 0)]
    assert all(judged.now_ms == true_ms(at_s) for judged, at_s in answers)
    assert [judged.news for judged, _ in answers if judged.news] == ["ahead"]


def test_a_step_back_is_gone_by_and_a_moment_later_forgotten() -> None:
    """The earlier time counts; what comes back to where it was need not stay there before it is believed."""
    polls = Polls()
    assert polls.ask(-HOUR_MS).news == "behind"
    assert polls.error_ms(-HOUR_MS) == -HOUR_MS
    assert polls.error_ms(0) == 0


@pytest.mark.parametrize("gap_s", [POLL_S, 12 * 3600.0])
def test_time_that_passes_is_no_jump(gap_s: float) -> None:
    """A machine that has slept, an answer that was long under way, a process that stood still before or behind it."""
    clock = BackendClock()
    clock.judge(Reading(true_ms(0), 0, 0))
    for said_at_s, asked_s, answered_s in (
        (gap_s, gap_s, gap_s),
        (2 * gap_s, 2 * gap_s, 3 * gap_s),
        (3 * gap_s, 3 * gap_s, 3 * gap_s),
        (5 * gap_s, 4 * gap_s, 5 * gap_s),
        (6 * gap_s, 6 * gap_s, 6 * gap_s),
    ):
        judged = clock.judge(Reading(true_ms(said_at_s), asked_s, answered_s))
        assert (judged.now_ms, judged.news) == (true_ms(said_at_s), "")


jumps = st.lists(
    st.tuples(st.integers(-10 * HOUR_MS, 10 * HOUR_MS), st.integers(1, int(HOLDS_S / POLL_S) - 1)), max_size=20
)


@given(jumps)
def test_no_jump_of_a_moment_leads_ahead(jumped: list[tuple[int, int]]) -> None:
    """Whatever a clock says for less than five minutes, the time gone by is the true one or earlier, or nearly so; and
    true again with the first true answer.
    """
    polls = Polls()
    for ahead_ms, times in jumped:
        assert all(polls.error_ms(ahead_ms) <= TOLERANCE_MS for _ in range(times))
        assert polls.error_ms(0) == 0


def test_both_times_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """Who reads the log sees what the backend says and what was expected, and what to look at."""
    at_s = 0.0
    clock = SteadyClock(lambda: at_s)
    assert clock.ask(lambda: true_ms(at_s)) == true_ms(0)
    at_s = POLL_S
    with caplog.at_level(logging.WARNING):
        assert clock.ask(lambda: true_ms(at_s) + HOUR_MS) == true_ms(POLL_S)
        assert clock.ask(lambda: true_ms(at_s) + HOUR_MS) == true_ms(POLL_S)
    (line,) = caplog.records
    assert "NTP" in line.getMessage()
    told = line.__dict__
    assert (told["backend"], told["expected"]) == (iso(true_ms(at_s) + HOUR_MS), iso(true_ms(at_s)))
