"""A program that is told to end while it is still being loaded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from programs import DOCKER

_SCRIPTS = Path(sys.executable).parent
PROGRAMS: dict[str, list[list[str | Path]]] = {
    "ingestor": [[sys.executable, "-m", "ingestor"], [_SCRIPTS / "ingestor"]],
    "stream_app": [[sys.executable, "-m", "stream_app"], [_SCRIPTS / "stream-app"]],
    "ml_service": [[sys.executable, DOCKER / "ml_service" / "main.py"]],
}
"""In all ways that they are started."""

ENDS_AMID_IMPORTS = """
import os, sys


class Ends:
    def find_spec(self, name, *_):
        if name in ("click", "confluent_kafka"):
            os.kill(os.getpid(), {number})


sys.meta_path.insert(0, Ends())
"""
"""Python reads it before all else, as sitecustomize: the signal comes in the middle of the first imports."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_that_is_ended_amid_its_imports(program: str, number: signal.Signals, tmp_path: Path) -> None:
    """It ends as whoever is interrupted before its end, without a traceback, and not by the signal's own effect.

    That effect is none on the first process of a container.
    """
    (tmp_path / "sitecustomize.py").write_text(ENDS_AMID_IMPORTS.format(number=int(number)))
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    for command in PROGRAMS[program]:
        done = subprocess.run([*command, "--help"], env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
