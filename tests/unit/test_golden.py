"""The scripts of tests/golden: what goes in, what must come out."""

import difflib
from dataclasses import replace
from pathlib import Path

import pytest
from golden_script import Case, cases, spelt

SCRIPTS = sorted((Path(__file__).parents[1] / "golden").glob("*.txt"))
VIEWS = [
    pytest.param(case, view, id=f"{case.name}: {view}")
    for path in SCRIPTS
    for case in cases(path)
    for view in case.views
]


@pytest.mark.parametrize("restarts", [False, True], ids=["", "restarts"])
@pytest.mark.parametrize(("case", "view"), VIEWS)
def test_a_view_is_what_the_script_says(case: Case, view: str, restarts):
    """Every line is there with its value, and no other; a worker that starts again before each message repeats none."""
    expected, made = case.expected(view), case.made(view, restarts=restarts)
    diff = difflib.unified_diff(
        [str(line) for line in expected], spelt(made, expected), "script", "made", lineterm="", n=99
    )
    assert not (text := "\n".join(diff)), f"{case.name}\nview {view}\n{text}"


@pytest.mark.parametrize(("case", "view"), VIEWS)
def test_the_oracle_says_the_same(case: Case, view: str):
    """The scripts and the oracle know nothing of each other, and agree on every value."""
    expected = [
        replace(line, flags=tuple(flag for flag in line.flags if "job=" in flag)) for line in case.expected(view)
    ]
    assert spelt(case.by_oracle(view), expected) == [str(line) for line in expected]
