"""Who we are reaches the server as given, from flags, environment and file, and shows nowhere else."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from ingestor.access import Access
from ingestor.command_line import SpelledGroup
from ingestor.core.errors import ConfigError, IngestorError
from ingestor.core.time_range import TimeRange
from ingestor.core.topics import Topics
from ingestor.kafka import Cluster
from ingestor.local.processes import free_port
from ingestor.options import access_options, config_option
from ingestor.poller import PollerSettings
from ingestor.selector import Selector
from ingestor.sources.http_query import HttpQuerySource
from ingestor.sources.registry import SOURCES
from ingestor.urls import proxy_url, split_prometheus_url, without_credentials
from stream_app.cli import _poller_arguments, _poller_secrets
from stream_app.cli import cli as stream_app

RANGE = TimeRange(1_700_000_000_000, 1_700_003_600_000)
PODS = Selector.parse('{pod!=""}')
TOKEN = "0123"  # noqa: S105 - a number to YAML
SECRET = "s3cr3t"  # noqa: S105 - of nobody


class EchoServer:
    """A real HTTP server that answers with all headers that it got, in a way that ``mode`` says."""

    def __init__(self) -> None:
        self.mode = "refuse"
        self.headers: list[dict[str, str]] = []
        echo = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                echo.headers.append(dict(self.headers))
                heard = "x" * 280 + " " + str(self.headers)
                status, body = echo.answer(heard)
                self.send_response(status, f"Who is {SECRET}?")
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Content-Type", SECRET)
                if status == 302:
                    self.send_header("Location", f"http://elsewhere/{heard.split()[-1]}/{SECRET}?{SECRET}")
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST  # noqa: N815 - the base class names it

            def log_message(self, *_args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, heard: str) -> tuple[int, bytes]:
        heard = heard[-250:]
        error = {"status": "error", "errorType": "x", "error": heard}
        return {
            "refuse": (400, json.dumps(error).encode()),
            "fail": (500, json.dumps(error).encode()),
            "text": (404, heard.encode()),
            "success": (200, json.dumps(error).encode()),
            "page": (200, heard.encode()),
            "warn": (200, b'{"status":"success","data":{"resultType":"matrix","result":[]},"warnings":%s}'
                     % json.dumps([heard]).encode()),
            "redirect": (302, b""),
            "proxy": (407, heard.encode()),
        }[self.mode]  # fmt: skip


@pytest.fixture
def echo_server() -> Iterator[EchoServer]:
    server = EchoServer()
    yield server
    server.server.shutdown()
    server.server.server_close()


def ways_in(tmp_path: Path) -> dict[str, tuple[str, Access]]:
    """Return each way of carrying the secret: what stands before the host, and the rest."""
    token, basic = tmp_path / "token", tmp_path / "basic"
    token.write_text(f"{SECRET}\n")
    basic.write_text(f"me:{SECRET}\n")
    return {
        "token": ("", Access(bearer_token=SECRET)),
        "token file": ("", Access(bearer_token_file=token)),
        "basic": ("", Access(basic_auth=f"me:{SECRET}")),
        "basic file": ("", Access(basic_auth_file=basic)),
        "header": ("", Access(headers={"X-Key": SECRET})),
        "authorization": ("", Access(headers={"authorization": f"Custom {SECRET}"})),
        "url": (f"me:{SECRET}@", Access()),
    }


WAYS = ["token", "token file", "basic", "basic file", "header", "authorization", "url"]


@pytest.mark.parametrize("mode", ["refuse", "fail", "text", "success", "page", "warn", "redirect", "proxy"])
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("way", WAYS)
def test_a_server_that_repeats_what_it_heard_spreads_no_secret(
    echo_server: EchoServer, tmp_path: Path, way: str, source: str, mode: str
) -> None:
    """Its words are shown, without ours."""
    echo_server.mode = mode
    userinfo, access = ways_in(tmp_path)[way]
    api = SOURCES[source](echo_server.url.replace("://", f"://{userinfo}"), access=access)
    coded = base64.b64encode(f"me:{SECRET}".encode()).decode()
    for ask in (api.check, api.metric_types, lambda: api.fetch(PODS, "up", RANGE)):
        try:
            ask()
        except IngestorError as error:
            for text in (str(error), repr(error)):
                assert SECRET not in text
                assert coded not in text
    sent = "".join(f"{name}: {value}\n" for headers in echo_server.headers for name, value in headers.items())
    assert SECRET in sent or coded in sent
    assert SECRET not in repr(api)
    assert SECRET not in repr(access)


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=4, max_size=40))
def test_what_is_redacted_is_gone(text: str) -> None:
    """Plain, and as JSON writes it."""
    connection = HttpQuerySource("http://x", access=Access(headers={"X-Key": text}))._connection
    assert connection.redacted(f"no {text} !".encode()).decode() == "no … !"
    assert json.loads(connection.redacted(json.dumps([f"no {text} !"]).encode())) == ["no … !"]


def test_headers_and_token_are_sent(echo_server: EchoServer) -> None:
    """With every request, whichever the source."""
    access = Access(bearer_token=SECRET, headers={"X-Scope-OrgID": "team-a"})
    for source in SOURCES.values():
        with pytest.raises(IngestorError):
            source(echo_server.url, access=access).check()
    assert {(h["Authorization"], h["X-Scope-OrgID"]) for h in echo_server.headers} == {(f"Bearer {SECRET}", "team-a")}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"bearer_token": SECRET, "basic_auth": f"me:{SECRET}"}, "give --bearer-token or --basic-auth, not both"),
        ({"bearer_token": SECRET, "headers": {"Authorization": SECRET}}, "--header Authorization, not both"),
        ({"client_key_file": Path("key")}, "--client-key-file needs --client-cert-file"),
        ({"headers": {"X-Key": f"{SECRET}\n"}}, "the header 'X-Key' has characters that HTTP does not allow"),
        ({"headers": {"X Key": SECRET}}, "the header 'X Key' has characters"),
        ({"headers": {"Content-Length": SECRET}}, "the header 'Content-Length' is not yours to set"),
    ],
)
def test_contradictions_are_told_without_secrets(fields: dict[str, Any], told: str) -> None:
    """By the flags' names."""
    with pytest.raises(ConfigError) as caught:
        Access(**fields)
    assert told in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.fixture
def echo_flags() -> tuple[click.Group, list[Access]]:
    given: list[Access] = []

    @click.group(cls=SpelledGroup)
    @config_option
    def group() -> None: ...

    @group.command()
    @access_options
    def read(access: Access) -> None:
        given.append(access)

    return group, given


def invoke(group: click.Group, *args: str, **environment: str) -> Result:
    return CliRunner().invoke(group, list(args), env=environment, auto_envvar_prefix="INGESTOR")


def test_flags_environment_and_file_mean_the_same(echo_flags: tuple[click.Group, list[Access]], tmp_path: Path) -> None:
    """A mapping in YAML, a line each in the environment, a repeated flag."""
    group, given = echo_flags
    path = tmp_path / "config.yml"
    path.write_text(
        "read: {bearer-token: 0123, proxy: http://me:pw@proxy:1, header: {X-Scope-OrgID: team-a, X-Key: 'a: b'}}"
    )
    headers = ("--header", "X-Scope-OrgID: team-a", "--header", "X-Key:a: b")
    invoke(group, "read", "--bearer-token", "0123", "--proxy", "http://me:pw@proxy:1", *headers)
    invoke(group, "--config", str(path), "read")
    invoke(
        group, "read", INGESTOR_READ_BEARER_TOKEN=TOKEN, INGESTOR_READ_PROXY="http://me:pw@proxy:1",
        INGESTOR_READ_HEADER="X-Scope-OrgID: team-a\nX-Key: a: b",
    )  # fmt: skip
    path.write_text("read: {header: [ 'X-Scope-OrgID: team-a', 'X-Key: a: b' ]}")
    invoke(group, "--config", str(path), "read", "--bearer-token", "0123", "--proxy", "http://me:pw@proxy:1")
    expected = Access(
        bearer_token=TOKEN, proxy="http://me:pw@proxy:1", headers={"X-Scope-OrgID": "team-a", "X-Key": "a: b"}
    )
    assert given == [expected] * 4
    # And so it reaches a child process.
    invoke(group, "read", **expected.environment("INGESTOR_READ"))
    assert given[-1] == expected
    invoke(group, "read", **Access().environment("INGESTOR_READ"))
    assert given[-1] == Access()


def test_wrong_secrets_are_refused_unseen(echo_flags: tuple[click.Group, list[Access]], tmp_path: Path) -> None:
    """Every fault names the setting, none its value, wherever it stands."""
    group, given = echo_flags
    path = tmp_path / "config.yml"
    path.write_text(
        f'read: {{bearer-token: "{SECRET}\\t", basic-auth: {SECRET}, proxy: "me:{SECRET}@x", '
        f"header: {{X Y: {SECRET}, Content-Type: {SECRET}, Z: [{SECRET}]}}, bearer-tokn: {SECRET}}}\n"
    )
    refused = invoke(
        group, "--config", str(path), "read", "--bearer-token", f"{SECRET} {SECRET}é", "--header", SECRET,
        "--header", "X-A:", SECRET, "--proxy", f"ftp://me:{SECRET}@x", f"--basic={SECRET}",
        INGESTOR_READ_BASIC_AUTH=SECRET,
    )  # fmt: skip
    assert refused.exit_code == 2
    assert not given
    assert "Error: 14 settings are wrong:" in refused.stderr
    assert SECRET not in refused.output
    missing = invoke(group, "read", "--ca-file", str(tmp_path / "nothing"), "--client-key-file", str(path))
    assert missing.exit_code == 2
    assert "--ca-file: File" in missing.stderr
    twice = invoke(group, "read", "--header", f"X-Key: {SECRET}", "--header", "x-key: 2")
    assert isinstance(twice.exception, ConfigError)
    assert str(twice.exception) == "--header X-Key is given twice"


def test_the_dataset_passes_secrets_in_the_environment(tmp_path: Path) -> None:
    """A list of processes, and the file that a later run compares with, show flags."""
    key = tmp_path / "key"
    key.write_text("x")
    command = stream_app.commands["dataset"]
    args = [
        *("--url", f"http://me:{SECRET}@prometheus:9090/x", "--start", "1d", "--storage", "data"),
        *("--header", f"X-Key: {SECRET}", "--proxy", f"http://me:{SECRET}@proxy:3128"),
        *("--ca-file", str(key), "--client-cert-file", str(key), "--client-key-file", str(key)),
    ]
    flags = parsed(command, args)
    arguments, secrets = _poller_arguments(flags), _poller_secrets(flags)
    assert SECRET not in str(arguments)
    assert arguments[:2] == ["--url", "http://prometheus:9090/x"]
    assert arguments[-6:] == [
        "--client-cert-file", str(key), "--client-key-file", str(key), "--ca-file", str(key)
    ]  # fmt: skip
    assert secrets == {
        "INGESTOR_BACKFILL_BASIC_AUTH": f"me:{SECRET}",
        "INGESTOR_BACKFILL_HEADER": f"X-Key: {SECRET}",
        "INGESTOR_BACKFILL_PROXY": f"http://me:{SECRET}@proxy:3128",
    }
    # What the user gave beside the URL wins, as it does in the poller.
    with_token = _poller_secrets(parsed(command, [*args, "--bearer-token", "abcd"]))
    assert with_token["INGESTOR_BACKFILL_BEARER_TOKEN"] == "abcd"  # noqa: S105 - of nobody
    assert "INGESTOR_BACKFILL_BASIC_AUTH" not in with_token


def parsed(command: click.Command, args: list[str]) -> dict[str, Any]:
    """Return a command's flags as its function gets them."""
    flags = dict(command.make_context("dataset", list(args)).params)
    return access_options(lambda **packed: packed)(**flags)


def test_a_job_and_its_settings_hold_no_password() -> None:
    """They are published to Kafka; a new password is the same job."""

    def settings(userinfo: str) -> PollerSettings:
        url = f"https://{userinfo}prometheus/path"
        return PollerSettings(Cluster("x"), Topics(), PODS, "1d", "now", url)

    assert settings(f"me:{SECRET}@").arguments["url"] == "https://prometheus/path"
    assert settings(f"me:{SECRET}@").command == settings("me:other@").command == settings("").command


@pytest.mark.parametrize(
    ("url", "clean", "password"),
    [
        ("http://me:p%40w@x:1/a@b?c=@", "http://x:1/a@b?c=@", "p@w"),
        ("http://me:p@w@x/", "http://x/", "p@w"),
        ("http://x/a@b", "http://x/a@b", None),
        ("http://me@x?y", "http://x?y", None),
        ("me:pw@x", "x", None),
        ("http://[::1", "http://[::1", None),
    ],
)
def test_credentials_in_addresses(url: str, clean: str, password: str | None) -> None:
    """They end at the last @ before the path; all else stays as typed."""
    assert without_credentials(url) == clean
    if password:
        assert split_prometheus_url(url.partition("?")[0])[1] == f"me:{password}"


@pytest.mark.parametrize("text", ["proxy:3128", "socks5://me:pw@x", "http://me:pw@", "http://x/path", "", "http://["])
def test_a_malformed_proxy_is_told(text: str) -> None:
    """With an example, without the credentials."""
    with pytest.raises(ValueError, match="write it like http://proxy:3128") as caught:
        proxy_url(text)
    assert "pw" not in str(caught.value)


def test_a_proxy_that_is_away_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the proxy that is wrong, and not the server."""
    proxy = f"http://me:{SECRET}@127.0.0.1:{free_port()}"
    for url in ("http://prometheus.invalid", "https://prometheus.invalid"):
        with pytest.raises(ConfigError, match=r"the proxy .* \(--proxy\) cannot be reached") as caught:
            HttpQuerySource(url, access=Access(proxy=proxy)).check()
        assert SECRET not in str(caught.value)
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(ConfigError, match=r"the proxy .* \(HTTP_PROXY\) cannot be reached.* NO_PROXY") as caught:
        HttpQuerySource("http://prometheus.invalid").check()
    assert SECRET not in str(caught.value)
    monkeypatch.setenv("HTTP_PROXY", f"socks5://me:{SECRET}@x:1")
    with pytest.raises(ConfigError, match=r"the proxy socks5://x:1 \(HTTP_PROXY\) cannot be used") as caught:
        HttpQuerySource("http://prometheus.invalid").check()
