"""Records as lines: nothing wraps, nothing that a name holds moves a cursor, and JSON stays what it was."""

import math
import re

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_app.records import Record, decode_record
from stream_app.tail_display import JsonLines, PlainLines, TableLines, number_text, printable, text_width

NOON = 1_795_435_200_000
POD = "checkout-7c9f8b6d5-x2x4z"
HOSTILE = "a\x1b[2Jb\nc\td\x07\x9b\u202ee"
ESCAPED = r"a\x1b[2Jb\nc\td\x07\x9b\u202ee"
COLOUR = re.compile(r"\x1b\[\d*m")


def record(metrics=None, **changed):
    fields = {
        "namespace": "shop", "pod": POD, "service": "checkout", "window_start_ms": NOON,
        "window_end_ms": NOON + 60_000, "chunk_size": "1m", "method": "mean", "job": "live", "revision": 0,
        "partial": False, "samples": 4, "metrics": {"cpu": 0.25, "memory": 3379200.0} if metrics is None else metrics,
    }  # fmt: skip
    return Record(**(fields | changed))


def table(width, *, colour=False, chosen=False, groupings=("pod",)):
    return TableLines(lambda: width, colour=colour, chosen=chosen, groupings=groupings)


def shown(lines, *records):
    return [line for one in records for line in lines.of(one, b"").decode().splitlines()]


def test_a_table_for_80_columns():
    """Pairs where metrics were not chosen; the header comes once."""
    other = record({"cpu": math.nan}, pod="a", window_start_ms=NOON + 60_000, partial=True, revision=1)
    assert shown(table(80), record(), other) == [
        "TIME UTC        POD, 1m mean              METRICS (--metric chooses)",
        "11-23 12:00:00  shop/checkou…8b6d5-x2x4z  cpu=0.25  memory=3379200",
        "11-23 12:01:00  shop/a                    partial r1  cpu=NaN",
    ]


def test_chosen_metrics_are_columns():
    """A metric that comes later makes a new column, and the header comes again."""
    records = record({"cpu": 0.25}), record({"cpu": -math.inf, "memory": 1e9}, revision=2), record({"memory": 5.0})
    assert shown(table(80, chosen=True), *records) == [
        "TIME UTC        POD, 1m mean                        cpu",
        "11-23 12:00:00  shop/checkou…8b6d5-x2x4z           0.25",
        "TIME UTC        POD, 1m mean                        cpu         memory",
        "11-23 12:00:00  shop/checkou…8b6d5-x2x4z           -Inf     1000000000  r2",
        "11-23 12:00:00  shop/checkou…8b6d5-x2x4z              -              5",
    ]


def test_columns_that_do_not_fit_become_pairs():
    """Too many of them for the width are no columns any more."""
    metrics = {f"metric_{number}": float(number) for number in range(4)}
    assert shown(table(80, chosen=True), record(metrics))[1].endswith("  metric_0=0  metric_1=1  metric_2=2  +1")
    assert shown(table(140, chosen=True), record(metrics))[1].split()[-4:] == ["0", "1", "2", "3"]


def test_a_terminal_that_changes_its_width():
    """The next line is as wide as the terminal is now, under a header of its own."""
    widths = iter([120, 80])
    lines = TableLines(lambda: next(widths), colour=False, chosen=False, groupings=("pod",))
    assert [line[:14] for line in shown(lines, record(), record())] == [
        "TIME UTC      ", "2026-11-23 12:", "TIME UTC      ", "11-23 12:00:00",
    ]  # fmt: skip


def test_another_view_says_so():
    """The header names the first view; records of others name theirs."""
    lines = shown(table(100), record(), record(chunk_size="5m", method="sum"), record())
    assert ["5m sum" in line for line in lines] == [False, False, True, False]


def test_services_among_pods_say_so():
    """With both groupings a service cannot be taken for a pod; with one there is no need to say it."""
    of_service = record(pod=None)
    both = ("pod", "service")
    assert "  POD OR SERVICE, 1m mean  " in shown(table(100, groupings=both), of_service)[0]
    assert "  service  cpu=" in shown(table(100, groupings=both), of_service)[1]
    assert "service" not in shown(table(100, groupings=("service",)), of_service)[1]
    assert shown(PlainLines(mixed=True), of_service)[0].split("\t")[4] == "service"
    assert shown(PlainLines(), of_service)[0].split("\t")[4] == "-"


def test_colours_change_no_text():
    """What a terminal with colours shows is what one without shows."""
    odd = record(partial=True, incomplete=("up",))
    plain, coloured = shown(table(80), odd), shown(table(80, colour=True), odd)
    assert not any(COLOUR.search(line) for line in plain)
    assert all(COLOUR.search(line) for line in coloured)
    assert [COLOUR.sub("", line) for line in coloured] == plain


texts = st.text(max_size=60) | st.sampled_from([HOSTILE, "漢字" * 20, "e\u0301" * 30, ""])


@given(
    st.integers(0, 250),
    st.booleans(),
    st.builds(
        record,
        st.dictionaries(texts, st.floats(), max_size=12),
        namespace=texts, pod=texts, chunk_size=texts, method=texts, revision=st.integers(0, 10**6),
        window_start_ms=st.integers(-(2**63), 2**63), partial=st.booleans(),
    ),
)  # fmt: skip
def test_every_line_fits(width, chosen, one):
    """Whatever names hold: one line a record, no wider than the terminal, and nothing but printable text."""
    lines = table(width, chosen=chosen).of(one, b"").decode()
    assert lines.endswith("\n")
    header, row = lines[:-1].split("\n")
    for line in (header, row):
        assert line.isprintable()
        assert text_width(line) <= max(1, width)
        assert line == line.rstrip(" ")
    fields = PlainLines().of(one, b"").decode()
    assert fields.endswith("\n")
    assert fields[:-1].replace("\t", "").isprintable()
    assert fields.count("\t") == 4 + len(one.metrics)


def test_plain_fields():
    """What grep and awk are given: always the same fields, and all metrics."""
    odd = record({"a b": math.inf, HOSTILE: 1.0}, namespace="", partial=True, revision=3, incomplete=("up",))
    assert shown(PlainLines(), record(), odd) == [
        f"2026-11-23T12:00:00Z\tshop/{POD}\t1m\tmean\t-\tcpu=0.25\tmemory=3379200",
        "\t".join(
            ["2026-11-23T12:00:00Z", f"_/{POD}", "1m", "mean", "partial,r3,incomplete", "a b=+Inf", f"{ESCAPED}=1"]
        ),
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (-0.0, "0"), (1.0, "1"), (-2.5, "-2.5"), (1 / 3, "0.333333"), (3379200.4, "3379200"),
        (999_999.4, "999999"), (999_999.5, "1000000"), (123_456_789_012.0, "123456789012"),
        (999_999_999_999.5, "1e+12"), (-1.234567e-100, "-1.23457e-100"), (5e-324, "4.94066e-324"),
        (math.nan, "NaN"), (math.inf, "+Inf"), (-math.inf, "-Inf"),
    ],
)  # fmt: skip
def test_numbers_for_people(value, text):
    """Six digits are enough for an eye; whole numbers are not cut."""
    assert number_text(value) == text


@given(st.floats())
def test_numbers_are_short(value):
    """A column of 13 characters holds any number."""
    assert len(number_text(value)) <= 13


def test_what_is_not_printable_is_escaped():
    """Escape sequences, line ends, directions; letters of all scripts stay."""
    assert printable(HOSTILE) == ESCAPED
    assert printable('käse-漢字 {code="500"}') == 'käse-漢字 {code="500"}'


def raw(**changed):
    fields = {
        "namespace": "shop", "pod": POD, "service": "checkout", "window_start": NOON, "window_end": NOON + 60_000,
        "chunk_size": "1m", "method": "mean", "job": "live", "revision": 0, "partial": False, "version": 1,
        "samples": 4, "metrics": {"cpu": 1 / 3, "nan": None, "inf": "+Inf"}, "later": {"field": 1},
    }  # fmt: skip
    return orjson.dumps(fields | changed)


def test_json_is_what_is_on_the_topic():
    """Byte for byte, with fields that we do not know and names as they are."""
    for value in (raw(), raw(pod=HOSTILE)):
        assert JsonLines(all_metrics=True, for_terminal=False).of(decode_record(value), value) == value + b"\n"


def test_json_with_chosen_metrics():
    """Only metrics are taken out; what is left has full precision and its order."""
    line = JsonLines(all_metrics=False, for_terminal=False).of(record({"cpu": 1 / 3, "inf": math.inf}), raw())
    assert line == raw(metrics={"cpu": 1 / 3, "inf": "+Inf"}) + b"\n"


def test_json_that_others_wrote_for_people():
    """A record is one line all the same."""
    value = orjson.dumps(orjson.loads(raw()), option=orjson.OPT_INDENT_2)
    assert JsonLines(all_metrics=True, for_terminal=False).of(decode_record(value), value) == raw() + b"\n"


@given(st.text() | st.just(HOSTILE + "\x7f\U000e0001"))
def test_json_on_a_terminal(name):
    """It means the same, and holds no control character."""
    value = raw(pod=name)
    line = JsonLines(all_metrics=True, for_terminal=True).of(decode_record(value), value)
    assert line[:-1].decode().isprintable()
    assert orjson.loads(line) == orjson.loads(value)
