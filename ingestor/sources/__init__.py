"""Where samples come from: one module a way of reading."""
