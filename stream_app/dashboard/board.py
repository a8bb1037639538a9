"""PURE: all that the dashboard knows from Kafka: pods' windows, jobs, dead letters, anomalies, and how reading goes."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import orjson

from ingestor.core.errors import MalformedMessage
from stream_app.consumer.history import BoolArray
from stream_app.dashboard.store import Key, PodStore
from stream_app.records import Records, decode_records
from stream_app.view import View

MOST_LETTERS = 50
MOST_ANOMALIES = 1_000
MOST_VERDICTS = 100_000
_MOST_JOBS = 1_000
_MOST_REASONS = 5
_LONGEST_TEXT = 500
_RATE_OVER_S = 120.0
ANOMALY_VERSION = 1

_POSITION_NUMBERS = ("start_ms", "position_ms", "updated_ms", "samples", "samples_per_s", "revision", "last_error_ms")

Headers = Sequence[tuple[str, bytes | None]]


class Taken(NamedTuple):
    """A message, as far as it is of interest."""

    partition: int
    offset: int
    timestamp_ms: int
    """When it was written."""
    key: bytes | None
    value: bytes | None
    headers: Headers


Decoded = tuple[Records, list[tuple[int, MalformedMessage]]]


def decoded(messages: Sequence[Taken]) -> Decoded:
    """Return the records that messages carry, and the places of those that carry none."""
    return decode_records([message.value for message in messages], [message.offset for message in messages])


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that could not be read: where it stood, and why."""

    time_ms: int
    topic: str
    partition: str
    offset: str
    error: str
    key: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Reason:
    """A metric that is not as it mostly is."""

    metric: str
    value: float
    normal: float
    deviation: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a model says of one pod's window."""

    namespace: str
    pod: str
    service: str
    start_ms: int
    end_ms: int
    revision: int
    method: str
    score: float
    is_anomalous: bool
    reasons: tuple[Reason, ...]


@dataclass(slots=True)
class Reading:
    """How the reading goes."""

    is_live: bool = False
    """Whether what comes is read as it comes."""
    wanted: int = 0
    """Messages of the past that are read, too."""
    done: int = 0
    problem: str = ""
    """Why nothing is read at the moment."""


@dataclass(slots=True)
class Rate:
    """How many records came a second of late."""

    began_s: float | None = None
    _counts: deque[tuple[float, int]] = field(default_factory=deque)

    def count(self, now_s: float, number: int) -> None:
        if self.began_s is None:
            self.began_s = now_s
        self._counts.append((now_s, number))
        while self._counts[0][0] < now_s - _RATE_OVER_S:
            self._counts.popleft()

    def per_s(self, now_s: float) -> float | None:
        """Return the rate over the last two minutes; None: it was counted for less than a second."""
        if self.began_s is None or now_s - self.began_s < 1:
            return None
        over_s = min(now_s - self.began_s, _RATE_OVER_S)
        return sum(number for at_s, number in self._counts if at_s >= now_s - _RATE_OVER_S) / over_s


class Board:
    """What is known. One thread adds to it, others look: all under *lock*, for short."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.lock = threading.Lock()
        self.reading = Reading()
        self.version = 0
        """Another one whenever there is something new."""
        self.clear()

    def clear(self) -> None:
        """Forget all: what is read anew would come twice."""
        self.pods = PodStore(self.view.chunk_size, self.view.method_name)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.letters: deque[DeadLetter] = deque(maxlen=MOST_LETTERS)
        self.verdicts: OrderedDict[Key, Verdict] = OrderedDict()
        """The newest of each pod."""
        self.anomalies: OrderedDict[tuple[str, str, int, str], Verdict] = OrderedDict()
        self.has_anomaly_topic = False
        self.newest_end_ms: dict[int, int] = {}
        """Of each partition's records, the newest window's end."""
        self.unreadable = 0
        self.records = Rate()
        # Why it is read anew stays to be seen until it is read.
        self.reading = Reading(problem=self.reading.problem)
        self.version += 1

    def take_records(self, messages: Sequence[Taken], decoded: Decoded) -> BoolArray:
        """Keep records; return of each message whether it is of the view and of the time that is kept.

        Args:
            messages: what was read.
            decoded: what `decode_records` makes of it; that takes longest, and needs no lock.
        """
        records, faults = decoded
        kept = self.pods.add(records)
        self.unreadable += len(faults)
        self.version += 1
        is_record = np.ones(len(messages), bool)
        is_record[[place for place, _ in faults]] = False
        kept_of_all = np.zeros(len(messages), bool)
        kept_of_all[is_record] = kept
        partitions = np.array([message.partition for message in messages])[kept_of_all]
        for partition in np.unique(partitions).tolist():
            end_ms = int(records.window_end_ms[kept][partitions == partition].max())
            self.newest_end_ms[partition] = max(self.newest_end_ms.get(partition, 0), end_ms)
        return kept_of_all

    def take_positions(self, messages: Iterable[Taken]) -> None:
        """Keep where jobs stand: of each the newest."""
        for message in messages:
            job = (message.key or b"").decode(errors="replace")[:_LONGEST_TEXT]
            if message.value is None:
                self.jobs.pop(job, None)
            elif (position := _position(message.value)) is None:
                self.unreadable += 1
            elif job in self.jobs or len(self.jobs) < _MOST_JOBS:
                self.jobs[job] = position
        self.version += 1

    def take_letters(self, messages: Iterable[Taken]) -> None:
        """Keep what is told of dead letters."""
        self.letters.extend(map(_letter, messages))
        self.version += 1

    def take_verdicts(self, messages: Iterable[Taken]) -> None:
        """Keep what a model says: of each pod the newest, and the anomalies."""
        for message in messages:
            try:
                verdict = _verdict(message.value)
            except MalformedMessage:
                self.unreadable += 1
                continue
            pod = verdict.namespace, verdict.pod
            newest = self.verdicts.get(pod)
            if newest is None or (newest.start_ms, newest.revision) <= (verdict.start_ms, verdict.revision):
                self.verdicts[pod] = verdict
                self.verdicts.move_to_end(pod)
            window = (*pod, verdict.start_ms, verdict.method)
            # A window that was read once more may be none any more.
            self.anomalies.pop(window, None)
            if verdict.is_anomalous:
                self.anomalies[window] = verdict
        while len(self.verdicts) > MOST_VERDICTS:
            self.verdicts.popitem(last=False)
        while len(self.anomalies) > MOST_ANOMALIES:
            self.anomalies.popitem(last=False)
        self.version += 1

    def is_anomalous(self, pod: Key) -> Verdict | None:
        """Return what is said of a pod's newest window, where that is an anomaly."""
        verdict = self.verdicts.get(pod)
        return verdict if verdict is not None and verdict.is_anomalous else None


def _position(value: bytes) -> dict[str, Any] | None:
    """Read where a job stands, or return None where it does not say so. The contract is in DESIGN.md."""
    try:
        fields: dict[str, Any] = orjson.loads(value)
        numbers = all(isinstance(fields.get(name, 0), (int, float)) for name in _POSITION_NUMBERS)
        end_ms = fields["end_ms"]
        bounds = isinstance(fields["start_ms"], int) and isinstance(fields["position_ms"], int)
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return None
    fits = numbers and bounds and (end_ms is None or isinstance(end_ms, int))
    return fields if fits and isinstance(fields.get("incomplete", []), list) else None


def _letter(message: Taken) -> DeadLetter:
    told = {name: (value or b"").decode(errors="replace")[:_LONGEST_TEXT] for name, value in message.headers}
    cut = told.get("dead-letter.cut", "")
    return DeadLetter(
        message.timestamp_ms,
        topic=told.get("dead-letter.topic", ""),
        partition=told.get("dead-letter.partition", ""),
        offset=told.get("dead-letter.offset", ""),
        error=told.get("dead-letter.error", ""),
        key=(message.key or b"").decode(errors="replace")[:_LONGEST_TEXT],
        size_bytes=int(cut) if cut.isdecimal() else len(message.value or b""),
    )


def _verdict(value: bytes | None) -> Verdict:
    """Read what a model says of a window.

    Raises:
        MalformedMessage: it is none, or of another version.
    """
    try:
        fields: dict[str, Any] = orjson.loads(value or b"")
        if fields["version"] != ANOMALY_VERSION:
            raise MalformedMessage(f"an anomaly has version {fields['version']}: update podstream")
        return Verdict(
            namespace=_text(fields["namespace"]),
            pod=_text(fields["pod"]),
            service=_text(fields["service"]),
            start_ms=int(fields["window_start"]),
            end_ms=int(fields["window_end"]),
            revision=int(fields["revision"]),
            method=_text(fields["method"]),
            score=_number(fields["score"]),
            is_anomalous=bool(fields["anomalous"]),
            reasons=tuple(
                Reason(_text(told["metric"]), *(_number(told[name]) for name in ("value", "normal", "deviation")))
                for told in fields["reasons"][:_MOST_REASONS]
            ),
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise MalformedMessage(f"not an anomaly: {error!r}") from error


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value[:_LONGEST_TEXT]


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        # JSON has no NaN: null is one.
        return math.nan
    return float(value)
