"""Which stretches of time a new command reads beside others, and what `status` says of them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestor import jobs, status
from ingestor.core.time_range import TimeRange
from ingestor.positions import Position, Written

NOW_MS = 1_795_435_200_000


def job(name: str, start: int, end: int | None, position: int | None = None, **more) -> Position:
    return Position(name, start, end, start if position is None else position, (0,), **more)


def stretches(positions, start, end, command="backfill-x"):
    return [(s.job, s.start_ms, s.end_ms) for s in jobs.uncovered(command, start, end, positions)]


def test_a_job_alone_reads_all():
    """Nothing is clipped where there is no other."""
    assert stretches([], 0, 100) == [("backfill-x", 0, 100)]
    assert stretches([], 0, None, "live") == [("live", 0, None)]


def test_history_is_added_before_live_data():
    """A live job claims all from its start on, whatever it has read yet."""
    assert stretches([job("live", 50, None, 60)], 0, 100) == [("backfill-x", 0, 50)]
    assert stretches([job("live", 50, None, 60)], 70, 100) == []


def test_holes_between_jobs_become_parts():
    """A part is a job of its own; the last one has the command's name, so that the same command finds it."""
    others = [job("a", 10, 20, 20, ended=True), job("b", 40, 50)]
    assert stretches(others, 0, 60) == [("backfill-x.1", 0, 10), ("backfill-x.2", 20, 40), ("backfill-x", 50, 60)]
    assert stretches(others, 0, None, "live") == [("live.1", 0, 10), ("live.2", 20, 40), ("live", 50, None)]


def test_what_was_cancelled_is_free():
    """A job that was given up claims what it has read; a recheck claims nothing of its own."""
    assert stretches([job("a", 0, 30, 30, ended=True)], 0, 100) == [("backfill-x", 30, 100)]
    assert stretches([job("a", 0, 0, 0, ended=True)], 0, 100) == [("backfill-x", 0, 100)]
    assert stretches([job("live.recheck", 0, 100, revision=1)], 0, 100) == [("backfill-x", 0, 100)]
    assert stretches([job("a.r1", 0, 60, revision=1)], 0, 100) == [("backfill-x", 60, 100)]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), max_size=6), st.integers(0, 50), st.integers(1, 40))
def test_every_moment_is_read_once(others, start, length):
    """Claimed moments and a command's stretches never overlap, and together they are all that was asked for."""
    positions = [job(f"job-{i}", begin, begin + more) for i, (begin, more) in enumerate(others)]
    found = jobs.uncovered("backfill-x", start, start + length, positions)
    claimed = {t for begin, more in others for t in range(begin, begin + more)}
    read = [t for stretch in found for t in range(stretch.start_ms, stretch.end_ms or 0)]
    assert len(read) == len(set(read))
    assert set(read) == set(range(start, start + length)) - claimed
    assert not found or found[-1].job == "backfill-x"


def test_again_has_a_higher_revision():
    """It replaces whatever was said of any of its time."""
    whole = TimeRange(0, 100)
    assert jobs.again("backfill-x", whole, []) == jobs.Stretch("backfill-x", 0, 100, 0)
    others = [
        job("live", 50, None, 60),
        job("live.recheck", 50, None, 55, revision=1),
        job("later", 100, 200, revision=7),
    ]
    assert jobs.again("backfill-x", whole, others) == jobs.Stretch("backfill-x.r2", 0, 100, 2)
    cancelled = job("backfill-x", 0, 0, 0, ended=True)
    assert jobs.again("backfill-x", whole, [cancelled]) == jobs.Stretch("backfill-x.r1", 0, 100, 1), "a name is new"


def test_parts_have_their_command():
    """One process at a time runs them all: they share its transactional id."""
    positions = [
        job("live", 9, None),
        job("live.1", 0, 5),
        job("live.recheck", 9, None, revision=1),
        job("other", 0, 1),
    ]
    assert [p.job for p in jobs.parts_of("live", positions)] == ["live.1", "live", "live.recheck"]
    assert [jobs.is_recheck(name) for name in ("live", "live.1", "live.recheck", "live.recheck-2")] == [0, 0, 1, 1]
    assert [jobs.recheck_name("live", earlier) for earlier in (0, 1)] == ["live.recheck", "live.recheck-2"]


def test_whose_position_stands():
    """What a process has read or committed, and what it may have, is its own; all else of its jobs is another's."""
    written = Written()

    def is_anothers(position: Position) -> bool:
        return written.is_anothers(Position.from_json(position.to_json()))

    read, next_one, then = (job("live", 0, None, at, arguments={"split_by": {"a": ["b"]}}) for at in (10, 20, 30))
    assert not is_anothers(read), "of a job that it does not know nothing is said"
    written.may_stand(read)
    written.may_stand(next_one)
    assert [is_anothers(position) for position in (read, next_one, then)] == [False, False, True]
    written.stands(next_one)
    assert [is_anothers(position) for position in (read, next_one, then)] == [True, False, True]
    assert is_anothers(replace(next_one, updated_ms=1)), "another that has come exactly as far"
    assert not is_anothers(job("other", 0, 10))


def test_status_as_a_table():
    """At 80 columns: open jobs first, what went wrong below its job."""
    live = job(
        "live", NOW_MS - 864_000_000, None, NOW_MS - 31_000, samples=12_345_678, samples_per_s=4123.4,
        updated_ms=NOW_MS - 900, last_error="http://prometheus:9090: cannot connect (connection refused)",
        last_error_ms=NOW_MS - 300_000, incomplete=("bad_metric",),
    )  # fmt: skip
    ended = job(
        "backfill-0a1b2c3d4e", 0, NOW_MS - 864_000_000, NOW_MS - 864_000_000, ended=True, samples=999,
        updated_ms=NOW_MS - 7_200_000,
    )  # fmt: skip
    lines = list(status.as_text([ended, live], NOW_MS))
    assert lines == [
        "JOB                  POSITION                LAG  SAMPLES    RATE    UPDATED",
        "live                 2026-11-23T11:59:29Z    31s    12.3M  4.1k/s     0s ago",
        "  last error, 5m ago: http://prometheus:9090: cannot connect (connection refused)",
        "  incomplete, samples are missing of: bad_metric",
        "backfill-0a1b2c3d4e  2026-11-13T12:00:00Z  ended      999          2h00m ago",
    ]
    assert all(len(line) <= 80 for line in lines if not line.startswith("  last"))


def test_status_for_machines():
    """The same facts with their units in the names."""
    found = status.as_dict(job("live", 0, None, NOW_MS - 31_000, updated_ms=NOW_MS - 900), NOW_MS)
    assert (found["lag_s"], found["updated_s_ago"], found["last_error"], found["ended"]) == (31.0, 0.9, None, False)
    assert found["position"] == "2026-11-23T11:59:29Z"


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (-5, "0s"),
        (119_999, "119s"),
        (120_000, "2m"),
        (7_199_000, "119m"),
        (11_100_000, "3h05m"),
        (792_000_000, "9d04h"),
    ],
)
def test_lengths(milliseconds, text):
    """Two units at most."""
    assert status.length(milliseconds) == text
