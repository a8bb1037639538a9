"""Figures as a table of 80 columns and as one JSON object; targets with what became of them."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from statistics import median
from typing import Any, Literal

from live import Live
from peers.result import Result
from pipeline import Run


@dataclass(frozen=True, slots=True)
class Target:
    """A ratio that is aimed at."""

    words: str
    bound: float
    sign: Literal["<=", ">="]

    def is_met(self, value: float) -> bool:
        return value <= self.bound if self.sign == "<=" else value >= self.bound


PEER_TARGETS = {"Kafka Streams": 15.0, "vmagent": 3.0, "Faust, dict": 350.0, "per-sample consumer": 10.0}
LIVE_TARGETS: dict[int, tuple[float, float | None]] = {5000: (2.0, None), 100_000: (100.0, 1.5)}
"""Series -> per cent of one core, and GB."""


@dataclass(slots=True)
class Report:
    """Collects what was measured."""

    samples: int
    runs: int
    figures: dict[str, Any] = field(default_factory=dict)
    _lines: list[str] = field(default_factory=list)
    _targets: list[str] = field(default_factory=list)
    _heads: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.figures |= {"samples": self.samples, "runs": self.runs, "works": {}, "targets": {}}
        self.figures["machine"] = machine = {
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "cores": os.cpu_count(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
            "python": platform.python_version(),
            "load_before": os.getloadavg()[0],
        }
        self._lines += [
            "{date}, {cores} cores, {memory_gib} GiB, Python {python}, load before {load_before:.1f}".format(**machine),
            f"{self.samples:,} samples, medians of {self.runs}; M: million samples,",
            "CPU s: of our processes together and of each, bytes: a sample on the topic",
        ]

    def floor(self, wall_s: float, cpu_s: float) -> None:
        """Take in the least that must be done."""
        columns = "wall s", "CPU s", "poller", "worker", "files", "M/s", "M/CPU-s", "peak MB", "bytes"
        self._lines += ["", _row("work", *columns)]
        self.figures["floor"] = {"wall_s": wall_s, "cpu_s": cpu_s}
        rates = f"{self.samples / wall_s / 1e6:.1f}", f"{self.samples / cpu_s / 1e6:.1f}"
        self._lines.append(_row("floor", f"{wall_s:.2f}", f"{cpu_s:.2f}", "", "", "", *rates, "", ""))

    def work(self, name: str, runs: Sequence[Run]) -> None:
        """Take in the runs of one work."""
        wall_s = median(run.wall_s for run in runs)
        cpu_s = {p: _median(runs, lambda run, p=p: run.processes[p].cpu_s) for p in runs[0].processes}
        peak = {p: _median(runs, lambda run, p=p: run.processes[p].peak_bytes) for p in runs[0].processes}
        own_s = _median(runs, lambda run: run.own_cpu_s + (run.processes["files"].cpu_s if "files" in cpu_s else 0))
        bytes_a_sample = _median(runs, lambda run: run.topic_bytes) / self.samples
        self.figures["works"][name] = {
            "wall_s": wall_s,
            "cpu_s": cpu_s,
            "own_cpu_s": own_s,
            "start_cpu_s": {p: _median(runs, lambda run, p=p: run.processes[p].start_cpu_s) for p in _ours(cpu_s)},
            "samples_per_s": self.samples / wall_s,
            "samples_per_cpu_s": self.samples / own_s,
            "peak_bytes": peak,
            "bytes_a_sample": bytes_a_sample,
        }
        parts = (f"{cpu_s[p]:.2f}" if p in cpu_s else "" for p in ("poller", "worker", "files"))
        rates = f"{self.samples / wall_s / 1e6:.1f}", f"{self.samples / own_s / 1e6:.1f}"
        largest = f"{max(peak[p] for p in _ours(peak)) / 1e6:.0f}"
        self._lines.append(
            _row(name, f"{wall_s:.2f}", f"{own_s:.2f}", *parts, *rates, largest, f"{bytes_a_sample:.1f}")
        )

    def stages(self, samples: int, found: Sequence[dict[str, dict[str, float]]]) -> None:
        """Take in what each stage took, run by run."""
        self.figures["stages"] = {}
        self._lines += ["", _row("stage", "wall s", "CPU s", "M/CPU-s")]
        for name in found[0]:
            wall_s, cpu_s = (median(run[name][key] for run in found) for key in ("wall_s", "cpu_s"))
            self.figures["stages"][name] = {"wall_s": wall_s, "cpu_s": cpu_s, "samples_per_cpu_s": samples / cpu_s}
            self._lines.append(_row(name, f"{wall_s:.2f}", f"{cpu_s:.2f}", f"{samples / cpu_s / 1e6:.1f}"))

    def peers(self, results: Sequence[Result], left_out: Mapping[str, str]) -> None:
        """Take in what a user would pick instead, and why some are not there."""
        self.figures["peers"] = {}
        self._lines += ["", _row("peer", "M samples", "wall s", "CPU s", "M/CPU-s", "peak MB", width=10)]
        for one in results:
            rate = one.samples / one.cpu_s
            self.figures["peers"][one.name] = {**asdict(one), "samples_per_cpu_s": rate}
            cells = f"{one.samples / 1e6:.1f}", f"{one.wall_s:.1f}", f"{one.cpu_s:.1f}", f"{rate / 1e6:.3f}"
            self._lines.append(_row(one.name, *cells, f"{one.peak_bytes / 1e6:.0f}", width=10))
        self.figures["left_out"] = dict(left_out)
        self._lines += [f"left out: {name}: {why}" for name, why in left_out.items()]
        self._peer_targets({one.name: one for one in results})

    def _peer_targets(self, peers: Mapping[str, Result]) -> None:
        works, stages = self.figures["works"], self.figures.get("stages")
        if "mean" in works:
            rate = works["mean"]["samples_per_cpu_s"]
            for name, bound in PEER_TARGETS.items():
                if (one := peers.get(name)) is not None:
                    self.target(
                        f"by {name}",
                        Target(f"per CPU-second, {name}'s times", bound, ">="),
                        rate * one.cpu_s / one.samples,
                    )
        if stages is not None and (one := peers.get("vmagent")) is not None:
            took_s = stages["decode"]["samples_per_cpu_s"] ** -1 + stages["window"]["samples_per_cpu_s"] ** -1
            times = one.cpu_s / one.samples / took_s
            self.target(
                "decode and window by vmagent", Target("decode + window alone, vmagent's times", 15, ">="), times
            )
        if "CSV" in works and (one := peers.get("batch scripts")) is not None:
            times = works["CSV"]["samples_per_s"] * one.wall_s / one.samples
            self.target(
                "by batch scripts", Target("Prometheus to CSV, samples/s: batch scripts' times", 60, ">="), times
            )

    def live(self, live: Live) -> None:
        """Take in a pipeline that was followed live."""
        name = f"live, {live.series:,} series"
        self.figures.setdefault("live", {})[str(live.series)] = {**asdict(live), "overhead_s": live.overhead_s}
        if "live" not in self._heads:
            self._heads.add("live")
            self._lines += ["", _row("live, 15 s", "% of a core", "late s", "of that ours", "peak MB", width=14)]
        cells = f"{live.core:.1%}", f"{live.late_s:.1f}", f"{live.overhead_s:.1f}", f"{live.peak_bytes / 1e6:.0f}"
        self._lines.append(_row(f"{live.series:,} series", *cells, width=14))
        core, memory = LIVE_TARGETS.get(live.series, (None, None))
        if core is not None:
            self.target(f"{name}: core", Target(f"{name}: % of one core", core, "<="), live.core * 100)
            self.target(f"{name}: late", Target(f"{name}: s behind settle + poll", 1, "<="), live.overhead_s)
        if memory is not None:
            self.target(f"{name}: memory", Target(f"{name}: GB", memory, "<="), live.peak_bytes / 1e9)

    def growth(self, found: Sequence[tuple[int, Run]]) -> None:
        """Take in runs of ever more samples."""
        self._lines += ["", _row("growth", "CPU s", "us/sample", "poller MB", "worker MB", width=12)]
        self.figures["growth"] = []
        for samples, run in found:
            each_us = run.own_cpu_s / samples * 1e6
            poller, worker = (run.processes[name].peak_bytes for name in ("poller", "worker"))
            told = {"samples": samples, "own_cpu_s": run.own_cpu_s, "poller_bytes": poller, "worker_bytes": worker}
            self.figures["growth"].append(told)
            cells = f"{run.own_cpu_s:.2f}", f"{each_us:.3f}", f"{poller / 1e6:.0f}", f"{worker / 1e6:.0f}"
            self._lines.append(_row(f"{samples:,} samples", *cells, width=12))
        each = [run.own_cpu_s / samples for samples, run in found]
        self.target("growth: cpu", Target("growth: most CPU a sample / least", 1.15, "<="), max(each) / min(each))
        peaks = [run.processes["poller"].peak_bytes + run.processes["worker"].peak_bytes for _, run in found]
        self.target("growth: memory", Target("growth: memory of the last / second", 1.15, "<="), peaks[-1] / peaks[-2])

    def starts(self, helps: Mapping[str, float], ready_s: float) -> None:
        """Take in how soon programs are there."""
        self.figures["starts"] = {**helps, "worker": ready_s}
        for name, took_s in helps.items():
            self.target(f"{name} --help", Target(f"{name} --help: s", 0.3, "<="), took_s)
        self.target("worker ready", Target("worker ready: s", 3.0, "<="), ready_s)

    def core_targets(self) -> None:
        """Set the works against the floor and against one another."""
        works, floor_s = self.figures["works"], self.figures["floor"]["wall_s"]
        for name, bound in (("mean", 6.0), ("Parquet", 8.0), ("CSV", 10.0)):
            if name not in works:
                continue
            what = "records" if name == "mean" else f"{name} files"
            times = works[name]["wall_s"] / floor_s
            self.target(f"{name}_wall_by_floor", Target(f"Prometheus to {what}: wall / floor's", bound, "<="), times)
        if "mean" not in works:
            return
        rate = works["mean"]["samples_per_cpu_s"] / 1e6
        self.target("rate", Target("the same: million samples a CPU-second", 4.0, ">="), rate)
        if "median" not in works:
            return
        more = works["median"]["own_cpu_s"] / works["mean"]["own_cpu_s"]
        self.target("median_by_mean", Target("median: CPU / mean's", 1.3, "<="), more)

    def target(self, name: str, target: Target, value: float) -> None:
        """Take in a ratio, and tell whether it is as it should be."""
        said = "met" if target.is_met(value) else "missed"
        self.figures["targets"][name] = {"value": value, "bound": target.bound, "met": target.is_met(value)}
        self._targets.append(f"{target.words:<54} {value:>7.2f}  {target.sign} {target.bound:<6g} {said}")

    def table(self) -> str:
        """Return everything as text."""
        head = ["", f"{'target':<54} {'is':>7}  aimed at"] if self._targets else []
        return "\n".join([*self._lines, *head, *self._targets])


def _ours(processes: dict[str, Any]) -> list[str]:
    return [p for p in processes if p in ("poller", "worker", "files")]


def _median(runs: Sequence[Run], of: Callable[[Run], float]) -> float:
    return median(of(run) for run in runs)


def _row(first: str, *others: str, width: int = 8) -> str:
    # Of nine columns the first has eight characters; of fewer there is room.
    return f"{first:<{8 if len(others) == 9 else 22}}" + "".join(f"{text:>{width}}" for text in others)
