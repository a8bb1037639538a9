"""A backend's HTTP API without its samples: connection, credentials, clock, names, and what its refusals mean.

What every `Source` over HTTP has in common; each adds its ``fetch``.
"""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, TypedDict

import orjson
import requests
import urllib3

from ingestor.access import Access
from ingestor.core.errors import (
    ConfigError,
    IngestorError,
    QueryRejected,
    SourceUnavailable,
    TooManySamples,
    TooManySeries,
)
from ingestor.core.time_range import TimeRange, iso
from ingestor.selector import Selector
from ingestor.sources.connection import Connection, Unreachable, causes_of, reason
from ingestor.urls import without_secrets

# Texts of Prometheus, Mimir, Thanos and VictoriaMetrics when a query needs too much.
_TOO_MUCH = re.compile(
    r"too many|exceed|timed? ?out|more than .*(sample|series|point|chunk|byte)|too large", re.IGNORECASE
)
# Fewer samples a series would not help.
_OF_SERIES = re.compile(
    r"(number of|too many|exceeds?)( matching| unique)* (time ?)?series|series limit", re.IGNORECASE
)
# The server is busy with others' queries: this one would have been fine.
_BUSY = re.compile(
    r"queue|concurren|outstanding|too many (\w+ )?(requests|connections|files)|rate limit", re.IGNORECASE
)
# Go's server, asked without TLS where it has it.
_WANTS_TLS = "HTTP request to an HTTPS server"

NOT_SUPPORTED = {400, 404, 405, 422, 501}
_USEFUL_TYPES = {"counter", "gauge", "histogram", "summary"}
"""Others are OpenMetrics' (``info``, ``stateset``), or say that nothing is known (``unknown``, ``untyped``)."""

_CANCELLED = 499
"""What Prometheus 3 says of a query that it was told to give up."""

_SHOWN_CHARS = 300
_CONNECT_TIMEOUT_S = 10.0
_PROBE_TIMEOUT_S = 5.0

ANYONE = Access()

# Thanos and VictoriaMetrics: rather an error than an answer with holes. Others ignore them.
# And for the moment that is asked for: near now, VictoriaMetrics' cached answers are those of 30 s ago.
_AS_ASKED = {"partial_response": "false", "deny_partial_response": "1", "nocache": "1"}


class HttpSettings(TypedDict, total=False):
    """What a source over HTTP can be given beside its address; `HttpApi` says what each is."""

    access: Access
    timeout_s: float
    connections: int


class HttpApi:
    """The HTTP API of Prometheus, Thanos, Mimir or VictoriaMetrics: all of a `Source` but ``fetch``.

    Args:
        url: where the API's ``/api/v1`` lies, with a path if it has one.
        access: who we are there: credentials, certificates, headers, proxy.
        timeout_s: for how long a query may run, on the server and here.
        connections: kept open; the number of threads that will call at once.

    Raises:
        ConfigError: the URL is malformed, or a file of certificates cannot be used.
    """

    def __init__(self, url: str, *, access: Access = ANYONE, timeout_s: float = 120.0, connections: int = 8) -> None:
        self.timeout_s = timeout_s
        self._connection = Connection(url, access, connections)
        self.url = self._connection.url

    def check(self) -> int:
        """Ask for the backend's clock once, so that a wrong address is told at the start.

        Returns:
            The backend's clock, Unix milliseconds.

        Raises:
            ConfigError: nothing answers there, or it is not Prometheus, or it refuses us.
        """
        try:
            return self.now_ms()
        except Unreachable as error:
            raise ConfigError(f"{error}: {error.advice}") from error

    def close(self) -> None:
        self._connection.close()

    def now_ms(self) -> int:
        return self._now_ms(self.timeout_s)

    def metric_names(self, selector: Selector, time_range: TimeRange) -> list[str]:
        names = self._data(
            "GET",
            "label/__name__/values",
            {
                "match[]": str(selector),
                "start": instant(time_range.start_ms),
                "end": instant(time_range.end_ms - 1),
            },
            sized=True,
        )
        if not isinstance(names, list):
            raise self._not_prometheus("JSON without a list of label values")
        return sorted(map(str, names))

    def count_series(self, selector: Selector, at_ms: int) -> int:
        answer = self._data("POST", "query", {"query": f"count({selector})", "time": instant(at_ms)}, sized=True)
        return int(self._instant_value(answer) or 0)

    def metric_types(self) -> dict[str, str]:
        status, retry_after_s, body = self._send("GET", "metadata", {}, self.timeout_s, sized=False)
        if status in NOT_SUPPORTED:
            return {}
        if status != HTTPStatus.OK:
            raise self._refusal(status, retry_after_s, body, sized=False)
        metadata = self._checked_data(body)
        if not isinstance(metadata, dict):
            return {}
        return {name: kind for name, entries in metadata.items() if (kind := _first_known_type(entries))}

    def label_sets(self, selectors: Sequence[str], time_range: TimeRange) -> list[dict[str, str]]:
        # As a form: many selectors are longer than an address may be.
        found = self._data(
            "POST",
            "series",
            {"match[]": list(selectors), "start": iso(time_range.start_ms), "end": iso(time_range.end_ms - 1)},
            sized=True,
        )
        if not isinstance(found, list) or not all(isinstance(labels, dict) for labels in found):
            raise self._not_prometheus("JSON without a list of series")
        return found

    def _now_ms(self, timeout_s: float) -> int:
        status, retry_after_s, body = self._send("POST", "query", {"query": "time()"}, timeout_s, sized=False)
        if status != HTTPStatus.OK:
            raise self._refusal(status, retry_after_s, body, sized=False)
        now_s = self._instant_value(self._checked_data(body))
        if now_s is None:
            raise self._not_prometheus("an empty answer to time()")
        return int(now_s * 1000)

    def _data(self, method: str, path: str, parameters: Mapping[str, str | list[str]], *, sized: bool) -> Any:
        return self._checked_data(self._request(method, path, parameters, sized=sized))

    def _request(self, method: str, path: str, parameters: Mapping[str, str | list[str]], *, sized: bool) -> bytes:
        """Return the body of a 200 answer.

        *sized* says that the request's cost grows with what it asks for, so that less may succeed.
        """
        status, retry_after_s, body = self._send(method, path, parameters, self.timeout_s, sized=sized)
        if status != HTTPStatus.OK:
            raise self._refusal(status, retry_after_s, body, sized=sized)
        return body

    def _send(
        self, method: str, path: str, parameters: Mapping[str, str | list[str]], timeout_s: float, *, sized: bool
    ) -> tuple[int, float | None, bytes]:
        """Return status, Retry-After in seconds, and the whole body."""
        fields = {**parameters, **_AS_ASKED, "timeout": f"{timeout_s:g}"}
        with self._answer(
            method,
            path,
            parameters=fields if method == "GET" else None,
            data=fields if method == "POST" else None,
            timeout_s=timeout_s,
            sized=sized,
        ) as response:
            body = response.raw.read(decode_content=True)
        return response.status_code, retry_after_s(response), body

    @contextmanager
    def _answer(
        self,
        method: str,
        path: str,
        *,
        parameters: Mapping[str, str | list[str]] | None = None,
        data: Mapping[str, str | list[str]] | bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float,
        sized: bool,
    ) -> Iterator[requests.Response]:
        """Yield an answer whose body is still to be read; what fails until the block ends becomes our own error."""
        try:
            with self._connection.request(
                method,
                path,
                parameters=parameters,
                data=data,
                headers=headers,
                # A second longer than the server, whose own message says more.
                timeout=(min(_CONNECT_TIMEOUT_S, timeout_s), timeout_s + 1),
            ) as response:
                if HTTPStatus.MULTIPLE_CHOICES <= response.status_code < HTTPStatus.BAD_REQUEST:
                    target = without_secrets(self._shown(response.headers.get("Location", "")))
                    raise ConfigError(
                        f"{self.url} sends us on to {target}: give the address of Prometheus itself with --url, "
                        "or credentials if that is a login page"
                    )
                yield response
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise self._failure(error, timeout_s, sized=sized) from error

    def _shown(self, text: str) -> str:
        """Return words of the server as one short line without our secrets."""
        return shortened(self._connection.redacted(text.encode()).decode())

    def _failure(self, error: Exception, timeout_s: float, *, sized: bool) -> IngestorError:
        """Say what it means that no whole HTTP answer came."""
        causes = list(causes_of(error))
        kinds = tuple(map(type, causes))
        if (known := self._connection.failure(causes)) is not None:
            return known
        if any(issubclass(kind, urllib3.exceptions.ReadTimeoutError | requests.ReadTimeout) for kind in kinds):
            return self._too_slow(f"{self.url} did not answer within {timeout_s:g} s", sized=sized)
        if any(issubclass(kind, urllib3.exceptions.IncompleteRead | http.client.IncompleteRead) for kind in kinds):
            return SourceUnavailable(f"{self.url}: the answer was cut short")
        return Unreachable(f"{self.url}: cannot connect ({reason(causes)})")

    def _too_slow(self, message: str, *, sized: bool) -> IngestorError:
        # A backend that hangs times out for every query. Taken for a query that is too large, it
        # would be halved down to nothing and given up: so ask for something that costs nothing.
        if not sized:
            return Unreachable(message)
        try:
            self._now_ms(min(_PROBE_TIMEOUT_S, self.timeout_s))
        except IngestorError:
            return Unreachable(f"{message}, and does not answer time() either")
        return TooManySamples(message)

    def _refusal(  # noqa: PLR0911 - a table of cases
        self, status: int, retry_after_s: float | None, body: bytes, *, sized: bool
    ) -> IngestorError:
        """Say what an answer other than 200 means."""
        body = self._connection.redacted(body)
        status_line = f"{status} {http.client.responses.get(status, '')}".rstrip()
        text = error_text(body)
        told = f"{self.url} refused the query ({status_line})" + (f": {shortened(text)}" if text else "")
        if (denial := self._denial(status, text)) is not None:
            return denial
        if status in (HTTPStatus.TOO_MANY_REQUESTS, _CANCELLED):
            return SourceUnavailable(told, retry_after_s)
        if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return TooManySamples(told)
        if status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.GATEWAY_TIMEOUT):
            return self._too_slow(told, sized=sized)
        if status == HTTPStatus.UNPROCESSABLE_ENTITY or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            if sized and _TOO_MUCH.search(text) and not _BUSY.search(text):
                return TooManySeries(told) if _OF_SERIES.search(text) else TooManySamples(told)
            if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                return SourceUnavailable(told, retry_after_s)
        if text and (status in (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY) or _is_api_answer(body)):
            return QueryRejected(told)
        return self._not_prometheus(f"{status_line}, {described(body)}")

    def _denial(self, status: int, text: str) -> IngestorError | None:
        """Say what it means that we were not even heard; None where we were."""
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            # Without the body: a proxy's page says nothing.
            return ConfigError(
                f"{self.url} refused the query ({status} {http.client.responses[status]}): "
                "give --bearer-token-file or --basic-auth-file"
            )
        if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
            return self._connection.proxy_refusal(status)
        if status == HTTPStatus.BAD_REQUEST and _WANTS_TLS in text:
            return ConfigError(f"{self.url} speaks TLS only: give --url https://…")
        return None

    def _not_prometheus(self, got: str) -> ConfigError:
        return ConfigError(
            f"{self.url} does not answer as Prometheus does (got {got}): "
            "give its address with --url, with the path that it is served under"
        )

    def _checked_data(self, body: bytes) -> Any:
        """Return the ``data`` of a 200 answer."""
        try:
            answer = orjson.loads(body)
        except ValueError as error:
            if body and not body.lstrip().startswith(b"{"):
                raise self._not_prometheus(described(self._connection.redacted(body))) from error
            raise SourceUnavailable(f"{self.url}: the answer was cut short ({len(body)} bytes)") from error
        if not isinstance(answer, dict) or "status" not in answer:
            raise self._not_prometheus("JSON without a status")
        if answer["status"] != "success":
            raise QueryRejected(
                f"{self.url} refused the query: {self._shown(str(answer.get('error', 'no reason given')))}"
            )
        if answer.get("isPartial") is True:
            raise SourceUnavailable(f"{self.url} gave a partial answer: a part of its storage did not answer")
        return answer.get("data")

    def _instant_value(self, data: Any) -> Decimal | None:
        """Return the number of a scalar or of a vector of one; None for an empty vector."""
        try:
            result = data["result"]
            if data["resultType"] == "vector":
                if not result:
                    return None
                result = result[0]["value"]
            return Decimal(result[1])
        except (TypeError, KeyError, IndexError, InvalidOperation) as error:
            raise self._not_prometheus("JSON without a value") from error


def instant(time_ms: int) -> str:
    """Write a point of time so that every backend reads this very millisecond.

    As RFC 3339, because seconds as a float are not exact. VictoriaMetrics makes a float of it all the same: 1.79
    cuts that to milliseconds and loses one of many, newer versions round. A quarter of a millisecond more is
    right for both, and Prometheus cuts it off.
    """
    return f"{iso(time_ms - time_ms % 1000).removesuffix('Z')}.{time_ms % 1000:03d}25Z"


def retry_after_s(response: requests.Response) -> float | None:
    """Read the Retry-After header, seconds or a date, as seconds from now."""
    text = response.headers.get("Retry-After")
    if not text:
        return None
    if text.strip().isdecimal():
        return float(text)
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max((until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds(), 0.0)


def _is_api_answer(body: bytes) -> bool:
    try:
        answer = orjson.loads(body)
    except ValueError:
        return False
    return isinstance(answer, dict) and "status" in answer


def error_text(body: bytes) -> str:
    """Return what an error's body says: the API's ``error``, or plain text; nothing of a web page."""
    try:
        answer = orjson.loads(body)
    except ValueError:
        text = body.decode(errors="replace").strip()
        return "" if text.startswith("<") else text
    return str(answer.get("error") or "") if isinstance(answer, dict) else ""


def described(body: bytes) -> str:
    """Say what a body is that was not expected."""
    text = body.decode(errors="replace").strip()
    if not text:
        return "an empty answer"
    if text.startswith("<"):
        return "a web page"
    return f"JSON of another API: {shortened(text)}" if text[0] in "{[" else f"the text {shortened(text)!r}"


def shortened(text: str) -> str:
    """Make one line of at most 300 characters."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARS else line[: _SHOWN_CHARS - 1] + "…"


def _first_known_type(entries: Any) -> str | None:
    """Return the type that a metric's targets give it; several targets may differ, and the first useful one wins."""
    kinds = [entry.get("type") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return next((kind for kind in kinds if isinstance(kind, str) and kind in _USEFUL_TYPES), None)
