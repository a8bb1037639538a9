"""The preset `kubernetes` gives every series the pod that it describes, and asks in labels old and new."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubernetes_series import Case, cases

from ingestor.presets import PRESETS
from ingestor.selector import Matcher, Selector

KUBERNETES = PRESETS["kubernetes"]
PODS = Selector.parse('{pod!=""}')


def passes(selector: Selector, labels: dict[str, str]) -> bool:
    """Whether Prometheus would select a series, for matchers without expressions."""
    return all((labels.get(m.name, "") == m.value) == (m.op == "=") for m in selector.matchers)


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.series)
def test_the_table(case: Case) -> None:
    """Series that are read are in one reading, and get namespace, pod and container; the others are in none."""
    metric = case.labels["__name__"]
    found = [r for r in KUBERNETES.readings(PODS) if passes(r.for_metric(metric), case.labels)]
    assert len(found) == (case.place is not None)
    if case.place is not None:
        assert passes(found[0].selector, case.labels), "its metric would not be listed"
        rewritten = KUBERNETES.rewrite(dict(case.labels))
        assert tuple(rewritten.get(name, "") for name in ("namespace", "pod", "container")) == case.place
        others = case.labels.keys() - {
            *(f"{prefix}{name}" for prefix in ("", "exported_") for name in ("namespace", "pod", "container")),
            *("pod_name", "container_name"),
        }
        assert {name: rewritten[name] for name in others} == {name: case.labels[name] for name in others}


@pytest.mark.parametrize(
    ("selector", "metric", "written"),
    [
        (
            '{pod!=""}',
            "container_cpu_usage_seconds_total",
            [
                '{pod!="",container!="",container!="POD"}',
                '{pod_name!="",pod="",container_name!="",container_name!="POD"}',
            ],
        ),
        ('{pod!=""}', "container_network_receive_bytes_total", ['{pod!=""}', '{pod_name!="",pod=""}']),
        ('{pod!=""}', "http_requests_total", ['{pod!=""}', '{pod_name!="",pod=""}']),
        (
            '{pod!=""}',
            "kube_job_info",
            ['{pod!="",exported_pod!=""}', '{pod_name!="",pod="",exported_pod!=""}'],
        ),
        (
            '{namespace="shop",pod=~"web-.*",container="app"}',
            "container_memory_rss",
            [
                '{namespace="shop",pod=~"web-.*",container="app",container!="",container!="POD"}',
                (
                    '{namespace="shop",pod_name=~"web-.*",container_name="app",pod_name!="",pod="",'
                    'container_name!="",container_name!="POD"}'
                ),
            ],
        ),
        (
            '{namespace="shop"}',
            "up",
            [
                '{namespace="shop",pod!=""}',
                '{namespace="shop",pod_name!="",pod=""}',
                '{namespace="shop",pod="",pod_name=""}',
            ],
        ),
    ],
)
def test_readings_are_written(selector: str, metric: str, written: list[str]) -> None:
    """What was asked for by pod and container is asked for by their older names too."""
    readings = KUBERNETES.readings(Selector.parse(selector))
    assert [str(reading.for_metric(metric)) for reading in readings] == written
    (alone,) = PRESETS["none"].readings(Selector.parse(selector))
    assert str(alone.for_metric(metric)) == str(alone.selector) == selector


@pytest.mark.parametrize(
    ("matcher", "count"),
    [
        ('pod!=""', 2),
        ('pod="web-0"', 2),
        ('pod=~".+"', 2),
        ('pod!~"|web"', 2),
        ('pod=""', 3),
        ('pod!="web-0"', 3),
        ('pod=~".*"', 3),
        ('pod!~"web.*"', 3),
        (r'pod=~"\\p{L}+"', 3),
        ('container!=""', 3),
    ],
)
def test_series_without_a_pod_are_a_reading_of_their_own(matcher: str, count: int) -> None:
    """Only where the selector lets them through, or may."""
    assert len(KUBERNETES.readings(Selector.parse(f"{{{matcher}}}"))) == count


matchers = st.builds(
    Matcher, st.sampled_from(["pod", "container", "namespace", "pod_name"]), st.sampled_from(["=", "!="]),
    st.sampled_from(["", "a"]),
)  # fmt: skip
label_sets = st.dictionaries(
    st.sampled_from(["pod", "pod_name", "container", "container_name", "namespace"]), st.sampled_from(["a", "b"])
)


@given(st.lists(matchers, min_size=1), label_sets, st.sampled_from(["up", "container_memory_rss", "kube_job_info"]))
def test_no_series_is_in_two_readings(asked: list[Matcher], labels: dict[str, str], metric: str) -> None:
    """And one that the selector means is in one, where the preset leaves nothing out."""
    selector = Selector(tuple(asked))
    readings = [reading.for_metric(metric) for reading in KUBERNETES.readings(selector)]
    count = sum(passes(reading, labels) for reading in readings)
    assert count <= 1
    if metric == "up" and passes(selector, labels) and not ("pod_name" in labels and "pod" not in labels):
        assert count == 1


@given(st.dictionaries(st.sampled_from(["pod", "pod_name", "container_name", "exported_pod", "exported_namespace"]),
                       st.text(min_size=1)))  # fmt: skip
def test_rewriting_twice_is_rewriting_once(labels: dict[str, str]) -> None:
    """And it invents nothing: every value was there."""
    once = KUBERNETES.rewrite(dict(labels))
    assert KUBERNETES.rewrite(dict(once)) == once
    assert set(once.values()) <= set(labels.values())
    assert bool(once.get("pod")) == bool(labels.keys() & {"pod", "pod_name", "exported_pod"})
