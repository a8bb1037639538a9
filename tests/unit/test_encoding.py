"""Many records written at once are the bytes that one by one they would be."""

from itertools import groupby

import numpy as np
import orjson
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ingestor.core.chunk import Refused
from ingestor.core.durations import ChunkSize
from stream_app.encoding import RecordContext, encode_records
from stream_app.records import record_key
from stream_app.windows import Closed, Group

MINUTE_MS = 60_000
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.sampled_from(
    ['up{code="500"}', "a\\b", "\x00\x1f\x7f", "größe", "日本", "\U0001f600", ",", "null", "x" * 300]
)
GROUPS = st.builds(Group, NAMES, NAMES | st.none(), NAMES)
VALUES = st.floats() | st.sampled_from(
    [0.0, -0.0, 1.0, -3.0, 1e15, 1e16, 1e17, 2.0**53, -(2.0**63), 1e22, 0.1, 1e-5, 1e-7, 5e-324, 2.2e-308, 1.7e308]
)
STRETCHES = st.tuples(st.integers(-3, 12), st.integers(1, 4)).map(
    lambda minutes: (minutes[0] * MINUTE_MS // 2, (minutes[0] + minutes[1]) * MINUTE_MS // 2)
)
CONTEXTS = st.builds(
    RecordContext,
    job=NAMES,
    chunk_size=st.sampled_from(["1m", "2m", "1d@Europe/Berlin"]).map(ChunkSize.parse),
    method=st.sampled_from(["mean", "p99"]),
    whole_from_ms=st.integers(-MINUTE_MS, 6 * MINUTE_MS),
    whole_to_ms=st.integers(0, 10 * MINUTE_MS),
    revision=st.integers(0, 3),
    incomplete=st.lists(st.builds(lambda name, stretch: Refused(name, *stretch), NAMES, STRETCHES), max_size=2),
    holes=st.lists(STRETCHES, max_size=1),
    lookback_ms=st.sampled_from([0, MINUTE_MS]),
)


@st.composite
def closed(draw):
    """Cells as windows give them: in order of window and group; tables may hold what no cell has."""
    groups = draw(st.lists(GROUPS, min_size=1, max_size=4, unique=True))
    metrics = draw(st.lists(NAMES, min_size=1, max_size=5, unique=True))
    places = st.tuples(st.integers(0, 5), st.sampled_from(range(len(groups))), st.sampled_from(range(len(metrics))))
    cells = sorted(draw(st.lists(st.tuples(places, VALUES, st.integers(1, 10**12)), unique_by=lambda cell: cell[0])))
    window, group, metric = (np.array([place[i] for place, _, _ in cells], np.int64) for i in range(3))
    samples = np.array([count for _, _, count in cells], np.int64)
    values = np.array([value for _, value, _ in cells], np.float64)
    return Closed(window * 2 * MINUTE_MS, group, metric, samples, values, groups, metrics)


def one_by_one(cells, first, last, context, most_bytes=2_000_000):
    """Return keys, values, and sizes of what is too large, as a dict a record gives them."""
    keys, values, too_large = [], [], {}
    columns = (cells.window_ms, cells.group, cells.metric, cells.samples, cells.value)
    rows = zip(*(column[first:last].tolist() for column in columns), strict=True)
    for (start_ms, group), of_record in groupby(rows, lambda row: row[:2]):
        who, mine = cells.groups[group], list(of_record)
        end_ms = int(context.chunk_size.edges_ms(start_ms, start_ms + 1)[-1])
        missing = context.missing(start_ms, end_ms)
        record = {
            "namespace": who.namespace,
            **({} if who.pod is None else {"pod": who.pod}),
            "service": who.service,
            "window_start": start_ms,
            "window_end": end_ms,
            "chunk_size": str(context.chunk_size),
            "method": context.method,
            "job": context.job,
            "revision": context.revision,
            "partial": context.is_partial(start_ms, end_ms),
            "version": 1,
            "samples": sum(count for *_, count, _ in mine),
            "metrics": {cells.metrics[metric]: as_json(value) for _, _, metric, _, value in mine},
            **({"incomplete": missing} if missing else {}),
        }
        keys.append(record_key(who.namespace, who.pod, who.service))
        if (size := len(keys[-1] + orjson.dumps(record))) > most_bytes:
            too_large[len(values)] = size
            lost = {"partial": True, "metrics": {}, "incomplete": sorted({*missing, "*"})}
            record |= lost
        values.append(orjson.dumps(record))
    return keys, values, too_large


def as_json(value):
    return {np.inf: "+Inf", -np.inf: "-Inf"}.get(value, value)


def empty_names(value):
    """Return the shortest record that there is, of one cell."""
    one = np.zeros(1, np.int64)
    return Closed(one, one, one, one + 1, np.array([value]), [Group("", None, "")], [""])


PLAIN = RecordContext(job="", chunk_size=ChunkSize.parse("1m"), method="mean", whole_from_ms=0, whole_to_ms=MINUTE_MS)


@given(closed(), CONTEXTS, st.floats(0, 1), st.floats(0, 1), st.integers(180, 400))
@example(empty_names(-np.inf), PLAIN, 0.0, 1.0, 2_000_000)
@example(empty_names(np.nan), PLAIN, 0.0, 1.0, 0)
@settings(max_examples=300, deadline=None)
def test_many_at_once_are_written_as_one_by_one(cells, context, begin, end, most_bytes):
    """Any names and values, metrics that are missing, windows cut or with holes, what is too large: not a byte differs.

    What is too large has no metrics and says that all are missing; all others are as they would be without it.
    """
    # Any stretch of whole records.
    starts = [0, *(np.flatnonzero(np.diff(cells.window_ms) | np.diff(cells.group)) + 1).tolist(), len(cells)]
    first, last = sorted([starts[int(begin * (len(starts) - 1))], starts[int(end * (len(starts) - 1))]])
    assert encode_records(cells, first, last, context) == one_by_one(cells, first, last, context)
    bounded = encode_records(cells, first, last, context, most_bytes)
    assert bounded == one_by_one(cells, first, last, context, most_bytes)


def test_records_of_a_group_share_their_key():
    """However many windows there are, a key is in memory once for each pod."""
    numbers = np.arange(3_000)
    cells = Closed(
        numbers * MINUTE_MS, numbers * 0, numbers * 0, numbers + 1, numbers / 7, [Group("a", "b", "c")], ["m"]
    )
    encoded = encode_records(cells, 0, len(cells), PLAIN)
    assert len({id(key) for key in encoded.keys}) == 1
    assert encoded == one_by_one(cells, 0, len(cells), PLAIN)
