"""A model's service that notes what it processes; a program: ``consuming.py SERVERS PREFIX PATH``.

Each life appends lines to PATH: ``begin``; ``NAMESPACE/POD WINDOW_START_MS ROWS MEMORY`` of each window that is
processed, with the length of its history and the memory in its last row (``-``: there is none); ``committed`` where
it commits by hand; ``end``.
"""

from __future__ import annotations

import argparse
import os
import signal
import time

from stream_app.consumer import PodConsumer

COMMIT_EVERY = 25


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("servers", "prefix", "path"):
        parser.add_argument(name)
    parser.add_argument("--name", help="of the group's member: a static one")
    parser.add_argument("--session-s", type=float, default=10.0)
    parser.add_argument("--by-hand", action="store_true", help="commit every so many windows, in the loop")
    parser.add_argument("--until-now", action="store_true", help="end with what is there")
    parser.add_argument("--dies-after", type=int, metavar="WINDOWS", help="by SIGKILL")
    given = parser.parse_args()
    with (
        open(given.path, "a", buffering=1) as out,  # noqa: PTH123 - a line is written when it is whole
        PodConsumer(
            given.servers,
            topic_prefix=given.prefix,
            group=group_of(given.prefix),
            group_instance_id=given.name,
            start="earliest",
            lookback="10m",
            session_timeout_s=given.session_s,
            commit_s=0.1,
            auto_commit=not given.by_hand,
            until="now" if given.until_now else None,
        ) as pods,
    ):
        out.write("begin\n")
        for number, window in enumerate(pods, 1):
            frame = window.frame()
            memory = round(float(frame["memory"].iloc[-1])) if "memory" in frame else "-"
            out.write(f"{window.id} {window.record.window_start_ms} {len(frame)} {memory}\n")
            time.sleep(0.001)
            if number == given.dies_after:
                os.kill(os.getpid(), signal.SIGKILL)
            if given.by_hand and number % COMMIT_EVERY == 0:
                pods.commit()
                out.write("committed\n")
        if given.by_hand:
            pods.commit()
        out.write("end\n")


def group_of(prefix: str) -> str:
    """Return the group of a prefix's services."""
    return f"{prefix}.models"


if __name__ == "__main__":
    main()
