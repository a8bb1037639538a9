"""The poller's command, which tells in the end what was compiled, loaded or imported only when its job had begun.

A program of its own: ``rehearsed.py ARGUMENTS``; it prints a JSON list behind what the command prints.
"""

from __future__ import annotations

import sys

import click
import orjson

from ingestor.cli import cli
from ingestor.rehearsal import rehearse


def loaded() -> set[str]:
    """Return each compiled function of ours with each of the types that it is there for, and pandas if it is."""
    ours = [module for name, module in sys.modules.items() if name.startswith("ingestor.")]
    kernels = {
        f"{kernel.__module__}.{kernel.__name__}{kernel.signatures}"
        for module in ours
        for kernel in vars(module).values()
        if hasattr(kernel, "signatures")
    }
    return kernels | sys.modules.keys() & {"pandas", "pyarrow.compute"}


if __name__ == "__main__":
    rehearse()
    before = loaded()
    cli(sys.argv[1:], standalone_mode=False)
    click.echo(orjson.dumps(sorted(loaded() ^ before)))
