"""Many pods behind one port, for the live part: ``exporter.py PORT PODS TARGETS``; target N is ``/N``.

Each scrape finds new values; Prometheus' own memory of them is what results are compared with.
"""

from __future__ import annotations

import http.server
import sys
import time

import cluster
import numpy as np

_SUFFIX_LETTERS = "bcdfghjklmnpqrstvwxz2456789"


def pod(number: int) -> str:
    """Return a name as a Deployment's pods have it, five pods a service."""
    service = number // cluster.PODS_OF_EACH
    letters = [_SUFFIX_LETTERS[number // 27**place % 27] for place in range(5)]
    return f"live-{service:04d}-7d9f8b6c5d-{''.join(letters)}"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers a scrape."""

    protocol_version = "HTTP/1.1"
    heads: tuple[list[str], ...] = ()

    def do_GET(self) -> None:
        heads = self.heads[int(self.path.strip("/"))]
        values = np.random.default_rng(time.time_ns()).integers(0, 1 << 40, len(heads)).tolist()
        body = "".join([f"{head} {value}\n" for head, value in zip(heads, values, strict=True)]).encode()
        self.send_response(http.HTTPStatus.OK)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    port, pods, targets = map(int, sys.argv[1:])
    heads = _heads(pods)
    Handler.heads = tuple(heads[target::targets] for target in range(targets))
    http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


def _heads(pods: int) -> list[str]:
    own_labels = [(series.metric, own) for series in cluster.block(0, 1) for own in series.labels]
    return [
        f'{metric}{{container="app",namespace="prod",pod="{pod(number)}"{"," * bool(own)}{own}}}'
        for number in range(pods)
        for metric, own in own_labels
    ]


if __name__ == "__main__":
    main()
