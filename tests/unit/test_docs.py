"""What the documents say exists, and what exists is in the documents."""

import re
from pathlib import Path

import click
import pytest

from ingestor.cli import cli as ingestor
from ingestor.exposition import Described
from ingestor.telemetry import METRICS as POLLER_METRICS
from stream_app.cli import cli as stream_app
from stream_app.telemetry import METRICS as WORKER_METRICS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DESIGN = (ROOT / "DESIGN.md").read_text()
COMMANDS = [(group, name) for group in (ingestor, stream_app) for name in group.commands]


def flags_of(command: click.Command) -> set[str]:
    return {flag for option in command.params for flag in option.opts if flag.startswith("--")}


@pytest.mark.parametrize(("group", "name"), COMMANDS, ids=[name for _, name in COMMANDS])
def test_every_flag_is_in_the_readme(group, name):
    """No command and no flag is a secret."""
    assert name in README
    missing = {flag for flag in flags_of(group.commands[name]) if f"`{flag}`" not in README}
    assert not missing


def test_the_readme_names_no_flag_that_does_not_exist():
    """What a reader types is understood."""
    known = {flag for group, name in COMMANDS for flag in flags_of(group.commands[name])}
    known |= {"--config", "--help", "--version", "--start_time", "--end_time", "--chunk_size", "--storage_path"}
    assert set(re.findall(r"--[a-z][a-z_-]+", README)) <= known


@pytest.mark.parametrize(("program", "metrics"), [("poller", POLLER_METRICS), ("worker", WORKER_METRICS)])
def test_every_metric_is_in_the_readme(program: str, metrics: tuple[Described, ...]):
    """Name, type, labels and meaning are those of the code, and the README has no other."""
    for metric in metrics:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        row = f"| `{metric.name}` | {metric.kind} | {labels} | {metric.meaning} |"
        assert row.replace("|  |", "| |") in README
    assert set(re.findall(rf"podstream_{program}_\w+", README)) == {metric.name for metric in metrics}


def test_the_file_map_is_complete():
    """Every module is in DESIGN.md's file map."""
    modules = [*ROOT.glob("ingestor/**/*.py"), *ROOT.glob("stream_app/*.py"), *ROOT.glob("stream_app/sinks/*.py")]
    hidden = {"__init__.py", "__main__.py"}
    local = {path.name for path in ROOT.glob("ingestor/local/*.py")}
    missing = [p.name for p in modules if p.name not in DESIGN and p.name not in hidden | local | {"base.py"}]
    assert not missing


def test_every_promise_is_checked_by_a_test_that_exists():
    """A promise names its test, and who renames the test hears of it."""
    chapter = DESIGN.partition("## Promises\n")[2].partition("\n## ")[0]
    promises = re.findall(r"^\| (?!promise|---)(.+?) \|.*\| (.+) \|$", chapter, re.MULTILINE)
    assert len(promises) > 10
    for promise, checks in promises:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", checks)
        assert named, promise
        for path, test in named:
            assert re.search(rf"^(async )?def {test}\(", (ROOT / path).read_text(), re.MULTILINE), f"{promise}: {test}"


@pytest.mark.parametrize(("group", "name"), COMMANDS, ids=[name for _, name in COMMANDS])
def test_help_says_what_each_flag_is_for(group, name):
    """Every command and every flag explains itself."""
    command = group.commands[name]
    assert command.help
    assert all(option.help for option in command.params if isinstance(option, click.Option))
