"""How cells of CSV files are spelled."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_app.sinks.csv_style import TIME_FORMATS, CsvStyle, absent_text

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize(
    ("missing", "text"),
    [("empty", ""), ("nan", "NaN"), ("0", "0"), ("-1", "-1"), ("0.0", "0.00"), ("1e-9", "1e-9"), ("1e-09", "1.0e-09")],
)
def test_what_stands_for_nothing(missing: str, text: str) -> None:
    assert absent_text(missing) == text


@given(NUMBERS)
def test_a_number_for_nothing_is_no_value(number: float) -> None:
    """It is the number that was asked for, in a spelling that no value has."""
    text = absent_text(repr(number))
    assert float(text) == number
    assert math.copysign(1, float(text)) == math.copysign(1, number)
    assert text != repr(number)
    assert absent_text(text) == text


@pytest.mark.parametrize(
    "missing",
    ["", " ", "none", "NaN", "inf", "-inf", "1e400", "1_0", "+1", "0x1", ".", "1,5", "\u0661"],
)
def test_other_words_are_refused(missing: str) -> None:
    with pytest.raises(ValueError, match="is not empty, nan or a number"):
        absent_text(missing)


@pytest.mark.parametrize(
    ("time_format", "text"),
    [("iso", "2026-11-23T12:00:00Z"), ("epoch-s", "1795435200"), ("epoch-ms", "1795435200000")],
)
def test_times(time_format: str, text: str) -> None:
    assert CsvStyle(time_format=time_format).time_writer()(1_795_435_200_000) == text


@given(st.integers(0, 253_402_300_799_999), st.sampled_from(TIME_FORMATS))
def test_times_are_read_back(time_ms: int, time_format: str) -> None:
    """To the millisecond, in every format: the merge of files depends on it."""
    style = CsvStyle(time_format=time_format)
    assert style.time_reader()(style.time_writer()(time_ms).encode()) == time_ms


def test_defaults_are_not_remembered() -> None:
    """A storage from before there was a choice goes on."""
    assert CsvStyle().options() == {}
    assert CsvStyle("0", "epoch-s").options() == {"missing": "0", "time_format": "epoch-s"}
