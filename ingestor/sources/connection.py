"""Requests to one server: credentials, certificates, headers, proxy, and what it means where they fail."""

from __future__ import annotations

import base64
import http.client
import re
import socket
import ssl
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from urllib.parse import unquote, urlsplit

import orjson
import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies, select_proxy

from ingestor.access import Access
from ingestor.core.errors import ConfigError, IngestorError, SourceUnavailable
from ingestor.urls import split_prometheus_url, without_credentials

_SHORTEST_SECRET = 4
"""Shorter texts are no secrets, and would be found everywhere."""
_SENT_KEPT = 4
"""So many rotated credentials are still known as secrets."""

_CERTIFICATE_ALERT = re.compile(r"ALERT_.*(CERTIFICATE|UNKNOWN_CA|ACCESS_DENIED|HANDSHAKE_FAILURE)")
_NOT_TLS = re.compile(r"WRONG_VERSION_NUMBER|UNKNOWN_PROTOCOL|HTTP_REQUEST|RECORD_LAYER_FAILURE")
_ENDED = (ConnectionResetError, BrokenPipeError, ssl.SSLEOFError, ssl.SSLZeroReturnError)
_LISTEN_S = 2.0
_TUNNEL = re.compile(r"Tunnel connection failed: (\d{3})")

# X509_V_ERR_…, of openssl/x509_vfy.h.
_EXPIRED, _OTHER_NAMES = {9, 10}, {62, 64}


class Unreachable(SourceUnavailable):
    """No HTTP answer came at all."""

    def __init__(self, message: str, advice: str = "is Prometheus running there? give --url") -> None:
        super().__init__(message)
        self.advice = advice


class Connection:
    """A server of which nothing secret is ever shown.

    Args:
        url: where the API's ``/api/v1`` lies, with a path if it has one.
        access: who we are there.
        connections: kept open; the number of threads that will call at once.

    Raises:
        ConfigError: the URL is malformed, or a file of certificates cannot be used.
    """

    def __init__(self, url: str, access: Access, connections: int) -> None:
        try:
            self.url, in_url = split_prometheus_url(url)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        _check_tls_files(access)
        self._access = access
        self._authorization = _authorization(access, in_url)
        self._sent: deque[str] = deque(maxlen=_SENT_KEPT)
        self._fixed_secrets = _secrets_of(access)
        self._session = requests.Session()
        adapter = HTTPAdapter(pool_connections=1, pool_maxsize=connections)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)
        # The jar is the one part of a session that threads would share for writing.
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        # On a link of a gigabit and more, unpacking gzip takes longer than the bytes that it saves.
        self._session.headers.update({"Accept-Encoding": "identity", "User-Agent": "podstream", **access.headers})

    def close(self) -> None:
        self._session.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        parameters: Mapping[str, str | list[str]] | None,
        data: Mapping[str, str | list[str]] | bytes | None,
        headers: Mapping[str, str] | None,
        timeout: tuple[float, float],
    ) -> requests.Response:
        """Return an answer whose body is still to be read."""
        access = self._access
        files = [str(path) for path in (access.client_cert_file, access.client_key_file) if path]
        return self._session.request(
            method,
            f"{self.url}/api/v1/{path}",
            params=parameters,
            data=data,
            headers=headers,
            auth=self._authorize,
            timeout=timeout,
            # A redirected POST would come back as a GET without its query.
            allow_redirects=False,
            stream=True,
            # With each request: a session's own would lose to REQUESTS_CA_BUNDLE and HTTP_PROXY.
            verify=str(access.ca_file) if access.ca_file else None,
            cert=(files[0], files[1]) if len(files) == 2 else files[0] if files else None,
            proxies={"http": access.proxy, "https": access.proxy} if access.proxy else None,
        )

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        # As `auth`, not as a header: requests would put ~/.netrc's credentials in a header's place.
        if value := self._authorization():
            request.headers["Authorization"] = value
            if value not in self._sent:
                self._sent.append(value)
        return request

    def redacted(self, body: bytes) -> bytes:
        """Return what a server said, without the secrets that we told it."""
        sent = {text for value in tuple(self._sent) for text in _secrets_of_authorization(value)}
        for secret in sorted(self._fixed_secrets | sent, key=len, reverse=True):
            if len(secret) >= _SHORTEST_SECRET:
                # As JSON first: it is the longer one.
                for written in (orjson.dumps(secret)[1:-1], secret.encode()):
                    body = body.replace(written, "…".encode())
        return body

    def failure(self, causes: list[BaseException]) -> IngestorError | None:
        """Say what it means that certificates or a proxy failed; None where it is something else."""
        through_proxy = any(
            isinstance(cause, urllib3.exceptions.ProxyError | requests.exceptions.ProxyError) for cause in causes
        )
        for cause in causes:
            if isinstance(cause, ssl.SSLCertVerificationError):
                return _not_trusted(self._proxy() if through_proxy else self.url, cause)
            if isinstance(cause, ssl.SSLError) and _CERTIFICATE_ALERT.search(cause.reason or ""):
                return self._certificate_refused(str(cause.reason))
        if not through_proxy and any(isinstance(cause, _ENDED) for cause in causes):
            return self._cut_off(reason(causes))
        return self._proxy_failure(causes, through_proxy=through_proxy)

    def _cut_off(self, why: str) -> IngestorError:
        """Say what it means that the server ended the connection: not seldom that it wants TLS, or our certificate."""
        message = f"{self.url}: cannot connect ({why})"
        if not self.url.startswith("https:"):
            return Unreachable(message, "is Prometheus running there? give --url, or --url https://… if it speaks TLS")
        if alert := self._alert():
            return self._certificate_refused(alert)
        ours = "accept the one in" if self._access.client_cert_file else "want"
        return Unreachable(message, f"is Prometheus running there? does it {ours} --client-cert-file?")

    def _proxy_failure(self, causes: list[BaseException], *, through_proxy: bool) -> IngestorError | None:
        unusable = requests.exceptions.InvalidSchema | requests.exceptions.InvalidProxyURL
        if any(isinstance(cause, unusable) for cause in causes):
            return ConfigError(f"{self._proxy()} cannot be used: give --proxy an address like http://proxy:3128")
        if tunnel := next((found for cause in causes if (found := _TUNNEL.search(str(cause)))), None):
            return self.proxy_refusal(int(tunnel[1]))
        if not through_proxy:
            return None
        return Unreachable(
            f"{self._proxy()} cannot be reached ({reason(causes)})",
            "is it running there? give --proxy, or name this server in NO_PROXY",
        )

    def proxy_refusal(self, status: int) -> IngestorError:
        """Say what it means that the proxy itself refused us."""
        told = f"{self._proxy()} refused to pass us on ({status} {http.client.responses.get(status, '')})".rstrip()
        if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
            return ConfigError(f"{told}: give --proxy http://USER:PASSWORD@HOST:PORT")
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return Unreachable(f"{told} to {self.url}", "is Prometheus running there? give --url")
        return ConfigError(f"{told} to {self.url}: name this server in NO_PROXY, or give another --proxy")

    def _alert(self) -> str | None:
        """Return why the server refuses our certificate, which what we send can overtake (TLS 1.3): so only listen."""
        if self._proxy_address():
            return None
        parts = urlsplit(self.url)
        host, access = parts.hostname or "", self._access
        try:
            context = ssl.create_default_context(cafile=access.ca_file)
            # Nothing is sent or believed; requests may trust authorities that this context does not know.
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            if access.client_cert_file:
                context.load_cert_chain(access.client_cert_file, access.client_key_file, password="")
            with (
                socket.create_connection((host, parts.port or 443), _LISTEN_S) as plain,
                context.wrap_socket(plain, server_hostname=host) as encrypted,
            ):
                encrypted.recv(1)
        except ssl.SSLError as error:
            return error.reason if _CERTIFICATE_ALERT.search(error.reason or "") else None
        except (OSError, ValueError):
            return None
        return None

    def _certificate_refused(self, alert: str) -> ConfigError:
        if self._access.client_cert_file:
            said = alert[alert.index("ALERT_") + len("ALERT_") :].replace("_", " ").lower()
            return ConfigError(f"{self.url} refuses our certificate ({said}): give another --client-cert-file")
        return ConfigError(f"{self.url} wants a certificate of ours: give --client-cert-file and --client-key-file")

    def _proxy_address(self) -> str | None:
        return self._access.proxy or select_proxy(self.url, get_environ_proxies(self.url))

    def _proxy(self) -> str:
        """Return the proxy in words, with where it was given."""
        address = self._proxy_address()
        where = "HTTPS_PROXY" if self.url.startswith("https:") else "HTTP_PROXY"
        where = "--proxy" if self._access.proxy else where
        return f"the proxy {without_credentials(address)} ({where})" if address else "a proxy"


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and all that it wraps: requests and urllib3 wrap in four different ways."""
    waiting, seen = [error], set[int]()
    while waiting:
        cause = waiting.pop(0)
        if id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        wrapped = (cause.__cause__, cause.__context__, getattr(cause, "reason", None), *cause.args)
        waiting.extend(inner for inner in wrapped if isinstance(inner, BaseException))


def reason(causes: list[BaseException]) -> str:
    """Say in a few words why a connection failed."""
    for kind, text in _REASONS.items():
        if any(isinstance(cause, kind) for cause in causes):
            return text
    tls = next((cause for cause in causes if isinstance(cause, ssl.SSLError)), None)
    if tls is not None and _NOT_TLS.search(tls.reason or ""):
        return "TLS failed: is it http:// rather than https://?"
    if tls is not None:
        return f"TLS failed: {(tls.reason or 'no reason given').replace('_', ' ').lower()}"
    return (
        next((cause.strerror for cause in causes if isinstance(cause, OSError) and cause.strerror), None)
        or type(causes[-1]).__name__
    )


_REASONS: dict[type[BaseException], str] = {
    ConnectionRefusedError: "connection refused",
    socket.gaierror: "unknown host",
    requests.ConnectTimeout: "no answer to the connection",
    http.client.RemoteDisconnected: "it closed the connection without an answer",
    ConnectionResetError: "connection reset",
    BrokenPipeError: "connection reset",
    ssl.SSLEOFError: "connection closed",
    http.client.BadStatusLine: "it does not speak HTTP",
}


def _not_trusted(whose: str, error: ssl.SSLCertVerificationError) -> ConfigError:
    if error.verify_code in _EXPIRED:
        advice = "it must be renewed there"
    elif error.verify_code in _OTHER_NAMES:
        advice = "give the address that it is made out for"
    else:
        advice = "give your authority's certificate with --ca-file"
    return ConfigError(f"{whose}: the TLS certificate is not trusted ({error.verify_message.rstrip('.')}): {advice}")


class _PasswordNeeded(Exception):
    pass


def _check_tls_files(access: Access) -> None:
    """Load the files once: what cannot be used is told at the start, and OpenSSL never asks for a password."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for flag, path in (
        ("--ca-file", access.ca_file),
        ("--client-cert-file", access.client_cert_file),
        ("--client-key-file", access.client_key_file),
    ):
        if path:
            _read(path, flag)
    if access.ca_file:
        try:
            context.load_verify_locations(cafile=access.ca_file)
        except ssl.SSLError as error:
            raise ConfigError(f"--ca-file {access.ca_file} holds no certificate in PEM form") from error
    if access.client_cert_file:
        _check_client_files(context, access.client_cert_file, access.client_key_file)


def _check_client_files(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    def refuse() -> str:
        raise _PasswordNeeded

    holder = f"--client-key-file {key}" if key else f"--client-cert-file {certificate}"
    try:
        context.load_cert_chain(certificate, key, password=refuse)
    except _PasswordNeeded as error:
        raise ConfigError(
            f"{holder} holds a key with a password: give one without (openssl pkey -in … -out … takes it off)"
        ) from error
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            message = f"{holder} is not the key of --client-cert-file {certificate}"
        elif key is None:
            message = f"{holder} does not hold a certificate and its key in PEM form: give --client-key-file too"
        else:
            message = f"--client-cert-file {certificate} and {holder} are not a certificate and its key in PEM form"
        raise ConfigError(message) from error


def _authorization(access: Access, in_url: str | None) -> Callable[[], str | None]:
    if token_file := access.bearer_token_file:
        return lambda: f"Bearer {_secret_line(token_file, '--bearer-token-file')}"
    if basic_file := access.basic_auth_file:
        return lambda: _basic(_secret_line(basic_file, "--basic-auth-file"))
    basic = access.basic_auth or (None if "authorization" in map(str.lower, access.headers) else in_url)
    fixed = f"Bearer {access.bearer_token}" if access.bearer_token else basic and _basic(basic)
    return lambda: fixed


def _secret_line(path: Path, flag: str) -> str:
    """Read a secret; it never shows in a message."""
    try:
        secret = _read(path, flag).decode().strip()
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read {flag} {path}: it is not text") from error
    if not secret.isprintable() or not secret:
        raise ConfigError(f"{flag} {path} must hold one line")
    if flag == "--basic-auth-file" and ":" not in secret:
        raise ConfigError(f"{flag} {path} must hold user:password")
    if flag == "--bearer-token-file" and not secret.isascii():
        raise ConfigError(f"{flag} {path} holds characters that no token has")
    return secret


def _read(path: Path, flag: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {flag} {path}: {error.strerror}") from error


def _basic(credentials: str) -> str:
    return "Basic " + base64.b64encode(credentials.encode()).decode()


def _secrets_of(access: Access) -> set[str]:
    """Return what a server or a proxy may repeat of what we tell it; credentials in files are known when read."""
    # The words too: of `Authorization: Custom TOKEN` a server may repeat the token alone.
    secrets = {text for value in access.headers.values() for text in (value, *value.split())}
    if access.proxy and (userinfo := urlsplit(access.proxy).netloc.rpartition("@")[0]):
        secrets |= {userinfo, *_secrets_of_authorization(_basic(unquote(userinfo)))}
    return secrets


def _secrets_of_authorization(value: str) -> Iterator[str]:
    kind, _, secret = value.partition(" ")
    yield secret
    if kind == "Basic":
        credentials = base64.b64decode(secret).decode()
        yield credentials
        yield credentials.partition(":")[2]
