"""What people type for times and lengths, and the windows that come of it."""

from datetime import UTC, datetime, timedelta, timezone
from importlib import resources
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ingestor.core.durations import ChunkSize, PointInTime, checked_timezone, parse_duration_ms, parse_time

NOW_MS = 1_795_435_200_000
DAY_MS = 86_400_000
LATEST_MS = 9_214_646_400_000

ZONES = sorted(set(resources.files("tzdata").joinpath("zones").read_text().split()) - {"Factory"})
ODD_ZONES = ["America/Havana", "America/Sao_Paulo", "America/St_Johns", "Antarctica/Vostok", "Pacific/Apia"]

SIZES = st.builds(
    ChunkSize,
    st.integers(1, 60),
    st.sampled_from(["s", "m", "h", "d", "w", "mo", "y"]),
    st.one_of(st.just("UTC"), st.sampled_from(ODD_ZONES), st.sampled_from(ZONES)),
)
TIMES = st.integers(0, LATEST_MS)


# Durations.


@pytest.mark.parametrize(
    ("text", "length_ms"),
    [
        ("500ms", 500),
        ("90s", 90_000),
        ("1m", 60_000),
        ("1t", 60_000),
        ("5min", 300_000),
        ("1h30m", 5_400_000),
        ("1h30m15s500ms", 5_415_500),
        ("10d", 10 * DAY_MS),
        ("2w", 14 * DAY_MS),
        ("007s", 7_000),
    ],
)
def test_durations(text, length_ms):
    """Units add up, as in Prometheus."""
    assert parse_duration_ms(text) == length_ms


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "s",
        "0s",
        "-5m",
        "1.5h",
        "5 m",
        " 5m",
        "5m ",
        "5m\n",
        "5M",
        "1mo",
        "1y",
        "1h30",
        "1hm",
        "٣d",
        "9" * 15 + "d",
    ],
)
def test_what_is_no_duration(text):
    """Anything else is refused, with the forms that are allowed; months and years have no fixed length."""
    with pytest.raises(ValueError, match="is not a duration: write it like 30s"):
        parse_duration_ms(text)


@given(
    st.lists(st.tuples(st.integers(0, 1000), st.sampled_from(["ms", "s", "m", "t", "min", "h", "d", "w"])), min_size=1)
)
@settings(max_examples=30, deadline=None)
def test_a_duration_is_the_sum_of_its_parts(parts):
    """Any chain of parts gives what pandas adds up to."""
    text = "".join(f"{count}{unit}" for count, unit in parts)
    names = {"t": "min", "m": "min", "d": "D", "w": "W"}
    total_ms = sum(pd.Timedelta(count, names.get(unit, unit)) // pd.Timedelta(1, "ms") for count, unit in parts)
    if total_ms == 0:
        with pytest.raises(ValueError, match="is not a duration"):
            parse_duration_ms(text)
    else:
        assert parse_duration_ms(text) == total_ms


# Points of time.


@pytest.mark.parametrize(
    ("text", "time_ms", "relative"),
    [
        ("now", NOW_MS, True),
        ("10d", NOW_MS - 10 * DAY_MS, True),
        ("1h30m", NOW_MS - 5_400_000, True),
        ("1m", NOW_MS - 60_000, True),
        ("1795435200", NOW_MS, False),
        ("1795435200.5", NOW_MS + 500, False),
        ("1795435200.05", NOW_MS + 50, False),
        ("1795435200.005", NOW_MS + 5, False),
        ("100000000", 100_000_000_000, False),
        ("2026-11-23T12:00:00Z", NOW_MS, False),
        ("2026-11-23T13:00:00+01:00", NOW_MS, False),
        ("2026-11-23T06:30:00-05:30", NOW_MS, False),
        ("2026-11-23 12:00:00.007Z", NOW_MS + 7, False),
        ("2026-11-23T12:00:00.999999999Z", NOW_MS + 999, False),
        ("1970-01-01T00:00:00Z", 0, False),
    ],
)
def test_times(text, time_ms, relative):
    """Now, a duration ago, Unix seconds and RFC 3339 are understood, and only the first two depend on now."""
    assert parse_time(text, NOW_MS) == PointInTime(text, time_ms, relative)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a time"),
        ("yesterday", "is not a time"),
        ("Now", "is not a time"),
        ("-1d", "is not a time"),
        ("12345", "is not a time"),
        ("1795435200.0001", "is not a time"),
        ("1795435200000", "is not a time"),
        ("2026-11-23", "is not a time"),
        ("2026-11-23T12:00:00", "is not a time"),
        ("2026-11-31T12:00:00Z", "is not a time"),
        ("10d ", "is not a duration"),
        ("1mo", "is not a duration"),
        ("0s", "is not a duration"),
        ("3000w", "outside the years 1970 to 2261"),
        ("99999999999", "outside the years 1970 to 2261"),
        ("1969-12-31T23:59:59Z", "outside the years 1970 to 2261"),
        ("2300-01-01T00:00:00Z", "outside the years 1970 to 2261"),
        ("0001-01-01T00:00:00+14:00", "outside the years 1970 to 2261"),
    ],
)
def test_what_is_no_time(text, message):
    """Anything else is refused and quoted: milliseconds, local times, dates, and times no timestamp can hold."""
    with pytest.raises(ValueError, match=message) as caught:
        parse_time(text, NOW_MS)
    assert repr(text) in str(caught.value)


@given(TIMES.filter(lambda time_ms: time_ms < LATEST_MS), st.integers(-14 * 60, 14 * 60))
@settings(max_examples=50, deadline=None)
def test_rfc_3339_reads_back(time_ms, offset_minutes):
    """A time written with any offset reads back to the same millisecond."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=time_ms)
    text = moment.astimezone(timezone(timedelta(minutes=offset_minutes))).isoformat(timespec="milliseconds")
    assert parse_time(text, NOW_MS).time_ms == time_ms


@given(st.integers(100_000_000_000, LATEST_MS))
@settings(max_examples=50, deadline=None)
def test_unix_seconds_read_back(time_ms):
    """Unix seconds with three decimals are exact: no float is in between."""
    assert parse_time(f"{time_ms // 1000}.{time_ms % 1000:03}", NOW_MS).time_ms == time_ms


@given(st.text(max_size=30))
@settings(max_examples=80, deadline=None)
@example("9" * 5000 + "d")
@example("9" * 5000)
def test_any_text_is_read_or_refused(text):
    """No text raises anything but ValueError."""
    for read in (parse_duration_ms, ChunkSize.parse, lambda text: parse_time(text, NOW_MS)):
        try:
            read(text)
        except ValueError as error:
            refusal = str(error)
        else:
            continue
        assert "write" in refusal or "outside" in refusal


# Chunk sizes.


@pytest.mark.parametrize(
    ("text", "written", "words"),
    [
        ("30s", "30s", "30 seconds"),
        ("1t", "1m", "1 minute"),
        ("1m", "1m", "1 minute"),
        ("5min", "5m", "5 minutes"),
        ("1h", "1h", "1 hour"),
        ("1d", "1d", "1 day"),
        ("1w", "1w", "1 week"),
        ("1mo", "1mo", "1 month"),
        ("3mo", "3mo", "3 months"),
        ("1y", "1y", "1 year"),
        ("1d@Europe/Berlin", "1d@Europe/Berlin", "1 day in Europe/Berlin"),
        ("3mo@Asia/Kolkata", "3mo@Asia/Kolkata", "3 months in Asia/Kolkata"),
        ("1w@UTC", "1w", "1 week"),
        ("1w@Etc/UTC", "1w", "1 week"),
        ("1m@Europe/Berlin", "1m", "1 minute"),
        ("24h@Europe/Berlin", "24h", "24 hours"),
    ],
)
def test_chunk_sizes(text, written, words):
    """Every unit is understood, and 1m is a minute and 1mo a month, in words too."""
    size = ChunkSize.parse(text)
    assert (str(size), size.in_words()) == (written, words)


def test_a_minute_is_not_a_month():
    """1m and 1mo are different windows."""
    start_ms = ChunkSize.parse("1mo").floor_ms(NOW_MS)
    assert start_ms == parse_time("2026-11-01T00:00:00Z", NOW_MS).time_ms
    assert ChunkSize.parse("1m").floor_ms(NOW_MS + 59_999) == NOW_MS


@pytest.mark.parametrize(
    "text", ["", "1", "m", "0m", "-1m", "1.5h", "1 m", "1m ", "1m\n", "1M", "1Y", "1ms", "1h30m", "1mon", "٣m", "999y"]
)
def test_what_is_no_chunk_size(text):
    """Anything else is refused, with the forms that are allowed."""
    with pytest.raises(ValueError, match="is not a chunk size: write a whole number and one of"):
        ChunkSize.parse(text)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("Mars", "write UTC"),
        ("", "write UTC"),
        ("localtime", "write UTC"),
        ("Factory", "write UTC"),
        ("../Europe/Berlin", "did you mean Europe/Berlin"),
        ("right/Europe/Berlin", "did you mean Europe/Berlin"),
        ("europe/berlin", "did you mean Europe/Berlin"),
        ("Europe/Berlin@UTC", "did you mean Europe/Berlin"),
        ("+01:00", "write UTC"),
    ],
)
def test_what_is_no_time_zone(text, hint):
    """Only IANA's names are zones, as IANA spells them, and the message says what one looks like."""
    for read in (checked_timezone, lambda text: ChunkSize.parse(f"1d@{text}"), lambda text: ChunkSize(1, "d", text)):
        with pytest.raises(ValueError, match=r"is not a time zone: .*an IANA name like Europe/Berlin") as caught:
            read(text)
        assert repr(text) in str(caught.value)
        assert hint in str(caught.value)


def test_every_zone_can_be_read():
    """Each of IANA's zones has a calendar."""
    assert len(ZONES) > 500
    for zone in ZONES:
        assert ChunkSize.parse(f"1d@{zone}").floor_ms(NOW_MS) > NOW_MS - 2 * DAY_MS


@given(SIZES)
@settings(max_examples=30, deadline=None)
def test_a_chunk_size_reads_back(size):
    """What is written is read as the same size."""
    assert ChunkSize.parse(str(size)) == size


# Windows.


@st.composite
def intervals(draw) -> tuple[ChunkSize, int, int]:
    """A size and an interval of at most about 300 of its windows."""
    size = draw(SIZES)
    start_ms = draw(TIMES)
    window_ms = int(np.diff(size.edges_ms(start_ms, start_ms + 1))[0])
    longest_ms = max(1, min(300 * window_ms, LATEST_MS - start_ms))
    return size, start_ms, start_ms + draw(st.integers(1, longest_ms))


@given(intervals())
@settings(max_examples=50, deadline=None)
def test_edges_cover_the_interval(case):
    """Edges rise, cover the interval, and no window at either end is outside it."""
    size, start_ms, end_ms = case
    edges = size.edges_ms(start_ms, end_ms)
    assert edges.dtype == np.int64
    assert (np.diff(edges) > 0).all()
    assert edges[0] <= start_ms < edges[1]
    assert edges[-2] < end_ms <= edges[-1]
    assert np.diff(edges).max() <= size.longest_ms


@given(intervals(), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_edges_do_not_depend_on_the_cut(case, share):
    """However an interval is cut, its parts have the edges of the whole."""
    size, start_ms, end_ms = case
    middle_ms = start_ms + int((end_ms - start_ms) * share)
    if not start_ms < middle_ms < end_ms:
        return
    parts = np.concatenate([size.edges_ms(start_ms, middle_ms), size.edges_ms(middle_ms, end_ms)])
    assert np.array_equal(np.unique(parts), size.edges_ms(start_ms, end_ms))


@given(SIZES, TIMES)
@settings(max_examples=50, deadline=None)
def test_a_window_holds_its_times(size, time_ms):
    """The floor is the edge at or before the time, and the next edge is after it; an edge is its own floor."""
    start_ms = size.floor_ms(time_ms)
    next_ms = int(size.edges_ms(start_ms, start_ms + 1)[1])
    assert start_ms <= time_ms < next_ms
    assert size.floor_ms(start_ms) == start_ms
    assert size.floor_ms(next_ms - 1) == start_ms
    assert size.floor_ms(next_ms) == next_ms


@given(st.integers(1, 60), st.sampled_from([("s", "s"), ("m", "min"), ("h", "h"), ("d", "D")]), TIMES)
@settings(max_examples=50, deadline=None)
def test_fixed_windows_are_pandas_floor(count, units, time_ms):
    """Seconds to days, and multiples of them, are floored as pandas does."""
    unit, pandas_unit = units
    expected = pd.Timestamp(time_ms, unit="ms").as_unit("ms").floor(f"{count}{pandas_unit}")
    assert ChunkSize(count, unit).floor_ms(time_ms) == milliseconds(expected)


@given(st.sampled_from([("w", "W-SUN"), ("mo", "M"), ("y", "Y")]), TIMES)
@settings(max_examples=50, deadline=None)
def test_weeks_months_and_years_are_pandas_periods(units, time_ms):
    """A week begins on Monday, a month and a year on their first day, as pandas' periods do."""
    unit, period = units
    expected = pd.Timestamp(time_ms, unit="ms").to_period(period).start_time
    assert ChunkSize(1, unit).floor_ms(time_ms) == milliseconds(expected)


@given(
    st.sampled_from(
        [
            ("30s", "30s"),
            ("1m", "1min"),
            ("7m", "7min"),
            ("1h", "1h"),
            ("1d", "1D"),
            ("1w", "W-MON"),
            ("1mo", "MS"),
            ("1y", "YS"),
        ]
    ),
    st.integers(0, 4_000_000_000_000),
    st.lists(st.floats(0, 100), min_size=1, max_size=20),
)
@settings(max_examples=40, deadline=None)
def test_windows_are_those_of_grouper(sizes, start_ms, shares):
    """Grouping by window gives the groups of pandas' Grouper, label for label."""
    text, frequency = sizes
    size = ChunkSize.parse(text)
    window_ms = int(np.diff(size.edges_ms(start_ms, start_ms + 1))[0])
    times_ms = np.array([start_ms + int(share * window_ms) for share in shares], np.int64)
    frame = pd.DataFrame({"value": 1}, index=pd.DatetimeIndex(times_ms.astype("datetime64[ms]")))
    origin = "start_day" if size.unit in ("w", "mo", "y") else "epoch"
    grouper = pd.Grouper(freq=frequency, closed="left", label="left", origin=origin)
    counts = frame.groupby(grouper)["value"].count()
    counts = counts[counts > 0]
    ours = pd.Series([size.floor_ms(int(time_ms)) for time_ms in times_ms]).value_counts().sort_index()
    assert [milliseconds(label) for label in counts.index] == list(ours.index)
    assert list(counts) == list(ours)


@pytest.mark.parametrize("text", ["1m", "1w", "1mo", "1y"])
def test_an_empty_interval_has_no_windows(text):
    """Asking for the windows of nothing is a mistake of the caller."""
    with pytest.raises(ValueError, match="empty interval"):
        ChunkSize.parse(text).edges_ms(NOW_MS, NOW_MS)


def test_a_leap_year():
    """Calendar windows have the calendar's lengths."""
    start_ms = parse_time("2028-01-01T00:00:00Z", NOW_MS).time_ms
    months = ChunkSize.parse("1mo").edges_ms(start_ms, start_ms + 366 * DAY_MS)
    assert list(np.diff(months) // DAY_MS) == [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
    assert list(np.diff(ChunkSize.parse("1y").edges_ms(start_ms, start_ms + 1)) // DAY_MS) == [366]


# Time zones.


def edges_between(text: str, first: str, last: str) -> tuple[list[str], list[float]]:
    """Return the edges as the zone's clocks show them, and the hours between."""
    size = ChunkSize.parse(text)
    edges = size.edges_ms(parse_time(first, 0).time_ms, parse_time(last, 0).time_ms)
    clocks = pd.DatetimeIndex(edges.astype("datetime64[ms]"), tz="UTC").tz_convert(size.timezone)
    return [moment.isoformat(timespec="minutes") for moment in clocks], list(np.diff(edges) / 3_600_000)


@pytest.mark.parametrize(
    ("text", "first", "last", "edges", "hours"),
    [
        pytest.param(
            "1d@Europe/Berlin", "2026-03-28T12:00+01:00", "2026-03-30T12:00+02:00",
            ["2026-03-28T00:00+01:00", "2026-03-29T00:00+01:00", "2026-03-30T00:00+02:00", "2026-03-31T00:00+02:00"],
            [24, 23, 24], id="spring",
        ),
        pytest.param(
            "1d@Europe/Berlin", "2026-10-24T12:00+02:00", "2026-10-26T12:00+01:00",
            ["2026-10-24T00:00+02:00", "2026-10-25T00:00+02:00", "2026-10-26T00:00+01:00", "2026-10-27T00:00+01:00"],
            [24, 25, 24], id="autumn",
        ),
        pytest.param(
            "1d@Australia/Lord_Howe", "2026-04-05T00:00+11:00", "2026-04-06T00:00+10:30",
            ["2026-04-05T00:00+11:00", "2026-04-06T00:00+10:30"],
            [24.5], id="half an hour",
        ),
        pytest.param(
            "1d@America/Sao_Paulo", "2018-11-03T12:00-03:00", "2018-11-04T12:00-02:00",
            ["2018-11-03T00:00-03:00", "2018-11-04T01:00-02:00", "2018-11-05T00:00-02:00"],
            [24, 23], id="no midnight",
        ),
        pytest.param(
            "1d@America/Havana", "2026-10-31T12:00-04:00", "2026-11-01T12:00-05:00",
            ["2026-10-31T00:00-04:00", "2026-11-01T00:00-04:00", "2026-11-02T00:00-05:00"],
            [24, 25], id="midnight twice",
        ),
        # At 00:01 the clocks went back to 23:01 of the day before: the date comes twice, and counts from the first.
        pytest.param(
            "1d@America/St_Johns", "2006-10-28T12:00-02:30", "2006-10-29T12:00-03:30",
            ["2006-10-28T00:00-02:30", "2006-10-29T00:00-02:30", "2006-10-30T00:00-03:30"],
            [24, 25], id="a date twice",
        ),
        pytest.param(
            "1d@Asia/Kathmandu", "2026-11-23T12:00+05:45", "2026-11-23T13:00+05:45",
            ["2026-11-23T00:00+05:45", "2026-11-24T00:00+05:45"],
            [24], id="a quarter of an hour",
        ),
        # The clocks went from 00:00 to 00:15.
        pytest.param(
            "1y@Asia/Kathmandu", "1985-06-01T00:00Z", "1986-06-01T00:00Z",
            ["1985-01-01T00:00+05:30", "1986-01-01T00:15+05:45", "1987-01-01T00:00+05:45"],
            [8760, 8759.75], id="a year without its midnight",
        ),
        pytest.param(
            "1d@Pacific/Apia", "2011-12-29T12:00-10:00", "2011-12-31T12:00+14:00",
            ["2011-12-29T00:00-10:00", "2011-12-31T00:00+14:00", "2012-01-01T00:00+14:00"],
            [24, 24], id="a day that was skipped",
        ),
        pytest.param(
            "1w@Pacific/Apia", "2011-12-29T12:00-10:00", "2011-12-31T12:00+14:00",
            ["2011-12-26T00:00-10:00", "2012-01-02T00:00+14:00"],
            [144], id="a week of six days",
        ),
        pytest.param(
            "1w@Europe/Berlin", "2026-10-25T12:00Z", "2026-10-26T12:00Z",
            ["2026-10-19T00:00+02:00", "2026-10-26T00:00+01:00", "2026-11-02T00:00+01:00"],
            [169, 168], id="weeks begin on Monday",
        ),
        pytest.param(
            "1mo@America/New_York", "2026-03-01T04:59Z", "2026-03-01T05:01Z",
            ["2026-02-01T00:00-05:00", "2026-03-01T00:00-05:00", "2026-04-01T00:00-04:00"],
            [672, 743], id="months",
        ),
        # January 1970 was the first of three.
        pytest.param(
            "3mo@Europe/Berlin", "2026-05-01T00:00Z", "2026-05-02T00:00Z",
            ["2026-04-01T00:00+02:00", "2026-07-01T00:00+02:00"],
            [2184], id="quarters",
        ),
        # 2026-10-25 is day 20,751 since 1970-01-01: the second of its two.
        pytest.param(
            "2d@Europe/Berlin", "2026-10-25T12:00Z", "2026-10-25T13:00Z",
            ["2026-10-24T00:00+02:00", "2026-10-26T00:00+01:00"],
            [49], id="two days",
        ),
    ],
)  # fmt: skip
def test_calendars_of_time_zones(text, first, last, edges, hours):
    """Days, weeks, months and years begin when the zone's clocks say so."""
    assert edges_between(text, first, last) == (edges, hours)


PANDAS_STARTS = {"d": "D", "w": "W-MON", "mo": "MS", "y": "YS"}


@given(st.sampled_from(ZONES), st.sampled_from(["d", "w", "mo", "y"]), st.integers(0, 4_000_000_000_000))
@settings(max_examples=100, deadline=None)
def test_local_windows_are_those_of_pandas(zone, unit, time_ms):
    """A window's edges are the local midnights that pandas finds, the first of two, or the moment after a gap."""
    size = ChunkSize(1, unit, zone)
    local = pd.Timestamp(time_ms, unit="ms", tz="UTC").tz_convert(zone).tz_localize(None).normalize()
    days = pd.Timedelta(days={"d": 3, "w": 20, "mo": 70, "y": 800}[unit])
    midnights = pd.date_range(local - days, local + days, freq=PANDAS_STARTS[unit])
    # True: daylight saving time, which is the first of the two; ambiguous midnights of a change of zone say neither.
    instants = midnights.tz_localize(zone, ambiguous=np.ones(len(midnights), bool), nonexistent="shift_forward")
    expected = np.unique(instants.tz_convert("UTC").as_unit("ms").tz_localize(None).astype(np.int64))
    at = np.searchsorted(expected, time_ms, side="right")
    assert list(size.edges_ms(time_ms, time_ms + 1)) == list(expected[at - 1 : at + 1])


@given(st.sampled_from(ODD_ZONES), st.integers(0, 1_700_000_000_000))
@settings(max_examples=100, deadline=None)
def test_a_day_begins_when_its_date_first_shows(zone, time_ms):
    """A millisecond before an edge no clock of the zone had shown the day's date yet; at the edge one does."""
    edge_ms = ChunkSize(1, "d", zone).floor_ms(time_ms)

    def shown(at_ms: int):
        return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=at_ms)).astimezone(ZoneInfo(zone)).date()

    assert shown(edge_ms - 1) < shown(edge_ms)
    assert max(shown(edge_ms - hours * 3_600_000 - 1) for hours in range(4)) < shown(edge_ms)


@pytest.mark.parametrize("unit", ["s", "m", "h"])
def test_fixed_windows_know_no_zone(unit):
    """A zone makes no difference to seconds, minutes and hours: not even in their name."""
    assert ChunkSize(7, unit, "Asia/Kathmandu") == ChunkSize(7, unit)


def milliseconds(moment: pd.Timestamp) -> int:
    return int(np.datetime64(moment.to_datetime64(), "ms").astype(np.int64))
