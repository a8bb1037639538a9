"""Real servers that all tests of a process share. Tests tell their topics apart by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

import history
import pandas as pd
import pytest
from hypothesis import HealthCheck, settings
from kafka_proxy import KafkaProxy
from proxied_kafka import ProxiedKafka

from ingestor.local.kafka import LocalKafka
from ingestor.local.prometheus import Binaries, LocalPrometheus, create_blocks, find_binaries

# How long an example takes says nothing about what it shows, and CI is sometimes busy.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
# The same examples each time: what fails has changed. Others: --hypothesis-profile=exploring.
settings.register_profile("podstream", PATIENT, derandomize=True)
settings.register_profile("exploring", PATIENT)
settings.load_profile("podstream")

QUICK_LAST = ("fault", "integration", "browser", "contract", "unit")
"""Folders by how long their modules take; what is not named here comes before them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long modules first, so that of several processes none is left alone with one at the end."""
    places = {folder: place for place, folder in enumerate(QUICK_LAST)}
    items.sort(key=lambda item: places.get(item.path.parent.name, -1))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what the fault tests have printed: seeds, and what was compared with what. Whoever fails shows it anyway."""
    told = [
        (report.nodeid, report.capstdout.strip("\n"))
        for report in terminalreporter.getreports("passed")
        if report.when == "call" and PurePosixPath(report.nodeid.partition("::")[0]).parent.name == "fault"
    ]
    for name, text in sorted(one for one in told if one[1]):
        terminalreporter.section(name, sep="-")
        terminalreporter.write_line(text)


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalKafka]:
    """One Apache Kafka for all tests that leave it running; those that stop or kill one start their own."""
    with LocalKafka(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


@pytest.fixture(scope="session")
def prometheus_binaries() -> Binaries:
    """Prometheus and promtool."""
    return find_binaries()


@pytest.fixture(scope="session")
def samples() -> pd.DataFrame:
    """What Prometheus holds."""
    return history.samples()


@pytest.fixture(scope="session")
def prometheus(samples: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPrometheus]:
    """A real Prometheus with the samples as blocks."""
    folder = tmp_path_factory.mktemp("prometheus")
    history.write_openmetrics(samples, folder / "history.om")
    server = LocalPrometheus(folder)
    create_blocks(folder / "history.om", server.data_dir)
    with server:
        yield server


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxiedKafka]:
    """One Apache Kafka a module, with a way in through a proxy."""
    with ProxiedKafka(tmp_path_factory.mktemp("kafka")) as started:
        yield started


@pytest.fixture(scope="module")
def net(broker: ProxiedKafka) -> Iterator[KafkaProxy]:
    """The way in of those who are held at a request, to be killed or overtaken."""
    with KafkaProxy(broker.proxied_port, broker.proxy_port) as proxy:
        yield proxy
