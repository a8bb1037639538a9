"""Real servers as child processes: Kafka and Prometheus for users, and what else the tests read from."""
