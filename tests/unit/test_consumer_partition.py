"""A partition's histories, and what a commit says of them, against a run that was never interrupted."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import orjson
import pandas as pd
import pytest
from confluent_kafka import KafkaError, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_app.consumer import commits
from stream_app.consumer.commits import Beginning, Front
from stream_app.consumer.partition import Partition, Policy
from stream_app.consumer.reader import of_this_assignment
from stream_app.consumer.selection import Selection
from stream_app.consumer.views import View, ViewChoice
from stream_app.consumer.window import Window
from stream_app.tail_filter import RecordFilter, Wanted

MINUTE_MS = 60_000
NOON_MS = 1_795_435_200_000
LOOKBACK = 5


@dataclass(frozen=True)
class Write:
    """A record of the topic."""

    job: str
    minute: int
    pod: str
    value: float
    revision: int = 0
    partial: bool = False

    def encoded(self) -> bytes:
        start_ms = NOON_MS + self.minute * MINUTE_MS
        return orjson.dumps(
            {
                "namespace": "shop",
                "pod": self.pod,
                "service": "cart",
                "window_start": start_ms,
                "window_end": start_ms + MINUTE_MS,
                "chunk_size": "1m",
                "method": "mean",
                "job": self.job,
                "revision": self.revision,
                "partial": self.partial,
                "version": 1,
                "samples": 4,
                "metrics": {"cpu": self.value, **({"odd": 1.0} if self.minute % 2 else {})},
            }
        )


def topic(seed: int) -> list[Write]:
    """Return what several jobs write: each one's windows rise; pods fall silent and come back."""
    generator = random.Random(seed)
    live = 20 + generator.randrange(1, 25)
    jobs = {
        "live": range(20, live),
        "live.recheck": range(20, min(live, 20 + generator.randrange(15))),
        "backfill": range(generator.randrange(10), generator.randrange(10, 30)),
    }
    left = {job: list(minutes) for job, minutes in jobs.items()}
    writes: list[Write] = []
    while open_jobs := [job for job in left if left[job]]:
        job = generator.choice(open_jobs)
        minute = left[job].pop(0)
        revision = 1 if job == "live.recheck" else 0
        writes += [
            Write(job, minute, pod, float(len(writes)), revision, generator.random() < 0.2)
            for pod in "abc"
            if generator.random() < 0.6
        ]
    return writes or [Write("live", 20, "a", 0.0)]


TOPICS = st.integers(0, 2**32).map(topic)


def selection() -> Selection:
    return Selection(RecordFilter(Wanted()), ViewChoice("t", None, None), of_services=False)


def deliver(partition: Partition, writes: Sequence[Write], first: int, cuts: Sequence[int]) -> list[tuple[int, Window]]:
    """Give a partition the writes from an offset on, in blocks that end where they are cut; return what it delivers."""
    chooser, delivered = selection(), []
    edges = sorted({first, *(cut for cut in cuts if first < cut < len(writes)), len(writes)})
    for begin, end in itertools.pairwise(edges):
        block = writes[begin:end]
        found, faults = chooser.read(
            [b"shop/" + w.pod.encode() for w in block], [w.encoded() for w in block], range(begin, end)
        )
        assert not faults
        taken = partition.take(found, written_ms=1_000 * end)
        for number in taken.is_delivered.nonzero()[0].tolist():
            delivered.append((begin + number, taken.window(number, taken.snapshot(number))))
            partition.position = partition.done = begin + number + 1
        partition.position = partition.done = end
        partition.pass_by()
    return delivered


def policy(*, deliver_late: bool = True) -> Policy:
    return Policy(LOOKBACK * MINUTE_MS, deliver_late)


CUTS = st.lists(st.integers(1, 200), max_size=6)


@dataclass(frozen=True)
class News:
    """A record that says something, to who has forgotten nothing."""

    write: Write
    late: bool
    values: dict[int, float]
    """Of its lookback, by minute: what counts."""
    written: set[tuple[int, float]]
    """All that was ever said of the pod, by minute."""


def news(writes: Sequence[Write]) -> dict[int, News]:
    """Return what must be delivered, by offset."""
    known: dict[str, dict[int, Write]] = {}
    said: dict[str, set[tuple[int, float]]] = {}
    found = {}
    for offset, write in enumerate(writes):
        said.setdefault(write.pod, set()).add((write.minute, write.value))
        mine = known.setdefault(write.pod, {})
        before = mine.get(write.minute)
        if before is not None and (not before.partial, before.revision) > (not write.partial, write.revision):
            continue
        late = bool(mine) and write.minute <= max(mine)
        mine[write.minute] = write
        reach = range(write.minute - LOOKBACK + 1, write.minute + 1)
        counts = {minute: mine[minute].value for minute in reach if minute in mine}
        found[offset] = News(write, late, counts, set(said[write.pod]))
    return found


def values(window: Window) -> dict[int, float]:
    frame = window.frame(["cpu"])
    minutes = (frame.index - pd.Timestamp(NOON_MS, unit="ms", tz="UTC")) // pd.Timedelta("1min")
    return dict(zip(minutes.tolist(), frame["cpu"].tolist(), strict=True))


def assert_delivered(delivered: Sequence[tuple[int, Window]], expected: dict[int, News]) -> None:
    """Compare what is delivered with what is news.

    Behind all jobs, more than a lookback, things are forgotten: of late windows more may be delivered than is
    news, and their history may be shorter, or what counted less may stand in it.
    """
    found = dict(delivered)
    assert [offset for offset, _ in delivered] == sorted(found)
    for offset, one in expected.items():
        window = found.pop(offset)
        assert (window.metrics["cpu"], window.revision) == (one.write.value, one.write.revision)
        if one.write.job == "live" and not one.late:
            assert (window.late, values(window)) == (False, one.values)
        assert values(window).items() <= one.written
        assert values(window)[one.write.minute] == one.write.value
    assert all(window.late for window in found.values())


@given(TOPICS, CUTS)
@settings(max_examples=40)
def test_a_window_has_the_history_that_was_known(writes, cuts):
    """Each window comes once it is news, and its frame is what the records up to it say, however they were cut."""
    assert_delivered(deliver(Partition(0, Beginning(0), policy()), writes, 0, cuts), news(writes))


@given(TOPICS, CUTS, CUTS, st.data())
@settings(max_examples=60)
def test_a_restart_changes_nothing(writes, cuts, other_cuts, data):
    """Another member that begins with the commit delivers what was not processed, with the histories that it needs."""
    stop = data.draw(st.integers(0, len(writes)))
    first = Partition(0, Beginning(0), policy())
    deliver(first, writes[:stop], 0, cuts)
    commit = commits.encode("id", View("1m", "mean"), first.resume_at())
    committed = commits.decode(commit)
    assert committed is not None
    assert committed.beginning.processed == stop
    again = deliver(Partition(0, committed.beginning, policy()), writes, commit.offset, other_cuts)
    assert_delivered(again, {offset: one for offset, one in news(writes).items() if offset >= stop})


@given(TOPICS, st.data())
@settings(max_examples=40)
def test_a_crash_amid_a_block_delivers_the_window_in_hand_again(writes, data):
    """A window that was delivered and not processed comes again, with its history; those before it do not."""
    partition = Partition(0, Beginning(0), policy())
    found, _ = selection().read([None] * len(writes), [w.encoded() for w in writes], range(len(writes)))
    taken = partition.take(found, 1_000)
    in_hand = data.draw(st.sampled_from(taken.is_delivered.nonzero()[0].tolist()))
    partition.position = partition.done = in_hand
    begin = partition.resume_at()
    again = deliver(Partition(0, begin, policy()), writes, begin.offset, [])
    assert_delivered(again, {offset: one for offset, one in news(writes).items() if offset >= in_hand})


def test_a_commit_is_no_older_than_a_lookback_needs():
    """A month of live data is not read again for five minutes of history."""
    writes = [Write("live", minute, pod, 1.0) for minute in range(1_000) for pod in "abc"]
    partition = Partition(0, Beginning(0), policy())
    deliver(partition, writes, 0, range(0, 3_000, 70))
    assert partition.resume_at().offset == 3_000 - 3 * LOOKBACK


def test_an_ended_backfill_holds_nothing_back():
    """A job that has not written for longer than a lookback, and a quarter of an hour, is not waited for."""
    writes = [Write("backfill", minute, "a", 1.0) for minute in range(100)]
    writes += [Write("live", 10_000 + minute, "a", 1.0) for minute in range(2_000)]
    partition = Partition(0, Beginning(0), policy())
    deliver(partition, writes, 0, range(0, len(writes), 10))
    assert partition.resume_at().offset == len(writes) - LOOKBACK
    assert set(partition.resume_at().fronts) == {"live"}


def test_silent_pods_are_forgotten():
    """Pods that come and go do not add up: what is remembered are those of the lookback."""
    writes = [Write("live", minute, f"job-{minute}", 1.0) for minute in range(20_000)]
    partition = Partition(0, Beginning(0), policy())
    deliver(partition, writes, 0, range(0, 20_000, 100))
    assert partition.pod_count <= 4_096 + 100 + LOOKBACK


def test_late_windows_can_be_history_only():
    """With ``late="history"`` a pod's windows strictly rise, and what comes late is in later frames."""
    writes = [Write("live", minute, "a", 1.0) for minute in (10, 11, 12)]
    writes += [Write("backfill", 9, "a", 9.0), Write("again", 12, "a", 2.0, revision=1), Write("live", 13, "a", 13.0)]
    delivered = deliver(Partition(0, Beginning(0), policy(deliver_late=False)), writes, 0, [])
    assert [offset for offset, _ in delivered] == [0, 1, 2, 5]
    assert delivered[-1][1].frame()["cpu"].tolist() == [9.0, 1.0, 1.0, 2.0, 13.0]


def test_a_start_in_time_leaves_out_what_was_there_before():
    """Up to the end as of the opening, windows before the start are history; what comes later is delivered."""
    writes = [Write("live", minute, "a", 1.0) for minute in range(10)] + [Write("backfill", 3, "b", 1.0)]
    begin = Beginning(0, 0, NOON_MS + 7 * MINUTE_MS, 10)
    delivered = deliver(Partition(0, begin, policy()), writes, 0, [])
    assert [offset for offset, _ in delivered] == [7, 8, 9, 10]
    assert len(delivered[0][1].frame()) == LOOKBACK
    # Also where a restart comes between.
    partition = Partition(0, begin, policy())
    deliver(partition, writes[:5], 0, [])
    committed = commits.decode(commits.encode("id", None, partition.resume_at()))
    assert committed is not None
    again = deliver(Partition(0, committed.beginning, policy()), writes, committed.beginning.offset, [])
    assert [offset for offset, _ in again] == [7, 8, 9, 10]


@pytest.mark.parametrize("jobs", [0, 3, 500])
def test_commits_are_read_back_and_fit(jobs):
    """Kafka takes 4,096 bytes of metadata: with too many jobs those that wrote last are kept."""
    fronts = {f"backfill-{number:04d}-{'x' * 40}": Front(number, number + 1, number) for number in range(jobs)}
    begin = Beginning(7, 9, 3, 11, fronts)
    commit = commits.encode("topic-id", View("1d@Europe/Berlin", "p99.9-of-last"), begin)
    assert len(commit.metadata.encode()) <= 4_096
    committed = commits.decode(commit)
    assert committed is not None
    assert (committed.topic_id, committed.view) == ("topic-id", View("1d@Europe/Berlin", "p99.9-of-last"))
    read = committed.beginning
    assert (read.offset, read.processed, read.from_ms, read.was_end) == (7, 9, 3, 11)
    assert read.fronts.items() <= fronts.items()
    assert max(read.fronts, default="") == max(fronts, default="")


@pytest.mark.parametrize("metadata", ["", "x", "{}", "[]", '{"topic":"a","processed":"b","jobs":{}}', "null"])
def test_foreign_commits_are_told(metadata):
    """Another program's commit is not taken for ours."""
    assert commits.decode(commits.Commit(5, metadata)) is None


def test_nothing_of_a_partition_that_was_given_back_counts() -> None:
    """Neither messages nor ends nor deleted offsets of its earlier assignment; what concerns the client does."""
    end, gone, out = KafkaError._PARTITION_EOF, KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._AUTO_OFFSET_RESET
    refused = KafkaError.TOPIC_AUTHORIZATION_FAILED

    def message(partition: int, code: int | None = None) -> Message:
        return Message(topic="t", partition=partition, offset=7, error=None if code is None else KafkaError(code))

    kept = [message(1), message(1, end), message(1, gone), message(2, refused), message(2, KafkaError._FATAL)]
    read = [message(2), kept[0], message(2, end), *kept[1:], message(2, gone), message(2, out)]
    assert of_this_assignment(read, {2}) == kept
    assert of_this_assignment(read, set()) == read
