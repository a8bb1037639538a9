"""What people type for lengths and points of time: ``90s``, ``10d``, ``1mo``, ``now``, RFC 3339."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache, lru_cache
from importlib import resources
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]

_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_UNIT_ALIASES = {"t": "m", "min": "m"}
_CALENDAR_MONTHS = {"mo": 1, "y": 12}
_CALENDAR = {"d", "w", *_CALENDAR_MONTHS}
_UNIT_WORDS = {"s": "second", "m": "minute", "h": "hour", "d": "day", "w": "week", "mo": "month", "y": "year"}

# 1970-01-01 was a Thursday: weeks are counted from the Monday before it.
_ANCHOR_MS = {"w": -3 * 86_400_000}

_DAY_MS = 86_400_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# 1994-02-01 in Antarctica/Vostok had 31 hours, more than any other day since 1970.
_LONGER_DAY_MS = 7 * 3_600_000

# They are UTC by other names; a view must not change with the name.
_UTC = {"UTC", "Etc/UTC", "UCT", "Etc/UCT", "Universal", "Etc/Universal", "Zulu", "Etc/Zulu"}

_DURATION = re.compile(r"(\d{1,15})([a-z]+)", re.ASCII)
_UNIX_SECONDS = re.compile(r"\d{9,11}(\.\d{1,3})?", re.ASCII)

# numpy and datetime agree on these years, and int64 nanoseconds of pandas and Arrow hold them.
_EARLIEST_MS, LATEST_MS = 0, 9_214_646_400_000


def parse_duration_ms(text: str) -> int:
    """Read a positive length of time such as ``500ms``, ``90s``, ``1h30m`` or ``10d``.

    Raises:
        ValueError: not such a length; the message shows the allowed forms.
    """
    total, at = 0, 0
    while at < len(text):
        match = _DURATION.match(text, at)
        unit = match and _UNIT_ALIASES.get(match[2], match[2])
        if not match or unit not in _UNIT_MS:
            break
        total, at = total + int(match[1]) * _UNIT_MS[unit], match.end()
    if at < len(text) or total <= 0 or total > LATEST_MS:
        raise ValueError(f"{text!r} is not a duration: write it like 30s, 5m, 1h30m, 10d or 2w")
    return total


@dataclass(frozen=True, slots=True)
class PointInTime:
    """A point of time as typed; *relative* ones (``now``, ``10d``) depend on when they are resolved."""

    text: str
    time_ms: int
    relative: bool


def parse_time(text: str, now_ms: int) -> PointInTime:
    """Read ``now``, a duration ago (``10d``), Unix seconds, or RFC 3339 with an offset.

    Args:
        text: as typed.
        now_ms: what ``now`` means: the backend's clock, never ours.

    Raises:
        ValueError: none of these, or outside the years 1970 to 2261.
    """
    if text == "now":
        return PointInTime(text, now_ms, relative=True)
    if _UNIX_SECONDS.fullmatch(text):
        seconds, _, fraction = text.partition(".")
        whole_ms = int(seconds) * 1000 + int(fraction.ljust(3, "0"))
        return _in_bounds(PointInTime(text, whole_ms, relative=False))
    if _DURATION.match(text):
        return _in_bounds(PointInTime(text, now_ms - parse_duration_ms(text), relative=True))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ValueError(
            f"{text!r} is not a time: write now, a duration ago like 10d, Unix seconds, "
            "or RFC 3339 with its offset like 2026-11-23T12:00:00Z"
        )
    delta = moment - datetime.fromisoformat("1970-01-01T00:00:00+00:00")
    whole_ms = (delta.days * 86_400 + delta.seconds) * 1000 + delta.microseconds // 1000
    return _in_bounds(PointInTime(text, whole_ms, relative=False))


def checked_time(text: str) -> str:
    """Return *text*, which `parse_time` reads whatever the time is.

    Raises:
        ValueError: it does not.
    """
    parse_time(text, LATEST_MS)
    return text


def _in_bounds(point: PointInTime) -> PointInTime:
    if not _EARLIEST_MS <= point.time_ms <= LATEST_MS:
        raise ValueError(f"{point.text!r} is outside the years 1970 to 2261")
    return point


def checked_timezone(text: str) -> str:
    """Return *text*, the IANA name of a time zone.

    Raises:
        ValueError: there is no such zone; the message shows what one looks like.
    """
    known = _zone_names()
    if text not in known:
        by_folded = {name.casefold(): name for name in known}
        nearest = difflib.get_close_matches(text.casefold(), by_folded, 1)
        hint = f"did you mean {by_folded[nearest[0]]}? " if nearest else ""
        raise ValueError(
            f"{text!r} is not a time zone: {hint}write UTC, or an IANA name like "
            "Europe/Berlin, America/New_York, Asia/Kolkata or Australia/Sydney"
        )
    try:
        ZoneInfo(text)
    except (ZoneInfoNotFoundError, OSError, ValueError) as error:
        raise ValueError(f"the rules of {text} cannot be read here ({error}): install tzdata anew") from error
    return text


@dataclass(frozen=True, slots=True)
class ChunkSize:
    """The length of a tumbling window: a count of ``s m h`` (fixed) or ``d w mo y`` (of a time zone's calendar).

    Fixed units are aligned to the epoch in UTC, the others to local days, Mondays,
    months and years, multiples counted from the epoch's; so two workers agree on every
    window without talking. A local day is mostly 24 hours long: with daylight saving
    23 or 25. It begins at the first moment that has its date; one that the zone has
    skipped is no window.
    Source: fixed windows, Akidau et al., The Dataflow Model, VLDB 2015.

    Raises:
        ValueError: there is no such time zone.
    """

    count: int
    unit: str
    timezone: str = "UTC"
    """IANA name; always UTC for fixed units, where it makes no difference."""

    def __post_init__(self) -> None:
        if self.timezone != "UTC":
            zone = checked_timezone(self.timezone)
            if self.unit not in _CALENDAR or zone in _UTC:
                object.__setattr__(self, "timezone", "UTC")

    @classmethod
    def parse(cls, text: str) -> ChunkSize:
        """Read ``30s``, ``1t``/``1m``/``1min``, ``1h``, ``1d``, ``1w``, ``1mo``, ``1y`` and multiples, or ``1d@ZONE``.

        Raises:
            ValueError: anything else; the message shows the allowed forms.
        """
        size, at, timezone = text.partition("@")
        match = _DURATION.fullmatch(size)
        unit = match and _UNIT_ALIASES.get(match[2], match[2])
        if match and unit in _UNIT_WORDS and (count := int(match[1])) > 0:
            parsed = cls(count, unit, timezone if at else "UTC")
            if parsed.longest_ms <= LATEST_MS:
                return parsed
        raise ValueError(
            f"{text!r} is not a chunk size: write a whole number and one of "
            "s, t or m or min (minutes), h, d, w, mo (months), y, like 30s, 1m, 1h or 1mo"
        )

    def __str__(self) -> str:
        return f"{self.count}{self.unit}" + (f"@{self.timezone}" if self.timezone != "UTC" else "")

    def in_words(self) -> str:
        """``5 minutes``, ``1 day in Europe/Berlin``: so that ``1m`` is never taken for a month."""
        where = f" in {self.timezone}" if self.timezone != "UTC" else ""
        return f"{self.count} {_UNIT_WORDS[self.unit]}{'s' * (self.count != 1)}{where}"

    @property
    def longest_ms(self) -> int:
        """The length of the longest window: months have up to 31 days, and days up to 31 hours."""
        fixed_ms = self.count * (_UNIT_MS.get(self.unit) or 31 * _DAY_MS * _CALENDAR_MONTHS[self.unit])
        return fixed_ms + (_LONGER_DAY_MS if self.timezone != "UTC" else 0)

    def floor_ms(self, time_ms: int) -> int:
        """Return the start of the window that holds *time_ms*."""
        return int(self.edges_ms(time_ms, time_ms + 1)[0])

    def edges_ms(self, start_ms: int, end_ms: int) -> Int64Array:
        """Return the edges of the windows that overlap [start_ms, end_ms).

        Returns:
            Shape (windows + 1,), strictly rising; window i is [edges[i], edges[i + 1]);
            ``edges[0] <= start_ms`` and ``end_ms <= edges[-1]``.

        Raises:
            ValueError: the interval is empty.
        """
        if end_ms <= start_ms:
            raise ValueError("no window overlaps an empty interval")
        if self.timezone == "UTC":
            return self._utc_edges_ms(start_ms, end_ms)
        # No zone is a day away from UTC: these are the dates that some moment of the interval may have, and no less.
        dates = self._utc_edges_ms(start_ms - _DAY_MS, end_ms + _DAY_MS) // _DAY_MS
        edges = np.unique([_first_moment_ms(self.timezone, day) for day in dates.tolist()])
        first = np.searchsorted(edges, start_ms, side="right") - 1
        return edges[first : np.searchsorted(edges, end_ms) + 1]

    def edges_around_ms(self, times_ms: Int64Array) -> Int64Array:
        """Return edges that cut *times_ms* as all edges would, but never many more than there are times.

        Where windows without any of the times lie between, an edge stands for several: times
        that are centuries apart need no edge for each second between.
        """
        first_ms, last_ms = int(times_ms.min()), int(times_ms.max())
        size_ms = self._fixed_ms
        if size_ms is None or (last_ms - first_ms) // size_ms <= len(times_ms):
            return self.edges_ms(first_ms, last_ms + 1)
        starts = np.unique(times_ms - (times_ms - _ANCHOR_MS.get(self.unit, 0)) % size_ms)
        return np.append(starts, starts[-1] + size_ms)

    def ends_ms(self, starts_ms: Int64Array) -> Int64Array:
        """Return the ends of the windows that start at *starts_ms*, which rise, however far they are apart."""
        if not len(starts_ms):
            return starts_ms
        if self._fixed_ms is not None:
            return starts_ms + self._fixed_ms
        edges = self.edges_ms(int(starts_ms[0]), int(starts_ms[-1]) + 1)
        ends: Int64Array = edges[np.searchsorted(edges, starts_ms, side="right")]
        return ends

    @property
    def _fixed_ms(self) -> int | None:
        """The length of every window, where all have the same; of others there are a hundred thousand at most."""
        is_fixed = self.timezone == "UTC" and self.unit in _UNIT_MS
        return self.count * _UNIT_MS[self.unit] if is_fixed else None

    def _utc_edges_ms(self, start_ms: int, end_ms: int) -> Int64Array:
        if months := _CALENDAR_MONTHS.get(self.unit):
            return self._calendar_edges_ms(start_ms, end_ms, months * self.count)
        size_ms, anchor_ms = _UNIT_MS[self.unit] * self.count, _ANCHOR_MS.get(self.unit, 0)
        first = (start_ms - anchor_ms) // size_ms
        last = -(-(end_ms - anchor_ms) // size_ms)
        return np.arange(first, last + 1, dtype=np.int64) * size_ms + anchor_ms

    @staticmethod
    def _calendar_edges_ms(start_ms: int, end_ms: int, months: int) -> Int64Array:
        # datetime64[M] counts months from 1970-01, as whole numbers.
        bounds = np.array([start_ms, end_ms - 1], "datetime64[ms]").astype("datetime64[M]").astype(np.int64)
        first, last = int(bounds[0]) // months, int(bounds[1]) // months + 1
        edges = np.arange(first, last + 1, dtype=np.int64) * months
        return edges.astype("datetime64[M]").astype("datetime64[ms]").astype(np.int64)


@cache
def _zone_names() -> frozenset[str]:
    # Not zoneinfo.available_timezones(): that is what this machine has beside, "localtime" among it.
    return frozenset(resources.files("tzdata").joinpath("zones").read_text("utf-8").split()) - {"Factory"}


@lru_cache(maxsize=65_536)
def _first_moment_ms(timezone: str, day: int) -> int:
    """Return when a zone's clocks first show a date or a later one; *day* is counted from 1970-01-01.

    Of a midnight that comes twice it is the first one; of one that does not come, the moment at which it is skipped.
    """
    zone = ZoneInfo(timezone)
    midnight = datetime.combine(date(1970, 1, 1) + timedelta(days=day), datetime.min.time(), zone)
    # Where midnight is skipped, fold 0 takes it by the clocks before the skip, fold 1 by those after it.
    late, early = midnight.astimezone(UTC), midnight.replace(fold=1).astimezone(UTC)
    if early < late:
        before = early.astimezone(zone).utcoffset()
        while late - early > timedelta(seconds=1):
            middle = early + timedelta(seconds=(late - early) // timedelta(seconds=2))
            early, late = (middle, late) if middle.astimezone(zone).utcoffset() == before else (early, middle)
    return (late - _EPOCH) // timedelta(milliseconds=1)
