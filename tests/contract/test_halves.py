"""The halves of a selector mean on a real Prometheus what they are made to mean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ingestor.core.time_range import TimeRange
from ingestor.local.prometheus import Binaries, LocalPrometheus, create_blocks
from ingestor.selector import Selector, halves_by_series
from ingestor.sources.registry import SOURCES

RANGE = TimeRange(1_700_006_400_000, 1_700_006_460_000)
SELECTOR = Selector.parse('{pod!=""}')
ODD = [*".+*?()|[]{}^$\\/-#&~\"'`", *("", "a|b", "(?i)a", "A", "a", ".*", "\\d", "\\Q", "x\ny", "a b", "0x1F", "\t")]
ODD += ["é😀", "\u2028"]


@pytest.mark.parametrize("way", ["query", "remote-read"])
def test_every_series_is_found_once(prometheus_binaries: Binaries, tmp_path: Path, way: str) -> None:
    """Down to single series, with every character that means something in a regular expression, and none at all."""
    escaped = [value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for value in ODD]
    lines = [f'm{{pod="p{i % 3}",odd="{value}"}} {i} {RANGE.start_ms // 1000}' for i, value in enumerate(escaped)]
    (tmp_path / "history.om").write_text("\n".join(["# TYPE m gauge", *lines, "# EOF\n"]))
    server = LocalPrometheus(tmp_path / "server")
    create_blocks(tmp_path / "history.om", server.data_dir)
    with server:
        source = SOURCES[way](server.url)
        waiting, found = [SELECTOR], []
        while waiting:
            selector = waiting.pop()
            label_sets = source.label_sets([str(selector.of_metrics("m"))], RANGE)
            if halves := halves_by_series(selector, label_sets):
                waiting += halves
                continue
            block = source.fetch(selector, "m", RANGE)
            assert len(block) == len(label_sets) == 1
            found.append((json.loads(block.label_sets[0]).get("odd", ""), block.values[0]))
    assert sorted(found) == sorted((value, float(i)) for i, value in enumerate(ODD))
