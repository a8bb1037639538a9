"""Members of a group that come while Kafka comes back, or are killed amid their join: they or their next lives join."""

from __future__ import annotations

import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import consuming as consuming_program
import pytest
from commands import PATIENCE_S, wait_until
from kafka_proxy import AlteringProxy, Api, Point
from pod_topic import PodTopic, record
from proxied_kafka import FenceableKafka
from tcp_proxy import Connection, TcpProxy

from ingestor.kafka import connect, ensure_topics, wait_for_leaders
from ingestor.standby import Standby
from stream_app.consumer import PodConsumer

MEMBERS = 12
SESSION_S = 6.0
LOOK_S = 10.0


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> FenceableKafka:
    return FenceableKafka(tmp_path_factory.mktemp("kafka"))


@pytest.fixture(scope="module")
def controller_net(broker: FenceableKafka) -> Iterator[TcpProxy]:
    """The broker's way to its controller; it runs."""
    with TcpProxy(broker.controller_port, broker.controller_proxy_port) as proxy, broker:
        yield proxy


class Proxy(AlteringProxy):
    """Spoils the answer to a group's first question about its topic, on request: to the library it is lost."""

    def __init__(self, target_port: int, port: int) -> None:
        super().__init__(target_port, port)
        self.is_spoilt = False
        self._victims = b"", b""
        self._comes = False
        self._question: tuple[Connection, int] | None = None

    def spoil(self, group: str, topic: str) -> None:
        """Spoil what is answered to the question for *topic* that follows the one for the group's coordinator."""
        self._victims = group.encode(), topic.encode()

    def hear(self, connection: Connection, frame: bytes) -> None:
        (group, topic), (api, _, correlation) = self._victims, struct.unpack_from(">hhi", frame, 4)
        if group and api == Api.FIND_COORDINATOR and group in frame:
            self._comes = True
        if api == Api.METADATA and self._comes and topic in frame and self._question is None:
            self._question = connection, correlation

    def answer(self, connection: Connection, frame: bytes) -> bytes:
        (correlation,) = struct.unpack_from(">i", frame, 4)
        if self.is_spoilt or self._question != (connection, correlation):
            return frame
        self.is_spoilt = True
        # Behind length, correlation, tags and throttle time: more brokers than there can be.
        return frame[:13] + b"\xff" * (len(frame) - 13)


@pytest.fixture
def net(broker: FenceableKafka, controller_net: TcpProxy) -> Iterator[Proxy]:
    with Proxy(broker.proxied_port, broker.proxy_port) as proxy:
        yield proxy
    controller_net.heal()


@pytest.fixture
def topic(broker: FenceableKafka, controller_net: TcpProxy) -> Iterator[PodTopic]:
    """All topics of a prefix, with a record."""
    made = PodTopic(broker)
    ensure_topics(connect(broker.cluster), made.names, made.partitions)
    wait_for_leaders(made.admin, [made.names.pods])
    made.send(record(0))
    yield made
    controller_net.heal()
    made.delete()


class Comer(threading.Thread):
    """A member of a group of its own, in a thread."""

    def __init__(self, group: str, join: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self.group = group
        self._join = join
        self.has_joined = False

    def run(self) -> None:
        self._join()
        self.has_joined = True


def model(broker: FenceableKafka, topic: PodTopic, number: int) -> Comer:
    group = f"{topic.names.prefix}.models.{number:02d}"
    servers = broker.way_in.cluster.bootstrap_servers

    def join() -> None:
        with PodConsumer(servers, topic_prefix=topic.names.prefix, group=group, start="earliest") as pods:
            next(pods)

    return Comer(group, join)


def poller(broker: FenceableKafka, topic: PodTopic, number: int) -> Comer:
    def join() -> None:
        with Standby(broker.way_in.cluster, topic.names, f"run-{number:02d}", waits=True) as standby:
            standby.wait_for_turn(threading.Event())

    return Comer(f"{topic.names.prefix}.poller.run-{number:02d}", join)


def see_them_join(
    net: Proxy, controller_net: TcpProxy, comers: list[Comer], subscribed: str, come: Callable[[], object]
) -> None:
    """Have members come to a broker that is fenced, end that, and lose answers about the topic; see that all join.

    Where they began no broker was listed, so each asks about its topic on the connection that it began with. Those
    that first hear of the broker on another one, the group's, give it up with the question that is open on it. Which
    do is chance; `test_a_lost_answer_is_asked_for_again` has an answer lost for certain.
    """
    looks = [net.stop_at(Point(Api.FIND_COORDINATOR, is_answered=True, of=comer.group.encode())) for comer in comers]
    come()
    for look in looks:
        assert look.reached.wait(PATIENCE_S)
    points = [Point(Api.METADATA, is_answered=True, nth=nth, of=subscribed.encode()) for nth in range(1, MEMBERS + 1)]
    questions = [net.stop_at(point) for point in points]
    for look in looks:
        look.go_on()
    controller_net.heal()
    deadline = time.monotonic() + LOOK_S
    while not any(question.lost.is_set() for question in questions) and time.monotonic() < deadline:
        time.sleep(0.02)
    click.echo(f"  {sum(question.lost.is_set() for question in questions)} answers lost")
    for question in questions:
        question.go_on()
    wait_until(lambda: all(comer.has_joined for comer in comers))


def fence(topic: PodTopic, controller_net: TcpProxy) -> None:
    controller_net.stall()
    wait_until(lambda: not topic.admin.list_topics(timeout=10).brokers)


def test_models_that_come_to_a_fenced_broker(
    broker: FenceableKafka, net: Proxy, controller_net: TcpProxy, topic: PodTopic
) -> None:
    """All have their partitions once the broker is back, though answers about their topic are lost."""
    comers, parked = [model(broker, topic, number) for number in range(MEMBERS)], []
    for comer in comers:
        # The last of what it asks before it joins: leaders, first offsets, ends.
        parked.append(net.stop_at(Point(Api.LIST_OFFSETS, is_answered=True, nth=3)))
        comer.start()
        assert parked[-1].reached.wait(PATIENCE_S)
    fence(topic, controller_net)
    see_them_join(net, controller_net, comers, topic.names.pods, lambda: [stop.go_on() for stop in parked])


def test_pollers_that_come_to_a_fenced_broker(
    broker: FenceableKafka, net: Proxy, controller_net: TcpProxy, topic: PodTopic
) -> None:
    """All have their turn once the broker is back, though answers about their topic are lost."""
    comers = [poller(broker, topic, number) for number in range(MEMBERS)]
    fence(topic, controller_net)
    see_them_join(net, controller_net, comers, topic.names.positions, lambda: [comer.start() for comer in comers])


@pytest.mark.parametrize("kind", [model, poller], ids=["model", "poller"])
def test_a_lost_answer_is_asked_for_again(
    broker: FenceableKafka, net: Proxy, topic: PodTopic, kind: Callable[[FenceableKafka, PodTopic, int], Comer]
) -> None:
    """A member whose question about its topic is not answered joins all the same, long before the library would ask."""
    comer = kind(broker, topic, MEMBERS)
    net.spoil(comer.group, topic.names.pods if kind is model else topic.names.positions)
    comer.start()
    # Not told otherwise, the library asks after 5 minutes.
    wait_until(lambda: comer.has_joined, timeout_s=min(PATIENCE_S, 240.0))
    assert net.is_spoilt


@contextmanager
def life(broker: FenceableKafka, topic: PodTopic, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a life of the member `model-0`."""
    servers, prefix = broker.way_in.cluster.bootstrap_servers, topic.names.prefix
    command = [sys.executable, consuming_program.__file__, servers, prefix, str(log)]
    with subprocess.Popen([*command, "--name", "model-0", "--session-s", str(SESSION_S)]) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("api", [Api.JOIN_GROUP, Api.SYNC_GROUP], ids=lambda api: api.name)
def test_killed_amid_its_join(
    broker: FenceableKafka, net: Proxy, topic: PodTopic, tmp_path: Path, api: Api, when: str
) -> None:
    """No group waits for the life that was killed: the next one has its partitions."""
    log, of = tmp_path / "processed", consuming_program.group_of(topic.names.prefix).encode()
    amid = net.stop_at(Point(api, when == "after", of=of))
    with life(broker, topic, log) as dying:
        assert amid.reached.wait(PATIENCE_S)
        dying.kill()
        dying.wait()
    assert log.read_text() == "begin\n"
    with life(broker, topic, log):
        wait_until(lambda: log.read_text().startswith("begin\nbegin\nshop/"))
