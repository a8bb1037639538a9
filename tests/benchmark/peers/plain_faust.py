"""Faust as its documentation shows it, a message a sample: a ``dict`` in the agent, or a windowed ``table``.

``plain_faust.py KIND SERVERS TOPIC SINK GROUP SAMPLES``. Prints ``first`` and ``done``, then waits to be ended. Faust
ships nothing that emits a window when event time has passed it: a key's next window sends the one before.
"""

from __future__ import annotations

import itertools
import os
import sys
from typing import Any

import faust

KIND, SERVERS, TOPIC, SINK, GROUP, SAMPLES = sys.argv[1:]
MINUTE_S = 60


class Sample(faust.Record, serializer="json"):
    """A message, as a model."""

    timestamp: str
    value: str
    name: str
    labels: dict


app = faust.App(
    GROUP,
    broker=f"kafka://{SERVERS}",
    store="memory://",
    datadir=f"{os.environ['TMPDIR']}/{GROUP}",
    topic_partitions=4,
    consumer_auto_offset_reset="earliest",
    consumer_max_fetch_size=4 << 20,
    broker_max_poll_records=5000,
    broker_commit_every=50_000,
    broker_commit_interval=5.0,
    stream_buffer_maxsize=16_384,
    producer_linger=0.05,
    topic_disable_leader=True,
    web_enabled=False,
)
samples = app.topic(
    TOPIC, key_serializer="raw", **({"value_type": Sample} if KIND == "table" else {"value_serializer": "json"})
)
means = app.topic(SINK, key_serializer="raw", value_serializer="json")
table = (
    app.Table("sums", default=lambda: (0.0, 0), partitions=4)
    .tumbling(MINUTE_S, expires=10 * 365 * 86_400)
    .relative_to_stream()
    if KIND == "table"
    else None
)
numbers = itertools.count(1)


def count() -> None:
    """Tell the beginning and the end, on the pipe: Faust has standard output for its log."""
    seen = next(numbers)
    if seen == 1:
        os.write(1, b"first\n")
    if seen == int(SAMPLES):
        os.write(1, b"done\n")


async def send(key: str, start_s: int, total: float, number: int) -> None:
    pod, metric = key.split("|")
    value = {"pod": pod, "metric": metric, "window": start_s * 1000, "mean": total / number}
    await means.send(key=pod.encode(), value=value)


async def with_dict(stream: Any) -> None:
    """Keep sums in a dict, which a crash would lose."""
    sums: dict[str, list[Any]] = {}
    async for event in stream.events():
        sample, start_s = event.value, int(event.message.timestamp // MINUTE_S) * MINUTE_S
        key = f"{sample['labels']['pod']}|{sample['name']}"
        known = sums.get(key)
        if known is not None and known[0] == start_s:
            known[1] += float(sample["value"])
            known[2] += 1
        else:
            if known is not None:
                await send(key, *known)
            sums[key] = [start_s, float(sample["value"]), 1]
        count()


async def with_table(stream: Any) -> None:
    """Keep sums in a table, which its changelog topic brings back."""
    open_s: dict[str, int] = {}
    async for event in stream.events():
        sample, start_s = event.value, int(event.message.timestamp // MINUTE_S) * MINUTE_S
        key = f"{sample.labels['pod']}|{sample.name}"
        windows = table[key]
        before_s = open_s.get(key, start_s)
        if before_s != start_s:
            await send(key, before_s, *windows.delta(start_s - before_s))
        open_s[key] = start_s
        total, number = windows.value()
        table[key] = (total + float(sample.value), number + 1)
        count()


app.agent(samples, name="means")(with_table if KIND == "table" else with_dict)

if __name__ == "__main__":
    sys.argv = ["faust", "worker", "--loglevel", "error", "--without-web"]
    app.main()
