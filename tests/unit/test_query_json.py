"""The compiled scanner reads what ``json.loads`` and ``float`` read, bit for bit, and nothing breaks it."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import subprocess
import sys
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingestor.core.errors import IngestorError, QueryRejected, SourceUnavailable
from ingestor.core.time_range import TimeRange
from ingestor.sources.base import STALE_MARKER_BITS, SeriesBlock, tidy
from ingestor.sources.query_json import read_matrix

Series = tuple[dict[str, str], list[tuple[str, str]]]


def matrix(series: list[Series], **more: Any) -> bytes:
    result = []
    for labels, samples in series:
        pairs = ",".join(f'[{t},"{v}"]' for t, v in samples)
        result.append(f'{{"metric":{json.dumps(labels)},"values":[{pairs}]}}')
    tail = "".join(f",{json.dumps(key)}:{json.dumps(value)}" for key, value in more.items())
    data = f'{{"resultType":"matrix","result":[{",".join(result)}]}}'
    return f'{{"status":"success","data":{data}{tail}}}'.encode()


def prometheus_text(value: float) -> str:
    """Write a value as Go does for Prometheus: never an exponent between 1e-6 and 1e21."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if value and not 1e-6 <= abs(value) < 1e21:
        return repr(value)
    return np.format_float_positional(value, trim="-")


def bits(values: np.ndarray) -> list[int]:
    return np.where(np.isnan(values), np.nan, values).view(np.int64).tolist()


TIMES = st.integers(0, 9_214_646_400_000)
VALUES = st.one_of(
    st.floats(width=64),
    st.integers(-(2**70), 2**70).map(float),
    st.decimals(-(10**6), 10**6, places=3).map(float),
)
SERIES = st.tuples(st.dictionaries(st.text(max_size=5), st.text(max_size=9)), st.lists(st.tuples(TIMES, VALUES)))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(SERIES, max_size=5),
    st.sampled_from([None, 0, 3]),
    st.sampled_from([prometheus_text, repr]),
    st.randoms(use_true_random=False),
)
def test_reads_what_json_and_float_read(
    series: list[tuple[dict[str, str], list[tuple[int, float]]]],
    indent: int | None,
    write_value: Any,
    rng: random.Random,
) -> None:
    """Any labels, times and values come back exactly, whatever white space and members stand around them."""
    spelt = {"nan": "NaN", "inf": "+Inf", "-inf": "-Inf"}
    result = []
    for labels, samples in series:
        item = {"metric": labels, "values": [[t / 1000, spelt.get(v := write_value(x), v)] for t, x in samples]}
        item |= {"exemplars": [{"values": "]}"}], "odd": None} if rng.random() < 0.3 else {}
        result.append(dict(rng.sample(list(item.items()), len(item))))
    data = {"resultType": "matrix", "result": result, "explanation": {"result": [1, {"values": [[1, "2"]]}]}}
    answer = {"status": "success", "data": dict(rng.sample(list(data.items()), 3)), "infos": ['\\"[']}
    body = json.dumps(dict(rng.sample(list(answer.items()), 3)), indent=indent).encode()

    block = read_matrix(body).block

    assert [json.loads(labels) for labels in block.label_sets] == [labels for labels, _ in series]
    assert np.diff(block.offsets).tolist() == [len(samples) for _, samples in series]
    assert block.timestamps_ms.tolist() == [t for _, samples in series for t, _ in samples]
    assert bits(block.values) == bits(np.array([x for _, samples in series for _, x in samples], np.float64))


@pytest.mark.parametrize(
    "text",
    [
        *("0", "-0", "1", "-1", "+1", "00012", "9007199254740991", "9007199254740992", "9007199254740993"),
        *("999999999999999999", "9999999999999999999", "123456789012345678901234567890", "0.1", "-0.30000000000000004"),
        *("1e22", "1e23", "8.5e-320", "5e-324", "2.2250738585072011e-308", "1.7976931348623157e308", "1e-400", "1e400"),
        *("123456789012345678e-10", "0.000000000000000000000123", "1E5", "1e+05", "7.2057594037927933e+16", "1e-22"),
        *("179769313486231580793728971405301e276", "0.1e-6", "+0.30000000000000004", "12345678.123456789"),
    ],
)
def test_values_round_as_python_does(text: str) -> None:
    """Every spelling of a number gives the float64 that ``float`` gives."""
    values = read_matrix(matrix([({}, [("1.5", text)])])).block.values
    assert bits(values) == bits(np.array([float(text)]))


def test_random_floats_of_every_length_round_as_python_does() -> None:
    """Both the fast and the careful way round correctly: all bit patterns, all numbers of digits."""
    rng = np.random.default_rng(7)
    floats = rng.integers(0, 2**64, 50_000, dtype=np.uint64).view(np.float64)
    floats = floats[np.isfinite(floats)]
    texts = [repr(x) for x in floats.tolist()]
    texts += [f"{x:.{digits}g}" for digits in range(1, 22) for x in (rng.random(500) * 1000).tolist()]
    texts += [f"{x:.{digits}f}" for digits in range(20) for x in (rng.random(500) * 1e6).tolist()]
    values = read_matrix(matrix([({}, [("1", text) for text in texts])])).block.values
    assert bits(values) == bits(np.array([float(text) for text in texts]))


@pytest.mark.parametrize(
    ("text", "timestamp_ms"),
    [
        *[("1435781430", 1435781430000), ("1435781430.7", 1435781430700), ("1435781430.78", 1435781430780)],
        *[("1435781430.781", 1435781430781), ("1435781430.7814", 1435781430781), ("1435781430.7815", 1435781430782)],
        *[("1435781430.999999999", 1435781431000), ("1435781430.0004999999999", 1435781430000)],
        *[
            ("1.435781430781e9", 1435781430781),
            ("1.435781430781e+09", 1435781430781),
            ("1435781430781E-3", 1435781430781),
        ],
        *[("0", 0), ("0.001", 1), ("-1.5", -1500), ("-0.0005", -1), ("1e-9", 0), ("0e99999", 0), ("1e-99999", 0)],
    ],
)
def test_timestamps_are_exact(text: str, timestamp_ms: int) -> None:
    """Seconds in any spelling are the nearest millisecond."""
    assert read_matrix(matrix([({}, [(text, "1")])])).block.timestamps_ms.tolist() == [timestamp_ms]


@pytest.mark.parametrize(
    "sample",
    [
        *("[1]", "[]", '[1,"2",3]', '["1","2"]', "[1,2]", '[1,""]', '[1,"."]', '[1,"-"]', '[1,"x"]', '[1,"0x10"]'),
        *('[1,"1_0"]', '[1,"infinity"]', '[1,"1e"]', '[1,"1 "]', '[1,"1"', '[.,"1"]', '[1e99,"1"]', '[null,"1"]', "1"),
        *('[1,"1"],', '[1,"1"][2,"2"]', '{"1":"1"}', '[1,"\\u0031"]', '[99999999999999999999999,"1"]', "null"),
    ],
)
def test_what_is_no_sample_is_refused(sample: str) -> None:
    """A sample that cannot be read fails the whole answer: none is left out in silence."""
    body = f'{{"status":"success","data":{{"resultType":"matrix","result":[{{"metric":{{}},"values":[{sample}]}}]}}}}'
    with pytest.raises(SourceUnavailable):
        read_matrix(body.encode())


def test_native_histograms_are_counted_and_never_taken_for_samples() -> None:
    """A series may have floats, histograms, or both."""
    histogram = '[1,{"count":"5","sum":"2","buckets":[[0,"1","2","5"]]}]'
    body = (
        '{"status":"success","data":{"resultType":"matrix","result":['
        f'{{"metric":{{"a":"1"}},"histograms":[{histogram},{histogram}]}},'
        f'{{"metric":{{"a":"2"}},"values":[[1,"2"]],"histograms":[{histogram}]}}]}}}}'
    )
    block = read_matrix(body.encode()).block
    assert (block.histograms, block.offsets.tolist(), block.values.tolist()) == (3, [0, 0, 1], [2.0])


def test_warnings_and_a_partial_answer_are_told() -> None:
    """What the backend says about the answer is handed on."""
    answer = read_matrix(matrix([], warnings=['store [a] is "gone"'], isPartial=True, infos=["x"]))
    assert answer.warnings == ('store [a] is "gone"',)
    assert answer.partial
    answer = read_matrix(matrix([], warnings=None, isPartial=False))
    assert (answer.warnings, answer.partial) == ((), False)


@pytest.mark.parametrize(
    "data",
    [
        '{"resultType":"scalar","result":[1,"2"]}',
        '{"result":[1,"2"],"resultType":"scalar"}',
        '{"resultType":"vector","result":[{"metric":{},"value":[1,"2"]}]}',
        '{"resultType":"streams","result":[]}',
        "{}",
        "[]",
    ],
)
def test_other_answers_are_no_matrix(data: str) -> None:
    """A whole answer without a matrix is refused for good, not asked for again."""
    with pytest.raises(QueryRejected, match="not a matrix"):
        read_matrix(f'{{"status":"success","data":{data}}}'.encode())


def test_an_answer_cut_anywhere_is_unavailable() -> None:
    """A proxy that stops in the middle never yields a shorter history."""
    body = matrix(
        [({"a": 'x"\\'}, [("1.5", "2"), ("2", "NaN"), ("3", "0.30000000000000004")]), ({}, [("1", "-Inf")])],
        warnings=["w"],
    )
    for length in range(len(body)):
        with pytest.raises(SourceUnavailable):
            read_matrix(body[:length])


# A program, so that numba can be told to check every index: it is decided at compilation.
FUZZ = """
import random, sys
from ingestor.core.errors import IngestorError
from ingestor.sources.query_json import read_matrix
rng = random.Random(int(sys.argv[1]))
body = sys.stdin.buffer.read()
tokens = [b'[', b']', b'{', b'}', b'"', b',', b':', b'\\\\', b'-', b'+', b'.', b'e', b'9' * 30, b' ', b'NaN', b'+Inf',
          b'\\x00', b'\\xff', b'"values":[', b'"metric":{', b'"result":[', b'"data":{', b'[1,"2"],' * 9, b'null']
for length in range(len(body)):
    for cut in (body[:length], body[length:]):
        try:
            read_matrix(cut)
        except IngestorError:
            pass
read = 0
for _ in range(20_000):
    mutant = bytearray(body)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(mutant) + 1)
        what = rng.random()
        if what < 0.3:
            mutant[at:at] = rng.choice(tokens)
        elif what < 0.5:
            mutant[at:at + 1] = rng.choice(tokens)
        elif what < 0.7:
            del mutant[at:at + rng.randint(1, 20)]
        elif what < 0.9:
            mutant[at:at + 1] = bytes([rng.randrange(256)])
        else:
            other = rng.randrange(len(mutant) + 1)
            mutant[at:at] = mutant[other:other + rng.randint(1, 60)]
    try:
        block = read_matrix(bytes(mutant)).block
        assert block.offsets[0] == 0 and block.offsets[-1] == block.samples == len(block.values)
        assert len(block.offsets) == len(block.label_sets) + 1 and (block.offsets[1:] >= block.offsets[:-1]).all()
        read += 1
    except IngestorError:
        pass
print(read)
"""


def test_no_bytes_break_the_scanner(tmp_path: Any) -> None:
    """Cuts and mutations give an answer or our own error, and no index is ever out of bounds."""
    body = matrix(
        [
            ({"a": 'x"\\', "b": "[{"}, [("1.5", "2"), ("2", "NaN"), ("3e0", "0.30000000000000004")]),
            ({}, [("1", "-Inf")]),
        ],
        warnings=["w"],
        isPartial=True,
        stats={"a": [1, {}]},
    )
    checking = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, "11"], input=body, env=checking, capture_output=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr.decode()
    assert int(done.stdout) > 100, "the mutations are too wild to say anything"


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_give_our_own_error(body: bytes) -> None:
    """Whatever a port answers is told as one of our errors."""
    with pytest.raises(IngestorError):
        read_matrix(body)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 30), st.sampled_from([1.0, 2.0, math.nan, math.inf, -0.0])))),
    st.tuples(st.integers(0, 30), st.integers(1, 30)),
    st.booleans(),
)
def test_tidy_keeps_each_sample_of_the_range_once(
    series: list[list[tuple[int, float]]],
    start_and_length: tuple[int, int],
    stale: bool,  # noqa: FBT001 - hypothesis gives it
) -> None:
    """Tidied samples are those in [start, end), in time order, the first of each timestamp, none stale."""
    start, length = start_and_length
    timestamps = np.array([t for samples in series for t, _ in samples], np.int64)
    values = np.array([v for samples in series for _, v in samples], np.float64)
    if stale:
        values[np.isinf(values)] = np.array(STALE_MARKER_BITS).view(np.float64)
    offsets = np.concatenate(([0], np.cumsum([len(samples) for samples in series]))).astype(np.int64)

    block = tidy(
        SeriesBlock([b"%d" % i for i in range(len(series))], offsets, timestamps, values),
        TimeRange(start, start + length),
    )

    expected = {}
    for i, samples in enumerate(series):
        firsts: dict[int, float] = {}
        for t, v in samples:
            if start <= t < start + length and not (stale and math.isinf(v)):
                firsts.setdefault(t, v)
        if firsts:
            expected[b"%d" % i] = sorted(firsts.items())
    found = {
        labels: list(zip(block.timestamps_ms[a:b].tolist(), block.values[a:b].tolist(), strict=True))
        for labels, a, b in zip(block.label_sets, block.offsets[:-1], block.offsets[1:], strict=True)
    }
    assert repr(found) == repr(expected)


@pytest.mark.parametrize(
    "names",
    [
        ["b", "a"],
        ["__name__", "A"],
        ["aa", "a"],
        ["a", "b", "a.b"],
        ['a"c', 'a"b'],
        ["a\\", "a"],
        ["é", "z"],
        ["b"],
        [],
    ],
)
def test_label_sets_are_spelt_in_one_way(names: list[str]) -> None:
    """In whatever order a backend writes names, they come in the order of their bytes, as Prometheus writes them."""
    wanted = orjson.dumps(dict.fromkeys(names, "x"), option=orjson.OPT_SORT_KEYS)
    for order in itertools.permutations(names):
        labels = orjson.dumps(dict.fromkeys(order, "x"))
        body = b'{"data":{"resultType":"matrix","result":[{"metric":%b,"values":[[1,"1"]]}]}}' % labels
        assert read_matrix(body).block.label_sets == [wanted]
