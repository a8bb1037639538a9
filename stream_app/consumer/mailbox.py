"""Blocks of messages on their way from the thread that reads to the one that loops: bounded, and in order."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from stream_app.consumer.partition import Partition


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive messages of one partition."""

    partition: Partition
    messages: list[Any]
    position: int
    """Behind the last one, and behind the ends of transactions that follow it."""


class Mailbox:
    """What was read and not yet taken."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._blocks: deque[Block] = deque()
        self._count = 0
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._closed = False

    def put(self, block: Block) -> None:
        with self._changed:
            self._blocks.append(block)
            self._count += len(block.messages)
            self._changed.notify_all()

    def fail(self, failure: BaseException) -> None:
        """Raise *failure* out of what waits for blocks, once those before it are taken."""
        with self._changed:
            self._failure = failure
            self._changed.notify_all()

    def notify(self) -> None:
        """Let the one that waits for blocks look around."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Wake whoever waits for room."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def get(self, timeout_s: float) -> Block | None:
        """Return the next block, or None where none comes in time, or `notify` was called.

        Raises:
            BaseException: what reading has ended with.
        """
        with self._changed:
            if not self._blocks and self._failure is None:
                self._changed.wait(timeout_s)
            if self._blocks:
                block = self._blocks.popleft()
                self._count -= len(block.messages)
                self._changed.notify_all()
                return block
            if self._failure is not None:
                raise self._failure
            return None

    def is_empty(self) -> bool:
        return not self._blocks

    def wait_for_room(self, timeout_s: float) -> bool:
        """Wait until less than half is full; return whether it is."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            if self._count < self._most:
                return True
            while self._count > self._most // 2 and not self._closed:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return False
                self._changed.wait(left_s)
            return True
