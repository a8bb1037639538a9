"""The JSON API says what the topics say, in pages; what a topic has that cannot be read is counted and hurts nobody."""

from __future__ import annotations

import math
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestor.core.durations import ChunkSize
from stream_app.dashboard import answers
from stream_app.dashboard.answers import BadQuery, NotFound, ServicesQuery
from stream_app.dashboard.board import MOST_ANOMALIES, MOST_LETTERS, Board, Rate, Taken, decoded
from stream_app.dead_letters import dead_letter
from stream_app.view import View

MINUTE_MS = 60_000
START_MS = 1_795_435_200_000
HOSTILE = "<img src=x onerror=alert(1)>"


def message(value: Any, *, key: bytes = b"k", headers: Any = (), partition: int = 0, offset: int = 0) -> Taken:
    return Taken(partition, offset, START_MS, key, value if isinstance(value, bytes) else orjson.dumps(value), headers)


def record(service: str, pod: str, window: int, *, namespace: str = "shop", **metrics: float | str | None) -> Taken:
    start_ms = START_MS + window * MINUTE_MS
    who = {"namespace": namespace, "pod": pod, "service": service}
    when = {"window_start": start_ms, "window_end": start_ms + MINUTE_MS, "chunk_size": "1m"}
    how = {"method": "mean", "job": "live", "revision": 0, "partial": False, "version": 1, "samples": 4}
    return message(who | when | how | {"metrics": metrics})


def verdict(pod: str, window: int, score: float, *, anomalous: bool, revision: int = 0) -> Taken:
    start_ms = START_MS + window * MINUTE_MS
    reasons = [{"metric": "queue", "value": 60.5, "normal": 4.0, "deviation": 7.5}] if anomalous else []
    who = {"namespace": "shop", "pod": pod, "service": "web"}
    when = {"window_start": start_ms, "window_end": start_ms + MINUTE_MS, "chunk_size": "1m", "method": "mean"}
    what = {"revision": revision, "score": score, "anomalous": anomalous, "reasons": reasons, "version": 1}
    return message(who | when | what)


def position(job: str, **fields: Any) -> Taken:
    told = {"job": job, "start_ms": START_MS, "end_ms": None, "position_ms": START_MS + 5 * MINUTE_MS, "sequences": [1]}
    return message(told | {"arguments": {"url": "http://u:secret@p"}, "samples": 7} | fields, key=job.encode())


@pytest.fixture
def board() -> Board:
    board = Board(View(ChunkSize.parse("1m"), "mean"))
    for window in range(3):
        take_records(
            board,
            [
                *(record("web", f"web-{n}", window, cpu=float(n + window), queue=1.0) for n in range(8)),
                record("db", "db-0", window, namespace="data", cpu=100.0, odd="+Inf", nan=None),
            ],
        )
    return board


def take_records(board: Board, messages: list[Taken]) -> None:
    board.take_records(messages, decoded(messages))


def asked(**parameters: str | list[str]) -> ServicesQuery:
    return ServicesQuery.read(
        {name: [value] if isinstance(value, str) else value for name, value in parameters.items()}
    )


def shown(answer: dict[str, Any]) -> dict[str, list[str]]:
    return {service["service"]: [pod["pod"] for pod in service["pods"]] for service in answer["services"]}


def test_services_and_their_pods(board: Board) -> None:
    """Newest values and those before, of the windows that are named; a service has its pods' mean."""
    answer = answers.services(board, asked(metric=["cpu", "odd"], windows="2", namespace="data"))
    (service,) = answer["services"]
    (pod,) = service["pods"]
    assert answer["windows"] == [START_MS + MINUTE_MS, START_MS + 2 * MINUTE_MS]
    assert pod["values"] == {"cpu": 100.0, "odd": "+Inf"}
    assert pod["history"] == {"cpu": [100.0, 100.0], "odd": ["+Inf", "+Inf"]}
    assert service["values"] == {"cpu": 100.0, "odd": None}
    (web,) = answers.services(board, asked(metric="cpu", service="web"))["services"]
    assert web["values"] == {"cpu": sum(n + 2 for n in range(8)) / 8}
    assert web["history"]["cpu"][-1] == web["values"]["cpu"]
    assert (web["pods_found"], web["pod_pages"], len(web["pods"])) == (8, 2, 5)


def test_search(board: Board) -> None:
    """Every word must be in namespace, service or pod; whole services and single pods are found."""
    assert shown(answers.services(board, asked(q="DATA"))) == {"db": ["db-0"]}
    assert shown(answers.services(board, asked(q="shop web-3"))) == {"web": ["web-3"]}
    assert shown(answers.services(board, asked(q="shop db"))) == {}
    assert answers.services(board, asked(q="web"))["pods_found"] == 8


def test_order_and_pages(board: Board) -> None:
    """By name, by the first metric's newest value (the largest first), or what is anomalous first; in pages."""
    assert list(shown(answers.services(board, asked()))) == ["db", "web"]
    by_value = answers.services(board, asked(sort="value", metric="queue", pods="2"))
    assert shown(by_value) == {"web": ["web-0", "web-1"], "db": ["db-0"]}
    assert shown(answers.services(board, asked(sort="value", metric="cpu", pods="2"))) == {
        "db": ["db-0"],
        "web": ["web-7", "web-6"],
    }
    board.take_verdicts([verdict("web-3", 2, 7.5, anomalous=True)])
    anomalous = answers.services(board, asked(sort="anomalies", pods="1"))
    assert shown(anomalous) == {"web": ["web-3"], "db": ["db-0"]}
    assert anomalous["services"][0]["anomalous"] == 1
    assert anomalous["services"][0]["pods"][0]["anomaly"]["score"] == 7.5
    second = answers.services(board, asked(per_page="1", page="2"))
    assert (list(shown(second)), second["pages"], second["services_found"]) == (["web"], 2, 2)
    assert shown(answers.services(board, asked(service="web", pods="3", pod_page="3"))) == {"web": ["web-6", "web-7"]}
    assert shown(answers.services(board, asked(page="9"))) == {}


def test_silent_pods(board: Board) -> None:
    """A pod without records of the newest windows keeps its last ones, and is said to be silent."""
    take_records(board, [record("db", "db-0", window, namespace="data", cpu=1.0) for window in range(3, 6)])
    answer = answers.services(board, asked(metric="cpu", service="web"))
    (web,) = answer["services"]
    assert (web["silent"], web["pods"][0]["is_silent"], web["pods"][0]["values"]) == (8, True, {"cpu": 2.0})
    assert web["values"] == {"cpu": None}
    take_records(board, [record("web", "web-7", 5, cpu=1.0)])
    (web,) = answers.services(board, asked(metric="cpu", service="web", pods="2"))["services"]
    assert [pod["pod"] for pod in web["pods"]] == ["web-7", "web-0"]


def test_one_pod(board: Board) -> None:
    """All its metrics, window by window; NaN is told apart from nothing."""
    board.take_verdicts([verdict("web-3", 1, 7.5, anomalous=True), verdict("web-4", 1, 9.0, anomalous=True)])
    answer = answers.pod(board, "shop", "web-3", {"windows": ["3"]})
    assert {name: told["history"] for name, told in answer["metrics"].items()} == {
        "cpu": [3.0, 4.0, 5.0],
        "queue": [1.0, 1.0, 1.0],
    }
    assert [told["window_start"] for told in answer["anomalies"]] == [START_MS + MINUTE_MS]
    data = answers.pod(board, "data", "db-0", {"q": ["N"], "windows": ["1"]})
    assert data["metrics"] == {"nan": {"value": "NaN", "history": ["NaN"]}}
    with pytest.raises(NotFound, match=r"shop/other"):
        answers.pod(board, "shop", "other", {})


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"page": "0"}, "page is '0': give a whole number from 1"),
        ({"per_page": "51"}, "1 to 50"),
        ({"windows": "1e3"}, "1 to 120"),
        ({"pods": "²"}, "1 to 200"),
        ({"sort": "colour"}, "give name, value, anomalies"),
        ({"metric": list("abcdefg")}, "6 are shown at most"),
    ],
)
def test_bad_queries(parameters: dict[str, Any], told: str) -> None:
    """A value that cannot be is refused with what can."""
    with pytest.raises(BadQuery, match=told):
        asked(**parameters)


def test_what_is_shown_first() -> None:
    """CPU and memory of most pods come before what few pods have."""
    board = Board(View(ChunkSize.parse("1m"), "mean"))
    common = {"container_memory_working_set_bytes": 1.0, "container_cpu_usage_seconds_total": 1.0, "aaa": 1.0}
    take_records(board, [record("web", f"web-{n}", 0, **common) for n in range(4)])
    take_records(board, [record("web", "web-9", 0, cpu_of_one=1.0)])
    assert answers.services(board, asked())["metrics"] == [
        "container_cpu_usage_seconds_total",
        "container_memory_working_set_bytes",
        "aaa",
    ]


def test_anomalies(board: Board) -> None:
    """The newest window first; what a later revision takes back is none any more; bounded."""
    board.take_verdicts([verdict(f"web-{n}", n, 5.0 + n, anomalous=True) for n in range(3)])
    board.take_verdicts([verdict("web-1", 1, 0.5, anomalous=False, revision=1)])
    answer = answers.anomalies(board, {})
    assert [(told["pod"], told["score"]) for told in answer["anomalies"]] == [("web-2", 7.0), ("web-0", 5.0)]
    assert (answer["pods_judged"], answer["pods_anomalous"]) == (3, 2)
    assert answer["anomalies"][0]["reasons"] == [{"metric": "queue", "value": 60.5, "normal": 4.0, "deviation": 7.5}]
    assert answers.anomalies(board, {"q": ["web-0"]})["found"] == 1
    board.take_verdicts([verdict("web-0", window, 9.0, anomalous=True) for window in range(2 * MOST_ANOMALIES)])
    assert answers.anomalies(board, {"limit": ["1000"]})["found"] == MOST_ANOMALIES


def test_pipeline(board: Board) -> None:
    """Jobs with their lag, running ones first, and without the arguments, which can hold a password; dead letters."""
    board.take_positions([position("old", ended=True, end_ms=START_MS + 1), position("live", last_error="no")])
    where = {"topic": "chunks", "partition": 3, "offset": 5}
    failed = dead_letter("to", b"shop/web", b"x" * 9, [("job", b"a")], error=ValueError(HOSTILE), **where)
    board.take_letters([message(failed.value, headers=failed.headers)] * (MOST_LETTERS + 1))
    answer = answers.pipeline(board, START_MS + 6 * MINUTE_MS, 0.0)
    assert [(job["job"], job["lag_s"]) for job in answer["jobs"]] == [("live", 60.0), ("old", None)]
    assert "secret" not in repr(answer)
    assert answer["newest_window_ends"] == {"0": START_MS + 3 * MINUTE_MS}
    letters = answer["dead_letters"]
    assert len(letters) == MOST_LETTERS
    told = {"topic": "chunks", "partition": "3", "offset": "5", "error": HOSTILE, "key": "k", "size_bytes": 9}
    assert letters[0] == {"time_ms": START_MS, **told}


def test_a_job_that_is_deleted_is_gone(board: Board) -> None:
    """A compacted topic deletes by a value that is none."""
    board.take_positions([position("live"), position("live")._replace(value=None)])
    assert answers.pipeline(board, START_MS, 0.0)["jobs"] == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = [
    *("namespace", "pod", "service", "window_start", "window_end", "chunk_size", "method", "job", "revision"),
    *("partial", "version", "samples", "metrics", "incomplete", "score", "anomalous", "reasons", "start_ms"),
    *("end_ms", "position_ms", "ended", "updated_ms", "samples_per_s", "last_error", "last_error_ms"),
]
BASES = [record("web", "web-0", 1, cpu=1.0), verdict("web-0", 1, 5.0, anomalous=True), position("live")]


@given(
    st.sampled_from(BASES),
    st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3),
    st.binary(max_size=20),
    st.booleans(),
)
def test_whatever_stands_on_a_topic(base: Taken, changed: dict[str, Any], junk: bytes, is_junk: bool) -> None:  # noqa: FBT001 - drawn
    """Bytes from elsewhere are counted or shown, and no answer fails for them."""
    board = Board(View(ChunkSize.parse("1m"), "mean"))
    take_records(board, BASES[:1])
    value = junk if is_junk else orjson.dumps(orjson.loads(base.value or b"") | changed)
    odd = message(value, key=junk, headers=[("dead-letter.cut", junk), ("dead-letter.error", None)])
    take_records(board, [odd])
    for take in (board.take_positions, board.take_letters, board.take_verdicts):
        take([odd])
    told = [
        answers.services(board, asked(sort="anomalies")),
        answers.services(board, asked(sort="value")),
        answers.pod(board, "shop", "web-0", {}) if board.pods.pod("shop", "web-0") else {},
        answers.anomalies(board, {}),
        answers.pipeline(board, START_MS, 0.0),
        answers.changed(board),
    ]
    assert all(orjson.dumps(answer) for answer in told)


def test_rate() -> None:
    """Records a second over two minutes, or since counting began; not known in the first second."""
    rate = Rate()
    assert rate.per_s(5.0) is None
    rate.count(10.0, 0)
    rate.count(10.5, 30)
    assert rate.per_s(10.5) is None
    assert rate.per_s(20.0) == pytest.approx(3.0)
    rate.count(200.0, 60)
    assert rate.per_s(200.0) == pytest.approx(0.5)
    assert math.isclose(rate.per_s(400.0) or 0.0, 0.0)
