"""Which records are wanted: the key may spare reading a record, and never loses one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_app.records import Record, record_key
from stream_app.tail_filter import RecordFilter, Wanted

NOON = 1_795_435_200_000


def record(namespace="shop", pod="cart-0", service="cart", metrics=("cpu", "memory"), **changed):
    fields = {
        "namespace": namespace, "pod": pod, "service": service, "window_start_ms": NOON, "window_end_ms": NOON + 60_000,
        "chunk_size": "1m", "method": "mean", "job": "live", "revision": 0, "partial": False, "samples": 4,
        "metrics": dict.fromkeys(metrics, 1.0),
    }  # fmt: skip
    return Record(**(fields | changed))


def wants(wanted, one):
    """Return what the loop does with a record: by its key, then by the whole."""
    chosen = RecordFilter(wanted)
    key = record_key(one.namespace, one.pod, one.service)
    return chosen.wanted(one) if chosen.may_be_wanted(key, of_service=one.pod is None) else None


@pytest.mark.parametrize(
    ("wanted", "matches"),
    [
        (Wanted(), True),
        (Wanted(namespaces=("shop",)), True),
        (Wanted(namespaces=("sho",)), False),
        (Wanted(namespaces=("hop",)), False),
        (Wanted(namespaces=("Shop",)), False),
        (Wanted(namespaces=("data", "s*p")), True),
        (Wanted(pods=("cart",)), False),
        (Wanted(pods=("cart-*",)), True),
        (Wanted(pods=("cart-?",)), True),
        (Wanted(pods=("cart-[1-9]",)), False),
        (Wanted(pods=("*/cart-0",)), False),
        (Wanted(services=("cart",)), True),
        (Wanted(services=("cart-*",)), False),
        (Wanted(namespaces=("shop",), pods=("web-*",)), False),
        (Wanted(chunk_size="1m", method="mean"), True),
        (Wanted(chunk_size="1h"), False),
        (Wanted(method="mean-of-last"), False),
        (Wanted(from_ms=NOON), True),
        (Wanted(from_ms=NOON + 1), False),
    ],
)
def test_names_are_whole_or_globs(wanted, matches):
    """Each kind of name must match as a whole; one of several globs is enough, each kind must have one."""
    assert wants(wanted, record()) == (record() if matches else None)


def test_metrics_are_taken_out():
    """Only the metrics that are asked for are left, and a record without one is left out."""
    assert wants(Wanted(metrics=("c*", "x")), record()) == record(metrics=("cpu",))
    lost = record(metrics=(), incomplete=("*",))
    assert wants(Wanted(metrics=("c*",)), lost) == lost, "it says that what is asked for is missing"
    assert wants(Wanted(metrics=("x",)), record()) is None
    split = ('http{path="[id]"}', 'http{path="z"}')
    assert wants(Wanted(metrics=(split[0],)), record(metrics=split)) == record(metrics=split[:1])


def test_service_records_have_no_pod():
    """Who asks for pods gets none of them; names are the services'."""
    of_service = record(pod=None)
    assert wants(Wanted(pods=("*",)), of_service) is None
    assert wants(Wanted(services=("cart",)), of_service) == of_service
    assert wants(Wanted(services=("web",)), of_service) is None


def test_no_namespace_is_an_underscore():
    """As in keys and in file names."""
    assert wants(Wanted(namespaces=("_",)), record(namespace="")) is not None
    assert wants(Wanted(namespaces=("shop",)), record(namespace="")) is None


@pytest.mark.parametrize("key", [None, b"", b"cart-0", b"a/b/c", b"a//"])
def test_a_key_that_tells_nothing(key):
    """Then the record itself must be read."""
    assert RecordFilter(Wanted(namespaces=("x",), pods=("x",))).may_be_wanted(key, of_service=False)


names = st.text("ab*?[]-/_é\n", max_size=5)


@given(st.tuples(names, names, names), st.booleans(), st.lists(names, max_size=2), st.lists(names, max_size=2))
def test_the_key_loses_nothing(who, of_service, namespaces, others):
    """What the whole record is wanted for is never refused by its key."""
    namespace, pod, service = who
    one = record(namespace, None if of_service else pod, service)
    wanted = Wanted(tuple(namespaces), tuple(others) if of_service else (), () if of_service else tuple(others))
    assert wants(wanted, one) == RecordFilter(wanted).wanted(one)
