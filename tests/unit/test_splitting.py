"""A metric's columns are named by the values of the labels that split it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestor.selector import Matcher, Selector
from ingestor.splitting import Splits

SERIES = {"pod": "a", "method": "GET", "code": "500", "instance": "x:1"}


@pytest.mark.parametrize(
    ("content", "metric", "labels", "column"),
    [
        ({"reqs": ["code", "method"]}, "reqs", SERIES, 'reqs{code="500",method="GET"}'),
        ({"reqs": ["method", "code"]}, "reqs", SERIES, 'reqs{code="500",method="GET"}'),
        (["reqs=method,code"], "reqs", SERIES, 'reqs{code="500",method="GET"}'),
        ([" reqs = method , code "], "reqs", SERIES, 'reqs{code="500",method="GET"}'),
        (("reqs=code", "other=method"), "other", SERIES, 'other{method="GET"}'),
        ({"reqs": ["code"]}, "other", SERIES, "other"),
        ({"reqs": ["code", "le"]}, "reqs", SERIES, 'reqs{code="500"}'),
        ({"reqs": ["le"]}, "reqs", SERIES, "reqs"),
        ({"reqs": ["code"]}, "reqs", {"code": ""}, "reqs"),
        ({"reqs": ["a"]}, "reqs", {"a": 'x"\\\n,}\t'}, 'reqs{a="x\\"\\\\\\n,}\t"}'),
        ({"reqs": ["http.code"]}, "reqs", {"http.code": "5"}, 'reqs{"http.code"="5"}'),
        ({"http.reqs": ["code"]}, "http.reqs", SERIES, '{"http.reqs",code="500"}'),
        ({"job:reqs:rate": ["code"]}, "job:reqs:rate", SERIES, 'job:reqs:rate{code="500"}'),
        ({}, "reqs", SERIES, "reqs"),
        (None, "reqs", SERIES, "reqs"),
        ((), "reqs", SERIES, "reqs"),
    ],
)
def test_columns(content: object, metric: str, labels: dict[str, str], column: str) -> None:
    """One spelling for each set of values, whichever way the labels were asked for."""
    assert Splits.parse(content).column(metric, labels) == column


@pytest.mark.parametrize(
    ("content", "faults"),
    [
        ("reqs=code", ["'reqs=code' is neither a mapping of metrics to labels nor a list of texts"]),
        (["reqs", 5], ["'reqs' is no text like metric=label,label", "5 is no text like metric=label,label"]),
        (["=code", "reqs=", "a=b,,c"], ["'' is no metric's name", "reqs: '' is no label's name", "a: '' is no label"]),
        (["reqs=code", "reqs=le"], ["reqs: it is given twice: give all its labels at once"]),
        ({"reqs": "code", "a": []}, ["reqs: a list of one or more labels is wanted, not 'code'", "a: a list of one"]),
        ({"reqs": ["code", 5], 7: ["a"]}, ["reqs: 5 is no label's name", "7 is no metric's name"]),
        ({"reqs": ["a", "b", "a"]}, ["reqs: a label is given twice"]),
        (["reqs=pod,namespace"], ["reqs: it cannot be split by pod, which names the row", "split by namespace, which"]),
        (["reqs=__name__"], ["reqs: it cannot be split by __name__, which is the metric itself"]),
    ],
)
def test_all_faults_are_named_at_once(content: object, faults: list[str]) -> None:
    """Each with its metric, and how it is written."""
    with pytest.raises(ValueError, match="write it like http_requests_total=code,method") as caught:
        Splits.parse(content)
    assert str(caught.value).count("; ") == len(faults) - 1
    for fault in faults:
        assert fault in str(caught.value)


words = st.text(st.characters(codec="utf-8"), min_size=1)
label_names = words.filter(lambda name: name not in {"__name__", "pod", "namespace"})


@given(words, st.dictionaries(label_names, words, min_size=1))
def test_a_column_is_a_selector_of_its_series(metric: str, labels: dict[str, str]) -> None:
    """What stands there is read back as the metric and the values, whatever characters they have."""
    column = Splits.parse({metric: list(labels)}).column(metric, {**labels, "pod": "a"})
    wanted = (Matcher("__name__", "=", metric), *(Matcher(name, "=", labels[name]) for name in sorted(labels)))
    assert Selector.parse(column) == Selector(wanted)


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.text(st.sampled_from('x"\\,='), min_size=1)), min_size=2))
def test_columns_are_the_same_just_where_the_values_are(series: list[dict[str, str]]) -> None:
    """Series share a column if and only if they agree in every label that splits."""
    splits = Splits.parse(["m=b,a"])
    values = [(labels.get("a"), labels.get("b")) for labels in series]
    columns = [splits.column("m", labels) for labels in series]
    assert len(set(columns)) == len(set(values)) == len(set(zip(columns, values, strict=True)))
