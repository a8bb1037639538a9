"""What is asked of a cluster's security is checked whole, and secrets stay in their files."""

from __future__ import annotations

import ssl
from pathlib import Path

import click
import pytest
from certificates import Authority
from click.testing import CliRunner

from ingestor.core.errors import ConfigError
from ingestor.kafka import Cluster, client_config
from ingestor.kafka_security import SASL_MECHANISMS, Security
from ingestor.options import cluster_arguments, cluster_options

SECRET = "correct horse, battery=staple"  # noqa: S105 - made up


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority with a client's certificate."""
    made = Authority(tmp_path_factory.mktemp("certificates") / "authority")
    made.issue("client")
    return made


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    """A file with a password, as editors leave it."""
    path = tmp_path / "password"
    path.write_text(f"{SECRET}\n")
    return path


def faults(security: Security) -> str:
    with pytest.raises(ConfigError) as error:
        security.check()
    assert "\n" not in str(error.value)
    assert SECRET not in str(error.value)
    return str(error.value)


def test_a_plaintext_cluster_needs_nothing() -> None:
    """The default adds no setting."""
    Security().check()
    assert Security().librdkafka_settings() == {}
    assert Security().ssl_context() is None


@pytest.mark.parametrize("mechanism", SASL_MECHANISMS)
def test_the_protocol_follows_from_what_is_given(authority: Authority, password_file: Path, mechanism: str) -> None:
    """A file of TLS turns TLS on; the password is the file's line."""
    login = Security(mechanism=mechanism, user="me", password_file=password_file)
    login.check()
    assert login.protocol == "SASL_PLAINTEXT"
    encrypted = Security(ca_file=authority.ca_file, mechanism=mechanism, user="me", password_file=password_file)
    encrypted.check()
    assert encrypted.librdkafka_settings() == {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": mechanism,
        "sasl.username": "me",
        "sasl.password": SECRET,
        "ssl.ca.location": str(authority.ca_file),
    }
    assert Security(tls=True).librdkafka_settings()["security.protocol"] == "SSL"


def test_certificates_and_names_are_verified(authority: Authority) -> None:
    """Python's side asks for both; nothing in librdkafka's settings turns its own check off."""
    security = Security(ca_file=authority.ca_file)
    context = security.ssl_context()
    assert context is not None
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert security.librdkafka_settings().keys() == {"security.protocol", "ssl.ca.location"}


def test_what_is_missing_is_named_all_at_once(authority: Authority, password_file: Path) -> None:
    """Half a login, half a certificate and files that are not there are one message."""
    text = faults(Security(mechanism="PLAIN", cert_file=authority.ca_file, ca_file=Path("nowhere.pem")))
    for words in ("needs --kafka-user", "needs --kafka-password-file", "needs --kafka-key-file", "nowhere.pem"):
        assert words in text
    assert "needs --kafka-sasl" in faults(Security(user="me"))
    assert "needs --kafka-sasl" in faults(Security(password_file=password_file))
    assert "needs --kafka-cert-file" in faults(Security(key_file=authority.ca_file))
    assert "needs --kafka-key-file" in faults(Security(key_password_file=password_file))


def test_files_that_hold_something_else_are_refused(authority: Authority, tmp_path: Path) -> None:
    """No certificate, no password, or no text: named before a broker is asked."""
    other = tmp_path / "other"
    other.write_text("hello")
    assert "no PEM certificate" in faults(Security(ca_file=other))
    for content in (b"", b"\n", b"one\ntwo\n", b"\xff\xfe"):
        other.write_bytes(content)
        assert str(other) in faults(Security(mechanism="PLAIN", user="me", password_file=other))
    assert "is no file" in faults(Security(ca_file=tmp_path))


def test_a_key_must_be_the_certificates_own_and_open(authority: Authority, password_file: Path) -> None:
    """Another key, a wrong password of the key and none are refused; the right one is taken."""
    certificate = authority.issue("client")
    encrypted = authority.with_encrypted_key("client", password_file)
    wrong = password_file.with_name("wrong")
    wrong.write_text("wrong")
    for key, password in [(authority.issue("other"), None), (encrypted, wrong), (encrypted, None)]:
        text = faults(Security(cert_file=certificate, key_file=key, key_password_file=password))
        assert "cannot be used together" in text
    Security(cert_file=certificate, key_file=encrypted, key_password_file=password_file).check()


def test_no_repr_has_the_password(password_file: Path) -> None:
    """Clusters can be logged."""
    cluster = Cluster("kafka:9092", Security(mechanism="PLAIN", user="me", password_file=password_file))
    assert client_config(cluster)["sasl.password"] == SECRET
    assert SECRET not in repr(cluster)
    assert SECRET not in " ".join(cluster_arguments(cluster))


def test_flags_come_out_as_they_went_in(authority: Authority, password_file: Path) -> None:
    """What a child process is given makes the same cluster; so does the environment."""
    seen: list[Cluster] = []

    @click.command()
    @cluster_options(help="Where.")
    def command(cluster: Cluster) -> None:
        seen.append(cluster)

    cluster = Cluster(
        "kafka:9092",
        Security(
            tls=True,
            ca_file=authority.ca_file,
            cert_file=authority.issue("client"),
            key_file=authority.with_encrypted_key("client", password_file),
            key_password_file=password_file,
            mechanism="SCRAM-SHA-512",
            user="me",
            password_file=password_file,
        ),
    )
    arguments = cluster_arguments(cluster)
    CliRunner().invoke(command, arguments, catch_exceptions=False)
    arguments.insert(arguments.index("--kafka-tls") + 1, "true")
    names = [f"APP_{flag.removeprefix('--').replace('-', '_').upper()}" for flag in arguments[::2]]
    environment = dict(zip(names, arguments[1::2], strict=True))
    CliRunner().invoke(command, [], env=environment, auto_envvar_prefix="APP", catch_exceptions=False)
    assert seen == [cluster, cluster]


def test_a_password_in_the_clear_is_warned_of(password_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """PLAIN without TLS is possible, and said."""

    @click.command()
    @cluster_options(help="Where.")
    def command(cluster: Cluster) -> None:
        pass

    login = ["--kafka-user", "me", "--kafka-password-file", str(password_file), "--bootstrap-servers", "kafka:9092"]
    CliRunner().invoke(command, [*login, "--kafka-sasl", "scram-sha-256"], catch_exceptions=False)
    assert not caplog.records
    CliRunner().invoke(command, [*login, "--kafka-sasl", "plain"], catch_exceptions=False)
    assert ["--kafka-tls" in record.getMessage() for record in caplog.records] == [True]
