"""The choice between remote read and the query API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from test_remote_read import ONE, PODS, START, TWO, Backend, frame, reply, series, stream

from ingestor.core.errors import SourceUnavailable
from ingestor.core.time_range import TimeRange
from ingestor.sources.auto import LONG_RANGE_MS, AutoSource
from ingestor.sources.registry import SOURCES

LONG = TimeRange(START, START + LONG_RANGE_MS)
SHORT = TimeRange(START, START + LONG_RANGE_MS - 1)
MATRIX = {"resultType": "matrix", "result": [{"metric": {"pod": "q"}, "values": [[START / 1000, "1"]]}]}


@pytest.fixture
def backend() -> Iterator[Backend]:
    backend = Backend()
    backend.query_result = MATRIX
    yield backend
    backend.server.shutdown()
    backend.server.server_close()


def test_the_registry_has_each_source_under_its_name() -> None:
    """What is typed is what chunks' headers say."""
    assert {name: source.name for name, source in SOURCES.items()} == {name: name for name in SOURCES}


def test_long_ranges_are_read_remotely_and_short_ones_queried(backend: Backend) -> None:
    """The blocks say which."""
    backend.answer = stream(ONE, TWO)
    source = AutoSource(backend.url)
    assert source.fetch(PODS, "up", SHORT).source == "query"
    assert backend.requests == []
    long = source.fetch(PODS, "up", LONG)
    assert (long.source, long.samples) == ("remote-read", 11)


def test_the_backend_is_asked_once(backend: Backend) -> None:
    """By many threads at once, too."""
    backend.answer = reply(400, 'unsupported path requested: "/api/v1/read"')
    source = AutoSource(backend.url)
    with ThreadPoolExecutor(4) as pool:
        blocks = list(pool.map(lambda _: source.fetch(PODS, "up", LONG), range(12)))
    assert {block.source for block in blocks} == {"query"}
    assert len(backend.requests) == 1


def test_a_backend_that_does_not_tell_is_asked_again(backend: Backend) -> None:
    """Overload at the start must not mean slow reading for a year, nor no reading at all."""
    source = AutoSource(backend.url)
    backend.answer = reply(503, "")
    assert source.fetch(PODS, "up", LONG).source == "query"
    backend.answer = stream(ONE)
    assert source.fetch(PODS, "up", LONG).source == "remote-read"


def test_what_remote_read_cannot_give_is_queried(backend: Backend) -> None:
    """One metric with labels that are the server's too does not slow the others down."""
    backend.configuration = (200, "global:\n  external_labels:\n    pod: a\n")
    backend.answer = stream(ONE)
    source = AutoSource(backend.url)
    assert json.loads(source.fetch(PODS, "up", LONG).label_sets[0]) == {"__name__": "up"}
    backend.names = ["up"]
    assert source.fetch(PODS, "up", LONG).source == "query"
    backend.names = []
    assert source.fetch(PODS, "up", LONG).source == "remote-read"


def test_a_broken_stream_is_not_hidden_by_a_query(backend: Backend) -> None:
    """What may pass is tried again, and not read in a slower way in silence."""
    source = AutoSource(backend.url)
    backend.answer = stream()
    source.fetch(PODS, "up", LONG)
    backend.answer = stream(frame(series({}))[:-1])
    with pytest.raises(SourceUnavailable):
        source.fetch(PODS, "up", LONG)
