"""Samples pushed into a real Prometheus, as a slow sender would: late, and out of order."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import pyarrow as pa
import requests

from ingestor.sources.remote_read import _field

HEADERS = {
    "Content-Encoding": "snappy",
    "Content-Type": "application/x-protobuf",
    "X-Prometheus-Remote-Write-Version": "0.1.0",
}


def push(url: str, series: Sequence[tuple[Mapping[str, str], int, float]]) -> None:
    """Write samples: labels, Unix milliseconds, value. Source: prometheus/prometheus prompb/{remote,types}.proto."""
    body = b"".join(_field(1, _series(labels, t, value)) for labels, t, value in series)
    answer = requests.post(
        f"{url}/api/v1/write", data=pa.compress(body, codec="snappy", asbytes=True), headers=HEADERS, timeout=10
    )
    assert answer.status_code == 204, answer.text


def _series(labels: Mapping[str, str], time_ms: int, value: float) -> bytes:
    pairs = (_field(1, name.encode()) + _field(2, text.encode()) for name, text in sorted(labels.items()))
    sample = b"\x09" + struct.pack("<d", value) + _field(2, time_ms)
    return b"".join(_field(1, pair) for pair in pairs) + _field(2, sample)
