"""Processes that are started again when they end, as a supervisor does; tests kill, end and freeze them."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from dataclasses import dataclass, field

from ingestor.local.processes import Child

BACK_AFTER_S = 0.5
"""How long a supervisor takes to start a process again."""

FREEZE_S = 12.0
"""Longer than a group's session time-out (10 s)."""


@dataclass
class Supervised:
    """A process that is started again when it ends, for as long as it is wanted."""

    child: Child
    wanted: bool = False
    back_s: float | None = None
    """When to start it again."""
    frozen_until_s: float | None = None
    ends: Counter[int | None] = field(default_factory=Counter)

    @property
    def is_alive(self) -> bool:
        """Whether there is a process, frozen or not."""
        return self.wanted and self.back_s is None and self.child.poll() is None

    @property
    def is_up(self) -> bool:
        """Whether it can run."""
        return self.is_alive and self.frozen_until_s is None

    def log(self) -> str:
        """Return what all its lives have said."""
        return self.child.log_path.read_text() if self.child.log_path.exists() else ""

    def look_after(self) -> None:
        """Start it or let it go on, where that is due."""
        now_s = time.monotonic()
        if self.frozen_until_s is not None:
            if now_s >= self.frozen_until_s:
                self.thaw()
        elif not self.wanted:
            return
        elif self.back_s is None and (code := self.child.poll()) is not None:
            self.ends[code] += 1
            self.back_s = now_s + BACK_AFTER_S
        elif self.back_s is not None and now_s >= self.back_s:
            self.child.start()
            self.back_s = None

    def kill(self) -> bool:
        """Kill it; return whether it lived."""
        lived = self.child.poll() is None
        self.child.kill()
        self.frozen_until_s = None
        return lived

    def end(self) -> bool:
        """SIGTERM; who is frozen hears it later. Return whether it lived."""
        if lived := self.child.poll() is None:
            os.kill(self.child.pid, signal.SIGTERM)
        return lived

    def freeze(self, lasts_s: float = FREEZE_S) -> bool:
        """SIGSTOP for a while; return whether it ran."""
        if runs := self.child.poll() is None and self.frozen_until_s is None:
            os.kill(self.child.pid, signal.SIGSTOP)
            self.frozen_until_s = time.monotonic() + lasts_s
        return runs

    def thaw(self) -> None:
        if self.frozen_until_s is not None:
            os.kill(self.child.pid, signal.SIGCONT)
            self.frozen_until_s = None

    def join(self) -> bool:
        self.wanted = True
        self.child.start()
        return True

    def leave(self) -> bool:
        self.wanted = False
        return self.end()

    def vanish(self) -> bool:
        self.wanted = False
        return self.kill()
