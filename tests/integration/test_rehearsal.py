"""What loads slowly is loaded while the poller connects, and not once it has claimed its job."""

from __future__ import annotations

import sys
from pathlib import Path

import orjson
import pytest
from commands import backfill, run

from ingestor.local.kafka import LocalKafka
from ingestor.local.prometheus import LocalPrometheus


@pytest.mark.parametrize("source", ["auto", "query", "remote-read"])
def test_a_job_loads_nothing_that_was_not_rehearsed(
    kafka: LocalKafka, prometheus: LocalPrometheus, source: str
) -> None:
    """No source needs a kernel for other types than the rehearsal's; pandas, which none needs, is never imported."""
    arguments = backfill(prometheus, kafka, f"rehearsed-{source}", "--source", source, "--json")[3:]
    program = Path(__file__).parents[1] / "rehearsed.py"
    *ranges, told = map(orjson.loads, run([sys.executable, str(program), *arguments]).stdout.splitlines())
    assert ranges[-1]["event"] == "ended"
    assert ranges[-1]["total_samples"] > 0
    assert told == []
