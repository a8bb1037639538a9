"""VictoriaMetrics: found on PATH, or taken out of the distribution's package without installing it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import requests

from ingestor.core.errors import ConfigError
from ingestor.local.cache import cache_folder, filled_once
from ingestor.local.debian import take_programs
from ingestor.local.http_server import HttpServer
from ingestor.local.processes import Child

_PROGRAM = "victoria-metrics"
_IMPORT_TIMEOUT_S = 120.0


class LocalVictoriaMetrics(HttpServer):
    """A single-node VictoriaMetrics on 127.0.0.1 only, with its data in a folder, that never forgets (100 years).

    It ends with this process (see :class:`~ingestor.local.processes.Child`). The folder gets
    ``scrape.yml``, ``victoria-metrics.log`` and ``data``. Samples with one timestamp are all kept. Of the
    configuration only what scrapes is read.
    """

    name = "VictoriaMetrics"

    def import_text(self, text_file: Path) -> None:
        """Take in the samples of a text, and make them visible.

        Args:
            text_file: Prometheus' text format with timestamps in milliseconds (OpenMetrics has seconds).
                A line that cannot be read is left out, and told in the log only.

        Raises:
            ConfigError: the server refuses; the message has its words.
        """
        with requests.Session() as session:
            session.trust_env = False
            with text_file.open("rb") as file:
                answer = session.post(f"{self.url}/api/v1/import/prometheus", file, timeout=_IMPORT_TIMEOUT_S)
            if not answer.ok:
                raise ConfigError(f"VictoriaMetrics refuses {text_file}: {answer.text.strip()}")
            # Fresh rows wait a second in memory, where no query looks.
            session.get(f"{self.url}/internal/force_flush", timeout=_IMPORT_TIMEOUT_S).raise_for_status()

    def _launch(self, port: int) -> Child:
        command: list[str | Path] = [
            find_program(),
            f"-promscrape.config={self._write_config('scrape.yml')}",
            f"-storageDataPath={self.data_dir}",
            "-retentionPeriod=100y",
            f"-httpListenAddr=127.0.0.1:{port}",
            "-loggerLevel=WARN",
            *self._extra_args,
        ]
        return Child(command, log_path=self.folder / "victoria-metrics.log").start()

    def _answers(self, session: requests.Session, url: str) -> bool | None:
        if not session.get(f"{url}/health", timeout=1.0).ok:
            return None
        path = json.dumps(str(self.data_dir), ensure_ascii=False)
        return f"-storageDataPath={path}" in session.get(f"{url}/flags", timeout=5.0).text.splitlines()


def find_program() -> Path:
    """Return the program: from PATH, else from the cache, else out of the distribution's package.

    Raises:
        ConfigError: none of the three ways works; the message has the line to type.
    """
    return on_path() or filled_once(program_folder(), _unpack_package) / _PROGRAM


def on_path() -> Path | None:
    """Return the program from PATH, if it is there."""
    found = shutil.which(_PROGRAM)
    return Path(found) if found else None


def program_folder() -> Path:
    """Return where the program is cached, or will be."""
    return cache_folder() / _PROGRAM


def _unpack_package(target: Path) -> None:
    advice = f"no VictoriaMetrics here: apt-get install {_PROGRAM} (as root), or put {_PROGRAM} on PATH"
    take_programs(_PROGRAM, [_PROGRAM], target, advice)
