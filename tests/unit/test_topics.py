"""Topic names, keys and the partitioner."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingestor.core.topics import Topics, message_key, murmur2, partition_of


@pytest.mark.parametrize(
    ("data", "java_int"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_is_javas(data, java_int):
    """The hash is the one that Kafka's own tests of Utils.murmur2 expect."""
    assert murmur2(data) == java_int & 0xFFFFFFFF


def test_partitions_are_javas():
    """A negative Java hash loses its sign bit, as Utils.toPositive does; it is not made absolute."""
    assert partition_of(b"21", 8) == (-973932308 & 0x7FFFFFFF) % 8
    assert partition_of(b"21", 7) != 973932308 % 7


@given(st.binary(max_size=64), st.integers(1, 10_000))
@settings(max_examples=50, deadline=None)
def test_every_key_has_a_partition(key, partitions):
    """Bytes of every length, and every number of partitions, give a partition that exists."""
    assert 0 <= partition_of(key, partitions) < partitions
    assert 0 <= murmur2(key) < 2**32


def test_keys():
    """A key is namespace/name in UTF-8; an empty namespace is an underscore."""
    assert message_key("prod", "web") == b"prod/web"
    assert message_key("", "wéb") == "_/wéb".encode()


def test_topic_names_carry_the_prefix():
    """Two prefixes never share a topic, and a sink is named by its grouping."""
    default, other = Topics(), Topics("other")
    assert default.range_chunks == "metrics.range-chunks"
    assert (default.sink("pod"), default.sink("service")) == ("metrics.pods", "metrics.services")
    names = [
        {topics.range_chunks, topics.positions, topics.pods, topics.services}  # one line a pipeline
        for topics in (default, other)
    ]
    assert len(names[0] | names[1]) == 8
