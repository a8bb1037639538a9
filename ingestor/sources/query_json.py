"""The bytes of a ``/api/v1/query`` matrix answer into columns, without a Python step a sample.

One pass of a compiled scanner over the JSON: it knows the members that it wants
(``data.result[].metric`` and ``.values``), steps over all others (warnings, stats,
histograms, whatever a backend adds), and never looks outside the bytes it was given.
"""

from __future__ import annotations

from collections.abc import Callable, MutableSequence
from dataclasses import dataclass
from typing import TypeVar, cast

import numba
import numpy as np
import orjson
import pyarrow as pa

from ingestor.core.arrow import as_array
from ingestor.core.chunk import Float64Array, Int64Array
from ingestor.core.errors import QueryRejected, SourceUnavailable
from ingestor.sources.base import SeriesBlock, canonical_labels

Bytes = MutableSequence[int]
"""An array of uint8 as compiled code sees it: its items take part in sums as 64-bit integers."""
_Function = TypeVar("_Function", bound=Callable[..., object])

# The shortest that a sample and a series can be in an answer: `[0,"0"]` and `{"metric":{}}`.
# Room for as many as the bytes could hold is never too little, and pages that stay untouched
# cost nothing. Counting in a first pass would add 24 ns to the 33 ns of a sample (measured).
_SHORTEST_SAMPLE_BYTES = 7
_SHORTEST_SERIES_BYTES = 13

# Where the scanner notes what it found besides samples.
_SERIES, _SAMPLES, _ODD_VALUES, _HISTOGRAMS, _RESULTS, _PARTIAL = range(6)
_TYPE_START, _TYPE_END, _WARNINGS_START, _WARNINGS_END, _NOTES = range(6, 11)


@dataclass(frozen=True, slots=True)
class MatrixAnswer:
    """What a backend answered to a range selector."""

    block: SeriesBlock
    """Not yet tidy: what was sent, in the order in which it was sent."""
    warnings: tuple[str, ...]
    partial: bool
    """The backend says that a part of its storage did not answer (VictoriaMetrics' ``isPartial``)."""


def read_matrix(body: bytes) -> MatrixAnswer:
    """Read a matrix answer.

    Timestamps are exact to the millisecond (more digits are rounded to the nearest);
    values are the float64 nearest to their text, as Python's ``float`` gives them.

    Raises:
        SourceUnavailable: the JSON is cut or malformed.
        QueryRejected: it is whole, but holds no matrix.
    """
    # A null byte is no JSON, and numpy makes no view of nothing.
    data = cast("Bytes", np.frombuffer(body or b"\0", np.uint8))
    room = len(data) // _SHORTEST_SAMPLE_BYTES + 1
    series_room = len(data) // _SHORTEST_SERIES_BYTES + 1
    timestamps_ms, values = np.empty(room, np.int64), np.empty(room, np.float64)
    odd = np.empty((room, 3), np.int64)
    offsets, labels = np.empty(series_room + 1, np.int64), np.empty((series_room, 3), np.int64)
    notes = np.zeros(_NOTES, np.int64)

    if not _scan(data, timestamps_ms, values, odd, offsets, labels, notes):
        raise SourceUnavailable(f"the answer is cut short or is not JSON ({len(body)} bytes)")
    if not notes[_RESULTS] or (result_type := body[notes[_TYPE_START] : notes[_TYPE_END]]) != b"matrix":
        what = f"a {result_type.decode(errors='replace')}" if notes[_RESULTS] else "without data"
        raise QueryRejected(f"the answer is {what}, not a matrix")

    samples, series = int(notes[_SAMPLES]), int(notes[_SERIES])
    _fill_odd_values(data, odd[: notes[_ODD_VALUES]], values)
    block = SeriesBlock(
        _label_sets(body, labels[:series]),
        offsets[: series + 1].copy(),
        timestamps_ms[:samples],
        values[:samples],
        int(notes[_HISTOGRAMS]),
    )
    return MatrixAnswer(block, _warnings(body[notes[_WARNINGS_START] : notes[_WARNINGS_END]]), bool(notes[_PARTIAL]))


def _label_sets(body: bytes, labels: Int64Array) -> list[bytes]:
    label_sets = [body[start:end] for start, end, _ in labels.tolist()]
    # Prometheus wrote <, > and & as \u003c, \u003e and \u0026 up to 2.42, and writes them as they are today.
    escaped = b"\\u" in body
    # VictoriaMetrics writes the name first, then labels that are common, such as job and pod, then the others.
    if escaped or labels[:, 2].any():
        try:
            return [
                canonical_labels(label_set) if disorder or (escaped and b"\\u" in label_set) else label_set
                for label_set, disorder in zip(label_sets, labels[:, 2].tolist(), strict=True)
            ]
        except ValueError as error:
            raise SourceUnavailable("the answer holds labels that are not JSON") from error
    return label_sets


def _warnings(text: bytes) -> tuple[str, ...]:
    try:
        found = orjson.loads(text or b"[]")
    except ValueError as error:
        raise SourceUnavailable("the answer's warnings are not JSON") from error
    return tuple(map(str, found or ())) if isinstance(found, list | None) else (str(found),)


def _fill_odd_values(data: Bytes, odd: Int64Array, values: Float64Array) -> None:
    """Set the values that the scanner left open: those of many digits.

    Args:
        data: the answer.
        odd: shape (n, 3): index into *values*, start and end of the text in *data*.
        values: set in place.

    Arrow's cast is fast_float, which rounds correctly as Python's ``float`` does.
    """
    if not len(odd):
        return
    offsets = np.zeros(len(odd) + 1, np.int64)
    np.cumsum(odd[:, 2] - odd[:, 1], out=offsets[1:])
    gathered = np.empty(int(offsets[-1]), np.uint8)
    _gather(data, odd, offsets, cast("Bytes", gathered))
    texts = pa.LargeStringArray.from_buffers(len(odd), pa.py_buffer(offsets), pa.py_buffer(gathered))
    try:
        values[odd[:, 0]] = as_array(texts.cast(pa.float64()))
    except pa.ArrowInvalid as error:
        raise SourceUnavailable("the answer holds a value that is not a number") from error


# --- compiled: every function takes a position and gives the one behind what it read, or -1 ---


def _compiled(function: _Function) -> _Function:
    # nogil: several metrics are fetched at once. Cached on disk: compiling takes seconds.
    return cast("_Function", numba.njit(nogil=True, cache=True, error_model="numpy")(function))


_QUOTE, _BACKSLASH, _COMMA, _COLON = ord('"'), ord("\\"), ord(","), ord(":")
_OPEN_LIST, _CLOSE_LIST, _OPEN_OBJECT, _CLOSE_OBJECT = ord("["), ord("]"), ord("{"), ord("}")
_ZERO, _NINE, _DOT, _PLUS, _MINUS = ord("0"), ord("9"), ord("."), ord("+"), ord("-")
_SMALL_A, _SMALL_Z = ord("a"), ord("z")
_SMALL_E, _LARGE_E, _SPACE, _TAB, _NEWLINE, _RETURN = ord("e"), ord("E"), ord(" "), ord("\t"), ord("\n"), ord("\r")


def _constant(text: bytes) -> Bytes:
    return cast("Bytes", np.frombuffer(text, np.uint8))


_STATUS_DATA = _constant(b"data")
_RESULT_TYPE = _constant(b"resultType")
_RESULT = _constant(b"result")
_METRIC = _constant(b"metric")
_VALUES = _constant(b"values")
_HISTOGRAM_LIST = _constant(b"histograms")
_WARNING_LIST = _constant(b"warnings")
_IS_PARTIAL = _constant(b"isPartial")
_TRUE = _constant(b"true")
_NAN = _constant(b"NaN")
_INF = _constant(b"Inf")

_MOST_DIGITS = 18
"""As many decimal digits always fit int64."""
_MOST_EXPONENT = 99_999
_INT_POWERS = np.array([10**k for k in range(_MOST_DIGITS + 1)], np.int64)

# Up to these, mantissa and power of ten are exact float64s, so that one multiplication or
# division rounds correctly. Source: Clinger, How to Read Floating Point Numbers Accurately, 1990.
_EXACT_MANTISSA = 2**53
_EXACT_POWER = 22
_FLOAT_POWERS = np.array([10.0**k for k in range(_EXACT_POWER + 1)])


@_compiled
def _scan(
    data: Bytes,
    timestamps_ms: Int64Array,
    values: Float64Array,
    odd: Int64Array,
    offsets: Int64Array,
    labels: Int64Array,
    notes: Int64Array,
) -> bool:
    """Fill the arrays from a whole answer; False if it is not well-formed.

    Args:
        data: the answer's bytes.
        timestamps_ms: room for every sample that *data* can hold; so *values* and *odd*.
        values: as *timestamps_ms*.
        odd: index, start and end of each value that is left for `_fill_odd_values`.
        offsets: room for every series that *data* can hold, and one.
        labels: start and end of each series' ``metric`` object, and whether its names must be put in order.
        notes: counts and places, by the names ``_SERIES`` to ``_WARNINGS_END``.
    """
    at = _open(data, 0, _OPEN_OBJECT)
    first = True
    while at >= 0:
        at, key = _next_member(data, at, first)
        first = False
        if at >= 0 and key < 0:
            return _skip_space(data, at) == len(data)
        if at < 0:
            break
        if _is(data, key, _STATUS_DATA) and data[at] == _OPEN_OBJECT:
            at = _scan_data(data, at + 1, timestamps_ms, values, odd, offsets, labels, notes)
        elif _is(data, key, _WARNING_LIST):
            notes[_WARNINGS_START] = at
            at = _skip_value(data, at)
            notes[_WARNINGS_END] = at
        else:
            if _is(data, key, _IS_PARTIAL):
                notes[_PARTIAL] = _starts(data, at, _TRUE)
            at = _skip_value(data, at)
    return False


@_compiled
def _scan_data(
    data: Bytes,
    at: int,
    timestamps_ms: Int64Array,
    values: Float64Array,
    odd: Int64Array,
    offsets: Int64Array,
    labels: Int64Array,
    notes: Int64Array,
) -> int:
    first = True
    while at >= 0:
        at, key = _next_member(data, at, first)
        first = False
        if at < 0 or key < 0:
            return at
        if _is(data, key, _RESULT) and data[at] == _OPEN_LIST:
            # A second one would be read into the same arrays, beyond their room.
            if notes[_RESULTS]:
                return -1
            notes[_RESULTS] = 1
            at = _scan_result(data, at + 1, timestamps_ms, values, odd, offsets, labels, notes)
        else:
            start = at
            at = _skip_value(data, at)
            if _is(data, key, _RESULT_TYPE) and at - start >= 2:
                notes[_TYPE_START], notes[_TYPE_END] = start + 1, at - 1
    return -1


@_compiled
def _scan_result(
    data: Bytes,
    at: int,
    timestamps_ms: Int64Array,
    values: Float64Array,
    odd: Int64Array,
    offsets: Int64Array,
    labels: Int64Array,
    notes: Int64Array,
) -> int:
    offsets[0] = 0
    series = 0
    while at >= 0:
        at, more = _next_item(data, at, series == 0)
        if at < 0 or not more:
            return at
        if data[at] != _OPEN_OBJECT or series >= len(labels):
            # Scalars and strings are answered as a bare pair; the result's type tells.
            if series > 0 or data[at] == _OPEN_OBJECT:
                return -1
            return _skip_rest(data, at)
        at = _scan_series(data, at + 1, timestamps_ms, values, odd, labels[series], notes)
        series += 1
        offsets[series] = notes[_SAMPLES]
        notes[_SERIES] = series
    return -1


@_compiled
def _scan_series(
    data: Bytes,
    at: int,
    timestamps_ms: Int64Array,
    values: Float64Array,
    odd: Int64Array,
    labels: Int64Array,
    notes: Int64Array,
) -> int:
    labels[0] = -1
    has_values = False
    first = True
    while at >= 0:
        at, key = _next_member(data, at, first)
        first = False
        if at < 0:
            return -1
        if key < 0:
            return at if labels[0] >= 0 else -1
        if _is(data, key, _VALUES) and data[at] == _OPEN_LIST and not has_values:
            has_values = True
            at = _scan_samples(data, at + 1, timestamps_ms, values, odd, notes)
        elif _is(data, key, _METRIC) and data[at] == _OPEN_OBJECT and labels[0] < 0:
            labels[0] = at
            at, labels[2] = _scan_labels(data, at + 1)
            labels[1] = at
        elif _is(data, key, _VALUES) or _is(data, key, _METRIC):
            return -1
        elif _is(data, key, _HISTOGRAM_LIST) and data[at] == _OPEN_LIST:
            at = _count_items(data, at + 1, notes)
        else:
            at = _skip_value(data, at)
    return -1


@_compiled
def _scan_labels(data: Bytes, at: int) -> tuple[int, int]:
    """Step over a label set; the second number is 1 if its names do not rise."""
    first, before, disorder = True, -1, 0
    while at >= 0:
        at, key = _next_member(data, at, first)
        first = False
        if at < 0 or key < 0:
            return at, disorder
        if before >= 0 and not _rises(data, before + 1, key + 1):
            disorder = 1
        before = key
        at = _skip_value(data, at)
    return -1, 0


@_compiled
def _rises(data: Bytes, one: int, other: int) -> bool:
    """Tell whether the name at *one* stands before the name at *other*, both of which end with a quote."""
    while data[one] == data[other] and data[one] != _QUOTE:
        one += 1
        other += 1
    if data[one] == _QUOTE or data[other] == _QUOTE:
        return bool(data[one] == _QUOTE and data[other] != _QUOTE)
    # A name with an escape is compared by canonical_labels.
    return bool(data[one] < data[other] and data[one] != _BACKSLASH and data[other] != _BACKSLASH)


@_compiled
def _scan_samples(
    data: Bytes, at: int, timestamps_ms: Int64Array, values: Float64Array, odd: Int64Array, notes: Int64Array
) -> int:
    first = True
    while at >= 0:
        at, more = _next_item(data, at, first)
        first = False
        if at < 0 or not more:
            return at
        samples = notes[_SAMPLES]
        at = _plain_samples(data, at, timestamps_ms, values, odd, notes)
        if notes[_SAMPLES] == samples:
            at = _any_sample(data, at, timestamps_ms, values, odd, notes)
    return -1


@_compiled
def _plain_samples(  # noqa: C901, PLR0912, PLR0915 - the hot loop: a call costs numba two atomic reference counts
    data: Bytes, at: int, timestamps_ms: Int64Array, values: Float64Array, odd: Int64Array, notes: Int64Array
) -> int:
    """Read samples for as long as they are written ``[1435781430.781,"-12.5"],``, as most are.

    Gives the place behind the last one that was, or *at*.
    """
    sample, odd_values, size = notes[_SAMPLES], notes[_ODD_VALUES], len(data)
    i = at
    while i < size and data[i] == _OPEN_LIST and sample < len(timestamps_ms):
        i += 1
        start, timestamp = i, 0
        while i < size and _ZERO <= data[i] <= _NINE:
            timestamp = timestamp * 10 + (data[i] - _ZERO)
            i += 1
        whole_digits, decimals = i - start, 0
        if i < size and data[i] == _DOT:
            i += 1
            start = i
            while i < size and _ZERO <= data[i] <= _NINE:
                timestamp = timestamp * 10 + (data[i] - _ZERO)
                i += 1
            decimals = i - start
        if not 0 < whole_digits <= _MOST_DIGITS - 3 or decimals > 3:
            break
        if i + 2 >= size or data[i] != _COMMA or data[i + 1] != _QUOTE:
            break
        i += 2
        text = i
        negative = data[i] == _MINUS
        if negative:
            i += 1
        start, mantissa = i, 0
        while i < size and _ZERO <= data[i] <= _NINE:
            mantissa = mantissa * 10 + (data[i] - _ZERO)
            i += 1
        digits, fraction_digits = i - start, 0
        if i < size and data[i] == _DOT:
            i += 1
            start = i
            while i < size and _ZERO <= data[i] <= _NINE:
                mantissa = mantissa * 10 + (data[i] - _ZERO)
                i += 1
            fraction_digits = i - start
        # More digits have wrapped around: they are read again, with care.
        if not 0 < digits + fraction_digits <= _MOST_DIGITS:
            break
        if i + 1 >= size or data[i] != _QUOTE or data[i + 1] != _CLOSE_LIST:
            break
        if mantissa <= _EXACT_MANTISSA:
            value = float(mantissa) / _FLOAT_POWERS[fraction_digits]
            values[sample] = -value if negative else value
        else:
            odd[odd_values, 0], odd[odd_values, 1], odd[odd_values, 2] = sample, text, i
            odd_values += 1
        timestamps_ms[sample] = timestamp * _INT_POWERS[3 - decimals]
        sample += 1
        i += 2
        at = i
        if i >= size or data[i] != _COMMA:
            break
        i += 1
    notes[_SAMPLES], notes[_ODD_VALUES] = sample, odd_values
    return at


@_compiled
def _any_sample(
    data: Bytes, at: int, timestamps_ms: Int64Array, values: Float64Array, odd: Int64Array, notes: Int64Array
) -> int:
    sample, odd_values = notes[_SAMPLES], notes[_ODD_VALUES]
    at = _open(data, at, _OPEN_LIST)
    at, timestamp_ms = _timestamp_ms(data, at)
    at = _open(data, at, _COMMA)
    at = _open(data, at, _QUOTE)
    if at < 0 or sample >= len(timestamps_ms):
        return -1
    end, value, known = _value(data, at)
    if end < 0 or end >= len(data) or data[end] != _QUOTE:
        return -1
    timestamps_ms[sample], values[sample] = timestamp_ms, value
    if not known:
        # Arrow reads no leading plus.
        odd[odd_values, 0], odd[odd_values, 1], odd[odd_values, 2] = sample, at + (data[at] == _PLUS), end
        notes[_ODD_VALUES] = odd_values + 1
    notes[_SAMPLES] = sample + 1
    return _open(data, end + 1, _CLOSE_LIST)


@_compiled
def _timestamp_ms(data: Bytes, at: int) -> tuple[int, int]:
    """Read a JSON number of seconds as milliseconds, the nearest one if it has more than three decimals."""
    if at < 0:
        return -1, 0
    at, negative, mantissa, exponent, _whole = _number(data, _skip_space(data, at))
    if at < 0:
        return -1, 0
    shift = exponent + 3
    if mantissa == 0 or shift < -_MOST_DIGITS:
        return at, 0
    if shift >= 0:
        if shift > _MOST_DIGITS or mantissa >= _INT_POWERS[_MOST_DIGITS - shift]:
            return -1, 0
        timestamp_ms = mantissa * _INT_POWERS[shift]
    else:
        # Digits beyond 18 were dropped: that cannot lift the rest over or below one half.
        timestamp_ms = mantissa // _INT_POWERS[-shift]
        if mantissa % _INT_POWERS[-shift] * 2 >= _INT_POWERS[-shift]:
            timestamp_ms += 1
    return at, -timestamp_ms if negative else timestamp_ms


@_compiled
def _value(data: Bytes, at: int) -> tuple[int, float, bool]:
    """Read the text of a value; the last of what it gives is False if the number needs `_fill_odd_values`."""
    end, negative, mantissa, exponent, whole = _number(data, at)
    if end >= 0:
        if not whole or mantissa > _EXACT_MANTISSA or exponent > _EXACT_POWER or exponent < -_EXACT_POWER:
            return end, 0.0, False
        value = float(mantissa)
        value = value * _FLOAT_POWERS[exponent] if exponent >= 0 else value / _FLOAT_POWERS[-exponent]
        return end, -value if negative else value, True
    if _starts(data, at, _NAN):
        return at + 3, np.nan, True
    if at < len(data) and (data[at] == _PLUS or data[at] == _MINUS):
        negative = data[at] == _MINUS
        at += 1
    if _starts(data, at, _INF):
        return at + 3, -np.inf if negative else np.inf, True
    return -1, 0.0, False


@_compiled
def _number(data: Bytes, at: int) -> tuple[int, bool, int, int, bool]:
    """Read a decimal number: sign, 18 digits as an integer, and the power of ten that scales it.

    The last of what it gives is False if more digits were there, and were left out.
    """
    negative = at < len(data) and data[at] == _MINUS
    if at < len(data) and (negative or data[at] == _PLUS):
        at += 1
    start = at
    kept_end, at, mantissa = _digits(data, start, 0, _MOST_DIGITS)
    read = at - start
    exponent = at - kept_end
    whole = at == kept_end
    if at < len(data) and data[at] == _DOT:
        fraction = at + 1
        kept_end, at, mantissa = _digits(data, fraction, mantissa, max(_MOST_DIGITS - read, 0))
        read += at - fraction
        exponent -= kept_end - fraction
        whole = whole and at == kept_end
    if read == 0:
        return -1, negative, 0, 0, True
    if at < len(data) and (data[at] == _SMALL_E or data[at] == _LARGE_E):
        at, power = _power_of_ten(data, at + 1)
        exponent += power
    return at, negative, mantissa, exponent, whole


@_compiled
def _digits(data: Bytes, at: int, mantissa: int, most: int) -> tuple[int, int, int]:
    """Append digits to *mantissa*, *most* of them; give where those end, where all end, and the sum."""
    end = min(len(data), at + most)
    while at < end and _ZERO <= data[at] <= _NINE:
        mantissa = mantissa * 10 + (data[at] - _ZERO)
        at += 1
    kept_end = at
    while at < len(data) and _ZERO <= data[at] <= _NINE:
        at += 1
    return kept_end, at, mantissa


@_compiled
def _power_of_ten(data: Bytes, at: int) -> tuple[int, int]:
    negative = at < len(data) and data[at] == _MINUS
    if at < len(data) and (negative or data[at] == _PLUS):
        at += 1
    start, power = at, 0
    while at < len(data) and _ZERO <= data[at] <= _NINE:
        power = min(power * 10 + data[at] - _ZERO, _MOST_EXPONENT)
        at += 1
    return at if at > start else -1, -power if negative else power


@_compiled
def _next_member(data: Bytes, at: int, first: bool) -> tuple[int, int]:  # noqa: FBT001 - a flag, called here only
    """Step to the next value of an object: its place, and its key's; key -1 behind the object's end."""
    at, more = _next_item_or_end(data, at, first, _CLOSE_OBJECT)
    if at < 0 or not more:
        return at, -1
    key = at
    at = _skip_string(data, at)
    at = _open(data, at, _COLON)
    if at >= 0:
        at = _skip_space(data, at)
    return at if at < len(data) else -1, key


@_compiled
def _next_item(data: Bytes, at: int, first: bool) -> tuple[int, bool]:  # noqa: FBT001 - a flag, called here only
    """Step to the next value of a list; False behind the list's end."""
    return _next_item_or_end(data, at, first, _CLOSE_LIST)


@_compiled
def _next_item_or_end(data: Bytes, at: int, first: bool, close: int) -> tuple[int, bool]:  # noqa: FBT001
    if at < 0:
        return -1, False
    at = _skip_space(data, at)
    if at < len(data) and data[at] == close:
        return at + 1, False
    if not first:
        at = _open(data, at, _COMMA)
        if at < 0:
            return -1, False
        at = _skip_space(data, at)
    return at if at < len(data) else -1, True


@_compiled
def _count_items(data: Bytes, at: int, notes: Int64Array) -> int:
    first = True
    while at >= 0:
        at, more = _next_item(data, at, first)
        first = False
        if at < 0 or not more:
            return at
        at = _skip_value(data, at)
        notes[_HISTOGRAMS] += 1
    return -1


@_compiled
def _skip_rest(data: Bytes, at: int) -> int:
    """Step over the rest of a list whose items are of no use."""
    while at >= 0:
        at = _skip_value(data, at)
        at, more = _next_item(data, at, False)  # noqa: FBT003
        if at < 0 or not more:
            return at
    return -1


@_compiled
def _skip_value(data: Bytes, at: int) -> int:
    """Step over any value; of what lies in it only strings and the depth are looked at."""
    depth = 0
    while 0 <= at < len(data):
        char = data[at]
        if char == _QUOTE:
            at = _skip_string(data, at)
        elif char == _OPEN_OBJECT or char == _OPEN_LIST:  # noqa: PLR1714, SIM109 - for numba a tuple is slower
            depth += 1
            at += 1
        elif char == _CLOSE_OBJECT or char == _CLOSE_LIST:  # noqa: PLR1714, SIM109
            depth -= 1
            at += 1
        elif depth == 0:
            return _skip_word(data, at)
        else:
            at += 1
        if depth <= 0:
            return at if depth == 0 else -1
    return -1


@_compiled
def _skip_word(data: Bytes, at: int) -> int:
    """Step over a number, true, false or null."""
    start = at
    while at < len(data) and (
        _SMALL_A <= data[at] <= _SMALL_Z
        or _ZERO <= data[at] <= _NINE
        or data[at] == _LARGE_E
        or data[at] == _MINUS
        or data[at] == _PLUS
        or data[at] == _DOT
    ):
        at += 1
    return at if at > start else -1


@_compiled
def _skip_string(data: Bytes, at: int) -> int:
    if at < 0 or at >= len(data) or data[at] != _QUOTE:
        return -1
    at += 1
    while at < len(data):
        if data[at] == _QUOTE:
            return at + 1
        at += 2 if data[at] == _BACKSLASH else 1
    return -1


@_compiled
def _skip_space(data: Bytes, at: int) -> int:
    while at < len(data) and (data[at] == _SPACE or data[at] == _NEWLINE or data[at] == _RETURN or data[at] == _TAB):
        at += 1
    return at


@_compiled
def _open(data: Bytes, at: int, wanted: int) -> int:
    """Step over white space and the one character *wanted*."""
    if at < 0:
        return -1
    at = _skip_space(data, at)
    return at + 1 if at < len(data) and data[at] == wanted else -1


@_compiled
def _is(data: Bytes, key: int, name: Bytes) -> bool:
    """Tell whether the string at *key* is *name*; a name written with escapes counts as another one."""
    end = key + 1 + len(name)
    return end < len(data) and data[end] == _QUOTE and _starts(data, key + 1, name)


@_compiled
def _starts(data: Bytes, at: int, name: Bytes) -> bool:
    if at + len(name) > len(data):
        return False
    for i in range(len(name)):  # noqa: SIM110 - numba has no all()
        if data[at + i] != name[i]:
            return False
    return True


@_compiled
def _gather(data: Bytes, odd: Int64Array, offsets: Int64Array, out: Bytes) -> None:
    for row in range(len(odd)):
        for i in range(offsets[row + 1] - offsets[row]):
            out[offsets[row] + i] = data[odd[row, 1] + i]
