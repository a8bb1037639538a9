"""``PodConsumer`` and a Kafka that lets in only whom it knows."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority
from pod_topic import PodTopic, record

from ingestor.core.errors import ConfigError
from ingestor.local.broker_security import ADMIN, BrokerSecurity
from ingestor.local.kafka import LocalKafka
from stream_app.consumer import PodConsumer

STRANGER = "stranger"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where passwords and certificates are."""
    made = tmp_path_factory.mktemp("secured")
    for name in (ADMIN, STRANGER, "wrong"):
        (made / name).write_text(secrets.token_hex(8) + "\n")
    return made


@pytest.fixture(scope="module")
def topic(folder: Path) -> Iterator[PodTopic]:
    """A topic with two records, behind TLS, SASL and rules."""
    authority = Authority(folder / "authority")
    users = {user: folder / user for user in (ADMIN, STRANGER)}
    security = BrokerSecurity(authority.ca_file, authority.issue("broker"), users)
    with LocalKafka(folder / "kafka", security=security) as kafka:
        made = PodTopic(kafka)
        made.make()
        made.send(record(0), record(1))
        yield made


def opened(topic: PodTopic, folder: Path, user: str, password: str, **arguments: Any) -> PodConsumer:
    return PodConsumer(
        **topic.where,
        until="now",
        kafka_ca_file=folder / "authority" / "ca.pem",
        kafka_sasl="SCRAM-SHA-512",
        kafka_user=user,
        kafka_password_file=str(folder / password),
        **arguments,
    )


@pytest.mark.parametrize("group", [None, "models"])
def test_who_is_known_is_let_in(topic: PodTopic, folder: Path, group: str | None) -> None:
    """Over TLS, with a password from a file; alone, and in a group."""
    with opened(topic, folder, ADMIN, ADMIN, group=group, start="earliest") as pods:
        assert len(list(pods)) == 2


def test_who_is_not_known_is_told(topic: PodTopic, folder: Path) -> None:
    """A wrong password is said to be one."""
    with pytest.raises(ConfigError, match="does not let the user admin in with SCRAM-SHA-512"):
        opened(topic, folder, ADMIN, "wrong").open()


def test_who_has_no_rights_is_told(topic: PodTopic, folder: Path) -> None:
    """What an administrator must grant is said."""
    with pytest.raises(ConfigError, match=r"let --kafka-user have .*on this prefix's topics|does not exist"):
        opened(topic, folder, STRANGER, STRANGER).open()


def test_plaintext_where_tls_is_asked(topic: PodTopic) -> None:
    """Without any of it, the broker's way in is told."""
    with pytest.raises(ConfigError, match="speaks TLS: give --kafka-tls"):
        PodConsumer(**topic.where).open()
