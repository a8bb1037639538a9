"""The flags that several commands share, and the types of what people type."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ingestor.access import Access, check_header, is_header_value
from ingestor.command_line import set_up_logging
from ingestor.core.errors import ConfigError
from ingestor.core.topics import DEFAULT_PREFIX, Topics
from ingestor.settings import Document, Pairs
from ingestor.urls import prometheus_url, proxy_url

if TYPE_CHECKING:
    from ingestor.kafka import Cluster

log = logging.getLogger(__name__)

DEFAULT_SELECTOR = '{pod!=""}'
_EVERY_SERIES = '{__name__!=""}'


class _Typed(click.ParamType):
    """A click type from a parser that raises ValueError."""

    def __init__(self, name: str, parse: Callable[[str], Any], *, secret: bool = False) -> None:
        self.name = name
        self.secret = secret
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _duration_ms(text: str) -> int:
    # Imported where used, like all that loads numpy: --help must not wait for it.
    from ingestor.core.durations import parse_duration_ms  # noqa: PLC0415

    return parse_duration_ms(text)


def _chunk_size(text: str) -> Any:
    from ingestor.core.durations import ChunkSize  # noqa: PLC0415

    return ChunkSize.parse(text)


def _time(text: str) -> str:
    from ingestor.core.durations import checked_time  # noqa: PLC0415

    return checked_time(text)


DURATION_MS = _Typed("duration", _duration_ms)
CHUNK_SIZE = _Typed("size", _chunk_size)
TIME = _Typed("time", _time)
"""Stays as typed: what ``now`` and ``10d`` mean is the backend's to say."""


def typed(name: str, parse: Callable[[str], Any], *, secret: bool = False) -> click.ParamType:
    """Return a click type from a parser that raises ValueError; a *secret* never shows in what is refused."""
    return _Typed(name, parse, secret=secret)


def config_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--config FILE``: YAML with a section a command, below the environment and the flags."""

    def load(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
        if path is not None:
            from ingestor.config_file import load_config  # noqa: PLC0415 - only who has a file pays for YAML

            load_config(ctx, path)

    return click.option(
        "--config",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        callback=load,
        is_eager=True,
        expose_value=False,
        help="YAML with a section a command (defaults: for all), its keys the flags' names. Flags and environment win.",
    )(function)


def logging_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--log-level`` and ``--log-format``."""

    def set_up(ctx: click.Context, parameter: click.Parameter, value: str) -> None:
        chosen = ctx.meta.setdefault(f"{__name__}.logging", {})
        chosen[parameter.name] = value
        # click calls back for one after the other, in the order in which they were typed; before all that can fail.
        if len(chosen) == 2:
            set_up_logging(chosen["log_level"], chosen["log_format"])

    function = click.option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        callback=set_up,
        is_eager=True,
        expose_value=False,
        help="How it is written: lines for people, or a JSON object a line.",
    )(function)
    return click.option(
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"]),
        default="info",
        show_default=True,
        callback=set_up,
        is_eager=True,
        expose_value=False,
        help="What is logged, to standard error.",
    )(function)


def _listen_address(text: str) -> tuple[str, int]:
    from ingestor.web import listen_address  # noqa: PLC0415

    return listen_address(text)


web_option = click.option(
    "--web-listen-address",
    type=typed("address", _listen_address),
    metavar="[HOST]:PORT",
    help="Serve /metrics, /-/ready and /-/healthy there, like 127.0.0.1:9420 or :9420. [default: nowhere]",
)


def kafka_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--topic-prefix`` and what makes a `Cluster`, which the function gets as *cluster*."""
    function = click.option(
        "--topic-prefix",
        "topics",
        type=typed("name", Topics),
        default=DEFAULT_PREFIX,
        show_default=True,
        help="What the topics' names begin with.",
    )(function)
    return cluster_options(default="localhost:9092", help="The Kafka cluster.", show_default=True)(function)


def cluster_options(**bootstrap_servers: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add what makes a `Cluster`, which the function gets as *cluster*; None where no servers are given."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def with_cluster(*, bootstrap_servers: str | None, **flags: Any) -> Any:
            security = {field: flags.pop(_parameter(flag)) for flag, field in _SECURITY.items()}
            return function(cluster=_cluster(bootstrap_servers, security), **flags)

        command: Callable[..., Any] = with_cluster
        for option in reversed(_security_options()):
            command = option(command)
        return click.option("--bootstrap-servers", metavar="HOST:PORT[,…]", **bootstrap_servers)(command)

    return add


_SECURITY = {
    "--kafka-tls": "tls",
    "--kafka-ca-file": "ca_file",
    "--kafka-cert-file": "cert_file",
    "--kafka-key-file": "key_file",
    "--kafka-key-password-file": "key_password_file",
    "--kafka-sasl": "mechanism",
    "--kafka-user": "user",
    "--kafka-password-file": "password_file",
}
"""Flag → field of `Security`."""


def cluster_arguments(cluster: Cluster) -> list[str]:
    """Write a cluster as the command lines have it; secrets stay in their files."""
    arguments = ["--bootstrap-servers", cluster.bootstrap_servers]
    for flag, field in _SECURITY.items():
        value = getattr(cluster.security, field)
        if value is True:
            arguments.append(flag)
        elif value:
            arguments += [flag, str(value)]
    return arguments


def _security_options() -> list[Callable[..., Any]]:
    file = click.Path(path_type=Path)
    helps = {
        "--kafka-ca-file": "PEM: who signs the brokers' certificates; turns TLS on. [default: the system's]",
        "--kafka-cert-file": "PEM: this client's certificate, where brokers want one; turns TLS on.",
        "--kafka-key-file": "PEM: its key.",
        "--kafka-key-password-file": "One line, the password of an encrypted key.",
        "--kafka-password-file": "One line, the password of --kafka-user.",
    }
    files = {flag: click.option(flag, type=file, help=text) for flag, text in helps.items()}
    mechanisms = click.Choice(["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"], case_sensitive=False)
    options = {
        **files,
        "--kafka-tls": click.option(
            "--kafka-tls", is_flag=True, help="Encrypt; the brokers' certificates and host names are verified."
        ),
        "--kafka-sasl": click.option("--kafka-sasl", type=mechanisms, help="How to log in to Kafka."),
        "--kafka-user": click.option("--kafka-user", help="The user to log in as."),
    }
    return [options[flag] for flag in _SECURITY]


def _parameter(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _cluster(bootstrap_servers: str | None, security: dict[str, Any]) -> Cluster | None:
    # --help must not wait for librdkafka.
    from ingestor.core.errors import ConfigError  # noqa: PLC0415
    from ingestor.kafka import Cluster  # noqa: PLC0415
    from ingestor.kafka_security import Security  # noqa: PLC0415

    given = Security(**security)
    if not bootstrap_servers:
        if given != Security():
            raise ConfigError("--kafka-* flags are for a cluster of yours: give --bootstrap-servers")
        return None
    given.check()
    if given.mechanism == "PLAIN" and not given.encrypted:
        log.warning("the password is sent to Kafka in the clear: give --kafka-tls if the cluster has it")
    return Cluster(bootstrap_servers, given)


def _regular_expression(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is not a regular expression: {error}") from error
    return text


def _selector(text: str) -> Any:
    from ingestor.selector import Selector  # noqa: PLC0415

    return Selector.parse(text)


class _PerMetric(Pairs):
    """Texts like ``NAME=VALUE``, which a file may also give as a mapping; *parse* says what is wrong with one."""

    def __init__(self, name: str, parse: Callable[[list[str]], Any]) -> None:
        self.name = name
        self._parse = parse

    def from_pair(self, key: str, value: str) -> str:
        return f"{key}={value}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            self._parse([str(value)])
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return str(value)


def _all_of(parse: Callable[[list[str]], Any]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Return a callback that reads all values of a repeatable flag together."""

    def read(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> Any:
        try:
            return parse(list(texts))
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from error

    return read


def _splits(texts: list[str]) -> Any:
    from ingestor.splitting import Splits  # noqa: PLC0415

    return Splits.parse(texts)


def _expressions(texts: list[str]) -> Any:
    from ingestor.expressions import Expressions  # noqa: PLC0415

    return Expressions.parse(texts)


class _Rules(Document):
    name = "rules"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        import yaml  # noqa: PLC0415 - only who has rules pays for it

        from ingestor.relabel import Rules  # noqa: PLC0415
        from ingestor.yaml_text import loaded  # noqa: PLC0415

        try:
            # A file's name has one line and is no list.
            is_content = "\n" in value or value.startswith("[")
            return Rules.parse(loaded(value if is_content else Path(value).read_text("utf-8")))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            self.fail(f"{'the rules' if is_content else value} cannot be read: {error}", param, ctx)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def meaning_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add what is made of the series that are read, and what is computed beside them."""
    options: list[Callable[..., Any]] = [
        click.option("--all", "everything", is_flag=True, help="Read series without a pod too, by job and instance."),
        click.option(
            "--service-label",
            default="",
            metavar="LABEL",
            help="A label that names the pod's service, where it has one.",
        ),
        click.option(
            "--relabel",
            type=_Rules(),
            default="[]",
            metavar="FILE",
            help="YAML: rules as in Prometheus' metric_relabel_configs (keep, drop, replace, labeldrop, …).",
        ),
        click.option(
            "--split-by",
            "splits",
            multiple=True,
            type=_PerMetric("METRIC=LABEL,…", _splits),
            callback=_all_of(_splits),
            help="A column for each value of these labels; repeatable.",
        ),
        click.option(
            "--expression",
            "expressions",
            multiple=True,
            type=_PerMetric("NAME=PROMQL", _expressions),
            callback=_all_of(_expressions),
            help="A metric that Prometheus computes, like cpu=sum by (namespace, pod) (…); repeatable.",
        ),
        click.option(
            "--step",
            "step_ms",
            type=DURATION_MS,
            default="15s",
            show_default=True,
            help="Between an expression's points.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


conflict_option = click.option(
    "--on-conflict",
    type=click.Choice(["take-over", "wait"]),
    default="take-over",
    show_default=True,
    help="Where another poller of the same job runs: end it, or stand by until it ends.",
)


def source_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add what is read, and how Prometheus is asked."""
    options: list[Callable[..., Any]] = [
        click.option(
            "--url", required=True, type=typed("url", prometheus_url), help="Prometheus, like http://127.0.0.1:9090."
        ),
        click.option(
            "--source",
            type=click.Choice(["auto", "query", "remote-read"]),
            default="auto",
            show_default=True,
            help="How samples are read; auto asks the backend what it can do.",
        ),
        click.option(
            "--match",
            "selector",
            type=typed("selector", _selector),
            help=f"Which series to read. [default: {DEFAULT_SELECTOR}; with --all every series]",
        ),
        click.option(
            "--include",
            multiple=True,
            type=typed("regex", _regular_expression),
            help="Only metrics whose whole name matches; repeatable.",
        ),
        click.option(
            "--exclude",
            multiple=True,
            type=typed("regex", _regular_expression),
            help="No metrics whose whole name matches; repeatable.",
        ),
        click.option(
            "--preset",
            type=click.Choice(["kubernetes", "none"]),
            default="kubernetes",
            show_default=True,
            help="Make the series of cAdvisor and kube-state-metrics mean what people think.",
        ),
        click.option(
            "--settle",
            "settle_ms",
            type=DURATION_MS,
            default="30s",
            show_default=True,
            help="Stay so far behind the backend's now, so that late scrapes are in.",
        ),
        click.option(
            "--max-samples-per-second",
            type=click.FloatRange(min=1),
            help="Protect a busy Prometheus; no limit by default.",
        ),
        click.option(
            "--range-samples",
            type=click.IntRange(min=1000),
            default=2_000_000,
            show_default=True,
            help="What a range aims at: fewer need less memory, more are faster.",
        ),
        click.option(
            "--max-in-flight-samples",
            type=click.IntRange(min=1000),
            default=5_000_000,
            show_default=True,
            help="About what is being read, at most: bounds memory.",
        ),
        click.option(
            "--concurrency",
            type=click.IntRange(1, 64),
            default=4,
            show_default=True,
            help="Requests at once.",
        ),
        click.option(
            "--partitions",
            type=click.IntRange(1, 1024),
            help="Of topics that are made: the most workers you will want. [default: 8, or as they are]",
        ),
        click.option(
            "--request-timeout",
            "timeout_ms",
            type=DURATION_MS,
            default="2m",
            show_default=True,
            help="Ask for less when an answer takes longer.",
        ),
    ]
    function = meaning_options(access_options(function))
    for option in reversed(options):
        function = option(function)
    return function


def chosen_selector(selector: Any, *, everything: bool) -> Any:
    """Return what ``--match`` says, or what it means where it is not there."""
    return selector or _selector(_EVERY_SERIES if everything else DEFAULT_SELECTOR)


def meaning_arguments(flags: dict[str, Any]) -> list[str]:
    """Write what `meaning_options` has read as a command line has it; rules go as their text."""
    arguments = ["--all"] * flags["everything"] + ["--step", f"{flags['step_ms']}ms"]
    if flags["selector"]:
        arguments += ["--match", str(flags["selector"])]
    if flags["service_label"]:
        arguments += ["--service-label", flags["service_label"]]
    if flags["relabel"].rules:
        arguments += ["--relabel", flags["relabel"].text]
    for metric, labels in flags["splits"].labels_of.items():
        arguments += ["--split-by", f"{metric}={','.join(labels)}"]
    for name, promql in flags["expressions"].by_name.items():
        arguments += ["--expression", f"{name}={promql}"]
    return arguments


class _Header(Pairs):
    """``Name: value``; in the environment one a line."""

    name = "header"
    secret = True

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        name, colon, text = str(value).partition(":")
        if not colon:
            self.fail("a header is written like 'X-Scope-OrgID: team-a'", param, ctx)
        try:
            check_header(name.strip(), text.strip())
        except ConfigError as error:
            self.fail(str(error), param, ctx)
        return name.strip(), text.strip()

    def split_envvar_value(self, rv: str) -> list[str]:
        return [line for line in rv.splitlines() if line.strip()]

    def from_pair(self, key: str, value: str) -> str:
        return f"{key}: {value}"


def _token(text: str) -> str:
    if not is_header_value(text):
        raise ValueError("a token is one line of ASCII characters")
    return text


def _user_and_password(text: str) -> str:
    if ":" not in text or not text.isprintable():
        raise ValueError("write it like USER:PASSWORD")
    return text


def access_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add who we are to Prometheus, which the function gets as *access*."""

    @functools.wraps(function)
    def with_access(**flags: Any) -> Any:
        headers = flags.pop("header")
        names = [name.lower() for name, _ in headers]
        if twice := next((name for name, _ in headers if names.count(name.lower()) > 1), None):
            raise ConfigError(f"--header {twice} is given twice")
        mine = {field: flags.pop(field) for field in Access.__dataclass_fields__ if field != "headers"}
        return function(access=Access(headers=dict(headers), **mine), **flags)

    file = click.Path(exists=True, dir_okay=False, path_type=Path)
    options: list[Callable[..., Any]] = [
        click.option(
            "--bearer-token",
            metavar="TOKEN",
            type=typed("token", _token, secret=True),
            help="For an environment variable: a list of processes shows flags.",
        ),
        click.option("--bearer-token-file", type=file, help="A token, read anew for each request."),
        click.option(
            "--basic-auth",
            metavar="USER:PASSWORD",
            type=typed("user:password", _user_and_password, secret=True),
            help="For an environment variable: a list of processes shows flags.",
        ),
        click.option("--basic-auth-file", type=file, help="One line, user:password; read anew for each request."),
        click.option("--client-cert-file", type=file, help="Our certificate, PEM, for a server that wants one."),
        click.option("--client-key-file", type=file, help="Its key, PEM, without a password."),
        click.option("--ca-file", type=file, help="Trust the authorities in this PEM file, and no others."),
        click.option(
            "--header",
            metavar="'NAME: VALUE'",
            multiple=True,
            type=_Header(),
            help="Sent with every request, like X-Scope-OrgID; repeatable.",
        ),
        click.option(
            "--proxy",
            type=typed("url", proxy_url, secret=True),
            help="For every request. [default: what HTTP_PROXY, HTTPS_PROXY and NO_PROXY say]",
        ),
    ]
    for option in reversed(options):
        with_access = option(with_access)
    return with_access


json_option = click.option("--json", "as_json", is_flag=True, help="JSON lines on standard output, for machines.")

dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be read, and exit.")

start_option = click.option(
    "--start", required=True, type=TIME, help="RFC 3339, Unix seconds, or a duration ago like 10d."
)

end_option = click.option("--end", type=TIME, default="now", show_default=True, help="The same, or now.")
