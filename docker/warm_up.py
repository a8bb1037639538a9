"""Run every compiled kernel once, so that numba's machine code is in the image: two minutes of one series."""

import numpy as np

from ingestor.catalogue import Catalogue, Meaning
from ingestor.core import wire
from ingestor.core.chunk import Header, Marker, RangeChunk
from ingestor.core.durations import ChunkSize
from ingestor.core.time_range import TimeRange
from ingestor.packing import FetchedSeries, pack
from ingestor.sources.frames import scan_frames
from ingestor.sources.query_json import read_matrix
from ingestor.sources.xor import PADDING_BYTES, decode_chunks
from stream_app.methods import METHODS, OVER_TIME
from stream_app.pipeline import Pipeline
from stream_app.view import View

WHOLE = TimeRange(0, 120_000)

samples = ",".join(f'[{second},"{second}.12345678901234567"]' for second in range(120))
answer = f'{{"data":{{"resultType":"matrix","result":[{{"metric":{{"pod":"a"}},"values":[{samples}]}}]}}}}'
block = read_matrix(answer.encode()).block
catalogue = Catalogue(1, Meaning(dict), {})
fetched = FetchedSeries(catalogue.ids(block.label_sets), block.offsets, block.timestamps_ms, block.values)
catalogue.place({pod: pod.name for pod in catalogue.unplaced()})
[chunk] = pack(WHOLE, "warm-up", [fetched], catalogue, partitions=1).partitions[0]
messages = [
    RangeChunk(Header("warm-up", WHOLE, 0, "warm-up"), wire.decode_series(chunk)),
    Marker(Header("warm-up", WHOLE, 1, "warm-up"), ends_job=False),
]
# Nothing to decode is enough: the types decide what is compiled.
frames = scan_frames(np.zeros(PADDING_BYTES, np.uint8), 0, {})
decode_chunks(np.zeros(PADDING_BYTES, np.uint8), frames.starts, frames.ends, 0, 1, np.empty(0, np.int64), np.empty(0))
for method in (*METHODS, "p90"):
    for over_time in OVER_TIME:
        pipeline = Pipeline(View(ChunkSize.parse("1m"), method, over_time, ("pod", "service")), 0, "")
        for offset, message in enumerate(messages):
            pipeline.feed(offset, message)
