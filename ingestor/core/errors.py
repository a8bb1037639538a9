"""The exception tree: what can go wrong, whether trying again helps, and the exit code."""

from __future__ import annotations


class IngestorError(Exception):
    """The root. The message is one line that says what to do."""

    retryable = False
    exit_code = 1


class ConfigError(IngestorError):
    """What was asked for cannot be done as asked: a flag, a URL, a path, an empty selection."""

    exit_code = 2


class NotLetIn(ConfigError):
    """The cluster does not take the user or the password, or not any more."""


class SourceError(IngestorError):
    """The backend did not give the samples."""


class SourceUnavailable(SourceError):
    """The backend cannot be reached, is overloaded, or cut its answer short: wait, then ask again."""

    retryable = True

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueryRejected(SourceError):
    """The backend understood the query and refuses it; asking again gives the same answer."""


class TooManySamples(SourceError):
    """The backend refuses the query for its size or duration: ask for less at once."""


class TooManySeries(TooManySamples):
    """The backend refuses the query for the number of its series: a shorter range would not help."""


class PublishError(IngestorError):
    """Kafka did not take the data; the transaction was not committed."""

    retryable = True


class Fenced(IngestorError):
    """Another process with the same job or slot has taken over; this one must end."""


class MalformedMessage(IngestorError):
    """Bytes on a topic that do not follow the contract."""


class NewerVersion(IngestorError):
    """Bytes on a topic that a newer podstream has written."""


class SinkError(IngestorError):
    """A file cannot be written as promised."""
