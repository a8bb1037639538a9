"""What is packed is what was fetched: every sample once, in its service's partition, in messages that fit."""

import base64

import numpy as np
import orjson
import pandas as pd
from builders import PARTITIONS, catalogue, fetched
from hypothesis import given, settings
from hypothesis import strategies as st

from ingestor import packing, presets
from ingestor.catalogue import Catalogue, Meaning
from ingestor.core import wire
from ingestor.core.chunk import Refused
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


def padded(length: int, **labels: str) -> bytes:
    """Return a label set with a label of so many letters, which do not compress well."""
    letters = base64.b64encode(np.random.default_rng(3).bytes(length))[:length].decode()
    return orjson.dumps({"__name__": "cpu", "namespace": "shop", **labels, "padding": letters})


def packed_with(*label_sets: bytes, samples: int = 100) -> packing.PackedRange:
    """Pack so many samples of each series into one partition."""
    known = Catalogue(1, Meaning(dict, without_pod=True), {})
    ids = known.ids(list(label_sets))
    known.place({pod: service_of(pod.name) for pod in known.unplaced()})
    times = np.tile(np.arange(samples) * 1000, len(ids))
    whole = packing.FetchedSeries(ids, np.arange(len(ids) + 1) * samples, times, np.sqrt(times))
    return packing.pack(WHEN, "test", [whole], known, 1)


def test_a_series_that_fits_into_no_message_is_left_out_and_named():
    """All others are there, those beside it in its chunk too; its metric is incomplete."""
    beside = [orjson.dumps({"__name__": "cpu", "namespace": "shop", "pod": f"db-{n}", "series": "x"}) for n in range(5)]
    packed = packed_with(*beside[:2], padded(1_300_000, pod="fat-0", series="y"), *beside[2:])
    assert unpacked(packed)["pod"].value_counts().to_dict() == {f"db-{n}": 100 for n in range(5)}
    assert (packed.samples, packed.series) == (500, 5)
    assert packed.incomplete == (Refused("cpu", WHEN.start_ms, WHEN.end_ms),)
    (left_out,) = packed.left_out
    assert left_out[:3] == ("cpu", "shop", "fat-0")
    assert str(left_out).startswith("a series of cpu of the pod shop/fat-0 is left out")
    assert all(len(value) <= packing._MAX_VALUE_BYTES for value in packed.partitions[0])


def test_labels_that_just_fit_are_sent():
    """Where there is room for one sample beside its labels, all samples are there, in messages of their own or not."""
    packed = packed_with(padded(1_150_000, pod="fat-0", series="y"), samples=20_000)
    assert packed.samples == len(unpacked(packed)) == 20_000
    assert not packed.left_out
    assert not packed.incomplete


def test_a_name_without_end_is_not_told():
    """Neither a marker nor a line of log has room for it: any metric is said to be incomplete."""
    name = base64.b64encode(np.random.default_rng(3).bytes(1_000_000)).decode()
    packed = packed_with(orjson.dumps({"__name__": name, "job": "probe"}))
    assert packed.partitions == [[]]
    assert packed.incomplete == (Refused("*", WHEN.start_ms, WHEN.end_ms),)
    assert len(str(packed.left_out[0])) < 500
    assert "pod" not in str(packed.left_out[0])


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
