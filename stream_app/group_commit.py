"""Emissions of all partitions on their way into transactions, one transaction at a time.

With none under way an emission is written at once. What comes meanwhile is gathered and goes together into
the next one, so that transactions are as many as the brokers manage and no emission waits for another to come.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from itertools import chain

from stream_app.pipeline import EMISSION_RECORDS, Emission, Pipeline
from stream_app.telemetry import Telemetry
from stream_app.transactions import Superseded

log = logging.getLogger(__name__)

MOST_BYTES = 32 * 1024 * 1024
"""Of the records of a transaction, and of what is gathered; a single emission may have more."""

Write = Callable[[Sequence[tuple[int, Emission]], bytes], Coroutine[None, None, None]]
"""Writes emissions with their partitions, in order, and the group metadata, in one transaction."""


@dataclass(slots=True)
class _Waiting:
    """An emission that is not committed yet."""

    partition: int
    pipeline: Pipeline
    emission: Emission
    membership: bytes
    messages: int
    size_bytes: int
    handled: int | None = None
    """The message up to which all is done with it, so far as that is known."""


class GroupCommit:
    """The emissions of one worker. All calls from its event loop, but `reached`.

    Args:
        write: blocks until a transaction is committed; what it raises ends the worker, `Superseded` does not.
        telemetry: told what is committed, and which messages are done with.
        superseded: called where the group has moved on: nothing of this assignment can be committed any more.
        failed: called with all other errors; nothing is written after one.
    """

    def __init__(
        self,
        write: Write,
        telemetry: Telemetry,
        superseded: Callable[[], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._write = write
        self._telemetry = telemetry
        self._superseded, self._failed = superseded, failed
        self._gathered: deque[_Waiting] = deque()
        self._messages = self._bytes = 0
        self._last: dict[int, _Waiting] = {}
        self._room = asyncio.Event()
        self._room.set()
        self._writing: asyncio.Task[None] | None = None
        self._has_failed = False

    async def room(self) -> None:
        """Wait until more may be gathered."""
        await self._room.wait()

    def reached(self, partition: int, pipeline: Pipeline) -> int:
        """Return the offset of the partition's last emission, committed or on its way; from any thread."""
        # What is committed is told to the pipeline before it is forgotten here.
        last = self._last.get(partition)
        return pipeline.committed if last is None else last.emission.offset

    def add(self, partition: int, pipeline: Pipeline, emission: Emission, membership: bytes) -> None:
        """Have an emission written behind all that were added before.

        Args:
            partition: whose it is.
            pipeline: told when it is committed.
            emission: what is written.
            membership: the group metadata of the assignment that its messages came in.
        """
        if self._has_failed:
            return
        values = [*chain.from_iterable(batch.values for batch in emission.records)]
        values += [letter.value for letter in emission.letters]
        waiting = _Waiting(partition, pipeline, emission, membership, len(values), sum(map(len, values)))
        self._gathered.append(waiting)
        self._last[partition] = waiting
        self._count(1, waiting)
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_all())

    def handled(self, partition: int, offset: int) -> None:
        """Note that a message was taken in: it is done with when the emissions before it are committed."""
        if (last := self._last.get(partition)) is None:
            self._telemetry.handled(partition, offset)
        else:
            last.handled = offset

    async def settled(self) -> None:
        """Wait until all that was added is committed, or nothing can be any more."""
        while self._writing is not None:
            await asyncio.wait({self._writing})

    async def drop(self) -> None:
        """Forget what is gathered, and wait until the transaction under way has ended."""
        self._forget()
        await self.settled()

    def _forget(self) -> None:
        self._gathered.clear()
        self._last.clear()
        self._messages = self._bytes = 0
        self._room.set()

    def _count(self, sign: int, waiting: _Waiting) -> None:
        self._messages += sign * waiting.messages
        self._bytes += sign * waiting.size_bytes
        if self._messages < EMISSION_RECORDS and self._bytes < MOST_BYTES:
            self._room.set()
        else:
            self._room.clear()

    async def _write_all(self) -> None:
        try:
            while self._gathered:
                await self._commit(self._next())
        except Superseded as error:
            self._telemetry.failed(error)
            self._forget()
            self._superseded()
        except Exception as error:  # noqa: BLE001 - it ends the worker, whatever it is
            self._has_failed = True
            self._forget()
            self._failed(error)
        finally:
            self._writing = None

    def _next(self) -> list[_Waiting]:
        """Take what fits into one transaction; an assignment's emissions are never mixed with another's."""
        first = self._gathered[0]
        taken: list[_Waiting] = []
        messages = size = 0
        while self._gathered and self._gathered[0].membership == first.membership:
            waiting = self._gathered[0]
            messages, size = messages + waiting.messages, size + waiting.size_bytes
            if taken and (messages > EMISSION_RECORDS or size > MOST_BYTES):
                break
            self._count(-1, waiting)
            taken.append(self._gathered.popleft())
        return taken

    async def _commit(self, group: list[_Waiting]) -> None:
        began = self._telemetry.clock()
        await self._write([(one.partition, one.emission) for one in group], group[0].membership)
        self._telemetry.committed([one.emission for one in group], began)
        for one in group:
            one.pipeline.committed = one.emission.offset
            if one.handled is not None:
                self._telemetry.handled(one.partition, one.handled)
            if self._last.get(one.partition) is one:
                del self._last[one.partition]
            records = sum(map(len, one.emission.records))
            # A dead letter was told of when it was found.
            if records or not one.emission.letters:
                told = {"partition": one.partition, "records": records, "offset": one.emission.offset}
                log.info("windows emitted", extra=told)
