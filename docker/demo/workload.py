"""Shows the demo's pods to Prometheus: the one target that it scrapes. Only the standard library is needed."""

from __future__ import annotations

import argparse
import sys
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import metrics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition(time_ms: int) -> str:
    """Return all series at *time_ms* in Prometheus' text format, without times: the scrape's is meant."""
    lines: dict[str, list[str]] = {
        name: [f"# HELP {name} {metrics.HELP[name]}", f"# TYPE {name} {kind}"] for name, kind in metrics.TYPES.items()
    }
    for name, labels, value in metrics.samples_at(time_ms):
        lines[name].append(f"{metrics.series_text(name, labels)} {metrics.value_text(value)}")
    return "".join(f"{line}\n" for of_name in lines.values() for line in of_name)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        found = self.path.split("?")[0] in ("/", "/metrics")
        body = (exposition(time.time_ns() // 1_000_000) if found else "see /metrics\n").encode()
        self.send_response(HTTPStatus.OK if found else HTTPStatus.NOT_FOUND)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Stay silent: a line every two seconds tells nobody anything."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 in a container (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")
    arguments = parser.parse_args()
    with ThreadingHTTPServer((arguments.host, arguments.port), Handler) as server:
        print(f"listening on http://{arguments.host}:{server.server_port}/metrics", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            sys.exit(130)


if __name__ == "__main__":
    main()
