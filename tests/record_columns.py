"""Records as sinks take them."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import orjson

from stream_app.records import Record, Records, decode_records


def columns(records: Sequence[Record], at: int) -> Records:
    """Return records as a sink takes them; the first one's offset is *at*."""
    read, malformed = decode_records([encoded(record) for record in records], range(at, at + len(records)))
    assert not malformed
    return read


def encoded(record: Record) -> bytes:
    """Return a record as the topic carries it."""
    spelled = {inf: "+Inf", -inf: "-Inf"}
    fields = {name.removesuffix("_ms"): getattr(record, name) for name in Record.__slots__}
    metrics = {name: spelled.get(value, value) for name, value in record.metrics.items()}
    return orjson.dumps(fields | {"version": 1, "metrics": metrics})
