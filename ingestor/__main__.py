"""``python -m ingestor``: the console script ``ingestor``."""

from ingestor.cli import main

main()
