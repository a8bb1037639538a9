"""``make demo`` as users see it: two at once, one in a pipe and one on a terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import programs
import pytest
import requests

WIDTH = 80
DEADLINE_S = 600
URL = re.compile(r"Dashboard: (http://127\.0\.0\.1:(\d+))")
STAYS = "The dashboard is live until Ctrl-C: "


@dataclass(frozen=True, slots=True)
class Demos:
    """Both, and the terminal's other end."""

    in_pipe: subprocess.Popen[bytes]
    on_terminal: subprocess.Popen[bytes]
    terminal: int
    files: Path


def start(folder: Path, stdin: int, stdout: int) -> subprocess.Popen[bytes]:
    """Start a demo whose files are in ``data/demo`` below a folder."""
    folder.mkdir()
    return subprocess.Popen(
        [sys.executable, programs.DOCKER / "demo" / "run.py"],
        cwd=folder,
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demos]:
    """Start both; whatever happens, they end, and their children with them."""
    folder = tmp_path_factory.mktemp("demos")
    terminal, inner = pty.openpty()
    in_pipe = start(folder / "pipe", subprocess.DEVNULL, subprocess.PIPE)
    on_terminal = start(folder / "terminal", inner, inner)
    os.close(inner)
    yield Demos(in_pipe, on_terminal, terminal, folder / "terminal" / "data" / "demo")
    for process in (in_pipe, on_terminal):
        if process.poll() is None:
            process.terminate()
            process.wait(DEADLINE_S)
    os.close(terminal)


def told_until(text: str, terminal: int) -> str:
    """Return what a terminal shows, up to a line with this text."""
    told, deadline = b"", time.monotonic() + DEADLINE_S
    while text.encode() not in told or not told.endswith(b"\n"):
        ready, _, _ = select.select([terminal], [], [], max(deadline - time.monotonic(), 0))
        assert ready, told
        try:
            told += os.read(terminal, 4096)
        except OSError as ended:
            raise AssertionError(told.decode()) from ended
        assert b"error:" not in told, told
    return told.decode()


def test_on_a_terminal_the_dashboard_stays_and_shows_what_is_in_the_files(demos: Demos) -> None:
    """Every value of every window that it has is the file's, and none of the file's is missing; Ctrl-C ends all."""
    told = told_until(STAYS, demos.terminal)
    found = URL.search(told)
    assert found
    url = found[1]
    assert told.count(url) == 3
    listed = get(url, "services?per_page=50&pods=200")
    pods = [(service["namespace"], pod["pod"]) for service in listed["services"] for pod in service["pods"]]
    shown = pd.concat(table_of(get(url, f"pods/{namespace}/{pod}")) for namespace, pod in pods)
    files = pd.concat(long_form(path) for path in demos.files.glob("*/*.csv"))
    # Windows go on coming: those that the demo itself has waited for are in both.
    windows = (listed["windows"][0] + 60_000, listed["windows"][-4])
    shown, files = (frame[frame["start"].between(*windows)].sort_values([*KEY]) for frame in (shown, files))
    assert len(shown) > 1_000
    pd.testing.assert_frame_equal(shown.reset_index(drop=True), files.reset_index(drop=True), check_exact=True)
    demos.on_terminal.send_signal(signal.SIGINT)
    assert demos.on_terminal.wait(DEADLINE_S) == 130
    with pytest.raises(requests.ConnectionError):
        get(url, "services")


def test_in_a_pipe_the_demo_ends_by_itself(demos: Demos) -> None:
    """It begins with the dashboard's address, has compared what that shows, and no line is too long."""
    told, _ = demos.in_pipe.communicate(timeout=DEADLINE_S)
    lines = told.decode().splitlines()
    assert demos.in_pipe.returncode == 0, told.decode()
    found = URL.fullmatch(next(line for line in lines if not line.startswith("port 6066 is taken")))
    assert found
    assert (found[2] == "6066") == ("port 6066 is taken" not in lines[0])
    assert any(re.search(r"checked: [\d,]{5,} values on the dashboard equal the files'", line) for line in lines)
    assert STAYS not in told.decode()
    assert [line for line in lines if len(line) > WIDTH] == []


KEY = ("namespace", "pod", "metric", "start")


def get(url: str, path: str) -> Any:
    session = requests.Session()
    session.trust_env = False
    answer = session.get(f"{url}/api/{path}", timeout=20)
    answer.raise_for_status()
    return answer.json()


def table_of(pod: dict[str, Any]) -> pd.DataFrame:
    """Return the values of a pod's page, a row each."""
    histories = {metric: told["history"] for metric, told in pod["metrics"].items()}
    wide = pd.DataFrame(histories, index=pd.Index(pod["windows"], name="start"), dtype=float)
    return melted(wide.reset_index().assign(pod=pod["pod"], namespace=pod["namespace"]))


def long_form(path: Path) -> pd.DataFrame:
    """Return the values of a file, a row each."""
    wide = pd.read_csv(path, dtype=str)
    start = pd.to_datetime(wide.pop("timestamp")).dt.as_unit("ms").astype("int64")
    return melted(wide.assign(start=start, namespace=path.parent.name))


def melted(wide: pd.DataFrame) -> pd.DataFrame:
    keys = ["namespace", "pod", "start"]
    return wide.melt(keys, var_name="metric").dropna()[[*KEY, "value"]].astype({"value": float})
