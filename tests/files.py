"""Reads what the product wrote, cell by cell, and compares it with the oracle."""

import csv
from datetime import datetime
from pathlib import Path

import oracle
import pandas as pd

from ingestor.workloads import service_of


def read(storage: Path, *, pods: bool, suffix: str = "") -> dict[tuple[str, str, int], dict[str, float]]:
    """Return ``{(namespace, pod or service, window start ms): {metric: value}}`` of all files, checked for order."""
    cells: dict[tuple[str, str, int], dict[str, float]] = {}
    for path in sorted(storage.glob("*/*.csv")):
        if path.name.endswith(".service.csv") != (suffix == ".service"):
            continue
        namespace = "" if path.parent.name == "_" else path.parent.name
        service = path.name.removesuffix(".csv").removesuffix(suffix)
        with path.open(newline="") as file:
            header, *rows = list(csv.reader(file))
        first = 2 if pods else 1
        assert header[:first] == ["timestamp", "pod"][:first]
        assert [row[:first] for row in rows] == sorted(row[:first] for row in rows), f"{path} is not in order"
        for row in rows:
            moment = datetime.fromisoformat(row[0])
            assert row[0].endswith("Z")
            who = row[1] if pods else service
            assert not pods or service_of(who) == service
            key = (namespace, who, int(moment.timestamp() * 1000))
            assert key not in cells, f"{path} has {row[:first]} twice"
            cells[key] = {name: float(cell) for name, cell in zip(header[first:], row[first:], strict=True) if cell}
    return cells


def assert_equal_to_oracle(
    cells: dict, samples: pd.DataFrame, chunk_size: str, method: str, group_by: str, **how
) -> None:
    """Compare every cell; no row and no cell too many or missing."""
    expected = oracle.windows(samples, chunk_size, method, group_by, **how)
    assert cells.keys() == expected.keys()
    for key, metrics in expected.items():
        assert cells[key].keys() == metrics.keys(), key
        for metric, value in metrics.items():
            assert oracle.same(cells[key][metric], value), (key, metric, cells[key][metric], value)
