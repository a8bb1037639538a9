"""What every way of reading samples gives, and the tidying that all of them share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numba
import numpy as np
import numpy.typing as npt
import orjson

from ingestor.core.chunk import Float64Array, Int64Array
from ingestor.core.time_range import TimeRange
from ingestor.selector import Selector

BoolArray = npt.NDArray[np.bool_]

STALE_MARKER_BITS = 0x7FF0_0000_0000_0002
"""The one NaN with which Prometheus says "this series has ended": never a sample.

Source: prometheus/prometheus model/value/value.go, StaleNaN.
"""


@dataclass(frozen=True, slots=True)
class SeriesBlock:
    """Samples of many series of one metric, as columns.

    Series i has the samples ``offsets[i]:offsets[i + 1]``, in strictly rising time order.
    """

    label_sets: list[bytes]
    """Each series' labels as a JSON object's bytes, spelt alike (`canonical_labels`) in whatever way they were read.

    They are compared and cached as bytes, so one label set is parsed once in a poller's life.
    """
    offsets: Int64Array
    """Shape (series + 1,), from 0 to the number of samples."""
    timestamps_ms: Int64Array
    """Shape (samples,), Unix milliseconds."""
    values: Float64Array
    """Shape (samples,); a NaN is a value that the pod reported, never a stale marker."""
    histograms: int = 0
    """Native histogram samples that the answer held too, and that are not read."""
    source: str = ""
    """The name of the source that read them: behind "auto" there are several."""

    def __len__(self) -> int:
        return len(self.label_sets)

    @property
    def samples(self) -> int:
        return len(self.timestamps_ms)


def canonical_labels(label_set: bytes) -> bytes:
    """Return the one spelling of a label set: names in order, no spaces, only what must be escaped escaped.

    Prometheus' query API spells most label sets so; what it escapes beyond that has changed over its versions.
    """
    return orjson.dumps(orjson.loads(label_set), option=orjson.OPT_SORT_KEYS)


class Source(Protocol):
    """One backend, read one way. All methods may be called from several threads at once.

    Each raises a ``SourceError`` whose class says what helps: waiting (`SourceUnavailable`),
    asking for less (`TooManySamples`), or nothing (`QueryRejected`); a `ConfigError` where
    the URL or the credentials are wrong.
    """

    @property
    def name(self) -> str:
        """How samples are read, as the chunks' headers say it."""

    def now_ms(self) -> int:
        """Return the backend's clock, Unix milliseconds."""

    def metric_names(self, selector: Selector, time_range: TimeRange) -> list[str]:
        """Return the sorted names of the metrics that *selector* may find in *time_range*.

        A name too many is possible (backends look into whole blocks), one too few is not.
        """

    def count_series(self, selector: Selector, at_ms: int) -> int:
        """Return how many series *selector* finds at one instant (with the backend's look-back)."""

    def metric_types(self) -> dict[str, str]:
        """Return the type of each metric that the backend knows: counter, gauge, histogram or summary.

        Of histograms and summaries it knows the family: what ends in ``_bucket``, ``_sum`` or ``_count`` is not there.
        """

    def label_sets(self, selectors: Sequence[str], time_range: TimeRange) -> list[dict[str, str]]:
        """Return the labels of each series that any of *selectors* may find in *time_range*, the name among them.

        A series too many is possible (backends look into whole blocks), one too few is not.
        """

    def fetch(self, selector: Selector, metric: str, time_range: TimeRange) -> SeriesBlock:
        """Return every sample of *metric* in [start, end) once; series without samples are left out."""

    def streams(self, time_range: TimeRange) -> bool:
        """Tell whether samples of *time_range* come piece by piece: an answer's own size then takes no memory."""

    def fetch_together(
        self, selector: Selector, metrics: Sequence[str], time_range: TimeRange, most_samples: int
    ) -> SeriesBlock:
        """Return what `fetch` gives of each metric, by one question; those that are computed are not among them.

        Where it `streams`, more than *most_samples* are refused as `TooManySamples`.
        """


def tidy(block: SeriesBlock, time_range: TimeRange) -> SeriesBlock:
    """Return what a `Source` promises: samples in [start, end), no stale markers, strictly rising.

    Of samples with the same series and timestamp the first is kept. Series that are
    left without samples go. A block that is tidy already is returned as it is.
    """
    # One look at each sample, and most blocks are tidy: no array is made for it.
    value_bits = block.values.view(np.int64)
    if _is_tidy(block.offsets, block.timestamps_ms, value_bits, time_range.start_ms, time_range.end_ms):
        return block
    inside = (block.timestamps_ms >= time_range.start_ms) & (block.timestamps_ms < time_range.end_ms)
    # The query API writes every NaN as "NaN": there it is the source that knows which are stale markers.
    inside &= value_bits != STALE_MARKER_BITS
    if not inside.all():
        block = _keep(block, inside)
    if not _is_rising(block):
        block = _keep(*_sorted_with_firsts(block))
    return _without_empty_series(block)


@numba.njit(cache=True, nogil=True)
def _is_tidy(
    offsets: Int64Array, timestamps_ms: Int64Array, value_bits: Int64Array, start_ms: int, end_ms: int
) -> bool:
    for series in range(len(offsets) - 1):
        if offsets[series] == offsets[series + 1]:
            return False
        before_ms = start_ms - 1
        for i in range(offsets[series], offsets[series + 1]):
            time_ms = timestamps_ms[i]
            if time_ms <= before_ms or time_ms >= end_ms or value_bits[i] == STALE_MARKER_BITS:
                return False
            before_ms = time_ms
    return True


def parted(block: SeriesBlock, at_ms: int) -> tuple[SeriesBlock, SeriesBlock]:
    """Return what a tidy block holds before a point of time, and what from it on."""
    is_before = block.timestamps_ms < at_ms
    before, behind = (_without_empty_series(_keep(block, kept)) for kept in (is_before, ~is_before))
    # They are counted once.
    return replace(before, histograms=0), behind


def lasts(block: SeriesBlock) -> SeriesBlock:
    """Return the last sample of each series of a tidy block; the others' memory is let go."""
    last = block.offsets[1:] - 1
    return replace(
        block,
        offsets=np.arange(len(block) + 1),
        timestamps_ms=block.timestamps_ms[last],
        values=block.values[last],
    )


def _keep(block: SeriesBlock, kept: BoolArray) -> SeriesBlock:
    before = np.zeros(len(kept) + 1, np.int64)
    np.cumsum(kept, out=before[1:])
    return replace(
        block, offsets=before[block.offsets], timestamps_ms=block.timestamps_ms[kept], values=block.values[kept]
    )


def _is_rising(block: SeriesBlock) -> bool:
    rising = np.diff(block.timestamps_ms) > 0
    edges = block.offsets[1:-1]
    rising[edges[(edges > 0) & (edges < block.samples)] - 1] = True
    return bool(rising.all())


def _sorted_with_firsts(block: SeriesBlock) -> tuple[SeriesBlock, BoolArray]:
    series = np.repeat(np.arange(len(block)), np.diff(block.offsets))
    # lexsort is stable: among equal timestamps the order of arrival stays.
    order = np.lexsort((block.timestamps_ms, series))
    timestamps_ms = block.timestamps_ms[order]
    first = np.ones(len(order), np.bool_)
    first[1:] = (np.diff(timestamps_ms) != 0) | (np.diff(series) != 0)
    return replace(block, timestamps_ms=timestamps_ms, values=block.values[order]), first


def _without_empty_series(block: SeriesBlock) -> SeriesBlock:
    lengths = np.diff(block.offsets)
    if lengths.all():
        return block
    kept = np.flatnonzero(lengths)
    offsets = np.concatenate((block.offsets[kept], block.offsets[-1:]))
    return replace(block, label_sets=[block.label_sets[i] for i in kept], offsets=offsets)
