"""Columns between numpy and Arrow without a copy, and without pandas.

``pa.array`` and ``to_numpy`` import pandas where it is installed, for types that are not ours: 0.25 s of CPU and 45 MB.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

_MOST_BYTES = 2**31 - 1


def as_column(values: npt.NDArray[Any], kind: pa.DataType) -> pa.Array:
    """Return an array of numbers as a column of *kind*, whose items are as wide as those of *values*."""
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def as_array(of_column: pa.Array) -> npt.NDArray[Any]:
    """Return a column of numbers as an array that cannot be written to.

    Raises:
        ValueError: one of them is null.
    """
    if of_column.null_count:
        raise ValueError(f"{of_column.null_count} numbers are null")
    found: npt.NDArray[Any] = np.from_dlpack(of_column)
    # That of an empty column can.
    found.flags.writeable = False
    return found


def texts(values: Sequence[str]) -> pa.StringArray:
    """Return a column of strings."""
    joined = "".join(values)
    # Nearly all names and labels are ASCII, whose bytes are as many as their characters.
    lengths = list(map(len, values if joined.isascii() else (value.encode() for value in values)))
    return pa.StringArray.from_buffers(len(values), pa.py_buffer(_offsets(lengths)), pa.py_buffer(joined.encode()))


def maps(rows: Sequence[Sequence[tuple[str, str]]]) -> pa.MapArray:
    """Return a column of maps from string to string, a row's pairs each."""
    offsets = as_column(_offsets(list(map(len, rows))), pa.int32())
    keys, values = ([pair[side] for pair in chain.from_iterable(rows)] for side in (0, 1))
    return pa.MapArray.from_arrays(offsets, texts(keys), texts(values))


def _offsets(lengths: list[int]) -> npt.NDArray[np.int32]:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    if offsets[-1] > _MOST_BYTES:
        raise OverflowError(f"a column of {offsets[-1]:,} bytes or items is too long for its offsets")
    return offsets.astype(np.int32)
