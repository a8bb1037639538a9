"""Raw samples through ``/api/v1/read``, streamed: the chunks as Prometheus stores them, so that it decodes nothing."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import TypeVar, Unpack, cast

import numpy as np
import pyarrow as pa
import requests
import yaml

from ingestor.core.chunk import Float64Array, Int64Array
from ingestor.core.errors import ConfigError, QueryRejected, SourceUnavailable, TooManySamples
from ingestor.core.time_range import TimeRange, iso
from ingestor.selector import Matcher, Selector, any_of
from ingestor.sources.base import SeriesBlock, tidy
from ingestor.sources.frames import UnknownEncodingError, scan_frames
from ingestor.sources.http import NOT_SUPPORTED, HttpApi, HttpSettings, described, error_text, retry_after_s, shortened
from ingestor.sources.xor import MOST_SAMPLES_A_CHUNK, NO_ROOM, PADDING_BYTES, Bytes, decode_chunks
from ingestor.yaml_text import composed, is_null

_Numbers = TypeVar("_Numbers", Int64Array, Float64Array)

_STREAMED = "application/x-streamed-protobuf"
_HEADERS = {
    "Content-Encoding": "snappy",
    "Content-Type": "application/x-protobuf",
    "X-Prometheus-Remote-Read-Version": "0.1.0",
}
_STREAMED_XOR_CHUNKS = 1
_MATCHER_TYPES = {"=": 0, "!=": 1, "=~": 2, "!~": 3}

_PIECE_BYTES = 4 << 20
"""About a million samples: most answers are then decoded in one go, and not laid together out of parts."""
_REFUSAL_BYTES = 1 << 16
_EXTERNAL_LABELS_S = 60.0
"""The server's external labels are asked for again so often: its configuration can be reloaded."""

# Prometheus answers every failed remote read with 500; this one no second attempt will mend.
_BAD_MATCHER = re.compile(r"error parsing regexp|unknown matcher type", re.IGNORECASE)

# The server's words, where it fails in the middle of a stream whose status was 200.
_PRINTED = re.compile(rb"[\x20-\x7e\s]{8,}\Z")


class RemoteReadUnsupported(QueryRejected):
    """This cannot be read in this way, or not with the same result; the query API can."""


class RemoteReadSource(HttpApi):
    """A `Source` over streamed remote read, as Prometheus (from 2.13) and Mimir have it.

    Args:
        url: where the API's ``/api/v1`` lies.
        most_samples: of one ``fetch``; more are refused as too many, which bounds memory at 24 bytes each.
        settings: as those of `HttpApi`.
    """

    name = "remote-read"

    def __init__(self, url: str, *, most_samples: int = 10_000_000, **settings: Unpack[HttpSettings]) -> None:
        super().__init__(url, **settings)
        self._most_samples = most_samples
        self._external_labels: tuple[float, dict[str, str]] | None = None

    def is_supported(self) -> bool:
        """Ask for nothing, and see whether the answer would be streamed.

        Raises:
            SourceUnavailable: the backend did not tell.
        """
        nothing = Selector((Matcher("__name__", "=", "podstream_probe"),))
        try:
            self.fetch(nothing, "podstream_probe", TimeRange(0, 1))
        except (QueryRejected, TooManySamples, ConfigError):
            # Some gateways let only queries through. Whether the address is wrong altogether, they tell.
            return False
        return True

    def fetch(self, selector: Selector, metric: str, time_range: TimeRange) -> SeriesBlock:
        return self.fetch_together(selector, [metric], time_range, self._most_samples)

    def streams(self, time_range: TimeRange) -> bool:  # noqa: ARG002 - all of them
        return True

    def fetch_together(
        self, selector: Selector, metrics: Sequence[str], time_range: TimeRange, most_samples: int
    ) -> SeriesBlock:
        external = self._known_external_labels()
        if external:
            self._refuse_the_ambiguous(selector, metrics, time_range, external)
        asked = selector.of_metrics(*metrics)
        request = pa.compress(_request(asked, time_range, external), codec="snappy", asbytes=True)
        samples = _Samples(time_range, min(most_samples, self._most_samples), external)
        with self._answer(
            "POST", "read", data=request, headers=_HEADERS, timeout_s=self.timeout_s, sized=True
        ) as response:
            self._check(response)
            try:
                for piece, size in _pieces(response, samples):
                    samples.add(piece, size)
            except UnknownEncodingError as error:
                raise RemoteReadUnsupported(
                    f"{self.url} sends chunks of the unknown encoding {error}: read with --source query"
                ) from error
            except (SourceUnavailable, TooManySamples) as error:
                raise type(error)(f"{self.url}: {self._shown(str(error))}") from error
        return tidy(samples.block(), time_range)

    def _check(self, response: requests.Response) -> None:
        """See that a streamed answer follows."""
        status, kind = response.status_code, response.headers.get("Content-Type", "")
        if status == HTTPStatus.OK and kind.partition(";")[0].strip().lower() == _STREAMED:
            # What ends with the connection could end anywhere, and nothing would show it.
            if response.headers.get("Transfer-Encoding") or response.headers.get("Content-Length"):
                return
            raise self._unsupported("an answer without an end")
        if status == HTTPStatus.OK:
            raise self._unsupported(f"the content type {self._shown(kind) or 'none'!r}")
        body = self._connection.redacted(response.raw.read(_REFUSAL_BYTES, decode_content=True))
        text = error_text(body)
        if status == HTTPStatus.INTERNAL_SERVER_ERROR and _BAD_MATCHER.search(text):
            raise QueryRejected(f"{self.url} refused the query: {shortened(text)}")
        if status in NOT_SUPPORTED - {HTTPStatus.UNPROCESSABLE_ENTITY}:
            raise self._unsupported(f"{status} {self._shown(response.reason)}, {described(body)}")
        raise self._refusal(status, retry_after_s(response), body, sized=True)

    def _unsupported(self, got: str) -> RemoteReadUnsupported:
        return RemoteReadUnsupported(f"{self.url} has no streamed remote read (got {got}): read with --source query")

    def _known_external_labels(self) -> dict[str, str]:
        """Return the labels that the server adds to every series that it sends, and that no query shows."""
        now_s = time.monotonic()
        known = self._external_labels
        if known is None or now_s > known[0] + _EXTERNAL_LABELS_S:
            known = self._external_labels = (now_s, self._ask_external_labels(is_known=bool(known and known[1])))
        return known[1]

    def _ask_external_labels(self, *, is_known: bool) -> dict[str, str]:
        status, retry_s, body = self._send("GET", "status/config", {}, self.timeout_s, sized=False)
        if status in NOT_SUPPORTED and is_known:
            # A gateway's page, in place of a server that has told them before.
            raise SourceUnavailable(f"{self.url} does not tell its external labels any longer ({status})")
        if status in NOT_SUPPORTED:
            # Mimir and Cortex have no such labels and tell no configuration.
            return {}
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise RemoteReadUnsupported(
                f"{self.url} does not tell its external labels ({status}), which a remote read would "
                "take for the series' own: read with --source query"
            )
        if status != HTTPStatus.OK:
            raise self._refusal(status, retry_s, body, sized=False)
        data = self._checked_data(body)
        return external_labels(data.get("yaml", "") if isinstance(data, dict) else "")

    def _refuse_the_ambiguous(
        self, selector: Selector, metrics: Sequence[str], time_range: TimeRange, external: dict[str, str]
    ) -> None:
        """Refuse where a series' own label cannot be told from an equal external one, which others are given."""
        # Many names would be longer than an address may be; those that are not asked for are left out afterwards.
        asked = selector.of_metrics(*metrics) if len(metrics) == 1 else selector
        narrowed = [str(Selector((*asked.matchers, Matcher(name, "=", value)))) for name, value in external.items()]
        if ambiguous := sorted(set(metrics).intersection(self._names(narrowed, time_range))):
            raise RemoteReadUnsupported(
                f"{self.url} has external labels that series of {', '.join(ambiguous)} carry themselves: "
                "read with --source query"
            )

    def _names(self, selectors: list[str], time_range: TimeRange) -> list[str]:
        parameters: dict[str, str | list[str]] = {
            "match[]": selectors,
            "start": iso(time_range.start_ms),
            "end": iso(time_range.end_ms - 1),
        }
        names: list[str] = self._data("GET", "label/__name__/values", parameters, sized=True)
        return names


class _Samples:
    """Collects what the pieces of an answer hold; what is outside of the time range is decoded and dropped."""

    def __init__(self, time_range: TimeRange, most: int, external: dict[str, str]) -> None:
        self._time_range, self._most, self._external = time_range, most, external
        self._timestamps_ms: list[Int64Array] = [np.empty(0, np.int64)]
        self._values: list[Float64Array] = [np.empty(0)]
        self._label_sets: list[bytes] = []
        self._lengths: list[Int64Array] = []
        self._full = self._histograms = 0
        self.consumed = 0

    def add(self, piece: Bytes, size: int) -> None:
        """Take in the whole frames of ``piece[:size]``, and note how much that is."""
        frames = scan_frames(piece, size, self._external)
        self.consumed = frames.consumed
        self._histograms += frames.histograms
        if not frames.label_sets:
            return
        # No more room than that: memory that the system has to clear costs as much as decoding.
        room = min(frames.samples, self._most - self._full + MOST_SAMPLES_A_CHUNK)
        timestamps_ms, values = np.empty(room, np.int64), np.empty(room, np.float64)
        kept = decode_chunks(
            piece,
            frames.starts,
            frames.ends,
            self._time_range.start_ms,
            self._time_range.end_ms,
            timestamps_ms,
            values,
        )
        if (kept < 0).any():
            if NO_ROOM in kept:
                raise TooManySamples(f"more than {self._most} samples at once")
            raise SourceUnavailable("a chunk is cut or malformed")
        full = int(kept.sum())
        self._timestamps_ms.append(timestamps_ms[:full])
        self._values.append(values[:full])
        self._full += full
        self._label_sets += frames.label_sets
        self._lengths.append(np.add.reduceat(kept, frames.first_chunks[:-1]))

    def block(self) -> SeriesBlock:
        """Return all samples, those of a series that came in several parts together."""
        numbers: dict[bytes, int] = {}
        series = np.array([numbers.setdefault(labels, len(numbers)) for labels in self._label_sets], np.int64)
        lengths = np.concatenate([np.empty(0, np.int64), *self._lengths])
        # One after the other: parts and wholes of both at once would be twice the memory.
        timestamps_ms = _joined(self._timestamps_ms)
        self._timestamps_ms.clear()
        values = _joined(self._values)
        self._values.clear()
        if (np.diff(series) < 0).any():
            # No server sends a series in parts with others between them, but nothing forbids it.
            order = np.argsort(np.repeat(series, lengths), kind="stable")
            timestamps_ms, values = timestamps_ms[order], values[order]
        offsets = np.zeros(len(numbers) + 1, np.int64)
        np.cumsum(np.bincount(series, lengths, len(numbers)).astype(np.int64), out=offsets[1:])
        return SeriesBlock(list(numbers), offsets, timestamps_ms, values, self._histograms, RemoteReadSource.name)


def _joined(parts: list[_Numbers]) -> _Numbers:
    """Lay parts, of which the first is empty, one behind the other; most answers have one besides."""
    return parts[-1] if len(parts) <= 2 else cast("_Numbers", np.concatenate(parts))


def _pieces(response: requests.Response, samples: _Samples) -> Iterator[tuple[Bytes, int]]:
    """Yield a buffer, and how much of it is filled, until the answer ends.

    Raises:
        SourceUnavailable: the last frame is cut.
    """
    buffer = np.empty(2 * _PIECE_BYTES + PADDING_BYTES, np.uint8)
    held = 0
    while block := response.raw.read(_PIECE_BYTES, decode_content=True):
        if held + len(block) + PADDING_BYTES > len(buffer):
            # A frame longer than the buffer; how long one may be, the scanner bounds.
            buffer = np.concatenate((buffer[:held], np.empty(2 * len(buffer), np.uint8)))
        buffer[held : held + len(block)] = np.frombuffer(block, np.uint8)
        held += len(block)
        yield cast("Bytes", buffer), held
        buffer[: held - samples.consumed] = buffer[samples.consumed : held]
        held -= samples.consumed
    if held:
        words = _PRINTED.search(buffer[max(0, held - 300) : held].tobytes())
        told = f": {shortened(words[0].decode())}" if words else ""
        raise SourceUnavailable(f"the answer was cut short in the middle of a frame{told}")


def external_labels(configuration: str) -> dict[str, str]:
    """Return ``global.external_labels`` of Prometheus' configuration, of which the rest can be very long."""
    section = re.search(r"^global:.*\n(?:[ \t].*\n|\n)*", configuration + "\n", re.MULTILINE)
    try:
        # Nodes, not objects: a label's value is the text that it is written as.
        node = composed(section[0]) if section else None
        for name in ("global", "external_labels"):
            node = _members(node).get(name)
        labels = _members(node)
        return {name: _text(value) for name, value in labels.items()}
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise RemoteReadUnsupported(
            "the external labels in Prometheus' configuration cannot be read: read with --source query"
        ) from error


def _members(node: yaml.Node | None) -> dict[str, yaml.Node]:
    """Return a mapping's nodes; nothing of what is not there or null."""
    if node is None or is_null(node):
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise TypeError(f"{node.tag} is no mapping")
    return {_text(key): value for key, value in node.value}


def _text(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise TypeError(f"{node.tag} is no text")
    return str(node.value)


def _request(selector: Selector, time_range: TimeRange, external: dict[str, str]) -> bytes:
    """Return a ReadRequest. Source: prometheus/prometheus prompb/remote.proto; both ends are inclusive there."""
    query = _field(1, time_range.start_ms) + _field(2, time_range.end_ms - 1)
    for matcher in selector.matchers:
        op, value = matcher.op, matcher.value
        if op == "=" and value == external.get(matcher.name):
            # The server drops a matcher that asks for its external label, but no regular expression.
            # Source: prometheus/prometheus storage/remote/read_handler.go, filterExtLabelsFromMatchers.
            op, value = "=~", any_of([value])
        query += _field(3, _field(1, _MATCHER_TYPES[op]) + _field(2, matcher.name.encode()) + _field(3, value.encode()))
    return _field(1, query) + _field(2, _STREAMED_XOR_CHUNKS)


def _field(number: int, content: int | bytes) -> bytes:
    """Return a protobuf field: a varint, or bytes with their length."""
    if isinstance(content, int):
        return _varint(number << 3) + _varint(content & (1 << 64) - 1)
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
