"""What a running process has used so far, read from the kernel."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds, user and system, of all threads, and the largest resident memory."""

    cpu_s: float
    peak_bytes: int


def usage(pid: int) -> Usage:
    """Return what a process that still runs has used since it began."""
    status = Path(f"/proc/{pid}/status").read_text()
    peak = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return Usage(cpu_s(pid), int(peak[1]) * 1024 if peak else 0)


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process, to the nanosecond; /proc has hundredths of a second only.

    The clock's number is made of the process', as clock_getcpuclockid(3) does it.
    """
    return time.clock_gettime(~pid << 3 | 2)
