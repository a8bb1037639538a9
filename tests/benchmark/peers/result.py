"""What was measured of one peer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Result:
    """Of one run, its start left out."""

    name: str
    samples: int
    wall_s: float
    cpu_s: float
    peak_bytes: int
