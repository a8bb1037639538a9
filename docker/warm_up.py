"""Run every compiled kernel once, so that numba's machine code is in the image: two minutes of one series."""

from ingestor.core import wire
from ingestor.core.chunk import Header, Marker, RangeChunk
from ingestor.core.durations import ChunkSize
from ingestor.rehearsal import WHOLE, rehearse
from stream_app.methods import METHODS, OVER_TIME
from stream_app.pipeline import Pipeline
from stream_app.view import View

[chunk] = rehearse().partitions[0]
messages = [
    RangeChunk(Header("warm-up", WHOLE, 0, "warm-up"), wire.decode_series(chunk)),
    Marker(Header("warm-up", WHOLE, 1, "warm-up"), ends_job=False),
]
for method in (*METHODS, "p90"):
    for over_time in OVER_TIME:
        pipeline = Pipeline(View(ChunkSize.parse("1m"), method, over_time, ("pod", "service")), 0, "")
        for offset, message in enumerate(messages):
            pipeline.feed(offset, message)
