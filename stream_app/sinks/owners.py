"""PURE: which service's file each record belongs to."""

from __future__ import annotations

import numpy as np

from stream_app.records import Int64Array, Records

Owner = tuple[str, str, bool]
"""Namespace, service, whether these are service records."""


def owners_of(records: Records) -> tuple[list[Owner], Int64Array, Int64Array]:
    """Return the owners; the number of each record's owner; and a number for each record that orders as pods' names."""
    owners: dict[Owner, int] = {}
    pods = {pod: number for number, pod in enumerate(sorted({pod or "" for _, pod, _ in records.whos}))}
    numbers = np.array(
        [
            (owners.setdefault((namespace, service, pod is None), len(owners)), pods[pod or ""])
            for namespace, pod, service in records.whos
        ],
        np.int64,
    ).reshape(-1, 2)[records.who]
    return list(owners), numbers[:, 0], numbers[:, 1]
