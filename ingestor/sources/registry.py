"""Every way of reading samples, by the name that ``--source`` takes."""

from __future__ import annotations

from ingestor.sources.auto import AutoSource
from ingestor.sources.http_query import HttpQuerySource
from ingestor.sources.remote_read import RemoteReadSource

SOURCES: dict[str, type[AutoSource | HttpQuerySource | RemoteReadSource]] = {
    "auto": AutoSource,
    "query": HttpQuerySource,
    "remote-read": RemoteReadSource,
}
