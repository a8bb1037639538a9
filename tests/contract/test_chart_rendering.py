"""The Helm chart is rendered by Helm into what is checked in, and Helm has nothing to say against it."""

from __future__ import annotations

import difflib

import chart
import pytest

from ingestor.local import helm

WORKS = ("kafka.bootstrapServers=kafka:9092", "prometheus.url=http://prometheus:9090")


@pytest.fixture(autouse=True)
def needs_helm() -> None:
    if not helm.program_folder().is_dir():
        pytest.skip("no Helm: python -m ingestor.local fetch --backends builds it, or says why not")


@pytest.mark.parametrize("case", chart.CASES)
def test_renderings_are_those_checked_in(case: str) -> None:
    """What the other tests look at is what the chart makes: else `python tests/chart.py` writes it anew."""
    diff = difflib.unified_diff(
        chart.golden(case).splitlines(), chart.rendered(case).splitlines(), "checked in", "rendered", lineterm=""
    )
    assert not (text := "\n".join(diff)), text


@pytest.mark.parametrize("case", chart.CASES)
def test_helm_lints_it(case: str) -> None:
    """No error and no warning, with these values and with none."""
    for args in ((), ("--values", chart.GOLDEN / f"{case}.values.yaml")):
        done = chart.run_helm("lint", "--strict", *args)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (WORKS[:1], "prometheus.url is missing: like http://"),
        (WORKS[1:], "kafka.bootstrapServers is missing: HOST:PORT"),
        ((*WORKS, "worker.settings.chunk-size=1M"), "chunk-size"),
        ((*WORKS, "worker.settings.method=average"), "method"),
        ((*WORKS, "worker.setings.method=mean"), "setings"),
        ((*WORKS, "poller.settings.setle=30s"), "setle"),
        ((*WORKS, "kafka.sasl.mechanism=PLAIN"), "user"),
    ],
)
def test_helm_refuses_what_is_wrong(values: tuple[str, ...], told: str) -> None:
    """Before anything reaches a cluster, naming what is wrong."""
    done = chart.run_helm("template", *(f"--set={value}" for value in values))
    assert done.returncode != 0
    assert told in done.stderr


def test_an_older_kubernetes_is_refused() -> None:
    """Where pods carry no ordinal, workers would have no slot."""
    args = [f"--set={value}" for value in WORKS]
    assert chart.run_helm("template", "--kube-version", "1.28.0", *args).returncode == 0
    done = chart.run_helm("template", "--kube-version", "1.27.9", *args)
    assert done.returncode != 0
    assert "kubeVersion: >=1.28.0-0" in done.stderr
