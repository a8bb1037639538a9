"""Settings mean the same from flags, environment and file, and all that are wrong are told at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from ingestor.cli import cli as ingestor
from ingestor.command_line import SpelledGroup
from ingestor.options import config_option, end_option, json_option, kafka_options, source_options, start_option
from stream_app.cli import cli as stream_app
from stream_app.cli import group_by_option

TEN_FAULTS = """
defaults:
  log-level: loud
run:
  settle: 30
  poll_interval: 15 parsecs
  concurrency: 500
  settel: 1m
  include: [cpu_.*, "("]
  match: "{pod"
backfill:
  url: prometheus:9090
  start: 2026-11-23T00:00:00
backfil:
  end: now
"""
WHERE = [
    "defaults: log-level: 'loud'",
    "run: settle: '30'",
    "run: poll_interval: '15 parsecs'",
    "run: concurrency: 500",
    "run: settel: there is no such setting: did you mean settle?",
    "run: include: '('",
    "run: match: '{pod'",
    "backfill: url: 'prometheus:9090'",
    "backfill: start: '2026-11-23T00:00:00'",
    "backfil: there is no such section: did you mean backfill?",
]


def invoke(group: click.Group, *args: str, **environment: str) -> Result:
    return CliRunner().invoke(group, list(args), env=environment, auto_envvar_prefix="INGESTOR")


def faults(result: Result) -> list[str]:
    """Return the lines after the usage, one a fault."""
    assert result.exit_code == 2, result.output
    first, *rest = result.stderr[result.stderr.index("Error: ") :].splitlines()
    if not rest:
        return [first.removeprefix("Error: ")]
    assert first == f"Error: {len(rest)} settings are wrong:"
    return [line.strip() for line in rest]


def config(tmp_path: Path, text: str) -> str:
    path = tmp_path / "config.yml"
    path.write_text(text)
    return str(path)


@pytest.fixture
def echo() -> tuple[click.Group, dict[str, Any]]:
    """A group with the product's own flags, whose command keeps what it was given."""
    given: dict[str, Any] = {}

    @click.group(cls=SpelledGroup)
    @config_option
    def group() -> None: ...

    @group.command()
    @start_option
    @end_option
    @source_options
    @kafka_options
    @group_by_option
    @json_option
    def read(**flags: Any) -> None:
        given.update(flags)

    @group.command()
    @group_by_option
    def write(**flags: Any) -> None:
        given.update(flags)

    return group, given


def test_ten_faults_of_a_file_are_told_in_its_order(tmp_path: Path) -> None:
    """A user mends a file once, not ten times."""
    path = config(tmp_path, TEN_FAULTS)
    told = faults(invoke(ingestor, "--config", path, "run", "--url", "http://x"))
    assert len(told) == len(WHERE)
    for line, where in zip(told, WHERE, strict=True):
        assert line.startswith(f"{path}: {where}")


def test_faults_of_flags_environment_and_file_are_told_together(tmp_path: Path) -> None:
    """Each says where it comes from, and what is allowed; what a misspelt name means is not called missing."""
    result = invoke(
        ingestor,
        *("--config", config(tmp_path, "backfill: {range-samples: 1, ulr: http://x}")),
        *("backfill", "--setle", "3s", "--source", "pull", "--exclude", "(", "--exclude", "[", "--json=yes", "--end"),
        INGESTOR_BACKFILL_SETTLE="30",
        INGESTOR_BACKFILL_MATCH="{pod",
        INGESTOR_BACKFILL_CONCURRENCY="0",
    )
    expected = [
        ("--setle", "did you mean --settle?"),
        ("--json", "does not take a value"),
        ("--end", "requires an argument"),
        ("--source", "'pull' is not one of 'auto', 'query', 'remote-read'"),
        ("--exclude", "'(' is not a regular expression"),
        ("--exclude", "'[' is not a regular expression"),
        ("INGESTOR_BACKFILL_SETTLE", "'30' is not a duration: write it like 30s"),
        ("INGESTOR_BACKFILL_MATCH", 'write it like {pod!=""}'),
        ("INGESTOR_BACKFILL_CONCURRENCY", "0 is not in the range 1<=x<=64"),
        ("--start", "is missing: RFC 3339, Unix seconds"),
        (f"{tmp_path}/config.yml: backfill: range-samples", "1 is not in the range x>=1000"),
        (f"{tmp_path}/config.yml: backfill: ulr", "did you mean url?"),
    ]
    told = faults(result)
    assert len(told) == len(expected)
    for where, allowed in expected:
        assert any(line.startswith(f"{where}: ") and allowed in line for line in told), where


def test_one_fault_is_one_line(tmp_path: Path) -> None:
    """Whoever greps for the error finds all of it."""
    path = config(tmp_path, "run: {settle: 30}")
    assert faults(invoke(ingestor, "--config", path, "run", "--url", "http://x")) == [
        f"{path}: run: settle: '30' is not a duration: write it like 30s, 5m, 1h30m, 10d or 2w"
    ]
    assert faults(invoke(ingestor, "backfill", "--start", "1d")) == [
        "--url: is missing: Prometheus, like http://127.0.0.1:9090"
    ]
    assert faults(invoke(ingestor, "cancel")) == ["JOB: is missing"]
    assert faults(invoke(ingestor, "cancel", "job-1", "job-2")) == [
        "job-2: is too much: put values with spaces in quotes"
    ]


def test_the_stream_app_tells_all_faults_too(tmp_path: Path) -> None:
    """Both command lines are the same in this."""
    path = config(
        tmp_path, "worker: {chunk-size: 1 parsec, method: average, group-by: [pod, planet], web-listen-address: high}"
    )
    told = faults(invoke(stream_app, "--config", path, "worker", "--partitions", "0"))
    assert told[0].startswith("--partitions: 0 is not in the range")
    for line, key in zip(told[1:], ("chunk-size", "method", "group-by", "web-listen-address"), strict=True):
        assert line.startswith(f"{path}: worker: {key}: ")


def test_a_file_means_what_the_command_line_means(echo: tuple[click.Group, dict[str, Any]], tmp_path: Path) -> None:
    """Times, numbers, lists, single values, quotes, merges, dashes and underscores; names as those of the flags."""
    group, given = echo
    path = config(
        tmp_path,
        """
        defaults: {group-by: service, topic_prefix: shop}
        write: &write {group-by: [pod, service]}
        read:
          <<: *write
          start: 2026-11-23T00:00:00Z
          end: 1795435200
          url: http://x
          match: up{pod!=""}
          include: [a, b]
          exclude: c
          max_samples_per_second: 1e6
          request-timeout: 90s
          json: yes
          settle:
        """,
    )
    assert invoke(group, "--config", path, "read").output == ""
    assert given["start"] == "2026-11-23T00:00:00Z"
    assert given["end"] == "1795435200"
    assert str(given["selector"]) == '{__name__="up",pod!=""}'
    assert given["include"] == ("a", "b")
    assert given["exclude"] == ("c",)
    assert given["max_samples_per_second"] == 1_000_000
    assert given["timeout_ms"] == 90_000
    assert given["as_json"] is True
    assert given["settle_ms"] == 30_000
    assert given["topics"].prefix == "shop"
    assert given["group_by"] == ("pod", "service")
    invoke(group, "--config", config(tmp_path, "defaults: {group-by: service, topic_prefix: shop}"), "write")
    assert given["group_by"] == ("service",)


def test_flags_win_over_the_environment_and_this_over_the_file(
    echo: tuple[click.Group, dict[str, Any]], tmp_path: Path
) -> None:
    """Variables are named after the flags."""
    group, given = echo
    path = config(tmp_path, "read: {start: 3d, url: http://file, topic-prefix: file}")
    args = ["--config", path, "read"]
    assert invoke(
        group, *args, "--url", "http://flag", INGESTOR_READ_TOPIC_PREFIX="env", INGESTOR_READ_URL="http://env"
    )
    assert (given["start"], given["topics"].prefix, given["url"]) == ("3d", "env", "http://flag")
    invoke(group, *args, INGESTOR_READ_URL="http://env")
    assert given["url"] == "http://env"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("run: {storage: x", "config.yml cannot be read: line 1, column 17: expected ',' or '}'"),
        ("run: {url: [", "config.yml cannot be read: line 1, column 13: "),
        ("s3cret: *nobody", "line 1, column 9: found undefined alias"),
        ("- run", "must hold a section a command: backfill, run, cancel"),
        ("run: 3", "run: must hold its settings as key: value"),
        ("run: {url: {a: b}}", "run: url: is a mapping, and takes one value"),
        ("run: {url: [http://a, http://b]}", "run: url: is a list, and takes one value"),
        ("run: {exclude: {a: b}}", "run: exclude: is a mapping, and takes one value or a list"),
        ("run: {include: [a, [b]]}", "run: include: has an item that is no text"),
        ("run: {include: [a, ~]}", "run: include: has an item that is no text"),
        ("run: {include: on}", "run: include: on is a yes or no in YAML: put it in quotes"),
        ("run: {json: maybe}", "run: json: 'maybe' is neither true nor false"),
        ("run: {start: 2026-11-23}", "run: start: '2026-11-23' is not a time: write now, a duration ago like 10d"),
        ("run: {settle: 1m, settle: 2m}", "run: settle: is there twice"),
        ("run: {selector: x}", "run: selector: there is no such setting"),
        ("run: {<<: 3}", "expected a mapping"),
        (
            "worker: {method: mean}",
            "worker: there is no such section; it is one of backfill, run, cancel, status, defaults",
        ),
    ],
)
def test_what_a_file_has_wrong_is_told(tmp_path: Path, text: str, told: str) -> None:
    """With its place, and nothing of other lines, which may be secret."""
    (line,) = faults(invoke(ingestor, "--config", config(tmp_path, text), "run", "--url", "http://x"))
    assert told in line
    assert "s3cret" not in line


def test_a_key_without_a_value_is_not_set(tmp_path: Path) -> None:
    """A template that leaves a value empty means the default; what is required is still missing."""
    path = config(tmp_path, "backfill: {url:, start: , settle: 1}")
    told = faults(invoke(ingestor, "--config", path, "backfill"))
    assert [line.split(":")[0] for line in told] == ["--start", "--url", path]
    assert told[0].startswith("--start: is missing: RFC 3339")


def test_help_comes_before_faults(tmp_path: Path) -> None:
    """Who asks what is allowed must not have to know it."""
    path = config(tmp_path, TEN_FAULTS)
    assert "--settle DURATION" in invoke(ingestor, "--config", path, "run", "--help").stdout
