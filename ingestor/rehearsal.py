"""All that a job runs, once over next to nothing: what loads at its first use is loaded before the job begins.

Numba reads compiled code from its cache at the first call, pyarrow imports a part of itself.
"""

from __future__ import annotations

from typing import cast

import numpy as np

from ingestor.catalogue import Catalogue, Meaning
from ingestor.core.time_range import TimeRange
from ingestor.packing import FetchedSeries, PackedRange, pack
from ingestor.sources.base import tidy
from ingestor.sources.frames import scan_frames
from ingestor.sources.query_json import read_matrix
from ingestor.sources.xor import PADDING_BYTES, Bytes, decode_chunks

WHOLE = TimeRange(0, 120_000)
"""Two minutes, and a sample a second."""


def rehearse() -> PackedRange:
    """Read and pack two minutes of one series; return them as a partition of their own."""
    # So many digits are left to Arrow.
    samples = ",".join(f'[{second},"{second}.12345678901234567"]' for second in range(WHOLE.length_ms // 1000))
    answer = f'{{"data":{{"resultType":"matrix","result":[{{"metric":{{"pod":"a"}},"values":[{samples}]}}]}}}}'
    block = tidy(read_matrix(answer.encode()).block, WHOLE)
    # Nothing to decode is enough: the types decide what is compiled.
    data = cast("Bytes", np.zeros(PADDING_BYTES, np.uint8))
    frames = scan_frames(data, 0, {})
    decode_chunks(data, frames.starts, frames.ends, 0, 1, np.empty(0, np.int64), np.empty(0))
    catalogue = Catalogue(1, Meaning(dict), {})
    fetched = FetchedSeries(catalogue.ids(block.label_sets), block.offsets, block.timestamps_ms, block.values)
    catalogue.place({pod: pod.name for pod in catalogue.unplaced()})
    return pack(WHOLE, "rehearsal", [fetched], catalogue, 1)
