"""Which worker of the view has which partitions, asked of the group's coordinator."""

from __future__ import annotations

from dataclasses import dataclass

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from ingestor.kafka import Cluster, client_config, reason

_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class Member:
    """A worker."""

    member: str
    """How the group calls it."""
    slot: str | None
    """``slot-0``; None: it has none."""
    host: str
    partitions: tuple[int, ...]


class GroupLook:
    """Looks at one group. Calls block: keep them off the event loop."""

    def __init__(self, cluster: Cluster, group_id: str, topic: str) -> None:
        self._cluster, self._group_id, self._topic = cluster, group_id, topic
        self._admin: AdminClient | None = None

    def members(self) -> tuple[list[Member], str]:
        """Return the workers, and why they are not known: empty where they are."""
        if self._admin is None:
            self._admin = AdminClient(client_config(self._cluster))
        try:
            asked = self._admin.describe_consumer_groups([self._group_id], request_timeout=_TIMEOUT_S)
            members = asked[self._group_id].result().members
        except KafkaException as error:
            return [], f"the group {self._group_id} cannot be looked at: {reason(error)}"
        found = [
            Member(
                member.member_id,
                member.group_instance_id,
                str(member.host).lstrip("/"),
                tuple(
                    sorted(at.partition for at in member.assignment.topic_partitions if at.topic == self._topic)
                    if member.assignment
                    else ()
                ),
            )
            for member in members
        ]
        return sorted(found, key=lambda member: (member.slot or "~", member.member)), ""
