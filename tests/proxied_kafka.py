"""A local Kafka with a second way in, through a TCP proxy: brokers tell their clients where to connect."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ingestor.kafka import Cluster
from ingestor.local.kafka import LocalKafka
from ingestor.local.processes import free_port


@dataclass(frozen=True, slots=True)
class WayIn:
    """Where clients are sent."""

    cluster: Cluster


class ProxiedKafka(LocalKafka):
    """A broker that sends those who come by *proxied_port* to *proxy_port*; its own port is the direct way.

    It talks to itself directly: a network fault between clients and broker is none within the broker.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.proxied_port, self.proxy_port = free_port(), free_port()

    @property
    def way_in(self) -> WayIn:
        """The way through the proxy."""
        return WayIn(Cluster(f"127.0.0.1:{self.proxy_port}"))

    def _write_properties(self, port: int) -> None:
        super()._write_properties(port)
        path = self.folder / "server.properties"
        text = path.read_text()
        for name, ours in (("listeners", self.proxied_port), ("advertised.listeners", self.proxy_port)):
            text = re.sub(rf"^{re.escape(name)}=.*", rf"\g<0>,PROXIED://127.0.0.1:{ours}", text, flags=re.MULTILINE)
        path.write_text(
            f"{text}listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT\n"
        )


class FenceableKafka(ProxiedKafka):
    """One whose way to its own controller is a TCP proxy's too, from *controller_proxy_port* to *controller_port*.

    A broker that its controller has not heard of for 3 s is fenced: it answers, but is no broker of the cluster,
    and no partition or group has a leader.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.controller_port, self.controller_proxy_port = free_port(), free_port()

    def _write_properties(self, port: int) -> None:
        super()._write_properties(port)
        path = self.folder / "server.properties"
        text = re.sub(r"(?<=CONTROLLER://127\.0\.0\.1:)\d+", str(self.controller_port), path.read_text())
        voters = r"(?<=^controller\.quorum\.voters=1@127\.0\.0\.1:)\d+"
        path.write_text(re.sub(voters, str(self.controller_proxy_port), text, flags=re.MULTILINE))
