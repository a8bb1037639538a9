"""``python -m stream_app``: the console script ``stream-app``."""

from stream_app.cli import main

main()
