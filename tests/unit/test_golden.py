"""The scripts of tests/golden: what goes in, what must come out."""

import difflib
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
