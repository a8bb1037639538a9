"""What a worker loads while it joins its group is all that its messages need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import orjson
import pytest

SCRIPT = """
import sys
from dataclasses import replace

import builders
import history
import orjson
from commands import view_of
from numba.core.registry import CPUDispatcher

from ingestor.core import wire
from ingestor.core.time_range import TimeRange
from stream_app.pipeline import Pipeline
from stream_app.warm_up import warm_up


def compiled():
    modules = [module for name, module in sys.modules.items() if name.startswith("stream_app.")]
    kernels = [(m.__name__, k, f) for m in modules for k, f in vars(m).items() if isinstance(f, CPUDispatcher)]
    return {f"{module}.{name}": sorted(map(str, kernel.signatures)) for module, name, kernel in kernels}


flags = orjson.loads(sys.argv[1])
view = replace(view_of("warm", flags.pop("chunk_size"), flags.pop("method"), *flags.pop("group_by")), **flags)
before = compiled()
warm_up(view)
warm = compiled()
ranges = [TimeRange(at, at + 600_000) for at in range(history.START_MS, history.START_MS + 1_800_000, 600_000)]
pipeline, records = Pipeline(view, 0, ""), 0
for offset, (headers, value) in enumerate(builders.messages(history.samples(), ranges)[3]):
    records += sum(len(emission.outputs) for emission in pipeline.feed(offset, wire.decode(headers, value)))
print(orjson.dumps([records, before, warm, compiled()]).decode())
"""

VIEWS = [
    {"chunk_size": "1m", "method": "mean", "group_by": ["pod"]},
    {"chunk_size": "5m", "method": "median", "group_by": ["pod", "service"], "over_time": "last", "counters": "rate"},
    {"chunk_size": "1w", "method": "p99.9", "group_by": ["service"], "counters": "increase"},
    {"chunk_size": "1m", "method": "max", "group_by": ["pod"], "metric_methods": [[".*", "stddev"]]},
]


@pytest.mark.parametrize("flags", VIEWS, ids=lambda flags: flags["method"])
def test_messages_load_no_further_kernels(flags: dict) -> None:
    """No message of samples, gauges or counters, has a kernel loaded that was not before the first one."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, orjson.dumps(flags).decode()],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    records, before, warm, after = orjson.loads(done.stdout)
    assert records > 0
    assert warm == after
    assert warm != before
