"""What becomes of messages that cannot be read: kept as they are, with where they stood and why."""

from __future__ import annotations

from collections.abc import Iterable

from stream_app.pipeline import Output

REASONS = ("headers", "value")
"""What cannot be read."""

MAX_LETTER_BYTES = 2_000_000
"""What a dead letter may have: a broker takes 1,048,588 B by default, and what says why comes on top."""

_MOST_VALUE_BYTES = 1_900_000
_MOST_ERROR_CHARACTERS = 1_000


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
    why = [(f"dead-letter.{name}", text.encode()) for name, text in told.items()]
    return Output(to, key, value[:_MOST_VALUE_BYTES], (*kept, *why), reason)
