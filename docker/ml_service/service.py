"""An example of a service that learns from pods' windows: it finds pods that are not as their service mostly is.

Reads records with podstream's consumer library, learns online with river, and publishes a score for
every pod and window, keyed by the pod, to ``metrics.anomalies``. Nothing is kept on disk: after a start
each pod's lookback is learned first.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

import detector
from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from ingestor.core.errors import IngestorError
from stream_app.consumer import PodConsumer, Window

VERSION = 1
COMMIT_EVERY_S = 1.0
FORGET_MS = 86_400_000
"""Pods that have shown nothing for so long are gone."""


class Service:
    """What is normal for each service, and which pods were seen."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._models = defaultdict[tuple[str, str], detector.LargestDeviation](detector.LargestDeviation)
        self._seen_ms: dict[str, int] = {}
        self._ill: set[str] = set()
        self._forget_at_ms = 0

    def judge(self, window: Window) -> detector.Verdict:
        """Judge a window by what its service was like until now; learn it, and a new pod's history before it."""
        model, history = self._models[window.namespace, window.service], window.frame()
        if window.id in self._seen_ms:
            history = history.tail(2)
        features = detector.features(history, window.record.method)
        rows = [dict(zip(features.columns, row, strict=True)) for row in features.to_numpy().tolist()]
        if window.id not in self._seen_ms:
            for values in rows[:-1]:
                model.learn_one(values)
        self._seen_ms[window.id] = window.record.window_start_ms
        self._forget(window.record.window_start_ms)
        return detector.judge(model, rows[-1], self._threshold)

    def news(self, window: Window, verdict: detector.Verdict) -> str | None:
        """Return a line for people where a pod falls ill or recovers."""
        if verdict.is_anomalous == (window.id in self._ill):
            return None
        self._ill ^= {window.id}
        when = f"{window.start:%Y-%m-%dT%H:%M:%SZ} {window.id}"
        if not verdict.is_anomalous:
            return f"{when} is as its service mostly is again"
        why = "; ".join(f"{r.metric} {r.value:,.4g}, mostly {r.normal:,.4g}" for r in verdict.reasons)
        return f"{when} is not as its service mostly is: {why} (score {verdict.score:.1f})"

    def _forget(self, now_ms: int) -> None:
        if now_ms >= self._forget_at_ms:
            self._forget_at_ms = now_ms + FORGET_MS
            self._seen_ms = {name: seen_ms for name, seen_ms in self._seen_ms.items() if seen_ms > now_ms - FORGET_MS}
            self._ill &= self._seen_ms.keys()


def message(window: Window, verdict: detector.Verdict) -> bytes:
    """Return what is published of a window."""
    record = window.record
    return json.dumps(
        {
            "namespace": record.namespace,
            "pod": record.pod,
            "service": record.service,
            "window_start": record.window_start_ms,
            "window_end": record.window_end_ms,
            "chunk_size": record.chunk_size,
            "method": record.method,
            "revision": record.revision,
            "score": verdict.score,
            "anomalous": verdict.is_anomalous,
            "reasons": [
                {"metric": r.metric, "value": r.value, "normal": r.normal, "deviation": r.deviation}
                for r in verdict.reasons
            ],
            "version": VERSION,
        }
    ).encode()


def serve(arguments: argparse.Namespace) -> None:
    """Judge windows until the process is told to stop.

    Scores are in Kafka before their windows count as processed: after a crash a few windows are
    judged and published once more, none is left out.
    """
    topic = f"{arguments.topic_prefix}.anomalies"
    # Only what is fatal is printed by the library itself.
    kafka = {"bootstrap.servers": arguments.bootstrap_servers, "log_level": 2}
    service = Service(arguments.threshold)
    with PodConsumer(
        arguments.bootstrap_servers,
        topic_prefix=arguments.topic_prefix,
        namespace=arguments.namespace,
        services=arguments.service,
        chunk_size=arguments.chunk_size,
        method=arguments.method,
        lookback=arguments.lookback,
        start=arguments.start,
        group=arguments.group,
        auto_commit=False,
    ) as pods:
        make_topic(kafka, topic)
        producer = Producer({**kafka, "enable.idempotence": True, "linger.ms": 20})
        committed_s = time.monotonic()
        for window in pods:
            verdict = service.judge(window)
            producer.produce(topic, message(window, verdict), window.id, on_delivery=refuse_loss)
            producer.poll(0)
            if news := service.news(window, verdict):
                print(news, flush=True)
            if time.monotonic() - committed_s >= COMMIT_EVERY_S:
                producer.flush()
                pods.commit()
                committed_s = time.monotonic()


def refuse_loss(error: KafkaError | None, _: object) -> None:
    if error is not None:
        raise KafkaException(error)


def make_topic(kafka: dict[str, Any], topic: str) -> None:
    """Make the topic if it is missing, as the broker's defaults want it."""
    # It has a name, or it would be gone before it has answered.
    admin = AdminClient(kafka)
    made = admin.create_topics([NewTopic(topic, num_partitions=-1, replication_factor=-1)])
    try:
        made[topic].result()
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = partial(parser.add_argument, metavar="")
    add("--bootstrap-servers", default=os.environ.get("BOOTSTRAP_SERVERS", "localhost:9092"), help="Kafka")
    add("--topic-prefix", default="metrics", help="as the worker's (default: %(default)s)")
    add("--namespace", action="append", default=[], help="of these only; repeatable (default: all)")
    add("--service", action="append", default=[], help="of these only; repeatable (default: all)")
    add("--chunk-size", help="which view, where there are several")
    add("--method", help="which view, where there are several")
    add("--lookback", default="1h", help="what of a pod's past is learned first (default: %(default)s)")
    add("--start", default="1h", help="where a new group begins (default: %(default)s ago)")
    add("--group", default="anomalies", help="the consumer group; start as many as you like (default: %(default)s)")
    add("--threshold", type=float, default=6.0, help="an anomaly's least score, in deviations (default: %(default)s)")
    return parser.parse_args(arguments)


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        # While it was loaded, it ended the process.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        serve(parse_arguments())
    except KeyboardInterrupt:
        return 0
    except IngestorError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KafkaException as error:
        print(
            f"error: Kafka refuses ({error.args[0].str()}): is it running there? give --bootstrap-servers",
            file=sys.stderr,
        )
        return 1
    return 0
