"""What is missing is said: messages that cannot be read, holes between messages, chunks that retention took."""

from itertools import pairwise

import numpy as np
import orjson
import pytest
from builders import messages
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pipeline import constant

from ingestor.core import wire
from ingestor.core.chunk import Header
from ingestor.core.durations import ChunkSize
from ingestor.core.errors import MalformedMessage, NewerVersion
from ingestor.core.time_range import TimeRange
from stream_app.dead_letters import dead_letter
from stream_app.encoding import MAX_RECORD_BYTES
from stream_app.pipeline import Pipeline, Unreadable
from stream_app.records import decode_record
from stream_app.view import View

T0 = 1_795_435_200_000
MINUTE = 60_000
VIEW = View(ChunkSize.parse("1m"), "sum")
LETTERS = VIEW.topics.dead_letters


def a_stream(minutes=5):
    """Return the stream of one pod with a sample every 15 s: a chunk and a marker a minute."""
    samples = constant(range(T0, T0 + minutes * MINUTE, 15_000))
    ranges = [TimeRange(T0 + i * MINUTE, T0 + (i + 1) * MINUTE) for i in range(minutes)]
    return max(messages(samples, ranges), key=len)


def item(message, offset):
    """Decode a message as the worker does."""
    headers, value = message
    try:
        return wire.decode(headers, value)
    except MalformedMessage as error:
        letter = dead_letter(LETTERS, None, value, headers, topic="in", partition=3, offset=offset, error=error)
        return Unreadable(wire.header_of(headers), letter)


def run(stream, restarts=(), view=VIEW):
    """Return records and dead letters; before the messages numbered in *restarts* the worker starts again."""
    records, letters, commit, offset, left = [], [], (0, ""), 0, list(restarts)
    pipeline = Pipeline(view, *commit)
    while offset < len(stream):
        if left and offset >= left[0]:
            left.pop(0)
            pipeline, offset = Pipeline(view, *commit), commit[0]
        for emission in pipeline.feed(offset, item(stream[offset], offset)):
            letters += [o for o in emission.outputs if o.topic == LETTERS]
            records += [decode_record(o.value) for o in emission.outputs if o.topic != LETTERS]
            commit = (emission.offset, emission.metadata)
        offset += 1
    return records, letters


def told(records):
    return [((r.window_start_ms - T0) // MINUTE, r.partial, r.incomplete, r.metrics["up"]) for r in records]


@pytest.mark.parametrize("spoiled", [b"", b"not arrow", None])
@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 11), max_size=4).map(sorted))
def test_an_unreadable_chunk_becomes_one_dead_letter(spoiled, restarts):
    """It is kept once, wherever the worker restarts; its windows say so, all others are whole."""
    stream = a_stream()
    headers, value = stream[4]
    stream[4] = headers, value[: len(value) // 2] if spoiled is None else spoiled
    records, letters = run(stream, restarts)
    assert told(records) == [(0, False, (), 4.0), (1, False, (), 4.0), (3, False, (), 4.0), (4, False, (), 4.0)]
    assert len(letters) == 1
    kept = dict(letters[0].headers)
    assert letters[0].value == stream[4][1]
    assert kept.items() >= dict(headers).items()
    assert (kept["dead-letter.topic"], kept["dead-letter.partition"]) == (b"in", b"3")
    assert kept["dead-letter.offset"] == b"4"
    assert b"range chunk" in kept["dead-letter.error"]


def test_what_is_there_of_a_window_with_a_hole_is_emitted_as_incomplete():
    """A window of which one chunk was lost has the samples of the others, and says that they are not all."""
    stream = a_stream()
    headers, value = stream[4]
    stream[4] = headers, value[:-100]
    records, _ = run(stream, view=View(ChunkSize.parse("2m"), "sum"))
    assert [(r.partial, r.incomplete, r.metrics["up"]) for r in records] == [
        (False, (), 8.0),
        (True, ("*",), 4.0),
        (True, (), 4.0),
    ]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 11), max_size=4).map(sorted))
def test_headers_that_cannot_be_read_leave_a_hole(restarts):
    """The job's next message shows that one is missing, also to a worker that has restarted in between."""
    stream = a_stream()
    stream[4] = [("kind", b"chunk"), ("start", b"soon")], stream[4][1]
    records, letters = run(stream, restarts, View(ChunkSize.parse("2m"), "sum"))
    assert [(r.partial, r.incomplete) for r in records] == [(False, ()), (True, ("*",)), (True, ())]
    assert len(letters) == 1


def test_a_foreign_message_disturbs_nobody():
    """What was never ours is kept as a dead letter, and every window is whole."""
    stream = a_stream()
    stream.insert(3, (None, None))
    records, letters = run(stream)
    assert [(r.partial, r.incomplete) for r in records] == [(False, ())] * 5
    assert [letter.value for letter in letters] == [b""]


def test_a_newer_schema_is_no_dead_letter():
    """What a newer podstream writes is for a newer worker to read: the worker ends, nothing is lost."""
    headers, value = a_stream()[0]
    newer = [(name, b"podstream.range-chunk/2" if name == "schema" else text) for name, text in headers]
    with pytest.raises(NewerVersion, match="update podstream"):
        wire.decode(newer, value)
    other = [(name, b"another/2" if name == "schema" else text) for name, text in headers]
    with pytest.raises(MalformedMessage, match="another/2"):
        wire.decode(other, value)


def test_a_letter_is_never_too_large():
    """A value that no topic of ours would take is cut, and says how long it was."""
    letter = dead_letter(
        "to", b"k", b"x" * 3_000_000, [("a", None)], topic="t", partition=0, offset=1, error=ValueError("y")
    )
    assert len(letter.value) < MAX_RECORD_BYTES
    assert ("dead-letter.cut", b"3000000") in letter.headers
    assert ("a", b"") in letter.headers
    assert letter.key == b"k"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["1m", "2m", "5m"]), st.lists(st.integers(0, 40), max_size=4).map(sorted))
def test_what_is_missing_is_marked_and_nothing_else(seed, size, restarts):
    """However many messages are missing, every window that is not told to be so holds all its samples."""
    generator = np.random.default_rng(seed)
    view = View(ChunkSize.parse(size), "sum")
    stream = a_stream(minutes=20)
    gone = set(generator.choice(len(stream) - 1, generator.integers(0, 6), replace=False).tolist())
    # The first message says where the job begins, the last one that it has ended.
    kept = [message for number, message in enumerate(stream) if number not in gone or number == 0]
    missing = {number // 2 for number in gone if number and number % 2 == 0}
    records, _ = run(kept, restarts, view)
    starts = [record.window_start_ms for record in records]
    assert len(starts) == len(set(starts)), "emitted twice"
    for record in records:
        minutes = range((record.window_start_ms - T0) // MINUTE, (record.window_end_ms - T0) // MINUTE)
        if set(minutes) & missing:
            assert record.incomplete == ("*",)
            assert record.partial
        if not record.incomplete and not record.partial:
            assert record.metrics["up"] == 4.0 * len(minutes)


def test_many_holes_fit_into_a_commit():
    """A job that loses a thousand messages still has a commit that Kafka takes."""
    stream = a_stream(minutes=2000)
    pipeline = Pipeline(View(ChunkSize.parse("30d"), "sum"), 0, "")
    for offset, message in enumerate(stream[:-1]):
        if offset % 4 != 2:
            pipeline.feed(offset, item(message, offset))
    state = orjson.loads(pipeline.idle_emission().metadata)
    assert len(orjson.dumps(state)) < 4096
    (job,) = state["jobs"].values()
    assert len(job["holes"]) == 20
    assert all(a[1] < b[0] for a, b in pairwise(job["holes"]))


def test_going_on_where_chunks_are_gone_says_so():
    """After a stop longer than retention, the windows of what was deleted are incomplete, what follows is whole."""
    view = View(ChunkSize.parse("2m"), "sum")
    stream = a_stream(minutes=8)
    pipeline, commit = Pipeline(view, 0, ""), (0, "")
    for offset, message in enumerate(stream[:6]):
        for emission in pipeline.feed(offset, item(message, offset)):
            commit = (emission.offset, emission.metadata)
    assert commit[0] == 4
    first = 7
    pipeline, records = Pipeline(view, first, commit[1]), []
    for offset, message in enumerate(stream[first:], first):
        for emission in pipeline.feed(offset, item(message, offset)):
            records += [decode_record(o.value) for o in emission.outputs]
    assert [((r.window_start_ms - T0) // MINUTE, r.partial, r.incomplete) for r in records] == [
        (4, False, ()),
        (6, False, ()),
    ]
    first = 9
    pipeline, records = Pipeline(view, first, commit[1]), []
    for offset, message in enumerate(stream[first:], first):
        for emission in pipeline.feed(offset, item(message, offset)):
            records += [decode_record(o.value) for o in emission.outputs]
    assert [((r.window_start_ms - T0) // MINUTE, r.partial, r.incomplete) for r in records] == [
        (4, True, ("*",)),
        (6, False, ()),
    ]


def test_a_header_of_what_cannot_be_read():
    """The header is read even where kind, schema or value are not to be understood."""
    headers, _ = a_stream()[0]
    assert wire.header_of([(n, b"?" if n in ("kind", "schema") else v) for n, v in headers]) == Header(
        "job", TimeRange(T0, T0 + MINUTE), 0, "test"
    )
    assert wire.header_of([("job", b"\xff")]) is None


def counted_stream():
    """Return the stream of a counter that grows by 1 every 15 s: what was before it, a chunk and a marker a minute."""
    stamps = np.arange(T0 - MINUTE, T0 + 10 * MINUTE, 15_000)
    samples = constant(stamps, value=(stamps - T0) / 15_000)
    ranges = [TimeRange(T0 + i * MINUTE, T0 + (i + 1) * MINUTE) for i in range(10)]
    return max(messages(samples, ranges, looks_back=True), key=len)


@pytest.mark.parametrize("lost", [0, 5])
@pytest.mark.parametrize("is_spoiled", [False, True])
@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 20), max_size=3).map(sorted))
def test_an_increase_that_may_begin_at_what_is_missing_says_so(lost, is_spoiled, restarts):
    """For five minutes behind a hole: a series' last sample before a window may have been in it, or in the lookback."""
    view = View(ChunkSize.parse("1m"), "sum", "increase")
    stream = counted_stream()
    assert [r.metrics["up"] for r in run(stream, restarts, view)[0]] == [4.0] * 10
    if is_spoiled:
        stream[lost] = stream[lost][0], b"not arrow"
    else:
        del stream[lost]
    records, _ = run(stream, restarts, view)
    told = {(r.window_start_ms - T0) // MINUTE for r in records if r.partial and r.incomplete == ("*",)}
    # The number that is missing is seen with the next message: the marker of the range, or its first chunk.
    first, behind = (2, 3) if lost else (0, 1)
    assert told == set(range(first, behind + 5)) - ({2} if lost else set())
    assert {r.metrics["up"] for r in records if not r.partial} == {4.0}
    assert {r.metrics["up"] for r in records} == {4.0, 8.0 if lost else 3.0}


def renamed(message, **more):
    """Return a message whose headers say something else."""
    headers, value = message
    return [(name, more.get(name, text)) for name, text in headers], value


def test_bytes_from_elsewhere_hold_nothing_back():
    """What cannot be read begins no job: a view goes on, and a restart need not see it again."""
    stream = a_stream(minutes=3)
    foreign = renamed((stream[0][0], b"not arrow"), job=b"foreign")
    pipeline = Pipeline(VIEW, 0, "")
    for offset, message in enumerate([foreign, *stream, foreign]):
        emissions = pipeline.feed(offset, item(message, offset))
    assert len(emissions) == 1, "a dead letter"
    assert pipeline.low == len(stream) + 2
    assert b"foreign" not in orjson.dumps(orjson.loads(emissions[0].metadata)["jobs"])


def test_a_wrong_number_silences_no_job():
    """An unreadable message with a number far ahead is a dead letter; the job's own messages still count."""
    stream = a_stream()
    far = renamed((stream[4][0], b"not arrow"), sequence=b"1000000000")
    records, letters = run([*stream[:4], far, *stream[4:]])
    assert told(records) == [(minute, False, (), 4.0) for minute in range(5)]
    assert len(letters) == 1


def test_jobs_that_have_ended_take_no_room():
    """Behind a window that stays open any number of jobs may begin and end; a restart emits none of them twice."""
    view = View(ChunkSize.parse("1m"), "sum")
    own = a_stream(minutes=1)
    stream = [*a_stream(minutes=3)[:1], *(renamed(m, job=b"job-%d" % n) for n in range(300) for m in own)]
    records, _ = run(stream, restarts=(400, 800), view=view)
    assert sorted(r.job for r in records) == sorted(f"job-{n}" for n in range(300))
    pipeline, emissions = Pipeline(view, 0, ""), []
    for offset, message in enumerate(stream):
        emissions = pipeline.feed(offset, item(message, offset)) or emissions
    assert emissions[-1].offset == 0, "the first job's chunk is still needed"
    assert len(emissions[-1].metadata) < 300


def test_a_hundred_open_jobs_fit_into_a_commit():
    """Metadata that is long is packed, and read again."""
    first = a_stream(minutes=3)[0]
    stream = [renamed(first, job=b"backfill-%010d" % n) for n in range(100)]
    pipeline = Pipeline(VIEW, 0, "")
    for offset, message in enumerate(stream):
        pipeline.feed(offset, item(message, offset))
    commit = pipeline.idle_emission()
    assert len(commit.metadata) < 4096
    assert Pipeline(VIEW, commit.offset, commit.metadata).idle_emission().metadata == commit.metadata


def test_refusals_that_adjoin_are_one():
    """A day-long window in which a metric is refused in each range has one stretch to look at, not thousands."""
    stream = a_stream(minutes=500)
    refused = [
        (
            [*headers, ("incomplete", orjson.dumps([["up", T0 + n // 2 * MINUTE, T0 + n // 2 * MINUTE + 1000 * 60]]))],
            value,
        )
        if dict(headers)["kind"] == b"marker"
        else (headers, value)
        for n, (headers, value) in enumerate(stream)
    ]
    pipeline = Pipeline(View(ChunkSize.parse("30d"), "sum"), 0, "")
    for offset, message in enumerate(refused[:-1]):
        pipeline.feed(offset, item(message, offset))
    (job,) = pipeline._jobs.values()
    assert [(r.metric, r.start_ms, r.end_ms) for r in job.incomplete] == [("up", T0, T0 + 500 * MINUTE)]
