"""The service as a program, which can be ended while it is loaded: ``python docker/ml_service/main.py``."""

from __future__ import annotations

import sys

from ingestor.interrupts import end_on_signals


def main() -> int:
    """Run the service."""
    end_on_signals()
    import service  # noqa: PLC0415

    return service.main()


if __name__ == "__main__":
    sys.exit(main())
