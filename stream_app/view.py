"""What one group of workers makes of the chunks, and the names that follow from it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import orjson

from ingestor.core.durations import ChunkSize
from ingestor.core.topics import DEFAULT_PREFIX, Topics
from stream_app.methods import Counters, GroupBy, Method, OverTime, Reductions


@dataclass(frozen=True, slots=True)
class View:
    """One chunk size, one way to reduce samples, one grouping."""

    chunk_size: ChunkSize
    method: Method
    over_time: OverTime = "pooled"
    group_by: tuple[GroupBy, ...] = ("pod",)
    topics: Topics = field(default_factory=lambda: Topics(DEFAULT_PREFIX))
    counters: Counters = "raw"
    metric_methods: tuple[tuple[str, Method], ...] = ()
    """Metrics, as regular expressions, that have a method of their own."""

    @property
    def reductions(self) -> Reductions:
        """What is done with which metric."""
        return Reductions(self.method, self.over_time, self.counters, self.metric_methods)

    @property
    def method_name(self) -> str:
        """How records name the method."""
        return self.reductions.name

    def in_words(self) -> str:
        """Say what was understood: ``windows of 5 minutes, mean of all samples, a record a pod``."""
        records = " and ".join(f"a record a {group_by}" for group_by in self.group_by)
        return f"windows of {self.chunk_size.in_words()}, {self.reductions.in_words()}, {records}"

    def sinks_in_words(self) -> str:
        """Name the sink topics."""
        return ", ".join(self.topics.sink(group_by) for group_by in self.group_by)

    @property
    def group_id(self) -> str:
        """The consumer group, and the beginning of the transactional ids."""
        return f"{self.topics.prefix}.view.{self.chunk_size}.{self.method_name}.{'+'.join(self.group_by)}"

    @property
    def identity(self) -> str:
        """What a commit must have been written by: the group, and which metrics have methods of their own."""
        if not self.metric_methods:
            return self.group_id
        digest = hashlib.blake2b(orjson.dumps(self.metric_methods), digest_size=5)
        return f"{self.group_id} with the metric methods {digest.hexdigest()}"

    def arguments(self) -> list[str]:
        """Write the view as flags of ``stream-app worker``."""
        arguments = ["--chunk-size", str(self.chunk_size), "--method", self.method, "--over-time", self.over_time]
        arguments += ["--counters", self.counters]
        for group_by in self.group_by:
            arguments += ["--group-by", group_by]
        for pattern, method in self.metric_methods:
            arguments += ["--metric-method", f"{pattern}={method}"]
        return arguments
