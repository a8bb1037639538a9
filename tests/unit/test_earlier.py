"""What a view has said before: the last word on each window, read once a job."""

import numpy as np
from test_incomplete import VIEW, a_stream

from ingestor.core import wire
from stream_app.earlier import EarlierResults
from stream_app.pipeline import Pipeline

IDENTITY = "metrics.pods", b"shop/web-0", 0


def known(*results: int) -> EarlierResults:
    """Return what is known of a window of which these were written, one after another."""
    return EarlierResults(np.full(len(results), hash(IDENTITY), np.int64), np.array(results, np.int64))


def test_the_last_word_counts():
    """A partial record is one only where there is no other; of what was never written nothing is known."""
    assert known(7, 8).get(IDENTITY) == 8
    assert known(0, 7, 0).get(IDENTITY) == 7
    assert known(0, 0).get(IDENTITY) == 0
    assert known(7).get(("metrics.pods", b"shop/web-0", 60_000)) is None
    assert known().get(IDENTITY) is None


def test_a_job_that_repeats_nothing_looks_once():
    """Where nothing was written before, all is news, and the sink is read for the first window only."""
    looks = []

    def earlier(from_ms: int) -> EarlierResults:
        looks.append(from_ms)
        return known()

    pipeline, records = Pipeline(VIEW, 0, "", earlier), 0
    for offset, (headers, value) in enumerate(a_stream()):
        again = [(name, b"1" if name == "revision" else text) for name, text in headers]
        records += sum(len(emission.outputs) for emission in pipeline.feed(offset, wire.decode(again, value)))
    assert records == 5
    assert len(looks) == 1
