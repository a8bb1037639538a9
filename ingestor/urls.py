"""PURE: addresses, and the credentials in them."""

from __future__ import annotations

from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

_EXAMPLE = "write it like http://127.0.0.1:9090"
_PROXY_EXAMPLE = "write it like http://proxy:3128 or http://USER:PASSWORD@proxy:3128"


def split_prometheus_url(url: str) -> tuple[str, str | None]:
    """Return where the API's ``/api/v1`` lies, without credentials, and these as ``user:password``.

    Raises:
        ValueError: it is no address of a server; the message has no credentials.
    """
    parts = _http_parts(url)
    if parts is None:
        raise ValueError(f"{_split_userinfo(url)[1]!r} is not the URL of a Prometheus server: {_EXAMPLE}")
    if parts.query or parts.fragment:
        raise ValueError(f"the URL of Prometheus ends before the ? or #: {_EXAMPLE}")
    userinfo, netloc = _split_userinfo(parts.netloc)
    path = parts.path.rstrip("/").removesuffix("/api/v1")
    return urlunsplit((parts.scheme, netloc, path, "", "")), unquote(userinfo) if userinfo else None


def prometheus_url(text: str) -> str:
    """Return *text*, which is the address of a server.

    Raises:
        ValueError: it is not.
    """
    split_prometheus_url(text)
    return text


def proxy_url(text: str) -> str:
    """Return the address of a proxy, perhaps with credentials.

    Raises:
        ValueError: it is none; the message has no credentials.
    """
    parts = _http_parts(text)
    if parts is None or parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError(f"{_split_userinfo(text)[1]!r} is not the URL of an HTTP proxy: {_PROXY_EXAMPLE}")
    return text.strip()


def without_credentials(url: str) -> str:
    """Return an address as typed but for its credentials."""
    start, slashes, rest = url.partition("://")
    authority = rest[: next((at for at, character in enumerate(rest) if character in "/?#"), len(rest))]
    host = _split_userinfo(authority)[1]
    return start + slashes + host + rest[len(authority) :] if slashes else _split_userinfo(url)[1]


def without_secrets(url: str) -> str:
    """Return an address without credentials and query, which may hold a login's state."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "a malformed address"
    return urlunsplit((parts.scheme, _split_userinfo(parts.netloc)[1], parts.path, "", ""))


def _http_parts(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url.strip())
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        return None
    return parts if valid else None


def _split_userinfo(netloc: str) -> tuple[str, str]:
    userinfo, _, host = netloc.rpartition("@")
    return userinfo, host
