"""The consumer that a careful user writes, a message a sample: librdkafka in large batches, orjson, a dict of sums.

``per_sample.py SERVERS TOPIC SINK GROUP SAMPLES``. A window is written when its partition's time has passed it;
the offset of the oldest open one is committed once results are delivered, so that a crash repeats and loses nothing.
Prints ``first`` and ``done``, then waits to be ended.
"""

from __future__ import annotations

import gc
import signal
import sys
import time
from dataclasses import dataclass, field

import click
import orjson
from confluent_kafka import Consumer, Producer, TopicPartition

MINUTE_MS = 60_000
_COMMIT_EVERY_S = 5.0


@dataclass(slots=True)
class Open:
    """The one window that a partition has open."""

    start_ms: int
    end_ms: int
    offset: int
    sums: dict[tuple[str, str], list[float]] = field(default_factory=dict)


def main() -> None:
    servers, topic, sink, group, samples = sys.argv[1:]
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "fetch.min.bytes": 1 << 18,
            "fetch.wait.max.ms": 50,
            "fetch.queue.backoff.ms": 5,
            "max.partition.fetch.bytes": 4 << 20,
            "queued.min.messages": 1_000_000,
            "queued.max.messages.kbytes": 1 << 16,
        }
    )
    producer = Producer(
        {
            "bootstrap.servers": servers,
            "linger.ms": 50,
            "batch.size": 1 << 20,
            "partitioner": "murmur2_random",
            "queue.buffering.max.messages": 1_000_000,
        }
    )
    consumer.subscribe([topic])
    # Nothing here makes cycles, and looking for them takes a tenth of the time.
    gc.disable()
    windows: dict[int, Open] = {}
    left, committed_at = int(samples), time.monotonic()
    loads, is_first = orjson.loads, True
    while left > 0:
        messages = consumer.consume(10_000, 0.5)
        if messages and is_first:
            click.echo("first")
            is_first = False
        for message in messages:
            sample, time_ms, partition = loads(message.value()), message.timestamp()[1], message.partition()
            window = windows.get(partition)
            if window is None or time_ms >= window.end_ms:
                if window is not None:
                    send(producer, sink, window)
                start_ms = time_ms - time_ms % MINUTE_MS
                window = windows[partition] = Open(start_ms, start_ms + MINUTE_MS, message.offset())
            elif time_ms < window.start_ms:
                continue
            key = sample["labels"]["pod"], sample["name"]
            sums = window.sums.get(key)
            if sums is None:
                window.sums[key] = [float(sample["value"]), 1]
            else:
                sums[0] += float(sample["value"])
                sums[1] += 1
        left -= len(messages)
        if time.monotonic() - committed_at > _COMMIT_EVERY_S:
            commit(consumer, producer, topic, windows)
            committed_at = time.monotonic()
    commit(consumer, producer, topic, windows)
    click.echo("done")
    signal.pause()


def send(producer: Producer, sink: str, window: Open) -> None:
    """Write a window's means."""
    messages = [
        {
            "key": pod,
            "value": orjson.dumps({"pod": pod, "metric": metric, "window": window.start_ms, "mean": total / count}),
        }
        for (pod, metric), (total, count) in window.sums.items()
    ]
    producer.produce_batch(sink, messages)
    producer.poll(0)


def commit(consumer: Consumer, producer: Producer, topic: str, windows: dict[int, Open]) -> None:
    """Commit where the open windows begin, behind what is delivered."""
    producer.flush(60)
    offsets = [TopicPartition(topic, partition, window.offset) for partition, window in windows.items()]
    if offsets:
        consumer.commit(offsets=offsets, asynchronous=False)


if __name__ == "__main__":
    main()
