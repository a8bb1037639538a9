"""Whether a worker has caught up and goes on is told from offsets and a clock, whatever the offsets have holes of."""

from __future__ import annotations

import pytest

from stream_app.standing import Read, Standing

STUCK_AFTER_S = 60.0
NOTHING_YET = Read(None, None, None)


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


class Consumer:
    """How far partitions were read, as a consumer tells it."""

    def __init__(self, standing: Standing) -> None:
        self.reads: dict[int, Read] = {}
        standing.reads = lambda: self.reads


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def standing(clock: Clock) -> Standing:
    return Standing(STUCK_AFTER_S, clock)


@pytest.fixture
def consumer(standing: Standing) -> Consumer:
    return Consumer(standing)


def test_a_worker_is_ready_when_every_partition_is_read_to_its_end_at_assignment(
    standing: Standing, consumer: Consumer
) -> None:
    """Not before it is in the group, nor before the ends are known, nor for what came later."""
    assert "not shared out" in (standing.not_ready() or "")
    standing.assigned([0, 1])
    assert standing.not_ready() == "replaying: how much is left is not known yet in 2 of 2 partitions"
    standing.looked(standing.assignment, {0: 10, 1: 5})
    assert standing.not_ready() == "replaying: how much is left is not known yet in 2 of 2 partitions"
    consumer.reads = {0: Read(4, 9, 9), 1: Read(None, None, 5)}
    assert standing.not_ready() == "replaying: 6 messages left in 1 of 2 partitions"
    assert standing.replay_left() == 6
    standing.handled(0, 6)
    standing.looked(standing.assignment, {0: 100, 1: 50})
    assert standing.not_ready() == "replaying: 3 messages left in 1 of 2 partitions"
    assert standing.lag() == {0: 93, 1: 45}
    standing.handled(0, 9)
    assert standing.not_ready() is None
    assert standing.replay_left() == 0
    assert standing.lag() == {0: 90, 1: 45}


def test_what_is_no_message_is_read_when_the_consumer_has_passed_it(standing: Standing, consumer: Consumer) -> None:
    """The ends of transactions and what was aborted take offsets; a message that was not handled yet does too."""
    standing.assigned([0])
    standing.looked(standing.assignment, {0: 10})
    consumer.reads = {0: Read(3, 9, 10)}
    standing.handled(0, 7)
    assert standing.lag() == {0: 2}
    standing.handled(0, 8)
    assert standing.lag() == {0: 0}
    assert standing.not_ready() is None


def test_a_partition_without_its_first_message_counts_as_behind(standing: Standing, consumer: Consumer) -> None:
    """There is something to read from the first message that was handed on, or nothing where all was passed."""
    standing.assigned([0, 1])
    standing.looked(standing.assignment, {0: 10, 1: 7})
    consumer.reads = {0: NOTHING_YET, 1: NOTHING_YET}
    assert standing.lag() == {}
    consumer.reads = {0: Read(2, 5, 5), 1: Read(None, None, 7)}
    assert standing.lag() == {0: 8, 1: 0}
    assert standing.not_ready() is not None


def test_a_standby_is_ready_and_healthy(standing: Standing, clock: Clock) -> None:
    """Who has no partition has nothing to read."""
    standing.assigned([])
    clock.s += 10_000
    assert standing.not_ready() is None
    assert standing.not_healthy() is None


def test_ready_stays_until_the_partitions_are_shared_out_anew(standing: Standing, consumer: Consumer) -> None:
    """Each is then read again from its commit; what was asked for before says nothing of it."""
    standing.assigned([0])
    standing.looked(standing.assignment, {0: 5})
    consumer.reads = {0: Read(0, 5, 5)}
    standing.handled(0, 4)
    assert standing.not_ready() is None
    before = standing.assignment
    standing.revoked()
    assert "not shared out" in (standing.not_ready() or "")
    assert standing.replay_left() is None
    standing.assigned([0, 1])
    standing.looked(before, {0: 5})
    assert standing.lag() == {}
    assert standing.not_ready() is not None
    standing.looked(standing.assignment, {0: 5, 1: 3})
    # The consumer's last word is still of the time before: it hides nothing.
    assert standing.lag() == {0: 5}
    assert standing.replay_left() is None
    consumer.reads = {0: Read(2, 5, 5), 1: Read(0, 2, 2)}
    assert standing.not_ready() == "replaying: 6 messages left in 2 of 2 partitions"


def test_a_message_may_be_handled_before_the_assignment_is_told(standing: Standing, consumer: Consumer) -> None:
    """It is not forgotten: nothing may come after it."""
    standing.revoked()
    consumer.reads = {0: Read(4, 5, 6)}
    standing.handled(0, 4)
    standing.assigned([0])
    standing.looked(standing.assignment, {0: 6})
    assert standing.not_ready() is None
    assert standing.lag() == {0: 0}


@pytest.mark.parametrize("read", [Read(0, 5, 5), Read(None, None, 0), NOTHING_YET])
def test_who_does_not_go_on_though_there_is_something_to_read_is_not_healthy(
    standing: Standing, consumer: Consumer, clock: Clock, read: Read
) -> None:
    """Whatever it is that stands: the work, or the consumer. One message makes it well again."""
    standing.assigned([0])
    consumer.reads = {0: read}
    clock.s += 30
    standing.looked(standing.assignment, {0: 9})
    clock.s += STUCK_AFTER_S - 30
    assert standing.not_healthy() is None
    clock.s += 1
    assert (standing.not_healthy() or "").startswith("nothing was processed for 61 s")
    standing.handled(0, 0)
    assert standing.not_healthy() is None


def test_who_replays_is_healthy(standing: Standing, consumer: Consumer, clock: Clock) -> None:
    """However long it takes, while messages or transactions come."""
    standing.assigned([0])
    consumer.reads = {0: Read(0, 100, 100)}
    standing.looked(standing.assignment, {0: 1_000_000})
    for offset in range(20):
        clock.s += STUCK_AFTER_S - 1
        assert standing.not_healthy() is None
        standing.went_on() if offset % 2 else standing.handled(0, offset)
    assert standing.not_ready() is not None


def test_who_is_idle_is_healthy_and_has_its_time_when_messages_come(
    standing: Standing, consumer: Consumer, clock: Clock
) -> None:
    """An hour without messages is no hour without progress."""
    standing.assigned([0])
    consumer.reads = {0: Read(None, None, 5)}
    for _ in range(720):
        clock.s += 5
        standing.looked(standing.assignment, {0: 5})
    assert standing.not_healthy() is None
    standing.looked(standing.assignment, {0: 6})
    clock.s += STUCK_AFTER_S
    assert standing.not_healthy() is None
    clock.s += 1
    assert standing.not_healthy() == "nothing was processed for 61 s, and 1 messages wait"
