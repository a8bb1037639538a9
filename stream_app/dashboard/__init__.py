"""What a worker shows in a browser, and as JSON: services and their pods, the pipeline's own state, anomalies."""
