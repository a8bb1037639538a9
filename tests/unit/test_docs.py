"""What the documents say exists, and what exists is in the documents."""

import ast
import re
from collections import defaultdict
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
GUIDE = (ROOT / "docker" / "operating.md").read_text()
DESIGN = (ROOT / "DESIGN.md").read_text()
DOCUMENTS = [
    ROOT / name for name in ("README.md", "DESIGN.md", "docker/README.md", "docker/operating.md", "docker/scale.md")
]
COMMANDS = [(group, name) for group in (ingestor, stream_app) for name in group.commands]
IDS = [name for _, name in COMMANDS]


def chapter(title: str) -> str:
    """Return what the guide has below a heading of the second level."""
    found = GUIDE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    assert found, title
    return found


def options_of(command: click.Command) -> dict[str, click.Option]:
    return {
        flag: option
        for option in command.params
        if isinstance(option, click.Option)
        for flag in option.opts
        if flag.startswith("--")
    }


def default_of(option: click.Option) -> str:
    """Return what ``--help`` says counts where an option is not given."""
    if option.show_default:
        default = option.default
        return ", ".join(map(str, default)) if isinstance(default, tuple | list) else str(default)
    told = re.search(r"\[default: (.*?)\]", option.help or "")
    return told[1] if told else ""


def flags_in_the_guide() -> dict[str, dict[str, list[str]]]:
    """Return the defaults that the guide's rows tell, by command and flag."""
    found: dict[str, dict[str, list[str]]] = {name: defaultdict(list) for name in IDS if name != "schema"}
    for flag, of, default in re.findall(
        r"^\| `(--[a-z-]+)` \| (.*?) \|(.*?)\| .* \|$", chapter("All flags"), re.MULTILINE
    ):
        for name in found if of == "all" else re.findall(r"`([a-z-]+)`", of):
            found[name][flag].append(default.replace("`", "").strip())
    return found


@pytest.mark.parametrize(("group", "name"), COMMANDS, ids=IDS)
def test_every_flag_is_in_the_guide_with_its_default(group: click.Group, name: str) -> None:
    """No command and no flag is a secret, none is made up, each has one row, and its default is the code's."""
    assert name in README
    expected = {flag: [default_of(option)] for flag, option in options_of(group.commands[name]).items()}
    assert flags_in_the_guide().get(name, {}) == expected


@pytest.mark.parametrize("document", DOCUMENTS, ids=[path.name for path in DOCUMENTS])
def test_no_document_tells_a_reader_to_type_what_is_not_understood(document: Path) -> None:
    """Flags of our programs exist; those of others are known here by name."""
    ours = {flag for group, name in COMMANDS for flag in options_of(group.commands[name])}
    ours |= {"--config", "--help", "--version", "--start_time", "--end_time", "--chunk_size", "--storage_path"}
    docker = {"--profile", "--no-healthcheck", "--build", "--detach", "--follow", "--volumes"}
    kafka = {"--alter", "--entity-type", "--entity-name", "--add-config"}
    text = document.read_text()
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z_-]+", text)) <= ours | docker | kafka | {"--backends", "--live"}


@pytest.mark.parametrize(
    ("title", "program", "metrics"),
    [("The poller's metrics", "poller", POLLER_METRICS), ("The worker's metrics", "worker", WORKER_METRICS)],
)
def test_every_metric_is_in_the_guide(title: str, program: str, metrics: tuple[Described, ...]) -> None:
    """Name, type, labels and meaning are those of the code, and the guide has no other."""
    rows = set()
    for metric in metrics:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        rows.add(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.meaning} |".replace("|  |", "| |"))
    assert {line for line in chapter(title).splitlines() if line.startswith("| `")} == rows
    for document in (README, GUIDE):
        assert set(re.findall(rf"podstream_{program}_\w+", document)) <= {metric.name for metric in metrics}


def texts_of(path: Path) -> list[str]:
    """Return the texts in a module, with a line feed where something is put in.

    Log messages with ``%s`` are among them.
    """

    def text(node: ast.expr) -> str:
        if isinstance(node, ast.JoinedStr):
            return "".join(part.value if isinstance(part, ast.Constant) else "\n" for part in node.values)
        return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""

    tree = ast.parse(path.read_text())
    return [text(node).replace("%s", "\n") for node in ast.walk(tree) if isinstance(node, ast.Constant | ast.JoinedStr)]


TEXTS = [
    text
    for package in ("ingestor", "stream_app")
    for path in ROOT.glob(f"{package}/**/*.py")
    for text in texts_of(path)
]
QUOTED = re.findall(r"^\| (?:the dashboard: )?`([^`|]*)`(?: \([^|]*\))? \|", chapter("Troubleshooting"), re.MULTILINE)


def test_troubleshooting_quotes_messages() -> None:
    """So many symptoms are told by what a program says."""
    assert len(QUOTED) > 45


@pytest.mark.parametrize("quoted", QUOTED)
def test_what_is_quoted_is_said(quoted: str) -> None:
    """A message that the guide quotes is in the code, with something put in wherever the guide has an ellipsis."""
    expected = re.compile(".*?\n.*?".join(re.escape(part) for part in quoted.split("…")), re.DOTALL)
    assert any(expected.search(text) for text in TEXTS)


@pytest.mark.parametrize("document", DOCUMENTS, ids=[path.name for path in DOCUMENTS])
def test_links_lead_somewhere(document: Path) -> None:
    """Files that documents refer to are there, and so are the headings."""
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        path, _, heading = target.partition("#")
        file = document.parent / path if path else document
        assert file.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}, target


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


@pytest.mark.parametrize(("group", "name"), COMMANDS, ids=IDS)
def test_help_says_what_each_flag_is_for(group, name):
    """Every command and every flag explains itself."""
    command = group.commands[name]
    assert command.help
    assert all(option.help for option in command.params if isinstance(option, click.Option))
