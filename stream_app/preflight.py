"""What a worker looks at before it begins: other views, and how long chunks are kept."""

from __future__ import annotations

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType  # type: ignore[attr-defined]

from ingestor.core.errors import ConfigError, PublishError
from ingestor.kafka import CONNECT_TIMEOUT_S, reason
from stream_app.pipeline import View


def check_view(admin: AdminClient, view: View) -> None:
    """Refuse a view that cannot be made right.

    Raises:
        ConfigError: another view writes the same records, or chunks are deleted before windows close.
        PublishError: Kafka does not answer.
    """
    try:
        _refuse_second_writer(admin, view)
        _refuse_short_retention(admin, view)
    except KafkaException as error:
        raise PublishError(f"Kafka does not say what is there: {reason(error)}") from error


def _refuse_second_writer(admin: AdminClient, view: View) -> None:
    """Records do not name their view's grouping: a second writer of the same kind would double them."""
    groups = admin.list_consumer_groups(request_timeout=CONNECT_TIMEOUT_S).result().valid
    family = view.group_id.rpartition(".")[0] + "."
    for group in sorted(listing.group_id for listing in groups):
        shared = set(group.removeprefix(family).split("+")) & set(view.group_by)
        if group.startswith(family) and group != view.group_id and shared:
            raise ConfigError(
                f"the {' and '.join(sorted(shared))} records of this chunk size and method are written by the consumer "
                f"group {group} already: give --group-by as its workers have it, or delete that group if it is unused"
            )


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
