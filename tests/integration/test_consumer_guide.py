"""The guide's chapter on models: each snippet does what it says, on a real Kafka."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pod_topic import PodTopic, record

from ingestor.local.kafka import LocalKafka
from stream_app.consumer import PodConsumer

ROOT = Path(__file__).parents[2]


def snippets(document: str, title: str) -> list[str]:
    """Return a chapter's Python."""
    chapter = (ROOT / document).read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", chapter, re.DOTALL)


SNIPPETS = snippets("docker/operating.md", "From your model")
MINUTES = 150


class Enough(Exception):
    """Ends a loop that would go on for good."""


class Model:
    """Keeps what it is given; after the first time it lets more records be written."""

    def __init__(self, most: int, more: Callable[[], None] = lambda: None) -> None:
        self._most, self._more = most, more
        self.given: list[Any] = []

    def predict(self, history: Any) -> Any:
        self.given.append(history)
        if len(self.given) == self._most:
            raise Enough
        self._more()
        return np.zeros(len(history))

    fit = predict


@pytest.fixture
def topic(kafka: LocalKafka) -> Iterator[PodTopic]:
    """Two services that are asked for and one that is not, two hours and a half of minutes."""
    made = PodTopic(kafka)
    made.make()
    services = [("cart", "shop"), ("orders", "shop"), ("web", "shop"), ("cart", "test")]
    made.send(
        *(record(m, f"{service}-0", service, namespace=space) for m in range(MINUTES) for service, space in services)
    )
    yield made
    made.delete()


def execute(snippet: str, topic: PodTopic, model: Model) -> dict[str, Any]:
    """Run a snippet against the test's topic; return its variables."""
    servers, prefix = topic.where["bootstrap_servers"], topic.where["topic_prefix"]
    assert '"localhost:9092"' in snippet
    variables: dict[str, Any] = {"model": model, "PodConsumer": PodConsumer}
    exec(snippet.replace('"localhost:9092"', f'"{servers}", topic_prefix="{prefix}"'), variables)  # noqa: S102 - ours
    return variables


def test_each_snippet_is_tested() -> None:
    """A snippet that is added is to be run here too; README has the first one."""
    assert len(SNIPPETS) == 3
    assert snippets("README.md", "Use it from your model") == SNIPPETS[:1]


def test_the_loop(topic: PodTopic) -> None:
    """Live windows of two services, each with the two hours before it."""
    ends, model = threading.Event(), Model(4)

    def live() -> None:
        for minute in itertools.count(MINUTES):
            topic.send(*(record(minute, f"{service}-0", service) for service in ("cart", "web", "orders")))
            if ends.wait(0.2):
                return

    writer = threading.Thread(target=live)
    writer.start()
    try:
        with pytest.raises(Enough):
            execute(SNIPPETS[0], topic, model)
    finally:
        ends.set()
        writer.join()
    for frame in model.given:
        assert isinstance(frame.index, pd.DatetimeIndex)
        assert str(frame.index.tz) == "UTC"
        last = int(frame["memory"].iloc[-1])
        assert last >= MINUTES
        assert frame["memory"].tolist() == list(range(last - 119, last + 1))


def test_batches_in_a_group(topic: PodTopic, capsys: pytest.CaptureFixture[str]) -> None:
    """All pods' last two hours in one array."""
    model = Model(2, lambda: topic.send(record(MINUTES)))
    with pytest.raises(Enough):
        execute(SNIPPETS[1].replace("seconds=60", "seconds=4"), topic, model)
    first, second = model.given
    assert first.shape == (4, 120, 2)
    assert first[0, :, 1].tolist() == list(range(MINUTES - 120, MINUTES))
    assert second.shape == (1, 120, 2)
    pods = ["shop/cart-0", "shop/orders-0", "shop/web-0", "test/cart-0"]
    assert capsys.readouterr().out.splitlines() == [f"2026-11-23 14:29:00+00:00 {pod} 0.0" for pod in pods]


def test_training(topic: PodTopic) -> None:
    """An array, and the long and the wide form of all that there is."""
    # The records are of a day of their own.
    found = execute(SNIPPETS[2].replace('start="10d"', 'start="earliest"'), topic, Model(2))
    (values,) = found["model"].given
    assert values.shape == (4, MINUTES, 2)
    assert found["data"].metrics == ["cpu", "memory"]
    assert len(found["features"]) == 2 * 2 * MINUTES
    assert found["panel"].shape == (2 * MINUTES, 2)
    assert found["flat"].columns.tolist() == ["id", "timestamp", "cpu", "memory"]
