"""The peers' input: one JSON message a sample, as prometheus-kafka-adapter writes them, in the order of time."""

from __future__ import annotations

import time
from collections.abc import Iterator

import cluster
import numpy as np
import orjson
from confluent_kafka import Producer

from ingestor.kafka import client_config
from ingestor.local.kafka import LocalKafka


def samples(minutes: int) -> Iterator[tuple[int, str, int, float]]:
    """Yield the samples of a block's first minutes: number of the series, pod, Unix milliseconds, value."""
    every = list(cluster.block(0, minutes))
    pods = cluster.pods()
    order = np.argsort(every[0].timestamps_ms[:, 0])
    for at in range(every[0].timestamps_ms.shape[1]):
        for pod in order.tolist():
            time_ms = int(every[0].timestamps_ms[pod, at])
            number = pod * (cluster.SERIES // cluster.PODS)
            for series in every:
                for value in series.values[pod, :, at].tolist():
                    yield number, pods[pod], time_ms, value
                    number += 1


def feed(kafka: LocalKafka, topic: str, minutes: int) -> None:
    """Write all samples of the minutes, keyed by pod, with the sample's time as the message's."""
    settings = {
        "linger.ms": 50,
        "batch.size": 1 << 20,
        # As Java's clients do it, so that every peer agrees on partitions.
        "partitioner": "murmur2_random",
        "queue.buffering.max.messages": 1_000_000,
        "queue.buffering.max.kbytes": 1 << 20,
    }
    producer = Producer({**client_config(kafka.cluster), **settings})
    heads = [
        orjson.dumps({"labels": labels, "name": labels["__name__"]})[:-1] + b',"timestamp":"' for labels in label_sets()
    ]
    seconds: dict[int, bytes] = {}
    for sent, (number, pod, time_ms, value) in enumerate(samples(minutes)):
        second = seconds.get(time_ms // 1000)
        if second is None:
            seconds.clear()
            text = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time_ms // 1000))
            second = seconds[time_ms // 1000] = f'{text}","value":"'.encode()
        message = b'%s%s%r"}' % (heads[number], second, value)
        while True:
            try:
                producer.produce(topic, message, pod, timestamp=time_ms)
            except BufferError:
                producer.poll(0.05)
            else:
                break
        if not sent % 10_000:
            producer.poll(0)
    producer.flush(120)


def label_sets() -> list[dict[str, str]]:
    """Return the labels of each series, by its number."""
    own = [(series.metric, label) for series in cluster.block(0, 1) for label in series.labels]
    return [
        {
            "__name__": metric,
            "container": "app",
            "instance": f"10.0.{number // cluster.PODS_OF_EACH}.{number % cluster.PODS_OF_EACH}:9100",
            "job": "kubelet",
            "namespace": "prod",
            "node": f"node-{number % 7}",
            "pod": pod,
            **({label.split("=")[0]: label.split("=")[1].strip('"')} if label else {}),
        }
        for number, pod in enumerate(cluster.pods())
        for metric, label in own
    ]
