"""Storms one after the other, run as a program: ``python tests/soak.py [MINUTES]``. Prints a table, and a JSON line.

PODSTREAM_FAULT_SEED=… is the first run's seed; the runs behind it have the numbers that follow.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import click
import storm
from verdict import FILES, KAFKA

FAULTS, LASTS_S = 20, 60.0
"""Of a run."""
COUNTED = {"lost": "missing", "doubled": "doubled", "wrong": "wrong", "extra": "extra"}


def main() -> None:
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 30.0
    first = int(os.environ.get("PODSTREAM_FAULT_SEED") or random.randrange(10**6))
    began_s = time.monotonic()
    outcomes: list[storm.Outcome] = []
    while not outcomes or time.monotonic() < began_s + minutes * 60:
        folder = Path(tempfile.mkdtemp(prefix="podstream-soak."))
        try:
            outcomes.append(storm.run(first + len(outcomes), folder / "storm", FAULTS, LASTS_S, is_live=True))
        except BaseException:
            click.echo(f"the logs are in {folder}")
            raise
        click.echo(outcomes[-1])
        if not outcomes[-1].is_right:
            click.echo(f"topics and files are not right; the logs are in {folder}")
            break
        shutil.rmtree(folder)
    tell(first, outcomes, time.monotonic() - began_s)
    sys.exit(not all(outcome.is_right for outcome in outcomes))


def tell(seed: int, outcomes: list[storm.Outcome], lasted_s: float) -> None:
    """Print what all runs have shown together."""
    faults = sum((outcome.faults for outcome in outcomes), Counter[str]())
    ends = sum((outcome.ends for outcome in outcomes), Counter[str]())
    counts = {name: sum(outcome.count(what) for outcome in outcomes) for name, what in COUNTED.items()}
    unfelt = sum(len(outcome.unfelt) for outcome in outcomes)
    places = [KAFKA, FILES, storm.MODEL.where, storm.RAW.where]
    checked = {where: sum(outcome.checked(where) for outcome in outcomes) for where in places}
    today = dt.datetime.now(tz=dt.UTC).date().isoformat()
    rows = [
        (
            "faults that hit",
            f"{faults.total()} of {faults.total() + unfelt}: "
            + ", ".join(f"{count} {kind}" for kind, count in sorted(faults.items())),
        ),
        ("ended by themselves", ", ".join(f"{count} {how}" for how, count in sorted(ends.items())) or "none"),
        (
            "runs",
            f"{len(outcomes)} in {lasted_s / 60:.0f} minutes, seeds {seed} to {seed + len(outcomes) - 1}, {today}",
        ),
        ("windows of pods and services", " and ".join(f"{checked[where]:,} in {where}" for where in (KAFKA, FILES))),
        ("of these, what the model got", f"{checked[storm.MODEL.where]:,}"),
        ("samples in raw files", f"{checked[storm.RAW.where]:,}"),
        *((name, f"{count:,}") for name, count in counts.items()),
    ]
    click.echo("\n| | |\n| --- | --- |\n" + "\n".join(f"| {name} | {text} |" for name, text in rows) + "\n")
    told = {"date": today, "seed": seed, "runs": len(outcomes), "seconds": round(lasted_s), "faults": dict(faults)}
    click.echo(json.dumps({**told, "ends": dict(ends), "unfelt": unfelt, "checked": checked, **counts}))


if __name__ == "__main__":
    main()
