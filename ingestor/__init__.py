"""Reads Prometheus range by range and publishes columnar range chunks to Kafka."""
