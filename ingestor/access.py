"""PURE: who we are to a backend over HTTP, and by which way it is reached."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ingestor.core.errors import ConfigError

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A header's name. Source: RFC 9110, 5.6.2."""

# The body's, which is ours.
_OURS = {"content-type", "content-length", "content-encoding", "transfer-encoding"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Credentials, certificates, headers and proxy. What is secret does not show in its repr.

    Raises:
        ConfigError: they contradict each other, or a header is malformed.
    """

    bearer_token: str | None = field(default=None, repr=False)
    bearer_token_file: Path | None = None
    """Read at each request, so that a rotated token is taken up."""
    basic_auth: str | None = field(default=None, repr=False)
    """``user:password``."""
    basic_auth_file: Path | None = None
    """One line, ``user:password``; read at each request."""
    client_cert_file: Path | None = None
    """PEM; may hold the key too. Read at each new connection."""
    client_key_file: Path | None = None
    """PEM, without a password."""
    ca_file: Path | None = None
    """PEM: the authorities that the server's certificate may be signed by; None: those of requests."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sent with every request, such as ``X-Scope-OrgID``."""
    proxy: str | None = field(default=None, repr=False)
    """For every request; None: what HTTP_PROXY, HTTPS_PROXY and NO_PROXY say."""

    def __post_init__(self) -> None:
        given = [_flag(name) for name in _CREDENTIALS if getattr(self, name)]
        given += ["--header Authorization"] * ("authorization" in map(str.lower, self.headers))
        if len(given) > 1:
            raise ConfigError(f"give {given[0]} or {given[1]}, not both")
        if self.client_key_file and not self.client_cert_file:
            raise ConfigError("--client-key-file needs --client-cert-file")
        for name, value in self.headers.items():
            check_header(name, value)

    def arguments(self) -> list[str]:
        """Return what is not secret as a command line has it."""
        return [part for name in _FILES if (path := getattr(self, name)) for part in (_flag(name), str(path))]

    def environment(self, prefix: str) -> dict[str, str]:
        """Return what may be secret as environment variables of a command."""
        values = {
            "BEARER_TOKEN": self.bearer_token,
            "BASIC_AUTH": self.basic_auth,
            "HEADER": "\n".join(f"{name}: {value}" for name, value in self.headers.items()),
            "PROXY": self.proxy,
        }
        return {f"{prefix}_{name}": value for name, value in values.items() if value}

    @property
    def has_credentials(self) -> bool:
        """Whether it says who we are, beside certificate and headers."""
        return any(getattr(self, name) for name in _CREDENTIALS)


def check_header(name: str, value: str) -> None:
    """See that a header can be sent, and is not ours to set.

    Raises:
        ConfigError: it cannot; the message has its name only.
    """
    if not _TOKEN.fullmatch(name) or not is_header_value(value):
        raise ConfigError(f"the header {name!r} has characters that HTTP does not allow")
    if name.lower() in _OURS:
        raise ConfigError(f"the header {name!r} is not yours to set")


def is_header_value(text: str) -> bool:
    """Return whether a text is one line of ASCII without spaces around it."""
    return bool(text) and text.isascii() and text.isprintable() and text == text.strip()


_CREDENTIALS = ("bearer_token", "bearer_token_file", "basic_auth", "basic_auth_file")
_FILES = ("bearer_token_file", "basic_auth_file", "client_cert_file", "client_key_file", "ca_file")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
