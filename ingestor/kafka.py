"""Kafka at the edge: client settings, topics made when missing, whole topics read once.

The one I/O module that both packages use.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec  # type: ignore[attr-defined]

from ingestor.core.errors import ConfigError, IngestorError, NotLetIn, PublishError
from ingestor.core.topics import Topics
from ingestor.kafka_diagnosis import refusal
from ingestor.kafka_security import Security

DEFAULT_PARTITIONS = 8
"""The most workers one view can have."""

_Answer = TypeVar("_Answer")

CONNECT_TIMEOUT_S = 10.0
"""A broker that does not answer for so long is not there."""

_FIRST_LOOK_S = 1.0
_CHECKED_BROKERS = 3

_SETTLED_S = 30.0

_ROOM_S = 0.05

_READ_TO_END_S = 90.0
"""Longer than a crashed writer's transaction stays open (30 s)."""

FOREVER_MS = -1
"""Kafka's own spelling of a retention without end."""

MAX_MESSAGE_BYTES = 2_097_152
"""Of the sink topics and of dead letters: a broker's default is half of that."""

COMPACTED = {"cleanup.policy": "compact"}
DELETED_WITH_AGE = {"cleanup.policy": "delete"}

_RIGHTS = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "CREATE, DESCRIBE, DESCRIBE_CONFIGS, READ and WRITE on this prefix's topics",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "READ and DESCRIBE on this prefix's consumer groups",
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "WRITE and DESCRIBE on this prefix's transactional ids",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "it on the cluster",
}
"""What a user needs of a cluster with an authorizer (ACLs)."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A Kafka cluster, and how to get in."""

    bootstrap_servers: str
    security: Security = field(default_factory=Security)


def client_config(cluster: Cluster) -> dict[str, Any]:
    """Return what every confluent-kafka client of ours is given: it can hold a password, so show it to nobody.

    Raises:
        ConfigError: the file of a secret cannot be read any more.
    """
    return {
        **cluster.security.librdkafka_settings(),
        "bootstrap.servers": cluster.bootstrap_servers,
        # Only what is fatal is printed by librdkafka itself; we raise what matters.
        "log_level": 2,
        "client.id": "podstream",
    }


def reason(error: KafkaException | KafkaError) -> str:
    """Return the broker's or client's own words for *error*."""
    cause = error.args[0] if isinstance(error, KafkaException) and error.args else error
    return cause.str() if isinstance(cause, KafkaError) else str(cause)


def when_settled(ask: Callable[[], _Answer], also: Collection[int] = ()) -> _Answer:
    """Ask until a group's coordinator and all partitions' leaders are ready, or have not been for 30 s.

    Args:
        ask: may be called again and again.
        also: more codes of errors that pass.

    Raises:
        KafkaException: what came last.
    """
    deadline = time.monotonic() + _SETTLED_S
    while True:
        try:
            return ask()
        except KafkaException as error:
            if not (_is_settling(error) or error.args[0].code() in also) or time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def _is_settling(error: KafkaException) -> bool:
    """Tell whether a broker is only not ready yet, as just after its start, or after a topic was made."""
    return error.args[0].code() in (
        KafkaError.NOT_COORDINATOR,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
    )


def failure(error: KafkaException | KafkaError, what: str) -> IngestorError:
    """Return what to raise for a call that failed: `ConfigError` where an administrator must grant something.

    Args:
        error: the library's.
        what: could not be done, in words.
    """
    cause = error.args[0] if isinstance(error, KafkaException) and error.args else error
    right = _RIGHTS.get(cause.code()) if isinstance(cause, KafkaError) else None
    if right is None:
        return PublishError(f"{what}: {reason(error)}")
    return ConfigError(f"{what}: Kafka does not allow it ({reason(error)}): let --kafka-user have {right}")


def connect(cluster: Cluster) -> AdminClient:
    """Return an admin client of a cluster that answers, and lets us in.

    Raises:
        ConfigError: no broker answers, or none lets us in; the message says what to give.
    """
    try:
        admin = Admin(cluster)
    except KafkaException as error:
        raise ConfigError(f"Kafka's client cannot use these --kafka-* settings: {reason(error)}") from error
    # A client that is not let in waits out its time: look for the reason soon.
    for timeout_s in (_FIRST_LOOK_S, CONNECT_TIMEOUT_S):
        try:
            brokers = admin.list_topics(timeout=timeout_s).brokers.values()
        except KafkaException as error:
            if why := refusal(cluster.bootstrap_servers, cluster.security):
                raise ConfigError(f"Kafka at {why}") from error
            admin.raise_if_refused()
            # Once it has learned the brokers' own names, the library may ask by these only.
            _check_advertised(admin.without_tls, cluster.security)
            last = error
        else:
            _check_advertised([f"{broker.host}:{broker.port}" for broker in brokers], cluster.security)
            return admin
    if admin.tls_failure is not None:
        raise ConfigError(
            f"Kafka at {cluster.bootstrap_servers} and we do not agree on TLS ({reason(admin.tls_failure)}): "
            "look at --kafka-ca-file and at the brokers' certificates"
        ) from last
    raise ConfigError(
        f"no Kafka broker answers at {cluster.bootstrap_servers} ({reason(last)}): "
        "is it running there? give --bootstrap-servers"
    ) from last


def _check_advertised(servers: list[str], security: Security) -> None:
    """Refuse a cluster whose brokers call themselves by names that their certificates do not have.

    The address that was given can be fine all the same, and every later call would only time out.

    Raises:
        ConfigError: one of the first few is such a broker.
    """
    if security.encrypted and (why := refusal(",".join(servers[:_CHECKED_BROKERS]), security)):
        raise ConfigError(f"Kafka answers, but its broker {why}")


class Admin(AdminClient):
    """An admin client that knows why it is not let in: calls that fail only say that time is up."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._refused: KafkaError | None = None
        self.tls_failure: KafkaError | None = None
        self.without_tls: list[str] = []
        """Brokers' addresses at which TLS has failed."""
        config: dict[str, Any] = {**client_config(cluster), "error_cb": self._hear}
        super().__init__(config)

    def was_let_in(self) -> None:
        """Forget what was heard before an answer."""
        self.poll(0)
        self._refused = None

    def raise_if_refused(self) -> None:
        """Raise what was heard since the last time, or the last answer.

        Raises:
            NotLetIn: the cluster refused user or password.
        """
        self._refused = None
        # What has happened meanwhile is told only here.
        self.poll(0)
        if self._refused is not None:
            raise NotLetIn(_not_let_in(self._cluster, self._refused))

    def _hear(self, error: KafkaError) -> None:
        if is_refusal(error):
            self._refused = error
        elif error.code() == KafkaError._SSL:  # noqa: SLF001 - the library has no public name for it
            self.tls_failure = error
            if (at := re.match(r"\w+://([^/]+)/", reason(error))) and at[1] not in self.without_tls:
                self.without_tls.append(at[1])


def is_refusal(error: KafkaError) -> bool:
    """Tell whether an error says that user or password are wrong."""
    # A connection that is cut amid its handshake is called so too.
    is_cut = "transport failure" in error.str()
    return error.code() == KafkaError._AUTHENTICATION and not is_cut  # noqa: SLF001 - no public name for it


def _not_let_in(cluster: Cluster, error: KafkaError) -> str:
    # Its reason stands between the connection's address and state.
    words = re.sub(r"^\S+://\S+: | \(after \d+ms in state \w+\)", "", reason(error))
    security = cluster.security
    return (
        f"Kafka at {cluster.bootstrap_servers} does not let the user {security.user} in with {security.mechanism} "
        f"({words}): look at --kafka-user, --kafka-password-file and --kafka-sasl"
    )


def partition_counts(admin: AdminClient) -> dict[str, int]:
    """Return the number of partitions of every topic of the cluster.

    Raises:
        PublishError: no broker answers.
        ConfigError: none lets us in any more.
    """
    return {name: len(topic.partitions) for name, topic in _topics(admin).items()}


def _topics(admin: AdminClient) -> dict[str, Any]:
    with _asking(admin, "Kafka's topics cannot be listed"):
        return dict(admin.list_topics(timeout=CONNECT_TIMEOUT_S).topics)


@contextmanager
def _asking(admin: AdminClient, what: str) -> Iterator[None]:
    """Turn the failure of a question into ours: an `Admin` may know that we are not let in any more."""
    try:
        yield
    except KafkaException as error:
        if isinstance(admin, Admin):
            admin.raise_if_refused()
        raise failure(error, what) from error
    if isinstance(admin, Admin):
        admin.was_let_in()


@dataclass(frozen=True, slots=True)
class FoundTopic:
    """A topic that is there."""

    id: str
    """Another one once the topic was deleted and made anew."""
    partitions: tuple[int, ...]


def find_topics(admin: AdminClient, names: Collection[str]) -> dict[str, FoundTopic]:
    """Return those of the topics that exist.

    Raises:
        KafkaException: the broker does not answer, or does not say.
    """
    found: dict[str, FoundTopic] = {}
    for name, future in admin.describe_topics(TopicCollection(list(names)), request_timeout=CONNECT_TIMEOUT_S).items():
        try:
            topic = future.result()
        except KafkaException as error:
            if not is_missing(error.args[0]):
                raise
        else:
            found[name] = FoundTopic(str(topic.topic_id), tuple(partition.id for partition in topic.partitions))
    return found


def ensure_topics(admin: AdminClient, topics: Topics, partitions: int | None, retention_ms: int | None = None) -> int:
    """Make the pipeline's topics where missing and return their number of partitions.

    Args:
        admin: a client of the cluster.
        topics: the names.
        partitions: wanted for new topics, or None: what the existing ones have, else 8.
        retention_ms: of new topics, or None: the broker's default.

    Raises:
        ConfigError: the existing topics have another number of partitions than wanted,
            or than one another: records go to the partition number of their chunks.
    """
    existing = partition_counts(admin)
    found = {name: existing[name] for name in topics.partitioned if name in existing}
    wanted = partitions or next(iter(found.values()), DEFAULT_PARTITIONS)
    for name, count in found.items():
        if count != wanted:
            raise ConfigError(
                f"topic {name} has {count} partitions, not {wanted}: a pod must never change its partition; "
                "choose another --topic-prefix, or delete the prefix's topics"
            )
    config = DELETED_WITH_AGE | ({} if retention_ms is None else {"retention.ms": str(retention_ms)})
    missing = [
        NewTopic(
            name,
            num_partitions=wanted,
            replication_factor=-1,
            # A record may have many metrics; a dead letter is a message as large as the broker takes, and why it is
            # dead.
            config=config | ({} if name == topics.range_chunks else {"max.message.bytes": str(MAX_MESSAGE_BYTES)}),
        )
        for name in topics.partitioned
        if name not in existing
    ]
    missing += [
        NewTopic(name, num_partitions=1, replication_factor=-1, config=COMPACTED)
        for name in topics.compacted
        if name not in existing
    ]
    for name, future in admin.create_topics(missing).items() if missing else ():
        try:
            future.result()
        except KafkaException as error:
            if error.args[0].retriable():
                raise failure(error, f"topic {name} cannot be made") from error
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise ConfigError(str(failure(error, f"topic {name} cannot be made"))) from error
    names = {*topics.partitioned, *topics.compacted}
    if missing:
        _wait_until_known(admin, names)
    wait_for_leaders(admin, names)
    return wanted


def _wait_until_known(admin: AdminClient, names: Collection[str]) -> None:
    """Wait until topics that were made are in the brokers' own lists: the controller answers before that.

    Raises:
        PublishError: they are not within 30 s.
    """
    deadline = time.monotonic() + _SETTLED_S
    while unknown := set(names) - partition_counts(admin).keys():
        if time.monotonic() > deadline:
            raise PublishError(f"the topics {sorted(unknown)} were made and do not appear: look at the brokers' logs")
        time.sleep(0.05)


def wait_for_leaders(admin: AdminClient, names: Collection[str]) -> None:
    """Wait until the leader of every partition of those topics that are there answers: a new one refuses for a moment.

    Raises:
        PublishError: they do not within 30 s.
    """
    counts = {name: count for name, count in partition_counts(admin).items() if name in names}
    latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
    waiting = {TopicPartition(name, p): latest for name, count in counts.items() for p in range(count)}
    deadline = time.monotonic() + _SETTLED_S
    why = ""
    while waiting:
        if time.monotonic() > deadline:
            raise PublishError(f"the topics {sorted(names)} cannot be used ({why}): look at the broker's log")
        futures = admin.list_offsets(waiting, request_timeout=CONNECT_TIMEOUT_S)
        waiting = {}
        for partition, future in futures.items():
            try:
                future.result()
            except KafkaException as error:
                if isinstance(refused := failure(error, f"topic {partition.topic} cannot be used"), ConfigError):
                    raise refused from error
                waiting[partition], why = latest, reason(error)
        if waiting:
            time.sleep(0.05)


def hand_over(producer: Producer, topic: str, value: bytes, *more: Any, timeout_s: float, **named: Any) -> None:
    """Give a message to the library, which sends it; wait while its queue is full, as of a slow broker.

    Args:
        producer: whose queue.
        topic: where to.
        value: the message's.
        more: what ``produce`` takes.
        timeout_s: for one message.
        named: what ``produce`` takes.

    Raises:
        BufferError: there was no room for so long.
    """
    deadline = None
    while True:
        try:
            producer.produce(topic, value, *more, **named)
        except BufferError:
            deadline = deadline or time.monotonic() + timeout_s
            if time.monotonic() > deadline:
                raise
            # Room is made when what was sent is acknowledged; poll takes note of that.
            producer.poll(_ROOM_S)
        else:
            return


def assigned_consumer(cluster: Cluster, name: str, **settings: Any) -> Consumer:
    """Return a read_committed consumer for partitions that are assigned by hand; it commits nothing.

    Args:
        cluster: where to read.
        name: a topic or a topics' prefix; with an authorizer, what begins so is what we have rights to.
        settings: more of the library's.
    """
    return Consumer(
        {
            **client_config(cluster),
            # The library wants a group, and the broker looks at our right to it; none is joined.
            "group.id": f"{name}.reader",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            **settings,
        }
    )


MEMBER_SETTINGS: Mapping[str, Any] = {
    # A member asks about its topic once before it joins. Where the answer is lost, with a connection that the library
    # gives up by itself, it waits for the next time that the library asks anyway: 5 minutes by default.
    "topic.metadata.refresh.interval.ms": 5_000,
    # Three times that, if not said; a broker may well be away for longer.
    "metadata.max.age.ms": 900_000,
}
"""What librdkafka's members of groups are given; a worker is Faust's."""


def consumer_to_end(cluster: Cluster, name: str) -> Consumer:
    """Return an `assigned_consumer` that tells where a partition ends (`is_end`), once an assignment.

    What is deleted already is left out.
    """
    settings = {
        "enable.partition.eof": True,
        # The end is told only once the broker answers, which that would put off for half a second.
        "fetch.wait.max.ms": 10,
        # Else the library goes from a deleted offset to the end, and a topic that retention has cut seems empty.
        "auto.offset.reset": "earliest",
    }
    return assigned_consumer(cluster, name, **settings)


def is_end(error: KafkaError) -> bool:
    """Tell whether what came is no error but the end of a partition."""
    return error.code() == KafkaError._PARTITION_EOF  # noqa: SLF001 - the library has no public name for it


def is_missing(error: KafkaError) -> bool:
    """Tell whether a topic or a partition is not there, or not any more."""
    return error.code() in (
        # The library has no public names for the first two.
        KafkaError._UNKNOWN_TOPIC,  # noqa: SLF001
        KafkaError._UNKNOWN_PARTITION,  # noqa: SLF001
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.UNKNOWN_TOPIC_ID,
    )


def read_to_end(cluster: Cluster, topic: str, partition: int = 0) -> Iterator[Message]:
    """Yield the committed messages of a partition from its beginning to its end as of now.

    An open transaction of another writer hides what was committed behind it: wait
    until it has ended, or what is yielded would be older than it looks.

    Raises:
        PublishError: the broker stopped answering, or a transaction stays open.
    """
    consumer = consumer_to_end(cluster, topic)
    try:
        at = TopicPartition(topic, partition, 0)
        end = _settled_watermarks(cluster, topic, [partition])[partition]
        consumer.assign([at])
        deadline = time.monotonic() + _READ_TO_END_S
        while end > 0:
            message = consumer.poll(1.0)
            if message is None:
                if time.monotonic() > deadline:
                    raise PublishError(
                        f"{topic} cannot be read to its end, nothing has come for {_READ_TO_END_S:.0f} s: a "
                        "transaction there does not end (kafka-transactions.sh find-hanging finds it; a local dataset: "
                        "--overwrite begins it anew)"
                    )
                continue
            if error := message.error():
                if not is_end(error):
                    raise failure(error, f"{topic} cannot be read")
                if (message.offset() or 0) >= end:
                    return
                continue
            yield message
            # Millions of records may take longer, and so may who takes them.
            deadline = time.monotonic() + _READ_TO_END_S
    except KafkaException as error:
        raise failure(error, f"{topic} cannot be read") from error
    finally:
        consumer.close()


def high_watermarks(admin: AdminClient, places: Iterable[tuple[str, int]]) -> dict[tuple[str, int], int]:
    """Return the offsets behind all that topics' partitions hold as of now, with what cannot be read yet.

    A commit is answered before its end stands in every partition, and an open transaction
    hides what others have committed behind it: who wants all that is committed by now
    waits until both can be read.

    Raises:
        KafkaException: the broker does not answer.
    """
    return list_offsets(admin, places, OffsetSpec.latest(), IsolationLevel.READ_UNCOMMITTED)  # type: ignore[no-untyped-call]


def list_offsets(
    admin: AdminClient,
    places: Iterable[tuple[str, int]],
    spec: OffsetSpec,
    isolation: IsolationLevel = IsolationLevel.READ_COMMITTED,
) -> dict[tuple[str, int], int]:
    """Return what the broker answers for topics' partitions.

    Raises:
        KafkaException: the broker does not answer.
    """
    futures = admin.list_offsets(
        {TopicPartition(topic, partition): spec for topic, partition in places},
        isolation_level=isolation,
        request_timeout=CONNECT_TIMEOUT_S,
    )
    return {(at.topic, at.partition): int(future.result().offset) for at, future in futures.items()}


def _settled_watermarks(cluster: Cluster, topic: str, partitions: Iterable[int]) -> dict[int, int]:
    admin, places = AdminClient(client_config(cluster)), [(topic, partition) for partition in partitions]
    return {partition: end for (_, partition), end in when_settled(lambda: high_watermarks(admin, places)).items()}


def stable_ends(admin: AdminClient, topic: str, partitions: Collection[int]) -> dict[int, int]:
    """Return the offset behind what is committed in each partition; an open transaction hides what comes after it.

    Raises:
        PublishError: the broker does not answer.
        ConfigError: we may not know.
        NotLetIn: by an `Admin`, where the cluster does not let us in any more.
    """
    places = [(topic, partition) for partition in partitions]
    with _asking(admin, f"the ends of {topic} cannot be read"):
        ends = list_offsets(admin, places, OffsetSpec.latest())  # type: ignore[no-untyped-call]
    return {partition: end for (_, partition), end in ends.items()}


def latest_by_key(cluster: Cluster, topic: str) -> Mapping[bytes, bytes]:
    """Return the last committed value of each key of a compacted topic with one partition."""
    latest: dict[bytes, bytes] = {}
    for message in read_to_end(cluster, topic):
        key, value = message.key() or b"", message.value()
        if value is None:
            latest.pop(key, None)
        else:
            latest[key] = value
    return latest


def has_unread(cluster: Cluster, topic: str, offsets: Mapping[int, int]) -> bool:
    """Tell whether a partition has committed messages at or behind its offset in *offsets*, or may have them soon.

    Known from the messages, not from offsets: what ends a transaction takes an offset and is no message.
    Behind an open transaction there may be messages that are committed and cannot be read yet.
    """
    try:
        written_to = _settled_watermarks(cluster, topic, offsets)
    except KafkaException as problem:
        if _is_settling(problem) or problem.args[0].code() == KafkaError._TIMED_OUT:  # noqa: SLF001 - no public name
            return True
        raise failure(problem, f"the ends of {topic} cannot be read") from problem
    consumer = consumer_to_end(cluster, topic)
    try:
        consumer.assign([TopicPartition(topic, partition, offset) for partition, offset in offsets.items()])
        ended: set[int] = set()
        while len(ended) < len(offsets):
            message = consumer.poll(10.0)
            error = message.error() if message is not None else None
            if message is None or error is None:
                return True
            if not is_end(error):
                raise failure(error, f"{topic} cannot be read")
            number, at = message.partition() or 0, message.offset() or 0
            if at < written_to[number]:
                return True
            ended.add(number)
        return False
    finally:
        consumer.close()


def commits(
    cluster: Cluster, group_id: str, topic: str, partitions: int, *, waits_for_open: bool = True
) -> list[TopicPartition]:
    """Return what a consumer group has committed for each partition; a negative offset where that is nothing.

    Asked as a consumer, which finds the group's coordinator however it moves. The admin client's own question ends the
    process with a segmentation fault where a broker answers that it is not the coordinator (librdkafka 2.16).

    Args:
        waits_for_open: what an open transaction has committed is waited for; else what was committed before it counts.

    Raises:
        KafkaException: no answer came in time, or it is refused.
    """
    level = "read_committed" if waits_for_open else "read_uncommitted"
    consumer = Consumer({**client_config(cluster), "group.id": group_id, "isolation.level": level})
    try:
        return stored_commits(consumer, [TopicPartition(topic, p) for p in range(partitions)], CONNECT_TIMEOUT_S)
    finally:
        consumer.close()


def stored_commits(consumer: Consumer, places: list[TopicPartition], timeout_s: float) -> list[TopicPartition]:
    """Return what the consumer's group has committed there; a negative offset where that is nothing.

    Raises:
        KafkaException: no answer came in time, or it is refused, for all or for one of them.
    """
    stored = consumer.committed(places, timeout_s)
    for at in stored:
        if at.error is not None:
            raise KafkaException(at.error)
    return stored


def committed_offsets(cluster: Cluster, group_id: str, topic: str, partitions: int) -> dict[int, int] | None:
    """Return what a consumer group has committed for every partition; None while one has nothing, or is not to be had.

    What a killed worker's open transaction has committed is told only when that has timed out.
    """
    try:
        offsets = {tp.partition: tp.offset for tp in commits(cluster, group_id, topic, partitions)}
        return offsets if all(offset >= 0 for offset in offsets.values()) else None
    except KafkaException as error:
        if _is_settling(error) or error.args[0].code() == KafkaError._TIMED_OUT:  # noqa: SLF001 - no public name
            return None
        raise failure(error, "committed offsets cannot be read") from error
