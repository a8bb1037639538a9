"""Emissions on their way into a real broker's transactions: what goes together, what waits, what is let go."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import builders
from commands import PATIENCE_S, view_of
from confluent_kafka import Consumer, TopicPartition

from ingestor.core.errors import Fenced
from ingestor.kafka import client_config, connect, ensure_topics, read_to_end, stable_ends
from ingestor.local.kafka import LocalKafka
from stream_app.group_commit import GroupCommit
from stream_app.pipeline import EMISSION_RECORDS, Batch, Emission, Pipeline
from stream_app.standing import Standing
from stream_app.telemetry import Telemetry
from stream_app.transactions import Transactions
from stream_app.view import View


class Bench:
    """What a worker has of a view, on a real broker; each transaction waits for its turn before it begins."""

    def __init__(self, kafka: LocalKafka, name: str, member: bytes | None = None) -> None:
        self.kafka, self.view = kafka, view_of(name, "1m", "mean")
        ensure_topics(connect(kafka.cluster), self.view.topics, builders.PARTITIONS)
        self.transactions = Transactions(kafka.cluster, self.view.topics.range_chunks, self.view.group_id, 0)
        self.transactions.start()
        self.telemetry = Telemetry(Standing())
        self.telemetry.assigned(range(builders.PARTITIONS))
        self.pipelines = [Pipeline(self.view, 0, "") for _ in range(builders.PARTITIONS)]
        self.told: list[object] = []
        self.commits = GroupCommit(self.write, self.telemetry, lambda: self.told.append("superseded"), self.told.append)
        self.written: list[list[int]] = []
        """The partitions of each transaction's emissions."""
        self.begun, self.turns = asyncio.Semaphore(0), asyncio.Semaphore(0)
        self.membership = member or groupless(kafka, self.view)

    async def write(self, emissions: Sequence[tuple[int, Emission]], member: bytes) -> None:
        self.written.append([partition for partition, _ in emissions])
        self.begun.release()
        await self.turns.acquire()
        await asyncio.to_thread(self.transactions.write, emissions, member)

    def add(self, partition: int, offset: int, records: int = 1, member: bytes | None = None) -> None:
        """Take in a message that emits so many records."""
        keys, values = [b"%d" % offset] * records, [b"%d:%d" % (partition, offset)] * records
        batch = [Batch(self.view.topics.pods, keys, values)] if records else []
        emission = Emission(batch, [], offset, f"of {offset}", final=not records)
        self.commits.add(partition, self.pipelines[partition], emission, member or self.membership)
        self.commits.handled(partition, offset)

    def go(self, transactions: int) -> None:
        for _ in range(transactions):
            self.turns.release()

    def found(self, partition: int) -> list[bytes]:
        messages = read_to_end(self.kafka.cluster, self.view.topics.pods, partition)
        return [message.value() for message in messages]

    def committed(self) -> list[tuple[int, str]]:
        """Return offset and metadata of each partition, -1001 and nothing where there is no commit."""
        consumer = Consumer({**client_config(self.kafka.cluster), "group.id": self.view.group_id})
        topic = self.view.topics.range_chunks
        stored = consumer.committed([TopicPartition(topic, p) for p in range(builders.PARTITIONS)], PATIENCE_S)
        consumer.close()
        return [(at.offset, at.metadata or "") for at in stored]


def groupless(kafka: LocalKafka, view: View) -> bytes:
    """Return what a group without members takes."""
    consumer = Consumer({**client_config(kafka.cluster), "group.id": view.group_id})
    member: bytes = consumer.consumer_group_metadata()  # type: ignore[assignment]
    consumer.close()
    return member


def run(script: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await script()

    asyncio.run(bounded())


def handled(bench: Bench) -> dict[int, int]:
    """Return behind which message each partition is handled, as a scrape and /-/ready would see it."""
    bench.telemetry.standing.looked(bench.telemetry.standing.assignment, dict.fromkeys(range(builders.PARTITIONS), 100))
    return {partition: 100 - behind for partition, behind in bench.telemetry.standing.lag().items()}


def test_what_comes_meanwhile_goes_together(kafka: LocalKafka) -> None:
    """Two transactions for five emissions of three partitions; each partition's last commit counts, in order."""

    async def script() -> None:
        bench = Bench(kafka, "together")
        bench.add(0, 5)
        await bench.begun.acquire()
        for partition, offset in ((1, 3), (0, 6), (2, 8), (1, 4)):
            bench.add(partition, offset)
        bench.commits.handled(1, 9)
        assert handled(bench) == {}, "nothing is committed"
        assert [bench.commits.reached(p, bench.pipelines[p]) for p in range(4)] == [6, 4, 8, 0]
        bench.go(2)
        await bench.commits.settled()
        assert bench.written == [[0], [1, 0, 2, 1]]
        assert [bench.found(p) for p in range(4)] == [[b"0:5", b"0:6"], [b"1:3", b"1:4"], [b"2:8"], []]
        assert bench.committed() == [(6, "of 6"), (4, "of 4"), (8, "of 8"), (-1001, "")]
        # A transaction ends with a message of its own in each partition that it has written to.
        ends = stable_ends(connect(kafka.cluster), bench.view.topics.pods, range(4))
        assert ends == {0: 2 + 2, 1: 2 + 1, 2: 1 + 1, 3: 0}
        assert [pipeline.committed for pipeline in bench.pipelines] == [6, 4, 8, 0]
        assert handled(bench) == {0: 7, 1: 10, 2: 9}
        assert bench.told == []

    run(script)


def test_a_lone_emission_is_written_at_once(kafka: LocalKafka) -> None:
    """Nothing waits for more to come, and what brings no records is committed too."""

    async def script() -> None:
        bench = Bench(kafka, "alone")
        bench.go(2)
        bench.add(3, 7, records=0)
        await bench.commits.settled()
        assert bench.committed()[3] == (7, "of 7")
        bench.add(3, 9)
        await bench.commits.settled()
        assert bench.committed()[3] == (9, "of 9")
        assert (bench.written, bench.found(3)) == ([[3], [3]], [b"3:9"])

    run(script)


def test_what_is_gathered_is_bounded(kafka: LocalKafka) -> None:
    """The reading side waits where a transaction's worth is gathered; what is more than that is cut into several."""

    async def script() -> None:
        bench, share = Bench(kafka, "bounded"), EMISSION_RECORDS * 2 // 5
        bench.add(0, 1, share)
        await bench.begun.acquire()
        for number in range(3):
            assert not await waits(bench)
            bench.add(number % 2, 2 + number, share)
        assert await waits(bench)
        bench.go(1)
        await bench.begun.acquire()
        assert not await waits(bench), "two of three are on their way"
        bench.go(2)
        await bench.commits.settled()
        assert bench.written == [[0], [0, 1], [0]]
        assert [len(bench.found(p)) for p in range(2)] == [3 * share, share]

    run(script)


async def waits(bench: Bench) -> bool:
    """Tell whether the reading side must wait."""
    room = asyncio.ensure_future(bench.commits.room())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return not room.done() and room.cancel()


def test_what_is_gathered_is_dropped_with_its_partitions(kafka: LocalKafka) -> None:
    """A rebalance waits for the transaction under way; what was not in it is neither written nor told of."""

    async def script() -> None:
        bench = Bench(kafka, "dropped")
        bench.add(0, 5)
        await bench.begun.acquire()
        bench.add(0, 6)
        bench.add(1, 3)
        revoked = asyncio.ensure_future(bench.commits.drop())
        await asyncio.sleep(0)
        assert not revoked.done()
        bench.go(9)
        await revoked
        assert bench.written == [[0]]
        assert [bench.found(p) for p in range(2)] == [[b"0:5"], []]
        assert bench.committed()[:2] == [(5, "of 5"), (-1001, "")]
        assert [pipeline.committed for pipeline in bench.pipelines] == [5, 0, 0, 0]
        assert handled(bench) == {0: 6}
        # The next assignment's.
        bench.add(1, 3)
        await bench.commits.settled()
        assert bench.found(1) == [b"1:3"]

    run(script)


def stale(member: bytes) -> bytes:
    """Return the membership of a generation that the group has left behind."""
    head = len(b"CGMDv2:")
    generation = int.from_bytes(member[head : head + 4], "little")
    return member[:head] + (generation - 1).to_bytes(4, "little", signed=True) + member[head + 4 :]


def test_a_stale_worker_writes_nothing(kafka: LocalKafka) -> None:
    """Where the group has moved on, all that is on its way is let go; the next assignment's emissions are written."""
    view = view_of("stale", "1m", "mean")
    ensure_topics(connect(kafka.cluster), view.topics, builders.PARTITIONS)
    consumer = Consumer({**client_config(kafka.cluster), "group.id": view.group_id})
    consumer.subscribe([view.topics.range_chunks])

    async def script() -> None:
        while not consumer.assignment():
            await asyncio.to_thread(consumer.poll, 0.1)
        member: bytes = consumer.consumer_group_metadata()  # type: ignore[assignment]
        bench = Bench(kafka, "stale", member)
        bench.add(0, 5, member=stale(member))
        bench.add(1, 5, member=stale(member))
        await bench.begun.acquire()
        bench.add(0, 6, member=stale(member))
        bench.go(9)
        await bench.commits.settled()
        assert (bench.written, bench.told) == ([[0, 1]], ["superseded"])
        assert bench.committed()[:2] == [(-1001, ""), (-1001, "")]
        assert handled(bench) == {}
        bench.add(0, 5)
        await bench.commits.settled()
        assert bench.found(0) == [b"0:5"]
        assert bench.committed()[0] == (5, "of 5")

    run(script)
    consumer.close()


def test_another_holder_of_the_slot_ends_it(kafka: LocalKafka) -> None:
    """A fenced worker fails with it, and writes nothing from then on."""

    async def script() -> None:
        bench = Bench(kafka, "fenced-group")
        bench.add(0, 5)
        await bench.begun.acquire()
        bench.add(1, 5)
        other = Transactions(kafka.cluster, bench.view.topics.range_chunks, bench.view.group_id, 0)
        await asyncio.to_thread(other.start)
        bench.go(9)
        await bench.commits.settled()
        assert isinstance(bench.told[0], Fenced)
        bench.add(2, 5)
        await bench.commits.settled()
        assert (len(bench.told), bench.written) == (1, [[0]])
        assert [bench.found(p) for p in range(3)] == [[], [], []]

    run(script)
