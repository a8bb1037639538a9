"""Real servers as child processes: Apache Kafka and Prometheus for the demo, the tests and ``stream-app dataset``."""
