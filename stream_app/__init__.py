"""Windows range chunks into one record a pod (or service) and window, and writes them to files."""
