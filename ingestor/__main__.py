"""``python -m ingestor``: the console script ``ingestor``."""

from ingestor.interrupts import end_on_signals


def main() -> None:
    """Run the console script, which can be ended while it is loaded."""
    end_on_signals()
    from ingestor.cli import main as run  # noqa: PLC0415

    run()


if __name__ == "__main__":
    main()
