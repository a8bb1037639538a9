"""Columns made without pyarrow's own conversions are those that it would make."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestor.core.arrow import as_array, as_column, maps, texts

TEXT = st.text(max_size=5)


@given(st.lists(TEXT))
def test_strings(values):
    """Strings are whole, whatever characters they have, and however many there are."""
    assert texts(values).equals(pa.array(values, pa.string()))
    texts(values).validate(full=True)


@given(st.lists(st.lists(st.tuples(TEXT, TEXT), max_size=3)))
def test_maps(rows):
    """Each row has its own pairs, in their order."""
    assert maps(rows).equals(pa.array(rows, pa.map_(pa.string(), pa.string())))
    maps(rows).validate(full=True)


@given(st.lists(st.integers(-(2**63), 2**63 - 1)), st.integers(0, 3), st.sampled_from([1, 2, -1]))
def test_numbers(values, first, step):
    """Numbers come back as they were, also out of a part of an array."""
    array = np.array(values, np.int64)[first::step]
    assert as_column(array, pa.int64()).equals(pa.array(array))
    assert as_array(as_column(array, pa.int64())).tolist() == array.tolist()
    assert as_array(as_column(array, pa.int64())[1:]).tolist() == array[1:].tolist()


def test_nulls_are_no_numbers():
    """A null is refused, not shown as whatever lies in its place."""
    with pytest.raises(ValueError, match="1 numbers are null"):
        as_array(pa.array([1, None, 3]))
