"""Selectors mean the same before and after they are read and written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from misbehaving import finds

from ingestor.selector import Matcher, Selector, halves_by_series


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ('{pod!=""}', '{pod!=""}'),
        ('up{namespace="shop"}', '{__name__="up",namespace="shop"}'),
        ("up", '{__name__="up"}'),
        ("job:cpu:rate5m{}", '{__name__="job:cpu:rate5m"}'),
        (' { namespace =~ "a|b" , pod != "" , } ', '{namespace=~"a|b",pod!=""}'),
        ("""{a='single "quoted"', b=`raw \\d "x"`}""", '{a="single \\"quoted\\"",b="raw \\\\d \\"x\\""}'),
        ('{a="},{b=\\"c\\""}', '{a="},{b=\\"c\\""}'),
        ('{a!~"\\\\d+", a=~".+"}', '{a!~"\\\\d+",a=~".+"}'),
        (r'{a="\x41\102\u0043\U00000044\n\t"}', '{a="ABCD\\n\\x09"}'),
        (r'{a="\xc3\xa9"}', '{a="é"}'),
        ('{"my.metric", "my.label"="x"}', '{__name__="my.metric","my.label"="x"}'),
        ('{__name__=~"cpu.*"}', '{__name__=~"cpu.*"}'),
    ],
)
def test_reads_every_spelling(text: str, written: str) -> None:
    """Spaces, trailing commas, three kinds of quotes and all escapes are read; one spelling is written."""
    assert str(Selector.parse(text)) == written
    assert str(Selector.parse(written)) == written


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "{ or a metric name is missing"),
        ("{}", "selects everything"),
        ("{pod}", "one of = != =~ !~ is missing"),
        ("{pod=shop}", "a quoted value is missing"),
        ('{pod="shop"', "a comma or } is missing"),
        ('{pod="shop}', "a quoted value is missing"),
        ('{pod="a" node="b"}', "a comma or } is missing"),
        ('{,pod="a"}', "a label name is missing"),
        ("up[5m]", "leave out ranges"),
        ("up offset 5m", "leave out ranges"),
        ("sum(up)", "leave out ranges"),
        ('{a="\\d"}', "is not an escape"),
        ('{a="\\xff"}', "decode"),
        ('{a="\\ud800"}', "is not a character"),
        ('{a="\\400"}', "is not an escape"),
    ],
)
def test_says_what_is_wrong(text: str, hint: str) -> None:
    """A selector that cannot be read is shown with the place and with examples."""
    with pytest.raises(ValueError, match="is not a selector") as caught:
        Selector.parse(text)
    assert hint in str(caught.value)
    assert 'write it like {pod!=""}' in str(caught.value)


def test_matchers_are_added() -> None:
    """Narrowing keeps what is there."""
    narrowed = Selector.parse('up{pod!=""}').with_matchers('namespace="shop"', "pod=~'a.*'")
    assert str(narrowed) == '{__name__="up",pod!="",namespace="shop",pod=~"a.*"}'
    with pytest.raises(ValueError, match="one matcher ends there"):
        narrowed.with_matchers('a="b",c="d"')


def test_one_metric_is_chosen() -> None:
    """The name is a matcher, so that any name can be asked for, and others on the name still hold."""
    selector = Selector.parse('{pod!=""}')
    assert str(selector.of_metrics("up")) == '{__name__="up",pod!=""}'
    assert str(selector.of_metrics('my "metric"\\\n')) == '{__name__="my \\"metric\\"\\\\\\n",pod!=""}'
    assert str(Selector.parse('up{pod!=""}').of_metrics("up")) == '{__name__="up",pod!=""}'
    assert str(Selector.parse("up").of_metrics("down")) == '{__name__="down",__name__="up"}'
    assert str(selector.of_metrics("a.b", "c")) == '{__name__=~"a\\\\.b|c",pod!=""}'


@given(
    st.lists(
        st.builds(
            Matcher,
            st.text(st.characters(codec="utf-8"), min_size=1),
            st.sampled_from(["=", "!=", "=~", "!~"]),
            st.text(st.characters(codec="utf-8")),
        ),
        min_size=1,
    )
)
def test_any_selector_is_read_back(matchers: list[Matcher]) -> None:
    """Whatever characters names and values have, writing and reading gives the same matchers."""
    selector = Selector(tuple(matchers))
    assert Selector.parse(str(selector)) == selector


_LABEL_SETS = st.lists(
    st.dictionaries(
        st.sampled_from(["pod", "container", "le", "odd name"]),
        st.text(st.sampled_from("ab.\\+*?()|[]{}^$-/#&~ \n\té\"'\u2028")) | st.text(st.characters(codec="utf-8")),
    ),
    max_size=12,
)


@given(_LABEL_SETS, _LABEL_SETS)
def test_halves_are_disjoint_and_complete(listed: list[dict[str, str]], others: list[dict[str, str]]) -> None:
    """Every series is in one half, also one that was not listed; halving goes on until each is alone."""
    selector = Selector.parse('{pod!="none"}')
    waiting, alone = [(selector, listed)], 0
    while waiting:
        whole, label_sets = waiting.pop()
        halves = halves_by_series(whole, label_sets)
        if halves is None:
            # An empty label is none.
            assert len({frozenset((name, value) for name, value in s.items() if value) for s in label_sets}) <= 1
            alone += bool(label_sets)
            continue
        for labels in others + label_sets:
            assert [finds(half, labels) for half in halves].count(True) == finds(whole, labels)
        for half in halves:
            assert Selector.parse(str(half)) == half
            found = [labels for labels in label_sets if finds(half, labels)]
            assert 0 < len(found) < len(label_sets) or labels_excluded(label_sets)
            waiting.append((half, found))
    assert alone <= len(listed)


def labels_excluded(label_sets: list[dict[str, str]]) -> bool:
    """Tell whether a series is among them that the selector of these tests does not find."""
    return any(labels.get("pod") == "none" for labels in label_sets)


def test_halves_are_about_equal() -> None:
    """The label with the most values is halved, whatever the name."""
    label_sets = [{"__name__": f"m{i}", "pod": f"p{i % 5}", "le": str(i)} for i in range(40)]
    halves = halves_by_series(Selector.parse('{pod!=""}'), label_sets)
    assert halves is not None
    assert [sum(finds(half, labels) for labels in label_sets) for half in halves] == [20, 20]
    assert [half.matchers[-1].name for half in halves] == ["le", "le"]


@pytest.mark.parametrize("label_sets", [[], [{}], [{"pod": "a"}] * 3, [{"__name__": "a"}, {"__name__": "b"}]])
def test_series_that_are_alike_have_no_halves(label_sets: list[dict[str, str]]) -> None:
    """The name is another matter: one metric is asked for at a time."""
    assert halves_by_series(Selector.parse('{pod!=""}'), label_sets) is None
