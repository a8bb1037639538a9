"""What RE2 means by an expression, Python's ``re`` means by its translation. The table is what Go's regexp answers."""

from __future__ import annotations

import pytest

from ingestor.re2 import compile_re2
from ingestor.relabel import Template

# Expression, text, and what "<$0|$1|$2|$x|${y}>" expands to; None: no match.
MATCHES = [
    ("a|b", "ab", None),
    ("a|b", "b", "<b||||>"),
    ("", "", "<||||>"),
    ("", "a", None),
    ("a.b", "a\nb", "<a\nb||||>"),
    ("(?-s)a.b", "a\nb", None),
    ("(?-s:a.)b", "a\nb", None),
    ("a$", "a\n", None),
    ("(?m)a$\n", "a\n", "<a\n||||>"),
    ("(?m)^a\n^b", "a\nb", "<a\nb||||>"),
    ("a\n^b", "a\nb", None),
    ("\\d", "٣", None),
    ("\\d", "3", "<3||||>"),
    ("\\D", "٣", "<٣||||>"),
    ("\\w+", "é", None),
    ("\\W", "é", "<é||||>"),
    ("\\s", "\x0b", None),
    ("[\\s]", "\x0c", "<\x0c||||>"),
    ("[^\\D]", "7", "<7||||>"),
    ("[\\Wa]+", "é-a", "<é-a||||>"),
    ("\\ba\\b.*", "aé", "<aé||||>"),
    ("\\B", "", "<||||>"),
    ("[[:alpha:]]+", "aZ", "<aZ||||>"),
    ("[[:^alpha:]]+", "12", "<12||||>"),
    ("[[:alpha:]]", "[", None),
    ("[^[:punct:]]", ".", None),
    ("[]a]+", "]a", "<]a||||>"),
    ("[^]a]", "]", None),
    ("[a-]+", "-a", "<-a||||>"),
    ("[-a]+", "-a", "<-a||||>"),
    ("[a&&b]+", "a&b", "<a&b||||>"),
    ("[[a]+", "[a", "<[a||||>"),
    ("[a\\]b-d]+", "]c", "<]c||||>"),
    ("[\\x61-\\x{63}]+", "abc", "<abc||||>"),
    ("\\x61\\x{62}\\143", "abc", "<abc||||>"),
    ("\\Qa.b*\\E", "a.b*", "<a.b*||||>"),
    ("\\Qa.b*\\E", "axb*", None),
    ("\\Qab\\E+", "abb", "<abb||||>"),
    ("\\Qab\\E+", "abab", None),
    ("a\\.b", "a.b", "<a.b||||>"),
    ("\\_\\-", "_-", "<_-||||>"),
    ("\\a\\v\\f", "\x07\x0b\x0c", "<\x07\x0b\x0c||||>"),
    ("(?i)ab|CD", "cD", "<cD||||>"),
    ("a(?i)b|c", "aB", "<aB||||>"),
    ("a(?i)b|c", "C", "<C||||>"),
    ("a(?i)b|c", "Ab", None),
    ("(a(?i)b)c", "aBC", None),
    ("(?i:a)b", "Ab", "<Ab||||>"),
    ("(?i:a)b", "AB", None),
    ("(?i)k", "K", "<K||||>"),
    ("(?P<x>a)(?<y>b)", "ab", "<ab|a|b|a|b>"),
    ("a{2,3}", "aaa", "<aaa||||>"),
    ("a{,3}", "a{,3}", "<a{,3}||||>"),
    ("a{", "a{", "<a{||||>"),
    ("}a]", "}a]", "<}a]||||>"),
    ("a{2}?", "aa", "<aa||||>"),
    ("(a*?)(a*)", "aa", "<aa||aa||>"),
    ("(a|ab)(c|bcd)?", "abcd", "<abcd|a|bcd||>"),
    ("^*a$+", "a", "<a||||>"),
    ("(a)|(b)", "b", "<b||b||>"),
    ("(?)a", "a", "<a||||>"),
    ("(?:)a", "a", "<a||||>"),
]

REFUSED_BY_BOTH = [
    ("a(", "a ) is missing"),
    ("a)", "the ) at 1 closes nothing"),
    ("[a", "the ] of the class at 0 is missing"),
    ("(?=a)", "(?=a at 0: RE2 or Python has no such group or flag"),
    ("(?!a)", "(?!a at 0: RE2 or Python has no such group or flag"),
    ("(?<=a)", "(?<= at 0: RE2 or Python has no such group or flag"),
    ("(?<!a)", "(?<! at 0: RE2 or Python has no such group or flag"),
    ("(?>a)", "(?>a at 0: RE2 or Python has no such group or flag"),
    ("(?#a)", "(?#a at 0: RE2 or Python has no such group or flag"),
    ("(?P=a)", "(?P= at 0: RE2 or Python has no such group or flag"),
    ("(a)\\1", "\\1 at 3 is no escape here"),
    ("\\Z", "\\Z at 0 is no escape here"),
    ("\\C", "\\C at 0 is no escape here"),
    ("\\é", "\\é at 0 is no escape here"),
    ("\\y", "\\y at 0 is no escape here"),
    ("a\\", "\\ at 1 is no escape here"),
    ("a**", "a repetition of a repetition, * at 2"),
    ("a++", "a repetition of a repetition, + at 2"),
    ("a*+", "a repetition of a repetition, + at 2"),
    ("a{2}{3}", "a repetition of a repetition, {3} at 4"),
    ("a{1001}", "{1001} at 1: counts are at most 1000 and in order"),
    ("a{2,1}", "{2,1} at 1: counts are at most 1000 and in order"),
    ("*a", "nothing to repeat"),
    ("[b-a]", "the range b-a in a class is upside down"),
    ("[a-\\d]", "a range in the class ends with no character at 5"),
    ("[[:foo:]]", "[:foo:] is no class"),
    ("(?x)a", "(?x) at 0: RE2 or Python has no such group or flag"),
    ("(?a)a", "(?a) at 0: RE2 or Python has no such group or flag"),
    ("(?i-)", "(?i-) at 0: a flag is missing"),
]

REFUSED_HERE = [r"\p{Greek}", r"[\pN]", "(?U)a*", "(?P<1a>b)", "(?P<n>a)(?P<n>b)"]


@pytest.mark.parametrize(("pattern", "text", "expanded"), MATCHES)
def test_matches_as_re2_does(pattern: str, text: str, expanded: str | None) -> None:
    """The whole text, and each group."""
    compiled = compile_re2(pattern)
    match = compiled.fullmatch(text)
    assert (match and Template.parse("<$0|$1|$2|$x|${y}>", compiled).expand(match)) == expanded


@pytest.mark.parametrize(("pattern", "reason"), REFUSED_BY_BOTH)
def test_refuses_what_re2_refuses(pattern: str, reason: str) -> None:
    """Prometheus would not start with it; Python would mean something else, or fail."""
    with pytest.raises(ValueError, match="is not a regular expression that can be used: ") as caught:
        compile_re2(pattern)
    assert str(caught.value).endswith(f": {reason}")
    assert repr(pattern) in str(caught.value)


@pytest.mark.parametrize("pattern", REFUSED_HERE)
def test_refuses_what_python_cannot_read(pattern: str) -> None:
    """It is refused with a message, never read as something else."""
    with pytest.raises(ValueError, match="is not a regular expression that can be used"):
        compile_re2(pattern)
