"""A backfill through to files, and live polling if wanted, while every process and both networks fail, by a seed."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import click
import consuming
import history
import pandas as pd
import records
import storm_live
import verdict
from commands import (
    PATIENCE_S,
    WHEN,
    ingestor,
    stream_app,
    view_flags,
    view_of,
    wait_until_windowed,
    worker,
    write_files,
)
from commands import run as run_command
from proxied_kafka import ProxiedKafka
from supervised import Supervised
from tcp_proxy import TcpProxy, Trouble
from verdict import Place, Verdict

from ingestor.core import errors
from ingestor.local.processes import Child
from ingestor.local.prometheus import LocalPrometheus, create_blocks
from ingestor.local.server import Server
from ingestor.options import cluster_arguments
from stream_app.records import record_key

BEGINS_S = 3.0
SLOW_BYTES_PER_S = 40_000.0
RANGE_SAMPLES = 1_000
VIEW = view_of("storm", "30s", "mean", "pod", "service")
WORKERS = ("worker 0", "worker 1")
JOINER = "worker 2"
READERS = ("files", "raw files", "model")
MODEL, RAW = Place("pods", "the model"), Place("samples", "raw files")
LATE_S = 10.0
"""So much longer may a fault last that nobody has felt yet."""


class Kind(NamedTuple):
    """What happens, and to whom: one card of the deck for each."""

    what: str
    whom: tuple[str, ...]
    lasts_s: tuple[float, float]


NETWORKS = ("Kafka", "Prometheus", "both")
KINDS = (
    Kind("SIGKILL", ("poller", *WORKERS, *READERS), (0.0, 0.0)),
    # Longer than the session time-out, 10 s.
    Kind("SIGSTOP", ("poller", *WORKERS, *READERS), (11.0, 15.0)),
    Kind("server killed", NETWORKS, (0.5, 6.0)),
    Kind("server stopped", NETWORKS, (2.0, 14.0)),
    Kind("connections cut", NETWORKS, (0.0, 0.0)),
    Kind("connections stalled", NETWORKS, (2.0, 14.0)),
    Kind("connections slow", NETWORKS, (3.0, 8.0)),
    Kind("connections refused", NETWORKS, (1.0, 8.0)),
    Kind("joins and leaves", (JOINER,), (8.0, 20.0)),
    Kind("second poller", ("poller",), (0.0, 0.0)),
)
LIVE_KINDS = tuple(kind._replace(whom=storm_live.NAMES) for kind in KINDS[:2])
LIVE_FAULTS = 4
"""In addition."""


class Fault(NamedTuple):
    """One of them, at its time."""

    at_s: float
    until_s: float
    what: str
    whom: str

    def __str__(self) -> str:
        lasts = f" for {self.until_s - self.at_s:.1f} s" if self.until_s > self.at_s else ""
        return f"{self.at_s:.1f} {self.what}: {self.whom}{lasts}"


def plan(seed: int, count: int, lasts_s: float, kinds: Sequence[Kind] = KINDS) -> list[Fault]:
    """Return *count* faults, of different kinds while there are any, spread over *lasts_s*."""
    generator = random.Random(seed)
    deck = [(kind, who) for kind in kinds for who in kind.whom]
    cards = [card for _ in range(-(-count // len(deck))) for card in generator.sample(deck, len(deck))][:count]
    each_s = lasts_s / count
    found = []
    for number, (kind, who) in enumerate(cards):
        at_s = BEGINS_S + (number + generator.random()) * each_s
        found.append(Fault(at_s, at_s + generator.uniform(*kind.lasts_s), kind.what, who))
    return found


@dataclass
class Outcome:
    """What a run of the storm has shown."""

    seed: int
    faults: Counter[str]
    """Those that hit all whom they were meant for, by kind."""
    unfelt: list[Fault]
    """The others."""
    ends: Counter[str]
    """How processes ended by themselves, by their exit codes."""
    compared: Verdict
    """Windows on the topics and in files, what the model has processed, and `RAW`."""

    @property
    def is_right(self) -> bool:
        return all(compared.is_right for compared in self.compared.values())

    def count(self, what: str) -> int:
        return sum(len(getattr(compared, what)) for compared in self.compared.values())

    def checked(self, where: str) -> int:
        """Return how many windows of pods and services, or samples, have been looked for in a place."""
        return sum(compared.expected for place, compared in self.compared.items() if place.where == where)

    def __str__(self) -> str:
        return "\n".join(
            [
                f"  faults that hit: {self.faults.total()}: {dict(self.faults)}",
                *(f"  nobody felt {fault}" for fault in self.unfelt),
                f"  ends: {dict(self.ends)}",
                *(f"  {place}: {compared}" for place, compared in self.compared.items()),
            ]
        )


def run(seed: int, folder: Path, faults: int, lasts_s: float, *, is_live: bool = False) -> Outcome:
    """Run one storm in *folder*, which must be new; *is_live*: with live polling and a Prometheus that grows."""
    planned = plan(seed, faults, lasts_s)
    if is_live:
        planned = sorted([*planned, *plan(seed, LIVE_FAULTS, lasts_s, LIVE_KINDS)])
    click.echo(f"\nPODSTREAM_FAULT_SEED={seed}\n  " + "\n  ".join(map(str, planned)))
    held = history.samples(seed)
    prometheus = LocalPrometheus(folder / "prometheus")
    prometheus.folder.mkdir(parents=True)
    history.write_openmetrics(held, prometheus.folder / "history.om")
    create_blocks(prometheus.folder / "history.om", prometheus.data_dir)
    with ExitStack() as stack:
        broker = stack.enter_context(ProxiedKafka(folder / "kafka"))
        stack.enter_context(prometheus)
        storm = Storm(
            folder,
            broker,
            prometheus,
            stack.enter_context(TcpProxy(broker.proxied_port, broker.proxy_port)),
            stack.enter_context(TcpProxy(prometheus.port)),
            samples_per_s=len(held) / lasts_s,
            live=stack.enter_context(storm_live.live(folder / "live", broker, lasts_s)) if is_live else None,
        )
        stack.callback(storm.end)
        storm.blow(planned)
        storm.settle()
        compared = storm.compare(held)
        felt, unfelt = storm.felt()
    return Outcome(seed, Counter(fault.what for fault in felt), unfelt, storm.ends(), compared)


class Act(NamedTuple):
    """What a fault does to one of those that it is meant for; it has begun."""

    is_felt: Callable[[], bool]
    end: Callable[[], object]


@dataclass
class Storm:
    """The processes of one run, and what can be done to them."""

    folder: Path
    broker: ProxiedKafka
    prometheus: LocalPrometheus
    kafka_net: TcpProxy
    prometheus_net: TcpProxy
    samples_per_s: float
    live: storm_live.Live | None = None
    pollers: list[Supervised] = field(default_factory=list)
    """The last one is to finish the job; those before it were replaced."""

    def __post_init__(self) -> None:
        self.storage = self.folder / "data"
        self._acts: dict[Fault, list[Act]] = {}
        self._sides: dict[str, tuple[Server, TcpProxy]] = {
            "Kafka": (self.broker, self.kafka_net),
            "Prometheus": (self.prometheus, self.prometheus_net),
        }
        self._others = {
            name: Supervised(worker(self.broker.way_in, VIEW, self.folder / f"worker-{slot}.log", slot))
            for slot, name in enumerate((*WORKERS, JOINER))
        }
        where = ["--topic-prefix", VIEW.topics.prefix, *cluster_arguments(self.broker.way_in.cluster)]
        sink = stream_app("files", "--storage", str(self.storage), *where, *view_flags(VIEW))
        self._others["files"] = Supervised(Child(sink, log_path=self.folder / "files.log"))
        self._raw_files = stream_app("raw-files", "--storage", str(self.folder / "raw"), *where)
        self._others["raw files"] = Supervised(Child(self._raw_files, log_path=self.folder / "raw-files.log"))
        if self.live is not None:
            self._others |= self.live.processes
        cluster = self.broker.way_in.cluster
        model = [consuming.__file__, cluster.bootstrap_servers, VIEW.topics.prefix, str(self.folder / "processed")]
        self._others["model"] = Supervised(
            Child([sys.executable, *model, "--name", "model-0"], log_path=self.folder / "model.log")
        )
        self._poller = ingestor(
            "backfill", "--url", f"http://127.0.0.1:{self.prometheus_net.port}", *WHEN, "--preset", "none", *where,
            "--range-samples", str(RANGE_SAMPLES), "--max-samples-per-second", f"{self.samples_per_s:.0f}",
        )  # fmt: skip

    def blow(self, planned: list[Fault]) -> None:
        """Start everything, and let time pass with the faults in it."""
        self._second_poller()
        for name in (*WORKERS, *READERS):
            self._others[name].join()
        coming, going = deque(sorted(planned)), list[Fault]()
        began_s = time.monotonic()
        while coming or going:
            self._look_after()
            acts_s = time.monotonic()
            now_s = acts_s - began_s
            for fault in [one for one in going if one.until_s + (0 if self._is_felt(one) else LATE_S) <= now_s]:
                going.remove(fault)
                for act in self._acts[fault]:
                    act.end()
            if coming and coming[0].at_s <= now_s:
                fault = coming.popleft()
                self._acts[fault] = self._begin(fault)
                going.append(fault)
            # A server takes its time to start: what is planned waits, or faults would be over before they are felt.
            began_s += time.monotonic() - acts_s

    def felt(self) -> tuple[list[Fault], list[Fault]]:
        """Return the faults that all have felt whom they were meant for, and the others."""
        felt = [fault for fault in self._acts if self._is_felt(fault)]
        return felt, [fault for fault in self._acts if fault not in felt]

    def _is_felt(self, fault: Fault) -> bool:
        return all(act.is_felt() for act in self._acts[fault])

    def settle(self) -> None:
        """Wait until the job has ended, all of it is in windows, and these are in files."""
        self._wait_for(lambda: self.pollers[-1].child.poll() == 0)
        self.pollers[-1].wanted = False
        self._wait_for(lambda: all(one.child.poll() is not None for one in self.pollers))
        with ThreadPoolExecutor(1, "wait") as pool:
            done = pool.submit(wait_until_windowed, self.broker, VIEW)
            while not done.done():
                self._look_after()
            try:
                done.result()
            except TimeoutError as error:
                raise TimeoutError(self._last_words()) from error
        if self.live is not None:
            self.live.settle(self._wait_for)
        written = self._written()
        self._wait_for(lambda: written <= self._processed().keys())
        for name in READERS:
            self._others[name].leave()
        self._wait_for(lambda: all(self._others[name].child.poll() is not None for name in READERS))
        write_files(self.broker, VIEW, self.storage)
        run_command([*self._raw_files, "--until-idle", "--idle", "1ms"])

    def compare(self, held: pd.DataFrame) -> Verdict:
        """Compare all that was written with what Prometheus holds."""
        found = verdict.look(self.broker, VIEW, held, self.storage, history.TIME)
        found |= {MODEL: self._compare_processed(), RAW: self._compare_raw(held)}
        return found if self.live is None else found | self.live.compare()

    def _written(self) -> set[tuple[str, int]]:
        """Return all pods' windows on the sink topic, as a model knows them."""
        found = records.read(self.broker.cluster, VIEW.topics.pods)
        return {(record_key(r.namespace, r.pod, r.service).decode(), r.window_start_ms) for r in found}

    def _processed(self) -> Counter[tuple[str, int]]:
        """Return how often the model has processed each window."""
        path = self.folder / "processed"
        # A kill may have cut the last line of a life.
        rows = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return Counter((row[0], int(row[1])) for row in rows if len(row) == 4)

    def _compare_processed(self) -> records.Compared:
        """See that each window was processed; again only what was not committed, which nobody can count from here."""
        written, processed = self._written(), self._processed()
        return records.Compared(
            len(written),
            processed.total(),
            missing=[(*name, 0) for name in sorted(written - processed.keys())],
            extra=[(*name, 0) for name in sorted(processed.keys() - written)],
        )

    def _compare_raw(self, held: pd.DataFrame) -> records.Compared:
        """Compare the samples in the raw files with those that Prometheus holds."""
        names = ["namespace", "pod", "metric", "timestamp", "value"]
        frame = pd.read_parquet(self.folder / "raw")
        frame = frame.assign(timestamp=frame["timestamp"].astype("datetime64[ms, UTC]").astype("int64"))
        expected, found = (
            Counter(one[names].astype({"metric": str}).itertuples(index=False, name=None)) for one in (held, frame)
        )
        more = found - expected
        return records.Compared(
            expected.total(),
            found.total(),
            missing=sorted(expected - found),
            doubled=[sample for sample in more if sample in expected],
            extra=[sample for sample in more if sample not in expected],
        )

    def ends(self) -> Counter[str]:
        """Return how processes ended by themselves; each has said why, in a line."""
        found: Counter[str] = Counter()
        for one in self._all():
            log = one.log()
            # Faust prints one of its own threads' where its first connection is cut.
            assert "Traceback" not in log or one in self._others.values(), log
            own = {code: count for code, count in one.ends.items() if code not in (0, -signal.SIGKILL)}
            assert own.keys() <= {1, 2}, f"{one.child.log_path}: {own}"
            # A model is a program of its user's, which lets our exceptions through.
            word = f"\n{errors.__name__}." if one is self._others["model"] else "error: "
            assert log.count(word) >= sum(own.values()), f"somebody ended without a word: {own}\n{log}"
            found.update({f"exit code {code}": count for code, count in own.items()})
        for replaced in self.pollers[:-1]:
            # It may have been killed, have found no broker, or have ended the job before the other one came.
            assert replaced.child.poll() in (0, 1, 2, -signal.SIGKILL), replaced.child.log_tail()
            found["poller fenced"] += "has taken over" in replaced.child.log_path.read_text()
        return found

    def end(self) -> None:
        """Leave no process behind."""
        for one in self._all():
            one.vanish()
        for server in (self.broker, self.prometheus):
            _signal(server, signal.SIGCONT)

    def _begin(self, fault: Fault) -> list[Act]:
        """Begin a fault, once those are there whom it is meant for."""
        whom = fault.whom
        if fault.what in SIDE_ACTS:
            if whom != "Kafka":
                # Nobody else asks Prometheus.
                self._wait_for(lambda: self.pollers[-1].is_up or not self.pollers[-1].wanted)
            sides = [(SIDE_ACTS[fault.what], side) for name, side in self._sides.items() if whom in (name, "both")]
            if self.live is not None and whom != "Kafka":
                what = "connections stalled" if fault.what == "server stopped" else fault.what
                sides.append((SIDE_ACTS[what], (self.live.prometheus, self.live.net)))
            return [begin(*side) for begin, side in sides]
        one = self._named(whom)
        if fault.what == "joins and leaves":
            lives = one.log().count("worker is ready")
            one.join()
            return [Act(lambda: one.log().count("worker is ready") > lives, one.leave)]
        # Who has ended is started again, unless it has ended the job.
        self._wait_for(lambda: (one.is_up if fault.what == "SIGSTOP" else one.is_alive) or not one.wanted)
        if fault.what == "second poller":
            is_felt = one.is_alive
            self._second_poller()
        elif fault.what == "SIGSTOP":
            # It goes on by itself, though it may be no poller of ours any more by then.
            is_felt = one.freeze(fault.until_s - fault.at_s)
        else:
            is_felt = one.kill()
        return [Act(lambda: is_felt, _nothing)]

    def _second_poller(self) -> None:
        """Start another poller of the job, which takes over: the one before it is not started again."""
        for one in self.pollers:
            one.wanted = False
        self.pollers.append(Supervised(Child(self._poller, log_path=self.folder / f"poller-{len(self.pollers)}.log")))
        self.pollers[-1].join()

    def _named(self, name: str) -> Supervised:
        return self.pollers[-1] if name == "poller" else self._others[name]

    def _all(self) -> Iterator[Supervised]:
        yield from self.pollers
        yield from self._others.values()

    def _look_after(self) -> None:
        time.sleep(0.05)
        if self.pollers[-1].child.poll() == 0:
            self.pollers[-1].wanted = False
        for one in self._all():
            one.look_after()

    def _wait_for(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            if time.monotonic() > deadline:
                raise TimeoutError(self._last_words())
            self._look_after()

    def _last_words(self) -> str:
        return "\n".join(f"{one.child.log_path.name}:\n{one.child.log_tail(8)}" for one in self._all())


def _nothing() -> None:
    pass


def _signal(server: Server, number: signal.Signals) -> None:
    if server.poll() is None:
        os.kill(server.pid, number)


def _kill(server: Server, _net: TcpProxy) -> Act:
    if server.poll() is not None:
        return Act(lambda: False, _nothing)
    server.kill()
    return Act(lambda: True, server.start)


def _stop(server: Server, _net: TcpProxy) -> Act:
    if server.poll() is not None or _is_stopped(pid := server.pid):
        return Act(lambda: False, _nothing)
    os.kill(pid, signal.SIGSTOP)
    return Act(lambda: True, lambda: _signal(server, signal.SIGCONT))


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


SideAct = Callable[[Server, TcpProxy], Act]


def _of_network(begin: Callable[[TcpProxy], Trouble]) -> SideAct:
    def act(_server: Server, net: TcpProxy) -> Act:
        trouble = begin(net)
        return Act(lambda: trouble.felt > 0, lambda: net.end(trouble))

    return act


SIDE_ACTS: Mapping[str, SideAct] = {
    "server killed": _kill,
    "server stopped": _stop,
    "connections cut": _of_network(TcpProxy.cut_connections),
    "connections stalled": _of_network(TcpProxy.stall),
    "connections slow": _of_network(lambda net: net.slow(SLOW_BYTES_PER_S)),
    "connections refused": _of_network(TcpProxy.refuse),
}
"""What begins a fault of a server or of the way to it."""
