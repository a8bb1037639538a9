"""What a `PodConsumer` is asked for is checked before Kafka is, and what it loads is little."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from base_install import alone

from ingestor.core.errors import ConfigError
from stream_app.consumer import PodConsumer


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"lookback": "2 hours"}, "not a duration"),
        ({"lookback": timedelta(0)}, "not positive"),
        ({"start": "yesterday"}, "or earliest or latest"),
        ({"start": datetime(2026, 1, 1)}, "has no time zone"),  # noqa: DTZ001 - that is what is wrong
        ({"chunk_size": "1x"}, "not a chunk size"),
        ({"group_by": "node"}, "write pod or service"),
        ({"until": "tomorrow"}, "write now, or leave it out"),
        ({"late": "drop"}, "write deliver or history"),
        ({"group_instance_id": "a"}, "needs group="),
        ({"auto_commit": False}, "needs group="),
        ({"group": ""}, "group= is empty"),
        ({"group_by": "service", "pods": ["a"]}, "no pod: give services="),
        ({"group": "a", "session_timeout_s": 0}, "must be positive"),
        ({"kafka_sasl": "PLAIN"}, "--kafka-sasl PLAIN needs --kafka-user"),
        ({"kafka_ca_file": "/nowhere.pem"}, "/nowhere.pem cannot be read"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], words: str) -> None:
    """Each says what to write instead."""
    with pytest.raises(ConfigError) as told:
        PodConsumer(**arguments)
    assert words in str(told.value)


def test_all_faults_at_once() -> None:
    """Who has made three mistakes is told of three."""
    with pytest.raises(ConfigError) as told:
        PodConsumer(lookback="x", until="then", kafka_user="me")  # type: ignore[arg-type]
    assert str(told.value).count(";") == 2


def test_it_needs_the_base_dependencies_only() -> None:
    """In an interpreter that has nothing else it is imported, and neither Faust nor a sink comes with it."""
    loaded = alone("import stream_app.consumer\nprint(*sys.modules)").split()
    assert "confluent_kafka" in loaded
    top = {name.partition(".")[0] for name in loaded}
    unwanted = {"faust", "aiokafka", "mode", "pyarrow", "numba", "requests", "click", "rich", "yaml", "tenacity"}
    assert not top & unwanted
    assert not [name for name in loaded if name.startswith(("stream_app.sinks", "stream_app.app", "stream_app.files"))]


def test_the_programs_do_not_run_there() -> None:
    """What is not installed is really not found."""
    with pytest.raises(AssertionError, match="No module named"):
        alone("import stream_app.cli")
