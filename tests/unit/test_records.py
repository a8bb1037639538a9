"""Records as JSON."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingestor.core.errors import MalformedMessage
from stream_app.records import Record, decode_record, decode_records, joined, record_key

FIELDS = {
    "namespace": "prod",
    "pod": "checkout-7c9f8b6d5-x2x4z",
    "service": "checkout",
    "window_start": 1795435200000,
    "window_end": 1795435260000,
    "chunk_size": "1m",
    "method": "mean",
    "job": "live",
    "revision": 0,
    "partial": False,
    "version": 1,
    "samples": 84,
    "metrics": {"container_memory_rss": 3379200.0, 'http_requests_total{code="500"}': 3.5},
}


def encoded(**changed) -> bytes:
    return json.dumps(FIELDS | changed).encode()


def test_a_record_is_read():
    """The documented example is read field by field."""
    assert decode_record(encoded()) == Record(
        namespace="prod",
        pod="checkout-7c9f8b6d5-x2x4z",
        service="checkout",
        window_start_ms=1795435200000,
        window_end_ms=1795435260000,
        chunk_size="1m",
        method="mean",
        job="live",
        revision=0,
        partial=False,
        samples=84,
        metrics={"container_memory_rss": 3379200.0, 'http_requests_total{code="500"}': 3.5},
    )


def test_a_service_record_has_no_pod():
    """A pod that is absent or null makes a service record."""
    absent = {name: value for name, value in FIELDS.items() if name != "pod"}
    assert decode_record(json.dumps(absent).encode()).pod is None
    assert decode_record(encoded(pod=None)).pod is None


def test_fields_of_later_versions_are_ignored():
    """A field that is not known does not stop a reader."""
    assert decode_record(encoded(reviewed=["up"])) == decode_record(encoded())


def test_numbers_that_json_lacks():
    """NaN is null, infinities are spelt as in Prometheus, whole numbers are floats, nothing is made up."""
    metrics = decode_record(encoded(metrics={"a": None, "b": "+Inf", "c": "-Inf", "d": 3, "e": -0.0})).metrics
    assert math.isnan(metrics.pop("a"))
    assert metrics == {"b": math.inf, "c": -math.inf, "d": 3.0, "e": 0.0}
    assert math.copysign(1, metrics["e"]) == -1
    assert {type(value) for value in metrics.values()} == {float}
    assert decode_record(encoded(metrics={})).metrics == {}


@given(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.floats(allow_nan=False, allow_infinity=False))
)
@settings(max_examples=30, deadline=None)
def test_values_are_exact(metrics):
    """Any finite value and any name come back unchanged."""
    assert decode_record(encoded(metrics=metrics)).metrics == metrics


JSON_VALUES = [None, True, 1, 1.0, "text", [], {}, [1], {"a": 1}]


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("value", JSON_VALUES)
def test_fields_of_another_type_are_malformed(name, value):
    """A field of another JSON type is malformed: true is no number, 1.0 no count."""
    allowed = (type(FIELDS[name]),) if name != "pod" else (str, type(None))
    if type(value) in allowed and name != "version":
        decode_record(encoded(**{name: value}))
    elif not (name == "version" and type(value) is int):
        with pytest.raises(MalformedMessage):
            decode_record(encoded(**{name: value}))


@pytest.mark.parametrize("name", [name for name in FIELDS if name != "pod"])
def test_missing_fields_are_malformed(name):
    """Every field but the pod is needed, and the message names what is missing."""
    fields = {key: value for key, value in FIELDS.items() if key != name}
    with pytest.raises(MalformedMessage, match=name):
        decode_record(json.dumps(fields).encode())


@pytest.mark.parametrize("value", [True, "NaN", "Inf", "1.0", "", [], [1.0], {}])
def test_values_that_are_no_numbers_are_malformed(value):
    """A metric's value is a number, null or one of two texts."""
    with pytest.raises(MalformedMessage):
        decode_record(encoded(metrics={"up": value}))


def test_a_newer_version_says_what_to_do():
    """A newer record asks for an update."""
    with pytest.raises(MalformedMessage, match="update podstream"):
        decode_record(encoded(version=2))


@pytest.mark.parametrize(
    "value",
    [None, b"", b"{", b"null", b"1", b"[]", b'"text"', b"\xff", b"{}", encoded()[:-1], b"[" * 5000, b'"\\ud800"'],
)
def test_what_is_no_record(value):
    """Bytes that are no record raise MalformedMessage and nothing else: tombstones, cuts, other JSON."""
    with pytest.raises(MalformedMessage):
        decode_record(value)


@given(st.binary(max_size=60))
@settings(max_examples=50, deadline=None)
def test_any_bytes_are_malformed(value):
    """Random bytes never crash a reader."""
    with pytest.raises(MalformedMessage):
        decode_record(value)


@pytest.mark.parametrize("name", ["window_start", "window_end", "revision", "samples"])
def test_numbers_that_no_column_holds_are_malformed(name):
    """JSON's whole numbers may have 64 bits without a sign; ours have one."""
    assert decode_record(encoded(**{name: 2**63 - 1}))
    with pytest.raises(MalformedMessage, match=name):
        decode_record(encoded(**{name: 2**63}))


ONE_VALUE = st.none() | st.binary(max_size=20) | st.sampled_from([encoded(), encoded()[:-1], encoded() + b" ", b"[1]"])
CHANGED = st.builds(
    lambda changed, left_out: json.dumps({k: v for k, v in (FIELDS | changed).items() if k != left_out}).encode(),
    st.dictionaries(
        st.sampled_from([*FIELDS, "incomplete", "other"]),
        st.sampled_from([*JSON_VALUES, 2**63, "x", ["up"]]),
        max_size=1,
    ),
    st.sampled_from([None] * 20 + [*FIELDS]),
)
WITH_METRICS = st.builds(
    lambda metrics, pod, start: encoded(metrics=metrics, pod=pod, window_start=start),
    st.dictionaries(
        st.sampled_from(["a", "b", "c", "d"]),
        st.sampled_from([None, "+Inf", "-Inf", -0.0, 0, 1, 2**64 - 1, -(2**70), 1e400, 0.1, 5e-324])
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.sampled_from([True, "NaN", [], {}]),
    ),
    st.sampled_from([None, "", "a", "b"]),
    st.integers(-(2**63), 2**64 - 1),
)


@given(st.lists(ONE_VALUE | CHANGED | WITH_METRICS, max_size=40), st.integers(1, 5), st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_many_at_once_are_read_as_one_by_one(values, times, pieces):
    """Columns have the rows, and tell the faults, that `decode_record` has, whatever stands beside a message."""
    values = values * times * 4
    cuts = [len(values) * piece // pieces for piece in range(pieces + 1)]
    parts, faults = [], []
    for first, last in pairwise(cuts):
        records, malformed = decode_records(values[first:last], range(first + 100, last + 100))
        parts.append(records)
        faults += [(first + place, str(error)) for place, error in malformed]
    records = joined(parts)
    expected, wrong = [], []
    for place, value in enumerate(values):
        try:
            expected.append((place + 100, decode_record(value)))
        except MalformedMessage as error:
            wrong.append((place, str(error)))
    # NaN is not equal to itself, but it is spelled as itself.
    assert repr([(int(records.offset[i]), records.record(i)) for i in range(len(records))]) == repr(expected)
    assert faults == wrong
    # Any rows, in any order.
    order = np.array([*range(1, len(expected), 2), *range(0, len(expected), 2)], np.int64)
    taken, middle = records.take(order), records[len(expected) // 3 : 2 * len(expected) // 3]
    assert repr([taken.record(i) for i in range(len(taken))]) == repr([expected[i][1] for i in order])
    assert repr([middle.record(i) for i in range(len(middle))]) == repr(
        [record for _, record in expected[len(expected) // 3 : 2 * len(expected) // 3]]
    )
    cells, present = records.matrix(["d", "nowhere", "a"])
    dense = [[record.metrics.get(name) for name in ("d", "nowhere", "a")] for _, record in expected]
    assert present.tolist() == [[value is not None for value in row] for row in dense]
    assert repr(cells.tolist()) == repr([[math.nan if value is None else value for value in row] for row in dense])


def test_keys():
    """A pod record is keyed by pod, a service record by service."""
    assert record_key("prod", "web-0", "web") == b"prod/web-0"
    assert record_key("", None, "web") == b"_/web"
