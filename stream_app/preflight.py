"""What a worker looks at before it begins: its rights, other views, and how long chunks are kept."""

from __future__ import annotations

import logging

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AclOperation, AdminClient, ConfigResource, ResourceType  # type: ignore[attr-defined]

from ingestor.core.errors import ConfigError
from ingestor.kafka import CONNECT_TIMEOUT_S, MAX_MESSAGE_BYTES, Cluster, commits, failure, when_settled
from stream_app.pipeline import refuse_other_view
from stream_app.view import View

log = logging.getLogger(__name__)

_PASSES = (
    # What was made just now, or a moment ago by another worker, is not known to every broker yet.
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    # One has answered: it is slow, or another one has just gone.
    KafkaError._TIMED_OUT,  # noqa: SLF001 - the library has no public name for it
)


def check_view(admin: AdminClient, cluster: Cluster, view: View, partitions: int) -> None:
    """Refuse a view that cannot be made right, of a chunk topic with so many partitions; warn of one that may not be.

    Raises:
        ConfigError: the user lacks a right, another view writes the same records, or chunks are deleted
            before windows close, or the view's metrics had other methods.
        PublishError: Kafka does not answer.
    """

    def look() -> None:
        _refuse_missing_rights(admin, view)
        _refuse_second_writer(admin, view)
        _refuse_other_commits(cluster, view, partitions)
        _refuse_short_retention(admin, view)

    try:
        when_settled(look, also=_PASSES)
        when_settled(lambda: _warn_of_small_messages(admin, view), also=_PASSES)
    except KafkaException as error:
        raise failure(error, "Kafka does not say what is there") from error


def _refuse_missing_rights(admin: AdminClient, view: View) -> None:
    """Faust would ask again for ever for what it may not read."""
    names = {view.topics.range_chunks: AclOperation.READ}
    names |= {view.topics.sink(group_by): AclOperation.WRITE for group_by in view.group_by}
    names[view.topics.dead_letters] = AclOperation.WRITE
    topics = admin.describe_topics(
        TopicCollection(list(names)), include_authorized_operations=True, request_timeout=CONNECT_TIMEOUT_S
    )
    asked = [(f"topic {name}", names[name], future.result().authorized_operations) for name, future in topics.items()]
    asked.append((f"consumer group {view.group_id}", AclOperation.READ, _rights_to_group(admin, view.group_id)))
    # A broker that does not say what is allowed will refuse it later.
    missing = [f"{right.name} on the {what}" for what, right, given in asked if given and right not in given]
    if missing:
        raise ConfigError(f"Kafka does not allow it: let --kafka-user have {' and '.join(missing)}")


def _rights_to_group(admin: AdminClient, group_id: str) -> list[AclOperation] | None:
    """Ask what may be done with a group."""
    groups = admin.describe_consumer_groups(
        [group_id], include_authorized_operations=True, request_timeout=CONNECT_TIMEOUT_S
    )
    operations: list[AclOperation] | None = groups[group_id].result().authorized_operations
    return operations


def _refuse_second_writer(admin: AdminClient, view: View) -> None:
    """Records do not name their view's grouping: a second writer of the same kind would double them."""
    groups = admin.list_consumer_groups(request_timeout=CONNECT_TIMEOUT_S).result().valid
    # A quantile can have a dot too: p99 and p99.9 are two families.
    family = view.group_id.rpartition(".")[0]
    for group in sorted(listing.group_id for listing in groups):
        of, _, grouping = group.rpartition(".")
        shared = set(grouping.split("+")) & set(view.group_by)
        if of == family and group != view.group_id and shared:
            raise ConfigError(
                f"the {' and '.join(sorted(shared))} records of this chunk size and method are written by the consumer "
                f"group {group} already: give --group-by as its workers have it, or delete that group if it is unused"
            )


def _refuse_other_commits(cluster: Cluster, view: View, partitions: int) -> None:
    """Methods of single metrics stand in no record: those that were written cannot be told from ours."""
    topic = view.topics.range_chunks
    for committed in commits(cluster, view.group_id, topic, partitions, waits_for_open=False):
        if committed.metadata:
            refuse_other_view(view, committed.metadata)


def _refuse_short_retention(admin: AdminClient, view: View) -> None:
    """A restart replays the chunks of the windows that were open: they must still be there."""
    topic = view.topics.range_chunks
    resource = ConfigResource(ResourceType.TOPIC, topic)
    configs = admin.describe_configs([resource], request_timeout=CONNECT_TIMEOUT_S)[resource].result()
    retention_ms = int(configs["retention.ms"].value)
    if 0 <= retention_ms < 2 * view.chunk_size.longest_ms:
        raise ConfigError(
            f"windows of {view.chunk_size.in_words()} need {topic} to keep chunks for twice as long: its retention.ms "
            f"is {retention_ms}; make it {2 * view.chunk_size.longest_ms} or more, or choose a shorter --chunk-size"
        )


def _warn_of_small_messages(admin: AdminClient, view: View) -> None:
    """A large record would end the worker, if one ever comes: topics of earlier releases have the broker's default."""
    names = [*(view.topics.sink(group_by) for group_by in view.group_by), view.topics.dead_letters]
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    for resource, future in admin.describe_configs(resources, request_timeout=CONNECT_TIMEOUT_S).items():
        try:
            found = future.result().get("max.message.bytes")
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_AUTHORIZATION_FAILED:
                raise
            # Whoever gives us rights may not want us to know.
            continue
        # Not every service that speaks Kafka's protocol has it.
        most_bytes = int(found.value) if found and found.value else MAX_MESSAGE_BYTES
        if most_bytes < MAX_MESSAGE_BYTES:
            log.warning(
                "a topic takes smaller messages than records may become, and one that it refuses ends the worker: "
                "kafka-configs.sh --alter --entity-type topics --entity-name %s --add-config max.message.bytes=%d",
                resource.name,
                MAX_MESSAGE_BYTES,
                extra={"topic": resource.name, "max_message_bytes": most_bytes},
            )
