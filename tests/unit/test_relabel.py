"""Relabeling does what Prometheus does with the same rules; a contract test asks Prometheus itself."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ingestor.relabel import Rules
from ingestor.selector import Selector

# The series, what becomes of it, the rules. The cases of Prometheus' own tests are among them.
GOLDEN = r"""
# A replacement with groups.
{a="foo",b="bar"} -> {a="foo",b="bar",d="choo-choo"}
- {source_labels: [a], regex: 'f(.*)', target_label: d, replacement: 'ch${1}-ch${1}'}

# A rule sees what the one before it wrote.
{a="foo",b="bar",c="baz"} -> {a="boobam",b="bar",c="baz",d="boooom"}
- {source_labels: [a, b], regex: 'f(.*);(.*)r', target_label: a, replacement: 'b${1}${2}m'}
- {source_labels: [c, a], regex: '(b).*b(.*)ba(.*)', target_label: d, replacement: '$1$2$2$3'}

# What is dropped meets no further rule.
{a="foo"} -> dropped
- {source_labels: [a], regex: '.*o.*', action: drop}
- {source_labels: [a], regex: 'f(.*)', target_label: d, replacement: 'ch$1'}

{a="abc"} -> {a="abc",d="b"}
- {source_labels: [a], regex: '.*(b).*', target_label: d}

# Expressions are anchored at both ends, as a whole.
{a="foo"} -> {a="foo"}
- {source_labels: [a], regex: 'f|o', action: drop}
{a="foo"} -> {a="foo"}
- {source_labels: [a], regex: 'no-match', action: drop}
{a="foo"} -> dropped
- {source_labels: [a], regex: 'no-match', action: keep}
{a="foo"} -> {a="foo"}
- {source_labels: [a], regex: 'f.*', action: keep}
{a="foo"} -> dropped
- {source_labels: [a], regex: '', action: keep}

# Without a match nothing is replaced.
{a="boo",b="old"} -> {a="boo",b="old"}
- {source_labels: [a], regex: 'f', target_label: b, replacement: bar}

# An empty result takes away the label that the target expands to.
{a="foo",f="baz"} -> {a="foo"}
- {source_labels: [a], regex: '(f).*', target_label: '$1', replacement: '$2'}
{a="some-name-value"} -> {a="some-name-value",name="value"}
- {source_labels: [a], regex: 'some-([^-]+)-([^,]+)', target_label: '${1}', replacement: '${2}'}
{a="some-name-value"} -> {a="some-name-value"}
- {source_labels: [a], regex: 'some-([^-]+)-([^,]+)', target_label: '${1}', replacement: '${3}'}

# A target that expands to nothing is no label.
{a="some-name-0"} -> {a="some-name-0"}
- {source_labels: [a], regex: 'some-([^-]+)-([^,]+)', target_label: '${3}', replacement: '${1}'}

# Without source labels, with defaults, and to nothing.
{a="foo"} -> {a="foo",cluster="eu"}
- {target_label: cluster, replacement: eu}
{a="foo"} -> {a="foo",b="foo"}
- {source_labels: [a], target_label: b}
{a="foo",b="bar"} -> {a="foo"}
- {target_label: b, replacement: ''}
{a="foo",b="bar"} -> {a="foo"}
- {source_labels: [missing], target_label: b}
{a="foo",b="bar"} -> {a="foo",b="bar",c="foobar"}
- {source_labels: [a, b], separator: '', target_label: c}
{b="bar"} -> {b="bar",c="-bar-"}
- {source_labels: [a, b, d], separator: '-', target_label: c}

# References: the longest name counts, an unknown group is empty, a $ that begins nothing is a $.
{a="foo"} -> {a="foo",b="foo-1",c="$foo",d="foo",e="|$|${1|$-"}
- {source_labels: [a], target_label: b, replacement: '${1}-1'}
- {source_labels: [a], target_label: c, replacement: '$$${0}$1x'}
- {source_labels: [a], regex: '(?P<all>.*)', target_label: d, replacement: '$all$01'}
- {source_labels: [a], target_label: e, replacement: '$2|$|${1|$-'}
{a="foo"} -> {a="foo",b="f/oo"}
- {source_labels: [a], regex: '(?<first>.)(?P<rest>.*)', target_label: b, replacement: '${first}/$rest'}

# Line feeds are characters.
{a="line1\nline2"} -> {a="line1\nline2",d="match"}
- {source_labels: [a], regex: 'line1.*line2', target_label: d, replacement: 'match${1}'}
{a="foo\n"} -> {a="foo\n"}
- {source_labels: [a], regex: 'foo$', action: drop}

# Names may have any characters.
{a="x","utf-8.label"="y"} -> {a="x","utf-8.label"="y",b="y","other.label-x"="yes"}
- {source_labels: [utf-8.label], target_label: b}
- {source_labels: [a], target_label: 'other.label-${1}', replacement: 'yes'}

# Labels by their names.
{a="foo",b1="bar",b2="baz"} -> {a="foo",b1="bar",b2="baz",bar_b1="bar",bar_b2="baz"}
- {action: labelmap, regex: '(b.*)', replacement: 'bar_${1}'}
{a="foo",__meta_my_bar="aaa",__meta_other="ccc"} -> {a="foo",__meta_my_bar="aaa",__meta_other="ccc",my_bar="aaa"}
- {action: labelmap, regex: '__meta_(my.*)'}
{a="foo",b1="bar",b2="baz"} -> {b1="bar",b2="baz"}
- {action: labelkeep, regex: '(b.*)'}
{a="foo",b1="bar",b2="baz"} -> {a="foo"}
- {action: LabelDrop, regex: '(b.*)'}
{x1="one",x2="two"} -> {x1="one",x2="two",x="two"}
- {action: labelmap, regex: '(x).', replacement: '$1'}

# A label that was taken away can come back.
{port_name="foo",port="9091"} -> {port_name="metrics",port="9091"}
- {action: labeldrop, regex: '^port_name$'}
- {source_labels: [port], regex: '(.+)', target_label: port_name, replacement: metrics}
- {source_labels: [port_name], regex: '^metrics$', action: keep}

# Several expressions over one text.
{tags="path:/x,job:y,label:foo=bar"} -> {tags="path:/x,job:y,label:foo=bar",path="/x",job="y",foo="bar"}
- {source_labels: [tags], regex: '(?:.+,|^)path:(/[^,]+).*', target_label: path}
- {source_labels: [tags], regex: '(?:.+,|^)job:([^,]+).*', target_label: job}
- {source_labels: [tags], regex: '(?:.+,|^)label:([^=]+)=([^,]+).*', target_label: '${1}', replacement: '${2}'}

# The metric's name is a label too, and names with __ stay.
http_requests_total{pod="a"} -> requests{pod="a",__type__="counter",__tmp="x"}
- {source_labels: [__name__], regex: '.*_total$', target_label: __type__, replacement: counter}
- {source_labels: [__name__], regex: 'http_(.*)_total', target_label: __name__}
- {target_label: __tmp, replacement: x}
go_threads{pod="a"} -> dropped
- {source_labels: [__name__], regex: 'go_.*|process_.*', action: drop}
"""


def golden() -> list[tuple[str, str, str]]:
    """Return series, result and rules of each case."""
    cases: list[tuple[str, str, list[str]]] = []
    for line in GOLDEN.splitlines():
        if line.startswith("- "):
            cases[-1][2].append(line)
        elif line and not line.startswith("#"):
            before, after = line.split(" -> ")
            cases.append((before, after, []))
    return [(before, after, "\n".join(rules)) for before, after, rules in cases]


def labels_of(series: str) -> dict[str, str]:
    """Read a series as it is written."""
    return {matcher.name: matcher.value for matcher in Selector.parse(series).matchers}


@pytest.mark.parametrize(("before", "after", "rules"), golden())
def test_golden(before: str, after: str, rules: str) -> None:
    """Series in, series out."""
    result = Rules.parse(yaml.safe_load(rules)).apply(labels_of(before))
    assert result == (None if after == "dropped" else labels_of(after))


def test_no_rules_change_nothing() -> None:
    """Not even the mapping that was given."""
    labels = {"__name__": "up", "pod": "a"}
    for content in (None, []):
        assert Rules.parse(content).apply(labels) == labels
    Rules.parse([{"action": "labeldrop", "regex": "pod"}]).apply(labels)
    assert labels == {"__name__": "up", "pod": "a"}


def test_an_empty_label_is_none() -> None:
    """As in Prometheus, where a series cannot have one."""
    assert Rules.parse([]).apply({"a": "", "b": "x"}) == {"b": "x"}
    assert Rules.parse([{"action": "labelmap", "regex": "(a)|b", "replacement": "$1"}]).apply({"b": "x"}) == {"b": "x"}


FAULTY = """
- {action: hashmod, modulus: 8, source_labels: [pod], target_label: shard}
- {source_labels: pod, target_label: a, regex: '(?=x)'}
- {source_labels: [pod, '', 5], replacement: 1}
- keep
- {action: labeldrop, regex: 'a(', source_labels: [pod], separator: ','}
- {action: labelkeep, regex: a, separator: ;, replacement: $1}
- {action: labelmap, regex: (.*), replacement: ''}
- {action: 5}
- {action: drop, regex: null}
"""


KEYS = "action, source_labels, separator, target_label, regex, replacement"
UNUSABLE = "is not a regular expression that can be used"


def test_all_faults_are_named_at_once() -> None:
    """Each with its rule, its key and what is allowed; a rule without fault is not among them."""
    with pytest.raises(ValueError, match="rule 1") as caught:
        Rules.parse(yaml.safe_load(FAULTY))
    faults = str(caught.value).split("; ")
    assert faults == [
        f"rule 1: 'modulus' is no key: use {KEYS}",
        "rule 1: action: 'hashmod' is none of replace, keep, drop, labelmap, labeldrop, labelkeep",
        "rule 2: source_labels: a list of label names is wanted, like [pod], not 'pod'",
        f"rule 2: regex: '(?=x)' {UNUSABLE}: (?=x at 0: RE2 or Python has no such group or flag",
        "rule 3: replacement: a text is wanted, not 1: write it in quotes",
        "rule 3: source_labels: '' is no label name: give a text that is not empty",
        "rule 3: source_labels: 5 is no label name: give a text that is not empty",
        "rule 3: target_label: replace needs the name of the label to write",
        f"rule 4: a mapping with {KEYS} is wanted, not 'keep'",
        f"rule 5: regex: 'a(' {UNUSABLE}: a ) is missing",
        "rule 5: separator: labeldrop takes regex only, which is matched with label names",
        "rule 5: source_labels: labeldrop takes regex only, which is matched with label names",
        "rule 7: replacement: labelmap needs the names to write, like $1",
        "rule 8: action: a text is wanted, not 5: write it in quotes",
        "rule 9: regex: a text is wanted, not nothing: write it in quotes",
    ]


@pytest.mark.parametrize("content", ["keep", {"action": "keep"}, 5])
def test_rules_are_a_list(content: object) -> None:
    """A single rule is a list of one."""
    with pytest.raises(ValueError, match="a list of rules is wanted"):
        Rules.parse(content)


def test_names_are_text() -> None:
    """Half a character cannot be sent anywhere."""
    with pytest.raises(ValueError, match=r"rule 1: target_label: .* is no text in UTF-8"):
        Rules.parse([{"target_label": "a\ud800"}])


names = st.sampled_from(["__name__", "pod", "namespace", "container", "code", "exported_pod"])
values = st.text(st.sampled_from("ab-1.\n"), max_size=4)
label_sets = st.dictionaries(names, values.filter(bool))
regexes = st.sampled_from(["", ".*", "a.*", "(a|b)+", "[^a]*", "pod|code", "exported_.*", ".*n.*", "a\n?", "(?i)POD"])


@given(label_sets, st.lists(names), values, regexes)
def test_keep_and_drop_are_each_others_rest(
    labels: dict[str, str], source: list[str], separator: str, regex: str
) -> None:
    """A series passes exactly one of them, unchanged."""
    rule = {"source_labels": source, "separator": separator, "regex": regex}
    kept, left = (Rules.parse([{**rule, "action": action}]).apply(labels) for action in ("keep", "drop"))
    assert (kept is None) != (left is None)
    assert (left if kept is None else kept) == labels


@given(label_sets, regexes)
def test_labeldrop_and_labelkeep_share_out_the_labels(labels: dict[str, str], regex: str) -> None:
    """Every label is in exactly one of the results, with its value."""
    dropped, kept = (
        Rules.parse([{"action": action, "regex": regex}]).apply(labels) for action in ("labeldrop", "labelkeep")
    )
    assert dropped is not None
    assert kept is not None
    assert not dropped.keys() & kept.keys()
    assert dropped | kept == labels


@given(
    label_sets,
    st.lists(st.fixed_dictionaries({"source_labels": st.lists(names), "regex": regexes, "target_label": names})),
    st.integers(0, 9),
)
def test_rules_can_be_cut_anywhere(labels: dict[str, str], rules: list[dict[str, object]], cut: int) -> None:
    """Rules in two lists, one after the other, do what one list does; no label is ever empty."""
    whole = Rules.parse(rules).apply(labels)
    first = Rules.parse(rules[:cut]).apply(labels)
    assert first is not None
    assert whole is not None
    assert Rules.parse(rules[cut:]).apply(first) == whole
    assert all(whole.values())
