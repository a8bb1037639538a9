"""The record's published schema: what we write is valid, and what was ever written is read as it was meant."""

import math
import subprocess
import sys
from importlib import resources
from pathlib import Path

import orjson
import pytest
from jsonschema import Draft202012Validator
from valid_records import SCHEMA, VALIDATOR, decode_record

from ingestor.core.errors import MalformedMessage
from stream_app import records
from stream_app.records import Record

STORED = (Path(__file__).parents[1] / "data/records-v1.jsonl").read_bytes().splitlines()
"""Written by the program when the schema was made. Never written anew: old topics hold such bytes for good."""

NOON = 1_795_435_200_000
MINUTE = 60_000
CHECKOUT, SECOND = "checkout-7c9f8b6d5-x2x4z", "checkout-7c9f8b6d5-8vx7t"


def of_checkout(pod, start_ms, metrics, samples, *, partial=False):
    return Record(
        namespace="shop", pod=pod, service="checkout", window_start_ms=start_ms, window_end_ms=start_ms + MINUTE,
        chunk_size="1m", method="mean", job="live", revision=0, partial=partial, samples=samples, metrics=metrics,
    )  # fmt: skip


EXPECTED = [
    of_checkout(SECOND, NOON, {"container_memory_rss": 0.1}, 1),
    of_checkout(CHECKOUT, NOON, {"container_memory_rss": 3379200.0, "http_requests_total": 41.5}, 3),
    of_checkout(None, NOON, {"container_memory_rss": 1689600.05, "http_requests_total": 41.5}, 4),
    of_checkout(SECOND, NOON + MINUTE, {"container_memory_rss": 1 / 3}, 1, partial=True),
    of_checkout(None, NOON + MINUTE, {"container_memory_rss": 1 / 3}, 1, partial=True),
    Record(
        namespace="", pod="lonely", service="lonely", window_start_ms=NOON, window_end_ms=NOON + MINUTE,
        chunk_size="1m", method="sum", job="backfill-1c6a8c1e", revision=2, partial=False, samples=6,
        metrics={
            "down": -math.inf, 'latency{le="0.5",path="/käse"}': 5e-324, "most": sys.float_info.max,
            "up": math.inf, "zero": 0.0,
        },
    ),
    Record(
        namespace="shop", pod=CHECKOUT, service="checkout", window_start_ms=1_793_491_200_000,
        window_end_ms=1_796_083_200_000, chunk_size="1mo", method="median-of-last", job="live", revision=0,
        partial=True, samples=1, metrics={"container_memory_rss": 3379200.0}, incomplete=("http_requests_total",),
    ),
]  # fmt: skip


def changed(**fields):
    return orjson.dumps(orjson.loads(STORED[1]) | fields)


def test_the_schema_is_a_schema():
    """It follows JSON Schema's own, of 2020-12."""
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    Draft202012Validator.check_schema(SCHEMA)


def test_the_schema_and_the_reader_know_the_same_fields():
    """What a reader needs is what the schema requires."""
    assert set(SCHEMA["required"]) == set(records._FIELDS)
    assert set(SCHEMA["properties"]) == {*records._FIELDS, "pod", "incomplete"}
    assert SCHEMA["properties"]["version"] == SCHEMA["properties"]["version"] | {"const": records.RECORD_VERSION}


def test_stored_records_are_read_as_they_were_meant():
    """Bytes that version 1 once wrote are valid, and keep their values."""
    read = [decode_record(value) for value in STORED]
    assert math.isnan(read[5].metrics.pop("nan"))
    assert read == EXPECTED


def test_an_unknown_field_is_ignored():
    """A later release may say more: the schema allows it, and an older reader reads the rest."""
    assert decode_record(changed(samples_by_metric={"up": 4}, note=None)) == EXPECTED[1]


@pytest.mark.parametrize("version", [0, 2, 1.0, "1", True, None])
def test_another_version_is_refused(version):
    """What a field means there is not known here."""
    value = changed(version=version)
    with pytest.raises(MalformedMessage):
        records.decode_record(value)
    # To JSON Schema 1.0 is 1.
    assert VALIDATOR.is_valid(orjson.loads(value)) == (type(version) is float)


def test_a_newer_version_says_what_to_do():
    """A reader that is too old asks to be updated, and does not call the record broken."""
    with pytest.raises(MalformedMessage, match=r"version 2: update podstream"):
        records.decode_record(changed(version=2))


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("chunk_size", ["30s", "1m", "7m", "1h", "1d", "1w", "1mo", "1y", "1d@Europe/Berlin", "1mo@Etc/GMT+5"]),
        ("method", ["sum", "mean", "median", "mean-of-last", "p99.9", "p50-of-last", "sum-counters-rate"]),
        ("metrics", [{}, {"a": 1, "b": -0.5, "c": None, "d": "+Inf", "e": "-Inf", 'f{code="500"}': 1e300}]),
        ("namespace", ["", "shop"]),
        ("incomplete", [["up"], ["a", "b"]]),
    ],
)
def test_what_is_valid(name, good):
    """All spellings that are documented pass the schema and the reader."""
    for value in good:
        decode_record(changed(**{name: value}))


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("chunk_size", ["", "m", "0m", "1min", "1m ", "1d@", "-1m", 60, None]),
        ("method", ["", "Mean", "mean of last", None]),
        ("metrics", [None, [], {"a": "NaN"}, {"a": "1"}, {"a": True}, {"a": [1]}]),
        ("pod", [1, None, []]),
        ("window_start", ["2026-11-23T12:00:00Z", 0.5, None]),
        ("revision", [-1, "0"]),
        ("partial", [0, "false"]),
        ("samples", [-1, "4"]),
        ("incomplete", ["up", [1], {"up": 1}, None]),
    ],
)
def test_what_is_not_valid(name, bad):
    """The schema tells a wrong value of each field."""
    for value in bad:
        assert not VALIDATOR.is_valid(orjson.loads(changed(**{name: value}))), value


@pytest.mark.parametrize("value", ["up", [1], {"up": 1}, None, 5])
def test_incomplete_is_a_list_of_names(value):
    """A text is not taken for a list of its letters."""
    with pytest.raises(MalformedMessage):
        records.decode_record(changed(incomplete=value))


def test_the_command_prints_the_schema():
    """``stream-app schema`` gives the file byte for byte."""
    done = subprocess.run([sys.executable, "-m", "stream_app", "schema"], capture_output=True, timeout=60, check=True)
    assert done.stdout == (resources.files("stream_app") / "record.schema.json").read_bytes()
