"""A record that Kafka does not take: the worker ends with a line that names it, as often as it is started."""

from __future__ import annotations

import threading
from pathlib import Path

import builders
import feeding
import numpy as np
import pandas as pd
import records
from commands import PATIENCE_S, view_of, worker

from ingestor.local.kafka import LocalKafka

METRICS = 9_000
"""Of one pod, with long names: its record takes more than two megabytes."""
LENGTH_MS = 120_000


def pods_of_all_sizes() -> pd.DataFrame:
    """Return two samples of each metric of a pod that has far too many, beside pods in all partitions."""
    names = [f"{'a_long_name_' * 18}{number}" for number in range(METRICS)]
    large = pd.DataFrame(
        {
            "namespace": "shop",
            "pod": "huge-0",
            "metric": np.tile(names, 2),
            "series": "",
            "timestamp": np.repeat([feeding.START_MS, feeding.START_MS + LENGTH_MS // 2], METRICS),
            "value": np.arange(2.0 * METRICS),
        }
    )
    return pd.concat([feeding.samples(LENGTH_MS, 1), large], ignore_index=True)


def test_a_record_that_is_too_large(kafka: LocalKafka, tmp_path: Path) -> None:
    """Its partition stands still, and what was written of others is right and there once."""
    view = view_of("large", "1m", "mean")
    held = pods_of_all_sizes()
    feed = feeding.Feed(kafka.cluster, view.topics, held, feeding.ranges(LENGTH_MS, LENGTH_MS // 2), 0.0)
    feed.run(threading.Event())
    child = worker(kafka, view, tmp_path / "worker.log")
    for _ in range(2):
        child.start()
        assert child.wait(PATIENCE_S) == 1
    told = [line for line in child.log_path.read_text().splitlines() if line.startswith("error:")]
    assert len(told) == 2
    assert all("shop/huge-0" in line and "--relabel" in line for line in told)
    found = records.read(kafka.cluster, view.topics.pods, builders.PARTITIONS)
    compared = records.compare(found, held, "1m", "mean", "pod")
    assert [compared.doubled, compared.wrong, compared.extra] == [[], [], []]
    assert ("shop", "huge-0", feeding.START_MS) in compared.missing
