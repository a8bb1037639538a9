"""Selectors mean the same before and after they are read and written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestor.selector import Matcher, Selector


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
    assert selector.for_metric("up") == '{__name__="up",pod!=""}'
    assert selector.for_metric('my "metric"\\\n') == '{__name__="my \\"metric\\"\\\\\\n",pod!=""}'
    assert Selector.parse('up{pod!=""}').for_metric("up") == '{__name__="up",pod!=""}'
    assert Selector.parse("up").for_metric("down") == '{__name__="down",__name__="up"}'


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
