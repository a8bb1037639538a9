"""What the storm has of live polling: a Prometheus that goes on growing, a poller that follows it, and a worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import chunks
import files
import oracle
import records
import scraped
from commands import PATIENCE_S, ingestor, stream_app, view_flags, view_of, worker, write_files
from proxied_kafka import ProxiedKafka
from supervised import Supervised
from tcp_proxy import TcpProxy
from verdict import FILES, KAFKA, Place, Verdict

from ingestor.core.time_range import TimeRange, floor_ms
from ingestor.kafka import DEFAULT_PARTITIONS, connect, ensure_topics, read_to_end
from ingestor.local.processes import Child
from ingestor.local.prometheus import LocalPrometheus
from ingestor.options import cluster_arguments
from ingestor.positions import read_positions
from stream_app.records import decode_record

VIEW = view_of("live", "2s", "mean")
POLLER, WORKER, SINK = NAMES = ("live poller", "live worker", "live files")

WaitFor = Callable[[Callable[[], bool]], None]


@dataclass(frozen=True, slots=True)
class Live:
    """Its servers and processes.

    Its Prometheus is killed and cut off like the other one, and not frozen: a scrape that is under way then is stored
    with its own time, long after the poller may have read past it.
    """

    prometheus: LocalPrometheus
    net: TcpProxy
    broker: ProxiedKafka
    processes: dict[str, Supervised]
    storage: Path

    def position_ms(self) -> int:
        """Return how far it has been read, or 0."""
        position = read_positions(self.broker.cluster, VIEW.topics).get("live")
        return 0 if position is None else position.position_ms

    def settle(self, wait_for: WaitFor) -> None:
        """Wait until all that was scraped by now is in windows, and these are in files; poller and file sink end."""
        now_ms = scraped.now_ms(self.prometheus)
        wait_for(lambda: self.position_ms() >= now_ms)
        self._end(POLLER, wait_for)
        end_ms = floor_ms(self.position_ms(), scraped.WINDOW_MS)
        wait_for(lambda: self._is_windowed(end_ms))
        self._end(SINK, wait_for)
        write_files(self.broker, VIEW, self.storage)

    def _end(self, name: str, wait_for: WaitFor) -> None:
        one = self.processes[name]
        one.leave()
        wait_for(lambda: one.child.poll() is not None)

    def compare(self) -> Verdict:
        """Compare all windows, but for the last one's beginning, with what Prometheus holds."""
        covered = chunks.assert_adjoining(chunks.read(self.broker.cluster, VIEW.topics), "live")
        read = TimeRange(covered.start_ms, floor_ms(covered.end_ms, scraped.WINDOW_MS))
        held = scraped.samples(self.prometheus, read)
        size = str(VIEW.chunk_size)
        found = records.read(self.broker.cluster, VIEW.topics.pods)
        expected = oracle.windows(held, size, VIEW.method, "pod")
        return {
            Place("live pods", KAFKA): records.compare(found, held, size, VIEW.method, "pod", read),
            Place("live pods", FILES): records.compare_cells(files.read(self.storage, pods=True), expected),
        }

    def _is_windowed(self, end_ms: int) -> bool:
        """Tell whether the window that ends at *end_ms* is there, in all partitions that have any."""
        cluster, topic = self.broker.cluster, VIEW.topics.pods
        last = [list(read_to_end(cluster, topic, p))[-1:] for p in range(DEFAULT_PARTITIONS)]
        ends_ms = [decode_record(message.value()).window_end_ms for found in last for message in found]
        return bool(ends_ms) and min(ends_ms) >= end_ms


@contextmanager
def live(folder: Path, broker: ProxiedKafka, lasts_s: float) -> Iterator[Live]:
    """Run a Prometheus that scrapes, with a poller whose job has begun, and a worker."""
    folder.mkdir(parents=True)
    with (
        scraped.scraping(folder, comes_after_s=lasts_s / 3, goes_after_s=lasts_s * 2 / 3) as prometheus,
        TcpProxy(prometheus.port) as net,
    ):
        where = ["--topic-prefix", VIEW.topics.prefix, *cluster_arguments(broker.way_in.cluster)]
        poller = ingestor(
            "run", "--settle", scraped.SETTLE, "--poll-interval", "1s", "--url", f"http://127.0.0.1:{net.port}",
            *where,
        )  # fmt: skip
        storage = folder / "data"
        sink = stream_app("files", "--storage", str(storage), *where, *view_flags(VIEW))
        processes = {
            POLLER: Supervised(Child(poller, log_path=folder / "poller.log")),
            WORKER: Supervised(worker(broker.way_in, VIEW, folder / "worker.log")),
            SINK: Supervised(Child(sink, log_path=folder / "files.log")),
        }
        made = Live(prometheus, net, broker, processes, storage)
        ensure_topics(connect(broker.cluster), VIEW.topics, None)
        try:
            for one in processes.values():
                one.join()
            deadline = time.monotonic() + PATIENCE_S
            while not made.position_ms():
                assert time.monotonic() < deadline, processes[POLLER].child.log_tail()
                time.sleep(0.1)
            yield made
        finally:
            for one in processes.values():
                one.vanish()
