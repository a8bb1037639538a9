"""The pure contract that the poller and the stream app share: times, chunks, topics, errors."""
