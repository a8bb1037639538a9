"""Named PromQL expressions, as the configuration gives them. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_METRIC_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*", re.ASCII)
_EXAMPLE = "write it like cpu_rate=sum by (namespace, pod) (rate(container_cpu_usage_seconds_total[5m]))"


@dataclass(frozen=True, slots=True)
class Expressions:
    """What is computed by the backend and becomes metrics like any other."""

    by_name: Mapping[str, str] = field(default_factory=dict)
    """The metric's name to its PromQL, in the order in which they were given."""

    @classmethod
    def parse(cls, given: Mapping[object, object] | Iterable[object]) -> Expressions:
        """Read either spelling: what YAML's ``{name: promql}`` means (or its items), or texts ``NAME=PROMQL``.

        PromQL itself is not read here: only the backend knows its dialect
        (`ingestor.sources.expressions.WithExpressions.check`).

        Raises:
            ValueError: a name is no metric's name or is there twice, an expression is empty or no text;
                all faults in one message.
        """
        pairs = list(given.items()) if isinstance(given, Mapping) else [_halves(text) for text in given]
        faults = [fault for name, promql in pairs for fault in _faults(name, promql)]
        counts = Counter(name for name, _ in pairs if isinstance(name, str))
        faults += [f"the expression {name!r} is there {count} times" for name, count in counts.items() if count > 1]
        if faults:
            raise ValueError(f"{'; '.join(faults)}: {_EXAMPLE}")
        return cls({str(name): str(promql).strip() for name, promql in pairs})


def _halves(text: object) -> tuple[object, object]:
    if isinstance(text, tuple | list) and len(text) == 2:
        return text[0], text[1]
    if not isinstance(text, str):
        return text, ""
    # PromQL has equals signs too; a metric's name has none.
    name, equals, promql = text.partition("=")
    return (name.strip(), promql) if equals else ("", text)


def _faults(name: object, promql: object) -> list[str]:
    if not isinstance(name, str):
        # YAML makes a truth value of `on` and `yes`, and a number of `1`.
        return [f"the expression's name {name!r} is not text: put it in quotes"]
    if not name:
        return [f"an expression has no name (it says {promql!r})"]
    faults = []
    if not _METRIC_NAME.fullmatch(name):
        faults.append(f"{name!r} is not a metric's name")
    if not isinstance(promql, str):
        faults.append(f"the expression {name!r} is not text but {promql!r}")
    elif not promql.strip():
        faults.append(f"the expression {name!r} is empty")
    return faults
