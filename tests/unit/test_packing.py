"""What is packed is what was fetched: every sample once, in its service's partition, in messages that fit."""

import numpy as np
import orjson
import pandas as pd
from builders import PARTITIONS, catalogue, fetched
from hypothesis import given, settings
from hypothesis import strategies as st

from ingestor import packing, presets
from ingestor.catalogue import Catalogue, Meaning
from ingestor.core import wire
from ingestor.core.time_range import TimeRange
from ingestor.core.topics import message_key, partition_of
from ingestor.workloads import service_of

WHEN = TimeRange(0, 10**9)


def unpacked(packed: packing.PackedRange) -> pd.DataFrame:
    rows = []
    for partition, chunks in enumerate(packed.partitions):
        for value in chunks:
            series = wire.decode_series(value)
            for row in range(len(series)):
                at = slice(series.offsets[row], series.offsets[row + 1])
                labels = dict(series.labels[row].as_py())
                rows += [
                    (partition, series.namespace[row].as_py(), series.pod[row].as_py(), series.service[row].as_py(),
                     series.metric[row].as_py(), labels["series"], int(t), float(v))
                    for t, v in zip(series.timestamps_ms[at], series.values[at], strict=True)
                ]  # fmt: skip
    columns = ["partition", "namespace", "pod", "service", "metric", "series", "timestamp", "value"]
    return pd.DataFrame(rows, columns=columns)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(0, 2000),
    st.sampled_from([7, 100, 150_000]),
    st.sampled_from([700, 5000, 900_000]),
)
def test_every_sample_is_packed_once(seed, count, chunk_samples, max_bytes):
    """However small messages must be, no sample is lost, doubled or changed, and all of a service share a partition."""
    generator = np.random.default_rng(seed)
    samples = pd.DataFrame(
        {
            "namespace": generator.choice(["a", "b", ""], count),
            "pod": generator.choice(["web-7d9f8b6c5-x2x4z", "web-7d9f8b6c5-8vx7t", "db-0", "db-1"], count),
            "metric": generator.choice(["cpu", "memory_total"], count),
            "series": generator.choice(["x", "y"], count),
            "timestamp": generator.integers(0, 10**9, count),
            "value": generator.normal(size=count),
        }
    ).drop_duplicates(["namespace", "pod", "metric", "series", "timestamp"])
    was = packing._CHUNK_SAMPLES, packing._MAX_VALUE_BYTES
    # A message cannot be smaller than its schema and one series' names.
    packing._CHUNK_SAMPLES, packing._MAX_VALUE_BYTES = chunk_samples, max(max_bytes, 5000)
    try:
        packed = packing.pack(WHEN, "test", [fetched(samples, catalogue())], catalogue_of(samples), PARTITIONS)
    finally:
        packing._CHUNK_SAMPLES, packing._MAX_VALUE_BYTES = was
    assert packed.samples == len(samples)
    assert all(len(value) <= max(max_bytes, 5000) for chunks in packed.partitions for value in chunks)
    back = unpacked(packed)
    expected = samples.assign(service=[service_of(pod) for pod in samples["pod"]])
    expected["partition"] = [
        partition_of(message_key(row.namespace, row.service), PARTITIONS) for row in expected.itertuples()
    ]
    order = [*back.columns]
    pd.testing.assert_frame_equal(
        back.sort_values(order).reset_index(drop=True),
        expected[order].sort_values(order).reset_index(drop=True),
        check_dtype=False,
    )


def catalogue_of(samples):
    """Return a catalogue that has learnt the series in the same order as the one that numbered them."""
    known = catalogue()
    fetched(samples, known)
    return known


def test_series_without_a_pod_are_left_out():
    """They have no partition; they are counted."""
    known = catalogue()
    ids = known.ids(
        [b'{"__name__":"up","instance":"x"}', b'{"__name__":"up","pod":"db-0"}', b'{"__name__":"up","pod":""}']
    )
    assert ids.tolist() == [-1, 0, -1]
    assert known.without_pod == 2


def test_the_kubernetes_preset():
    """kube-state-metrics' own pod is replaced by the pod it speaks of; the duplicates of cAdvisor are not asked for."""
    preset = presets.PRESETS["kubernetes"]
    labels = {
        "pod": "ksm-0",
        "namespace": "monitoring",
        "exported_pod": "web-0",
        "exported_namespace": "shop",
        "uid": "1",
    }
    assert preset.rewrite(labels) == {"pod": "web-0", "namespace": "shop", "uid": "1"}
    assert preset.rewrite({"pod": "web-0", "container": "app"}) == {"pod": "web-0", "container": "app"}
    assert preset.matchers("container_memory_rss") == ('container!=""', 'container!="POD"')
    assert preset.matchers("container_network_receive_bytes_total") == ()


def test_types_come_from_metadata_or_else_from_the_name():
    """A metric that the backend knows has its type; the others go by their suffix."""
    known = Catalogue(1, Meaning(dict), {"up_total": "gauge"})
    names = ["up_total", "requests_total", "temperature"]
    ids = known.ids([orjson.dumps({"__name__": name, "pod": "p"}) for name in names])
    known.place({pod: pod.name for pod in known.unplaced()})
    assert known.columns(ids)["type"].to_pylist() == ["gauge", "counter", "unknown"]
    known.learn_types({"temperature": "gauge"})
    assert known.columns(ids)["type"].to_pylist() == ["counter", "counter", "gauge"]
