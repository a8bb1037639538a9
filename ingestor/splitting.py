"""Which labels of a metric make columns of their own: ``--split-by``. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_EXAMPLES = "write it like http_requests_total=code,method, or in YAML http_requests_total: [code, method]"

_METRIC = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*", re.ASCII)
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*", re.ASCII)

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})

_OF_EVERY_ROW = {"__name__": "is the metric itself", "namespace": "names the row", "pod": "names the row"}


@dataclass(frozen=True, slots=True)
class Splits:
    """Metrics, and the labels by whose values each is split."""

    labels_of: Mapping[str, tuple[str, ...]]
    """The labels of each metric, sorted: the order in which they were given means nothing."""

    @classmethod
    def parse(cls, content: Any) -> Splits:
        """Read a mapping of metrics to lists of labels, or a list of texts like ``metric=label,label``; None is empty.

        Raises:
            ValueError: the message has all faults, each with its metric and what is allowed.
        """
        faults: list[str] = []
        labels_of: dict[str, tuple[str, ...]] = {}
        for metric, labels in _entries(content, faults):
            if not isinstance(metric, str) or not metric:
                faults.append(f"{metric!r} is no metric's name")
            elif metric in labels_of:
                faults.append(f"{metric}: it is given twice: give all its labels at once")
            else:
                labels_of[metric] = _checked(metric, labels, faults)
        if faults:
            raise ValueError("; ".join(faults) + f": {_EXAMPLES}")
        return cls(labels_of)

    def column(self, metric: str, labels: Mapping[str, str]) -> str:
        """Return what a series' metric is called in records: ``http_requests_total{code="500",method="GET"}``.

        Labels stand in sorted order, those that the series lacks are left out, and with none of them left (or
        for a metric that is not split) it is the metric's name alone. What stands there is a selector of
        Prometheus, with its escapes: ``\\\\``, ``\\"`` and ``\\n``.
        """
        pairs = [(name, labels[name]) for name in self.labels_of.get(metric, ()) if labels.get(name)]
        if not pairs:
            return metric
        matchers = [f"{_name(name)}={_quoted(value)}" for name, value in pairs]
        if _METRIC.fullmatch(metric):
            return f"{metric}{{{','.join(matchers)}}}"
        # Prometheus 3 writes names beyond ASCII words inside the braces.
        return f"{{{','.join([_quoted(metric), *matchers])}}}"


def _entries(content: Any, faults: list[str]) -> list[tuple[Any, Any]]:
    if content is None:
        return []
    if isinstance(content, Mapping):
        return list(content.items())
    if not isinstance(content, list | tuple):
        faults.append(f"{content!r} is neither a mapping of metrics to labels nor a list of texts")
        return []
    entries: list[tuple[Any, Any]] = []
    for text in content:
        metric, equals, labels = text.partition("=") if isinstance(text, str) else ("", "", "")
        if equals:
            entries.append((metric.strip(), [name.strip() for name in labels.split(",")]))
        else:
            faults.append(f"{text!r} is no text like metric=label,label")
    return entries


def _checked(metric: str, labels: Any, faults: list[str]) -> tuple[str, ...]:
    if not isinstance(labels, list | tuple) or not labels:
        faults.append(f"{metric}: a list of one or more labels is wanted, not {labels!r}")
        return ()
    before = len(faults)
    for label in labels:
        if not isinstance(label, str) or not label:
            faults.append(f"{metric}: {label!r} is no label's name")
        elif label in _OF_EVERY_ROW:
            faults.append(f"{metric}: it cannot be split by {label}, which {_OF_EVERY_ROW[label]}")
    if len(faults) > before:
        return ()
    if len(set(labels)) < len(labels):
        faults.append(f"{metric}: a label is given twice")
    return tuple(sorted(labels))


def _name(name: str) -> str:
    return name if _LABEL.fullmatch(name) else _quoted(name)


def _quoted(text: str) -> str:
    return f'"{text.translate(_ESCAPES)}"'
