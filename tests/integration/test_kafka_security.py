"""TLS, SASL and ACLs on a real broker: the job runs with them, and who is not let in is told why."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import files
import pandas as pd
import pytest
from certificates import Authority
from commands import (
    PATIENCE_S,
    WHEN,
    Broker,
    backfill,
    ingestor,
    run,
    stream_app,
    view_of,
    wait_for_line,
    wait_until_windowed,
    worker,
    write_files,
)
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)

from ingestor.core.errors import ConfigError
from ingestor.core.topics import Topics
from ingestor.kafka import Cluster, connect, ensure_topics, partition_counts
from ingestor.kafka_security import SASL_MECHANISMS, Security
from ingestor.local.broker_security import ADMIN, BrokerSecurity, Listener
from ingestor.local.kafka import LocalKafka, give_scram_credentials
from ingestor.local.processes import Child, free_port
from ingestor.local.prometheus import LocalPrometheus
from ingestor.options import cluster_arguments

USER, STRANGER, ONLOOKER = "pipeline", "stranger", "onlooker"
PARTS = ("poller", "worker", "files")
"""Users who may do what their part needs, and nothing else."""
SECURITY_PAGE = Path(__file__).parents[2] / "docker/security.md"
CERTIFIED = "CN=client"
"""The name of a user who shows a certificate."""


@dataclass(frozen=True)
class Guest:
    """One way into the broker."""

    cluster: Cluster


@dataclass(frozen=True)
class Secured:
    """A broker that lets in only whom it knows, and what its guests may show."""

    broker: LocalKafka
    security: BrokerSecurity
    authority: Authority
    folder: Path

    def guest(self, user: str, mechanism: str = "SCRAM-SHA-256", **changed) -> Guest:
        return self.at("SASL_SSL", replace(self.security.client(user, mechanism), **changed))

    def at(self, listener: str, security: Security) -> Guest:
        port = self.broker.port if listener == "SASL_SSL" else self.security.more_listeners[listener].port
        return Guest(Cluster(f"127.0.0.1:{port}", security))

    def certified(self) -> Guest:
        """Return the way in with a client certificate, whose key is encrypted, and no password."""
        password_file = self.folder / "key-password"
        return self.at(
            "CERTIFIED",
            Security(
                ca_file=self.security.ca_file,
                cert_file=self.authority.issue("client"),
                key_file=self.authority.with_encrypted_key("client", password_file),
                key_password_file=password_file,
            ),
        )

    def assert_kept_secret(self, text: str) -> None:
        for file in (*self.security.password_files.values(), self.folder / "key-password", self.folder / "wrong"):
            assert file.read_text().strip() not in text, f"a password of {file.name} was shown"

    def refused(self, command: list[str], *words: str, **environment: str) -> None:
        """Run what must end with exit code 2 and one line that has *words*."""
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE_S, check=False, env=os.environ | environment
        )
        self.assert_kept_secret(done.stdout + done.stderr + " ".join(command))
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("error:")
        for word in words:
            assert word in last


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """One broker with every kind of listener."""
    folder = tmp_path_factory.mktemp("secured")
    authority = Authority(folder / "authority")
    users = (ADMIN, USER, STRANGER, ONLOOKER, *PARTS)
    for name in (*users, "key-password", "wrong"):
        # Characters that are special in flags, in Java's properties and in lists.
        (folder / name).write_text(f"{secrets.token_hex(8)},=[] #%\n")
    security = BrokerSecurity(
        ca_file=authority.ca_file,
        key_store=authority.issue("broker"),
        password_files={user: folder / user for user in users},
        more_listeners={
            "EXPIRED": Listener(free_port(), key_store=authority.issue("expired", days=0)),
            "ELSEWHERE": Listener(free_port(), key_store=authority.issue("elsewhere", address="DNS:kafka.example")),
            "MISCALLED": Listener(free_port(), advertised="localhost"),
            "CERTIFIED": Listener(free_port(), "SSL", client_certificates=True),
            "BARE": Listener(free_port(), "SASL_PLAINTEXT"),
        },
    )
    with LocalKafka(folder / "kafka", security=security) as broker:
        for user in (USER, CERTIFIED):
            allow(broker, user, *PIPELINE)
        yield Secured(broker, security, authority, folder)


def rights(kind: ResourceType, prefix: str, *operations: AclOperation) -> list[tuple]:
    return [(kind, prefix, operation) for operation in operations]


# All that the operator's guide says a user needs, and nothing else.
PIPELINE = [
    *rights(
        ResourceType.TOPIC, "metrics", AclOperation.CREATE, AclOperation.DESCRIBE, AclOperation.DESCRIBE_CONFIGS,
        AclOperation.READ, AclOperation.WRITE, AclOperation.DELETE,
    ),
    *rights(ResourceType.GROUP, "metrics", AclOperation.READ),
    *rights(ResourceType.TRANSACTIONAL_ID, "metrics", AclOperation.DESCRIBE, AclOperation.WRITE),
]  # fmt: skip


def allow(kafka: Broker, user: str, *what: tuple) -> None:
    bindings = [
        AclBinding(kind, prefix, ResourcePatternType.PREFIXED, f"User:{user}", "*", right, AclPermissionType.ALLOW)
        for kind, prefix, right in what
    ]
    # Answers come only while the client lives.
    admin = connect(kafka.cluster)
    for future in admin.create_acls(bindings).values():
        future.result()


def documented_rights(part: str, prefix: str) -> list[tuple]:
    """Return what the page on security says that a part needs, for topics of another prefix."""
    kinds = {
        "topic": ResourceType.TOPIC,
        "group": ResourceType.GROUP,
        "transactional id": ResourceType.TRANSACTIONAL_ID,
    }
    rows = re.findall(
        rf"^\| {part} \| ([a-z ]+) \| `metrics\.(.*)` \| ([A-Z_, ]+) \|$", SECURITY_PAGE.read_text(), re.MULTILINE
    )
    assert rows
    return [
        right
        for kind, name, operations in rows
        for right in rights(kinds[kind], f"{prefix}.{name}", *(AclOperation[o] for o in operations.split(", ")))
    ]


def test_each_part_runs_with_the_documented_rights(
    secured: Secured, prometheus: LocalPrometheus, samples: pd.DataFrame, tmp_path: Path
) -> None:
    """Three users, each with what the page on security says of its part, give the oracle's files together."""
    view = view_of("metrics-apart", "7m", "mean")
    for part in PARTS:
        allow(secured.broker, part, *documented_rights(part, "metrics-apart"))
    poller, windows, sink = (secured.guest(part) for part in PARTS)
    run(backfill(prometheus, poller, "metrics-apart"))
    with worker(windows, view, tmp_path / "worker.log") as child:
        wait_until_windowed(secured.guest(USER), view, child)
    write_files(sink, view, tmp_path / "data")
    files.assert_equal_to_oracle(files.read(tmp_path / "data", pods=True), samples, "7m", "mean", "pod")


@pytest.mark.parametrize("way", ["PLAIN", "SCRAM-SHA-256", "certificate"])
def test_the_job_runs_with_the_documented_rights(
    secured: Secured, prometheus: LocalPrometheus, samples: pd.DataFrame, tmp_path: Path, way: str
) -> None:
    """Poller, worker and file sink give the oracle's files, and show no password."""
    guest = secured.certified() if way == "certificate" else secured.guest(USER, way)
    view = view_of(f"metrics-{way.lower()}", "7m", "mean")
    log = tmp_path / "worker.log"
    published = run([*backfill(prometheus, guest, view.topics.prefix), "--log-level", "debug"])
    with worker(guest, view, log) as child:
        wait_until_windowed(guest, view, child)
    write_files(guest, view, tmp_path / "data")
    files.assert_equal_to_oracle(files.read(tmp_path / "data", pods=True), samples, "7m", "mean", "pod")
    secured.assert_kept_secret(published.stdout + published.stderr + log.read_text() + repr(guest))


def test_dataset_passes_everything_on(
    secured: Secured, prometheus: LocalPrometheus, samples: pd.DataFrame, tmp_path: Path
) -> None:
    """Its child processes get in too, no command line has a password, and settings of other commands do no harm."""
    guest = secured.guest(USER, "SCRAM-SHA-512")
    command = stream_app(
        "dataset", "--url", prometheus.url, *WHEN, "--preset", "none", "--chunk-size", "7m", "--method", "sum",
        "--storage", str(tmp_path / "data"), *cluster_arguments(guest.cluster),
    )  # fmt: skip
    foreign = {"STREAM_APP_WORKER_KAFKA_CERT_FILE": "/nowhere", "INGESTOR_BACKFILL_KAFKA_USER": "nobody"}
    seen = ""
    with (tmp_path / "printed").open("w+") as printed:
        process = subprocess.Popen(command, stdout=printed, stderr=printed, env=os.environ | foreign)
        while process.poll() is None:
            seen += subprocess.run(["ps", "-axww", "-o", "args="], capture_output=True, text=True, check=True).stdout
            time.sleep(0.2)
    assert process.returncode == 0, (tmp_path / "printed").read_text()
    assert "stream_app worker" in seen
    secured.assert_kept_secret(seen)
    for path in [tmp_path / "printed", *tmp_path.glob("data/.dataset/**/*")]:
        if path.is_file():
            secured.assert_kept_secret(path.read_text())
    files.assert_equal_to_oracle(files.read(tmp_path / "data", pods=True), samples, "7m", "sum", "pod")
    assert not [name for name in partition_counts(connect(guest.cluster)) if "dataset" in name]


def test_a_wrong_password_ends_every_command(secured: Secured, prometheus: LocalPrometheus, tmp_path: Path) -> None:
    """Each says who is not let in, and which flags to look at; a worker does not hang."""
    where = cluster_arguments(secured.guest(USER, password_file=secured.folder / "wrong").cluster)
    words = [USER, "SCRAM-SHA-256", "--kafka-password-file"]
    for command in (
        ingestor("backfill", "--url", prometheus.url, *WHEN, *where),
        stream_app("worker", "--web-listen-address", "none", *where),
        stream_app("files", "--storage", str(tmp_path / "data"), *where),
        stream_app("dataset", "--url", prometheus.url, *WHEN, "--storage", str(tmp_path / "dataset"), *where),
    ):
        secured.refused(command, *words)


def test_an_expired_certificate_ends_every_command(
    secured: Secured, prometheus: LocalPrometheus, tmp_path: Path
) -> None:
    """The broker's own: each says so in one line, instead of trying for ever."""
    where = cluster_arguments(secured.at("EXPIRED", secured.security.client(USER)).cluster)
    for command in (
        ingestor("backfill", "--url", prometheus.url, *WHEN, *where),
        stream_app("worker", "--web-listen-address", "none", *where),
        stream_app("files", "--storage", str(tmp_path / "data"), *where),
    ):
        secured.refused(command, "expired", "renewed")


def refusals(secured: Secured) -> dict[str, tuple[Guest, list[str]]]:
    knows_nobody = secured.security.client(USER)
    ca_file, without_tls = knows_nobody.ca_file, replace(knows_nobody, ca_file=None)
    wrong = secured.folder / "wrong"
    return {
        **{
            f"a wrong password, {mechanism}": (
                secured.guest(USER, mechanism, password_file=wrong),
                [USER, mechanism, "--kafka-password-file"],
            )
            for mechanism in SASL_MECHANISMS
        },
        "no TLS on a TLS port": (secured.at("SASL_SSL", without_tls), ["speaks TLS", "--kafka-tls"]),
        "nothing at all on a TLS port": (secured.at("SASL_SSL", Security()), ["speaks TLS", "--kafka-tls"]),
        "TLS on a plaintext port": (secured.at("BARE", knows_nobody), ["does not speak TLS", "--kafka-tls"]),
        "no SASL": (secured.at("SASL_SSL", Security(ca_file=ca_file)), ["SCRAM-SHA-256", "--kafka-sasl"]),
        "no SASL and no TLS": (secured.at("BARE", Security()), ["SCRAM-SHA-256", "--kafka-sasl"]),
        "an unknown authority": (secured.guest(USER, ca_file=None, tls=True), ["issuer", "--kafka-ca-file"]),
        "an expired certificate": (secured.at("EXPIRED", knows_nobody), ["expired", "renewed"]),
        "another host's certificate": (secured.at("ELSEWHERE", knows_nobody), ["127.0.0.1", "--bootstrap-servers"]),
        "a name that the certificate has not": (
            secured.at("MISCALLED", knows_nobody),
            ["its broker localhost", "advertised.listeners"],
        ),
        "no client certificate": (
            secured.at("CERTIFIED", Security(ca_file=ca_file)),
            ["client certificate", "--kafka-cert-file", "--kafka-key-file"],
        ),
        "a stranger's client certificate": (
            Guest(replace((guest := secured.certified()).cluster, security=foreign(secured, guest))),
            ["another client certificate", "--kafka-cert-file"],
        ),
        "SASL where there is none": (
            Guest(replace(guest.cluster, security=with_sasl(guest, knows_nobody))),
            ["does not ask for SASL", "--kafka-sasl"],
        ),
    }


def foreign(secured: Secured, guest: Guest) -> Security:
    both = Authority(secured.folder / f"foreign-{secrets.token_hex(4)}").issue("client")
    return replace(guest.cluster.security, cert_file=both, key_file=both, key_password_file=None)


def with_sasl(guest: Guest, login: Security) -> Security:
    return replace(
        guest.cluster.security, mechanism=login.mechanism, user=login.user, password_file=login.password_file
    )


def test_who_is_not_let_in_is_told_why(secured: Secured) -> None:
    """TLS, certificates, names and SASL that do not fit are told apart, with the flags to give."""
    for what, (guest, words) in refusals(secured).items():
        guest.cluster.security.check()
        with pytest.raises(ConfigError) as refused:
            connect(guest.cluster)
        assert all(word in str(refused.value) for word in words), (what, str(refused.value))
        assert "no Kafka broker answers" not in str(refused.value)


def test_the_systems_authorities_count_for_both_clients(secured: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a file of ours, librdkafka trusts whom Python trusts."""
    monkeypatch.setenv("SSL_CERT_FILE", str(secured.security.ca_file))
    connect(secured.guest(USER, ca_file=None, tls=True).cluster)


def test_a_cluster_that_is_not_there_is_not_called_wrong(secured: Secured) -> None:
    """Flags of TLS and SASL do not hide that nobody listens."""
    with pytest.raises(ConfigError, match="no Kafka broker answers"):
        connect(Cluster(f"127.0.0.1:{free_port()}", secured.security.client(USER)))


def test_missing_rights_are_named(secured: Secured, prometheus: LocalPrometheus, tmp_path: Path) -> None:
    """Commands of a user without rights end; a worker that may only look does not wait for ever."""
    stranger = cluster_arguments(secured.guest(STRANGER).cluster)
    prefix = ["--topic-prefix", "metrics-rights"]
    ensure_topics(connect(secured.broker.cluster), Topics("metrics-rights"), 2)
    words = ["not allow", "--kafka-user", "READ"]
    secured.refused(ingestor("backfill", "--url", prometheus.url, *WHEN, *stranger, *prefix), *words)
    secured.refused(stream_app("worker", "--web-listen-address", "none", *stranger, *prefix), *words)
    secured.refused(stream_app("files", "--storage", str(tmp_path / "data"), *stranger, *prefix), *words)
    allow(
        secured.broker,
        ONLOOKER,
        *rights(ResourceType.TOPIC, "metrics-rights", AclOperation.DESCRIBE, AclOperation.DESCRIBE_CONFIGS),
        *rights(ResourceType.GROUP, "metrics-rights", AclOperation.DESCRIBE),
        *rights(ResourceType.TRANSACTIONAL_ID, "metrics-rights", AclOperation.WRITE),
    )
    onlooker = cluster_arguments(secured.guest(ONLOOKER).cluster)
    secured.refused(
        stream_app("worker", "--web-listen-address", "none", *onlooker, *prefix),
        "READ on the topic metrics-rights.range-chunks",
        "WRITE on the topic metrics-rights.pods",
        "READ on the consumer group metrics-rights.",
    )
    secured.refused(ingestor("backfill", "--url", prometheus.url, *WHEN, *onlooker, *prefix), *words)
    secured.refused(stream_app("files", "--storage", str(tmp_path / "data"), *onlooker, *prefix), "READ")


def test_every_fault_is_named_at_once(secured: Secured, tmp_path: Path) -> None:
    """Flags that do not belong together are refused together, and the environment counts as flags do."""
    storage = ["--storage", str(tmp_path / "data")]
    secured.refused(
        stream_app("files", *storage, "--kafka-sasl", "scram-sha-256", "--kafka-ca-file", "nowhere.pem"),
        *("--kafka-user", "--kafka-password-file", "nowhere.pem", "--kafka-key-file"),
        STREAM_APP_FILES_KAFKA_CERT_FILE=str(secured.authority.issue("alone")),
    )
    secured.refused(
        stream_app("dataset", "--url", "http://127.0.0.1:1", "--start", "1h", *storage, "--kafka-tls"),
        "--bootstrap-servers",
    )


def test_a_password_that_is_changed_ends_what_runs(
    secured: Secured, prometheus: LocalPrometheus, tmp_path: Path
) -> None:
    """Once the broker asks again, what runs ends with a line, instead of trying the old password for ever."""
    old = tmp_path / "old"
    shutil.copy(secured.folder / USER, old)
    guest = secured.guest(USER, password_file=old)
    admin = connect(guest.cluster)
    ensure_topics(admin, Topics("metrics-new"), 2)
    where = ["--topic-prefix", "metrics-new", *cluster_arguments(guest.cluster)]
    poller = Child(
        ingestor("run", "--url", prometheus.url, *WHEN[:2], "--preset", "none", "--poll-interval", "1s", *where),
        log_path=tmp_path / "poller.log",
    )
    sink = Child(stream_app("files", "--storage", str(tmp_path / "data"), *where), log_path=tmp_path / "files.log")
    view = ["--chunk-size", "1m", "--web-listen-address", "none"]
    windows = Child(stream_app("worker", *view, *where), log_path=tmp_path / "worker.log")
    with poller, sink, windows:
        wait_for_line(poller, "range published")
        wait_for_line(sink, "rows written")
        wait_for_line(windows, "worker is ready")
        (secured.folder / USER).write_text(f"{secrets.token_hex(8)}\n")
        give_scram_credentials(connect(secured.broker.cluster), secured.security)
        secured.broker.stop()
        secured.broker.start()
        # What a poller asks when it begins again after a failure.
        with pytest.raises(ConfigError, match="--kafka-password-file"):
            partition_counts(admin)
        for child in (poller, sink, windows):
            assert child.wait(PATIENCE_S) == 2, child.log_tail()
            last = child.log_tail().splitlines()[-1]
            assert last.startswith("error:")
            assert "--kafka-password-file" in last
            secured.assert_kept_secret(child.log_tail(1000))
            assert old.read_text().strip() not in child.log_tail(1000)
    connect(secured.guest(USER).cluster)
