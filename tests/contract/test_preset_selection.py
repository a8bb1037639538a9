"""Which series the preset `kubernetes` gets out of a real Prometheus, by both ways of reading."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from kubernetes_series import cases

from ingestor.core.time_range import TimeRange
from ingestor.local.prometheus import Binaries, LocalPrometheus, create_blocks
from ingestor.presets import PRESETS
from ingestor.selector import Selector
from ingestor.sources import registry
from ingestor.sources.base import Source

START_MS = 1_700_006_400_000
RANGE = TimeRange(START_MS, START_MS + 600_000)


@pytest.fixture(scope="module")
def server(prometheus_binaries: Binaries, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPrometheus]:
    """A Prometheus with one sample of each series of the table."""
    folder = tmp_path_factory.mktemp("kubernetes")
    lines = [f"{case.series} {number} {START_MS // 1000 + 60}" for number, case in enumerate(cases())]
    (folder / "series.om").write_text("\n".join([*sorted(lines), "# EOF\n"]))
    prometheus = LocalPrometheus(folder)
    create_blocks(folder / "series.om", prometheus.data_dir)
    with prometheus:
        yield prometheus


@pytest.fixture(params=["query", "remote-read"])
def source(server: LocalPrometheus, request: pytest.FixtureRequest) -> Source:
    """Each way to read, as the contract of sources names them."""
    return registry.SOURCES[request.param](server.url)


def read(source: Source, preset: str, selector: str) -> dict[float, dict[str, str]]:
    """Return labels by value, read as a poller should: metrics are listed and fetched reading by reading."""
    found: dict[float, dict[str, str]] = {}
    for reading in PRESETS[preset].readings(Selector.parse(selector)):
        for metric in source.metric_names(reading.selector, RANGE):
            block = source.fetch(reading.for_metric(metric), metric, RANGE)
            for labels, value in zip(block.label_sets, block.values.tolist(), strict=True):
                assert value not in found, "a series was read twice"
                found[value] = PRESETS[preset].rewrite(json.loads(labels))
    return found


def test_the_table(source: Source) -> None:
    """Every series is read or left out as the table says, and lands where it says."""
    found = read(source, "kubernetes", '{pod!=""}')
    places = {
        value: tuple(labels.get(name, "") for name in ("namespace", "pod", "container"))
        for value, labels in found.items()
    }
    assert places == {number: case.place for number, case in enumerate(cases()) if case.place is not None}


def test_a_narrower_selector_narrows_old_names_too(source: Source) -> None:
    """What is asked for by pod and container finds series of both times."""
    found = read(source, "kubernetes", '{namespace="kube-system",pod=~"calico.*",container="calico-node"}')
    assert [labels["container"] for labels in found.values()] == ["calico-node"]


def test_without_a_preset_all_is_as_it_is(source: Source) -> None:
    """Every series with a pod label comes, with the labels that it has."""
    found = read(source, "none", '{pod!=""}')
    assert found == {number: case.labels for number, case in enumerate(cases()) if "pod" in case.labels}
