"""TLS, client certificates, passwords and proxies, on the real Prometheus; what is refused gets one clear line."""

from __future__ import annotations

import http.client
import os
import select
import socket
import ssl
import subprocess
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import history
import pandas as pd
import pytest
import requests
import yaml
from commands import PATIENCE_S, WHEN, ingestor, stream_app

from ingestor.access import Access
from ingestor.core.errors import ConfigError
from ingestor.core.time_range import TimeRange
from ingestor.core.topics import Topics
from ingestor.local.kafka import LocalKafka
from ingestor.local.prometheus import LocalPrometheus, create_blocks
from ingestor.positions import read_positions
from ingestor.selector import Selector
from ingestor.sources.registry import SOURCES

PASSWORD = "s3cret-pw"  # noqa: S105 - of nobody
# Of the password, with the cheapest cost.
BCRYPT = "$2b$04$abcdefghijklmnopqrstuufbu7IbsAKnz0sK.RhkuQd5ApLvLcZVy"
PROXY_PASSWORD = "pr0xy-pw"  # noqa: S105 - of nobody
SECRETS = (PASSWORD, PROXY_PASSWORD, "czNjcmV0LXB3", "cHIweHktcHc")

PODS = Selector.parse('{pod!=""}')


class Certificates:
    """An authority, and what it has signed, made by the ``openssl`` command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = self._authority("ca")
        self.other_ca = self._authority("other")
        self.server = self.signed("server", "ca", "IP:127.0.0.1")
        self.expired = self.signed("expired", "ca", "IP:127.0.0.1", days=-1)
        self.elsewhere = self.signed("elsewhere", "ca", "DNS:prometheus.example")
        self.client = self.signed("client", "ca", "DNS:client")
        self.foreign_client = self.signed("foreign", "other", "DNS:client")
        self.locked_key = folder / "locked.key"
        self._openssl("pkey", "-in", self.client[1], "-aes256", "-passout", "pass:0pen", "-out", self.locked_key)
        self.both = folder / "both.pem"
        self.both.write_bytes(self.client[0].read_bytes() + self.client[1].read_bytes())

    def _authority(self, name: str) -> Path:
        certificate = self.folder / f"{name}.pem"
        subject = ["-subj", f"/CN={name}", "-addext", "keyUsage=critical,keyCertSign"]
        self._openssl("req", "-x509", *self._new_key(name), *subject, "-days", "2", "-out", certificate)
        return certificate

    def signed(self, name: str, authority: str, names: str, days: int = 2) -> tuple[Path, Path]:
        """Return certificate and key."""
        request, certificate = self.folder / f"{name}.csr", self.folder / f"{name}.pem"
        self._openssl(
            "req", *self._new_key(name), "-subj", f"/CN={name}", "-addext", f"subjectAltName={names}", "-out", request
        )
        self._openssl(
            "x509", "-req", "-in", request, "-CA", self.folder / f"{authority}.pem",
            "-CAkey", self.folder / f"{authority}.key", "-days", days, "-copy_extensions", "copy", "-out", certificate,
        )  # fmt: skip
        return certificate, self.folder / f"{name}.key"

    def _new_key(self, name: str) -> list[object]:
        return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout",
                self.folder / f"{name}.key"]  # fmt: skip

    @staticmethod
    def _openssl(*args: object) -> None:
        done = subprocess.run(["openssl", *map(str, args)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


class GuardedPrometheus(LocalPrometheus):
    """A real Prometheus behind a web configuration, so that only who is let in sees that it is ready."""

    def __init__(
        self,
        folder: Path,
        web: Mapping[str, object],
        config: Mapping[str, object] | None = None,
        client: tuple[Path, Path] | None = None,
    ) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "web.yml").write_text(yaml.safe_dump(dict(web)))
        super().__init__(folder, config=config, extra_args=[f"--web.config.file={folder / 'web.yml'}"])
        self._client = client and tuple(map(str, client))
        self._scheme = "https" if "tls_server_config" in web else "http"

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}"

    def _answers(self, session: requests.Session, url: str) -> bool | None:
        session.auth, session.verify, session.cert = ("me", PASSWORD), False, self._client
        with warnings.catch_warnings():
            # Of a certificate that is not looked at: some of them are wrong.
            warnings.simplefilter("ignore")
            return super()._answers(session, url.replace("http", self._scheme))


class Proxy(ThreadingHTTPServer):
    """A forwarding proxy on the loopback that counts, and can want credentials."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _ProxyHandler)
        self.authorization: str | None = None
        self.passed: list[str] = []
        self.refused = 0
        self.host = f"127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()


class _ProxyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def is_let_in(self) -> bool:
        if self.server.authorization in (None, self.headers.get("Proxy-Authorization")):
            self.server.passed.append(f"{self.command} {urlsplit(self.path).netloc or self.path}")
            return True
        self.server.refused += 1
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.close_connection = True
        self.send_response(407)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return False

    def do_CONNECT(self) -> None:
        self.close_connection = True
        if not self.is_let_in():
            return
        host, _, port = self.path.partition(":")
        with socket.create_connection((host, int(port))) as server:
            self.send_response(200)
            self.end_headers()
            ends = {self.connection: server, server: self.connection}
            while ready := select.select(ends, [], [], 30)[0]:
                for end in ready:
                    piece = end.recv(1 << 16)
                    if not piece:
                        return
                    ends[end].sendall(piece)

    def do_POST(self) -> None:
        if not self.is_let_in():
            return
        parts = urlsplit(self.path)
        sent = {name: value for name, value in self.headers.items() if not name.lower().startswith("proxy-")}
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server = http.client.HTTPConnection(parts.netloc)
        server.request(self.command, parts._replace(scheme="", netloc="").geturl(), body, sent)
        answer = server.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        for name in ("Content-Type", "Content-Encoding"):
            if value := answer.headers.get(name):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        server.close()

    do_GET = do_POST  # noqa: N815 - the base class names it

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    proxy = Proxy()
    yield proxy
    proxy.shutdown()
    proxy.server_close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def guarded(
    certificates: Certificates, samples: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GuardedPrometheus]:
    """Wants a client's certificate and a password."""
    folder = tmp_path_factory.mktemp("guarded")
    certificate, key = certificates.server
    server = GuardedPrometheus(
        folder,
        {
            "tls_server_config": {
                "cert_file": str(certificate),
                "key_file": str(key),
                "client_auth_type": "RequireAndVerifyClientCert",
                "client_ca_file": str(certificates.ca),
            },
            "basic_auth_users": {"me": BCRYPT},
        },
        client=certificates.client,
    )
    history.write_openmetrics(samples, folder / "history.om")
    create_blocks(folder / "history.om", server.data_dir)
    with server:
        yield server


@pytest.fixture(scope="module")
def with_password(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedPrometheus]:
    """Wants a password, without TLS."""
    with GuardedPrometheus(tmp_path_factory.mktemp("plain"), {"basic_auth_users": {"me": BCRYPT}}) as server:
        yield server


@pytest.fixture(autouse=True)
def no_proxy_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the proxies that a test gives."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def let_in(certificates: Certificates, **more: object) -> Access:
    certificate, key = certificates.client
    given = {"ca_file": certificates.ca, "client_cert_file": certificate, "client_key_file": key} | more
    return Access(**({"basic_auth": f"me:{PASSWORD}"} | given))


@pytest.mark.parametrize("source", SOURCES)
def test_whoever_is_let_in_reads_samples(
    guarded: GuardedPrometheus, certificates: Certificates, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Own authority, client certificate and password, with every source; REQUESTS_CA_BUNDLE does not take over."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificates.other_ca))
    api = SOURCES[source](guarded.url, access=let_in(certificates))
    assert api.check() > history.START_MS
    block = api.fetch(PODS, "queue_depth", TimeRange(history.START_MS, history.END_MS))
    assert block.samples > 1000
    one_file = let_in(certificates, client_cert_file=certificates.both, client_key_file=None)
    assert SOURCES[source](guarded.url, access=one_file).check() > history.START_MS


def test_each_failure_of_tls_says_what_to_give(
    guarded: GuardedPrometheus, certificates: Certificates, tmp_path: Path
) -> None:
    """The certificate, its authority, its names and its age are told apart; so are ours."""
    certificate, key = certificates.client
    foreign, foreign_key = certificates.foreign_client
    plain = guarded.url.replace("https", "http")
    for url, changes, told in [
        (
            guarded.url,
            {"ca_file": None},
            "is not trusted (unable to get local issuer certificate): give your authority",
        ),
        (guarded.url, {"ca_file": certificates.other_ca}, "give your authority's certificate with --ca-file"),
        (guarded.url, {"client_cert_file": None, "client_key_file": None}, "--client-cert-file and --client-key-file"),
        (guarded.url, {"client_cert_file": foreign, "client_key_file": foreign_key}, "give another --client-cert-file"),
        (guarded.url, {"basic_auth": None}, "(401 Unauthorized): give --bearer-token-file or --basic-auth-file"),
        (guarded.url, {"basic_auth": "me:other"}, "(401 Unauthorized)"),
        (plain, {}, "--url https://"),
        (guarded.url, {"ca_file": key}, "holds no certificate in PEM form"),
        (guarded.url, {"client_key_file": foreign_key}, "is not the key of --client-cert-file"),
        (guarded.url, {"client_key_file": None}, "give --client-key-file too"),
        (guarded.url, {"client_key_file": certificate}, "are not a certificate and its key in PEM form"),
        (guarded.url, {"client_key_file": certificates.locked_key}, "holds a key with a password: give one without"),
        (guarded.url, {"client_key_file": tmp_path / "none"}, "cannot read --client-key-file"),
    ]:
        # Of TLS 1.3's alerts some are overtaken: look more than once.
        for _ in range(5):
            with pytest.raises(ConfigError) as caught:
                SOURCES["auto"](url, access=let_in(certificates, **changes)).check()
            assert told in str(caught.value), changes
            assert "\n" not in str(caught.value)
            assert not any(secret in str(caught.value) for secret in SECRETS)


def test_a_server_with_a_bad_certificate_is_told(certificates: Certificates, tmp_path: Path) -> None:
    """Expired, or made out for another name; and an address without TLS."""
    for name, pair, told in [
        ("expired", certificates.expired, "(certificate has expired): it must be renewed there"),
        ("elsewhere", certificates.elsewhere, "give the address that it is made out for"),
    ]:
        web = {"tls_server_config": {"cert_file": str(pair[0]), "key_file": str(pair[1])}}
        with GuardedPrometheus(tmp_path / name, web) as server, pytest.raises(ConfigError) as caught:
            SOURCES["query"](server.url, access=Access(ca_file=certificates.ca)).check()
        assert told in str(caught.value)


def test_tls_1_2_wants_the_certificate_too(certificates: Certificates) -> None:
    """There the alert comes in the handshake, not after it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(*certificates.server)
    context.load_verify_locations(certificates.ca)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for _ in range(2):
                with suppress(OSError):
                    context.wrap_socket(listener.accept()[0], server_side=True).close()

        threading.Thread(target=serve, daemon=True).start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(ConfigError, match="--client-cert-file and --client-key-file"):
            SOURCES["query"](url, access=Access(ca_file=certificates.ca)).check()


def test_the_proxy_is_used(
    guarded: GuardedPrometheus, with_password: GuardedPrometheus, certificates: Certificates, proxy: Proxy
) -> None:
    """For http it forwards, for https it tunnels; with its own credentials where it wants them."""
    proxy.authorization = "Basic bWU6cHIweHktcHc="
    mine = f"http://me:{PROXY_PASSWORD}@{proxy.host}"
    http_access = Access(basic_auth=f"me:{PASSWORD}", proxy=mine)
    SOURCES["query"](with_password.url, access=http_access).check()
    tunnelled = SOURCES["query"](guarded.url, access=let_in(certificates, proxy=mine))
    assert tunnelled.fetch(PODS, "queue_depth", TimeRange(history.START_MS, history.END_MS)).samples > 1000
    hosts = [urlsplit(server.url).netloc for server in (with_password, guarded)]
    assert proxy.passed == [f"POST {hosts[0]}", f"CONNECT {hosts[1]}"]
    for url, access in ((with_password.url, http_access), (guarded.url, let_in(certificates))):
        with pytest.raises(ConfigError, match=r"refused to pass us on \(407 Proxy Auth.*USER:PASSWORD") as caught:
            SOURCES["query"](url, access=_with_proxy(access, f"http://me:wr0ng-pw@{proxy.host}")).check()
        assert "wr0ng-pw" not in str(caught.value)
    assert proxy.refused == 2


def _with_proxy(access: Access, proxy: str) -> Access:
    return Access(**{name: getattr(access, name) for name in Access.__dataclass_fields__} | {"proxy": proxy})


def test_the_usual_variables_work(prometheus: LocalPrometheus, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTP_PROXY is used, NO_PROXY spares the loopback, and --proxy wins over both."""
    monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.host}")
    SOURCES["query"](prometheus.url).check()
    assert len(proxy.passed) == 1
    for spared in ("127.0.0.1", "127.0.0.0/8", "localhost,127.0.0.1", "*"):
        monkeypatch.setenv("NO_PROXY", spared)
        SOURCES["query"](prometheus.url).check()
    assert len(proxy.passed) == 1
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    SOURCES["query"](prometheus.url, access=Access(proxy=f"http://{proxy.host}")).check()
    assert len(proxy.passed) == 2


def run(command: list[str], code: int, **environment: str) -> str:
    """Run a command; return all that it printed, in which there is no secret."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_S, check=False, env={**os.environ, **environment}
    )
    printed = done.stdout + done.stderr
    assert done.returncode == code, printed
    assert not any(secret in printed for secret in SECRETS), printed
    return printed


def test_commands_are_let_in_and_print_no_secret(
    guarded: GuardedPrometheus, certificates: Certificates, kafka: LocalKafka, proxy: Proxy, tmp_path: Path
) -> None:
    """By flags, environment and file, with the most talkative logs; the job's position has no password either."""
    proxy.authorization = "Basic bWU6cHIweHktcHc="
    certificate, key = certificates.client
    files = {"ca-file": certificates.ca, "client-cert-file": certificate, "client-key-file": key}
    config = tmp_path / "config.yml"
    mine = f"http://me:{PROXY_PASSWORD}@{proxy.host}"
    common = {name: str(path) for name, path in files.items()} | {"log-level": "debug", "header": {"X-Key": PASSWORD}}
    config.write_text(yaml.safe_dump({"defaults": common, "backfill": {"proxy": mine}}))
    topics = Topics("guarded")
    backfill = ingestor(
        "--config", str(config), "backfill", *WHEN, "--topic-prefix", topics.prefix,
        "--bootstrap-servers", kafka.bootstrap_servers, "--url",
    )  # fmt: skip
    assert "metrics of" in run([*backfill, guarded.url, "--dry-run"], 0, INGESTOR_BACKFILL_BASIC_AUTH=f"me:{PASSWORD}")
    run([*backfill, guarded.url.replace("://", f"://me:{PASSWORD}@")], 0)
    assert any(line.startswith("CONNECT") for line in proxy.passed)
    (position,) = read_positions(kafka.cluster, topics).values()
    assert position.arguments["url"] == guarded.url
    assert not any(secret in str(position) for secret in SECRETS)
    # Refused: nobody's password, nobody's certificate, and a proxy that wants more.
    for userinfo, environment in (("", {"INGESTOR_BACKFILL_BEARER_TOKEN": PASSWORD}), (f"me:{PASSWORD}x@", {})):
        refused = run([*backfill, guarded.url.replace("://", f"://{userinfo}")], 2, **environment)
        assert "(401 Unauthorized): give --bearer-token-file" in refused.splitlines()[-1]
    ca_flag = [*backfill, guarded.url, "--ca-file", str(certificates.other_ca)]
    assert "--ca-file" in run(ca_flag, 2).splitlines()[-1]
    wrong_proxy = [*backfill, guarded.url, "--proxy", f"http://me:{PROXY_PASSWORD}x@{proxy.host}"]
    assert "USER:PASSWORD" in run(wrong_proxy, 2).splitlines()[-1]


def test_a_dataset_hands_secrets_to_its_poller_unseen(
    guarded: GuardedPrometheus, certificates: Certificates, kafka: LocalKafka, proxy: Proxy, tmp_path: Path
) -> None:
    """Its files come out; no process of the machine shows a secret, nor does the storage or the log."""
    proxy.authorization = "Basic bWU6cHIweHktcHc="
    certificate, key = certificates.client
    storage = tmp_path / "data"
    command = stream_app(
        "dataset", *WHEN, "--storage", str(storage), "--bootstrap-servers", kafka.bootstrap_servers,
        "--url", guarded.url, "--ca-file", str(certificates.ca), "--log-level", "debug",
        "--client-cert-file", str(certificate), "--client-key-file", str(key),
    )  # fmt: skip
    environment = {
        "STREAM_APP_DATASET_BASIC_AUTH": f"me:{PASSWORD}",
        "STREAM_APP_DATASET_PROXY": f"http://me:{PROXY_PASSWORD}@{proxy.host}",
        "STREAM_APP_DATASET_HEADER": f"X-Key: {PASSWORD}",
        # Of another command's poller: not this one's.
        "INGESTOR_BACKFILL_BEARER_TOKEN": "other",
        "INGESTOR_BACKFILL_SETTLE": "30",
    }
    shown: set[str] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):
                    shown.add(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run(command, 0, **environment)
    finally:
        done.set()
        watcher.join()
    assert any("-m ingestor backfill" in line and "--ca-file" in line for line in shown)
    assert not [line for line in shown if any(secret in line for secret in SECRETS)]
    written = [path for path in storage.rglob("*") if path.is_file()]
    assert any(path.suffix == ".csv" for path in written)
    assert not [path for path in written if any(secret.encode() in path.read_bytes() for secret in SECRETS)]
    assert proxy.passed
