"""What becomes of messages that cannot be read, kept as they are, and what is told of records that are too large."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from stream_app.encoding import MAX_RECORD_BYTES
from stream_app.pipeline import Output

REASONS = ("headers", "value", "size")
"""What cannot be read, or is too much."""

_MOST_VALUE_BYTES = 1_900_000
"""What says why comes on top, and the topic takes 2,097,152."""
_MOST_ERROR_CHARACTERS = 1_000

SMALLER_RECORDS = (
    "leave metrics out (ingestor --match, --relabel) or split fewer labels (--split-by), under another --topic-prefix"
)
"""What to do where records are too large."""


def dead_letter(
    to: str,
    key: bytes | None,
    value: bytes | None,
    headers: Iterable[tuple[str, bytes | None]] | None,
    *,
    topic: str,
    partition: int,
    offset: int,
    error: Exception,
    reason: str = "value",
) -> Output:
    """Return the message for the topic *to*: the original's key, value and headers, and ``dead-letter.…`` headers.

    *reason* is one of REASONS.

    A value that is larger than a dead letter may be is cut, and ``dead-letter.cut`` says how long it was.
    """
    value = value or b""
    told = {
        "topic": topic,
        "partition": str(partition),
        "offset": str(offset),
        "error": str(error)[:_MOST_ERROR_CHARACTERS],
        **({"cut": str(len(value))} if len(value) > _MOST_VALUE_BYTES else {}),
    }
    kept = [(name, content or b"") for name, content in headers or ()]
    return Output(to, key, value[:_MOST_VALUE_BYTES], (*kept, *_headers(told)), reason)


def size_letter(
    to: str, key: bytes, value: bytes, *, topic: str, partition: int, window: str, size_bytes: int
) -> Output:
    """Return the message for the topic *to* about a record that was written without its metrics.

    Args:
        to: the topic of dead letters.
        key: the record's.
        value: as it was written: window, job and number of samples are told there.
        topic: where it was written.
        partition: likewise.
        window: when the record's begins.
        size_bytes: what it would have taken.
    """
    error = (
        f"the record of {key.decode()} from {window} on takes {size_bytes:,} bytes, more than {MAX_RECORD_BYTES:,}, "
        f"and is written without its metrics: {SMALLER_RECORDS}"
    )
    told = {"topic": topic, "partition": str(partition), "error": error, "cut": str(size_bytes)}
    return Output(to, key, value, _headers(told), "size")


def _headers(told: Mapping[str, str]) -> tuple[tuple[str, bytes], ...]:
    return tuple((f"dead-letter.{name}", text.encode()) for name, text in told.items())
