"""Where records end up: one module a format, all of them exactly once."""
