"""PURE: which records are wanted: those of one view, and of them what was asked for."""

from __future__ import annotations

import logging
from typing import NamedTuple

from ingestor.core.errors import ConfigError
from stream_app.records import Record

log = logging.getLogger(__name__)


class View(NamedTuple):
    """Which records belong together: those of one chunk size and one method, both as records spell them."""

    chunk_size: str
    method: str

    def __str__(self) -> str:
        return f"chunk size {self.chunk_size}, method {self.method}"


class ViewChoice:
    """Lets records of one view through: the one that was chosen, or the only one there is."""

    def __init__(self, topic: str, chunk_size: str | None, method: str | None) -> None:
        self._topic = topic
        self._chosen = chunk_size, method
        self.view: View | None = None
        """None: no record has come yet."""
        self._told = False

    def accepts(self, record: Record) -> bool:
        """Tell whether *record* is of the view.

        Raises:
            ConfigError: it is of a second one, and none was chosen.
        """
        view = self.view
        if view is not None and record.chunk_size == view.chunk_size and record.method == view.method:
            return True
        other = View(record.chunk_size, record.method)
        if not self._is_chosen(other):
            if not self._told:
                self._told = True
                log.info("records of other views are left out", extra={"topic": self._topic, "view": str(other)})
            return False
        if view is None:
            self.view = other
            return True
        raise ConfigError(
            f"{self._topic} has records of two views ({view}; {other}): choose one with chunk_size= and method="
        )

    def go_on(self, group: str, view: View | None) -> None:
        """Take the view that a group has processed so far.

        Raises:
            ConfigError: it is another one.
        """
        if view is None or view == self.view:
            return
        if self.view is not None or not self._is_chosen(view):
            asked = self.view or View(self._chosen[0] or view.chunk_size, self._chosen[1] or view.method)
            raise ConfigError(f"the group {group} has processed records of {view}, not of {asked}: give another group=")
        self.view = view

    def is_chosen(self, record: Record) -> bool:
        """Tell whether a record may be of the view, as far as one was chosen."""
        return self._is_chosen(self.view or View(record.chunk_size, record.method))

    def _is_chosen(self, view: View) -> bool:
        return self._chosen[0] in (None, view.chunk_size) and self._chosen[1] in (None, view.method)
