"""Relabeling in Prometheus' own syntax: which series are read, and with which labels. Pure.

The rules are those of ``metric_relabel_configs`` in Prometheus 3, applied to series that Prometheus has
stored. So names that begin with ``__`` stay (only the labels of scrape *targets* lose them), label
names may have any characters, and the dot of a regular expression matches line feeds. Prometheus 2
differs there: no dot for line feeds, ASCII names only, and an empty result deletes the label that is
called like the unexpanded ``target_label``.

Regular expressions are RE2's; :mod:`ingestor.re2` says where Python's ``re`` can give something else.

Source: model/relabel/relabel.go of prometheus/prometheus, and Expand of Go's regexp package.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ingestor.re2 import compile_re2
from ingestor.selector import Labels

_DEFAULTS = {"action": "replace", "separator": ";", "regex": "(.*)", "replacement": "$1", "target_label": ""}
_KEYS = ("action", "source_labels", "separator", "target_label", "regex", "replacement")
_ACTIONS = ("replace", "keep", "drop", "labelmap", "labeldrop", "labelkeep")


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules, applied one after the other."""

    rules: tuple[Rule, ...] = ()
    text: str = "[]"
    """What was parsed, as JSON, which is YAML too."""

    @classmethod
    def parse(cls, content: Any) -> Rules:
        """Read what the YAML of a ``relabel_configs`` list means; None is an empty list.

        Raises:
            ValueError: the message has all faults of all rules: which rule (from 1), which key, what is allowed.
        """
        if content is None:
            return cls()
        faults: list[str] = []
        if not isinstance(content, list):
            faults.append(f"a list of rules is wanted, not {_shown(content)}")
            content = []
        rules = [_parse_rule(rule, f"rule {number}", faults) for number, rule in enumerate(content, 1)]
        if faults:
            raise ValueError("; ".join(faults))
        return cls(tuple(rule for rule in rules if rule is not None), json.dumps(content))

    def apply(self, labels: Mapping[str, str]) -> Labels | None:
        """Return a series' labels after the rules; None: the series is dropped.

        Args:
            labels: all of them, the metric's name as ``__name__``; a label with the value "" is no label.

        A rule can take ``__name__`` away. Prometheus refuses the scrape then; here it is the caller's to decide.
        """
        changed: Labels | None = {name: value for name, value in labels.items() if value}
        for rule in self.rules:
            if changed is None:
                return None
            changed = rule.apply(changed)
        return changed


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, checked."""

    action: str
    source_labels: tuple[str, ...]
    separator: str
    target_label: Template
    regex: re.Pattern[str]
    replacement: Template

    def apply(self, labels: Labels) -> Labels | None:
        """Return the labels after this rule, or None if it drops them."""
        return _APPLY[self.action](self, labels)

    def match(self, labels: Labels) -> re.Match[str] | None:
        """Match the values of the source labels, joined; a label that is missing counts as empty."""
        return self.regex.fullmatch(self.separator.join(labels.get(name, "") for name in self.source_labels))


@dataclass(frozen=True, slots=True)
class Template:
    """A text with ``$1``, ``${1}``, ``${name}`` and ``$$``, as Go's ``regexp.Expand`` reads it."""

    parts: tuple[str | int, ...]
    """Texts, and the groups to put in between by number."""

    @classmethod
    def parse(cls, text: str, regex: re.Pattern[str]) -> Template:
        """Find the references; one to a group that *regex* lacks is empty, a ``$`` that begins none is itself."""
        parts: list[str | int] = []
        before, dollar, text = text.partition("$")
        while dollar:
            parts.append(before)
            if text.startswith("$"):
                parts.append("$")
                text = text[1:]
            else:
                name, rest = _reference(text)
                if not name:
                    parts.append("$")
                elif (group := _group(name, regex)) is not None:
                    parts.append(group)
                text = rest
            before, dollar, text = text.partition("$")
        return cls((*parts, before))

    def expand(self, match: re.Match[str]) -> str:
        """Return the text with what the groups matched; a group that took no part is empty."""
        return "".join(part if isinstance(part, str) else match[part] or "" for part in self.parts)


def _reference(text: str) -> tuple[str, str]:
    """Return the name at the beginning of a text that follows a ``$``, and the rest; no name: the text again."""
    brace = text.startswith("{")
    start = end = int(brace)
    while end < len(text) and _is_word(text[end]):
        end += 1
    if end == start or (brace and not text.startswith("}", end)):
        return "", text
    return text[start:end], text[end + brace :]


def _is_word(char: str) -> bool:
    # Go's letters and decimal digits; Python's \w has other numbers too.
    return char == "_" or unicodedata.category(char)[0] == "L" or unicodedata.category(char) == "Nd"


def _group(name: str, regex: re.Pattern[str]) -> int | None:
    if name.isascii() and name.isdigit() and (name == "0" or not name.startswith("0")):
        number = int(name)
        return number if number <= regex.groups else None
    return regex.groupindex.get(name)


def _keep(rule: Rule, labels: Labels) -> Labels | None:
    return labels if rule.match(labels) else None


def _drop(rule: Rule, labels: Labels) -> Labels | None:
    return None if rule.match(labels) else labels


def _replace(rule: Rule, labels: Labels) -> Labels:
    match = rule.match(labels)
    if match is None:
        return labels
    target = rule.target_label.expand(match)
    return _with(labels, {target: rule.replacement.expand(match)}) if target else labels


def _labelmap(rule: Rule, labels: Labels) -> Labels:
    renamed = {
        rule.replacement.expand(match): labels[name] for name in sorted(labels) if (match := rule.regex.fullmatch(name))
    }
    renamed.pop("", None)
    return _with(labels, renamed)


def _labeldrop(rule: Rule, labels: Labels) -> Labels:
    return {name: value for name, value in labels.items() if not rule.regex.fullmatch(name)}


def _labelkeep(rule: Rule, labels: Labels) -> Labels:
    return {name: value for name, value in labels.items() if rule.regex.fullmatch(name)}


def _with(labels: Labels, changes: Labels) -> Labels:
    return {name: value for name, value in (labels | changes).items() if value}


_APPLY: dict[str, Callable[[Rule, Labels], Labels | None]] = {
    "replace": _replace,
    "keep": _keep,
    "drop": _drop,
    "labelmap": _labelmap,
    "labeldrop": _labeldrop,
    "labelkeep": _labelkeep,
}


def _parse_rule(rule: Any, where: str, faults: list[str]) -> Rule | None:
    """Return the rule, or None after its faults were added to *faults*."""
    if not isinstance(rule, dict):
        faults.append(f"{where}: a mapping with {', '.join(_KEYS)} is wanted, not {_shown(rule)}")
        return None
    before = len(faults)
    faults += [f"{where}: {_shown(key)} is no key: use {', '.join(_KEYS)}" for key in rule if key not in _KEYS]
    given = {key: rule.get(key, default) for key, default in _DEFAULTS.items()}
    unreadable = {key: fault for key, value in given.items() if (fault := _text_fault(value))}
    faults += [f"{where}: {key}: {fault}" for key, fault in unreadable.items()]
    texts = {key: value for key, value in given.items() if key not in unreadable}
    source_labels = _parse_names(rule.get("source_labels", []), where, faults)
    regex = re.compile("")
    if "regex" in texts:
        try:
            regex = compile_re2(texts["regex"])
        except ValueError as error:
            faults.append(f"{where}: regex: {error}")
    action = texts.get("action", "").lower()
    if "action" in texts:
        faults += [f"{where}: {fault}" for fault in _action_faults(action, rule, texts)]
    if len(faults) > before:
        return None
    target_label, replacement = (Template.parse(texts[key], regex) for key in ("target_label", "replacement"))
    return Rule(action, source_labels, texts["separator"], target_label, regex, replacement)


def _action_faults(action: str, rule: Mapping[Any, Any], texts: Mapping[str, str]) -> list[str]:
    if action not in _ACTIONS:
        return [f"action: {action!r} is none of {', '.join(_ACTIONS)}"]
    if action == "replace" and texts.get("target_label") == "":
        return ["target_label: replace needs the name of the label to write"]
    if action == "labelmap" and texts.get("replacement") == "":
        return ["replacement: labelmap needs the names to write, like $1"]
    if action in ("labeldrop", "labelkeep"):
        # Prometheus bears what says the default.
        useless = [key for key in ("separator", "target_label", "replacement") if texts.get(key) != _DEFAULTS[key]]
        useless += ["source_labels"] if "source_labels" in rule else []
        return [f"{key}: {action} takes regex only, which is matched with label names" for key in useless]
    return []


def _text_fault(value: Any) -> str:
    if not isinstance(value, str):
        return f"a text is wanted, not {_shown(value)}: write it in quotes"
    return "" if _is_utf8(value) else f"{value!r} is no text in UTF-8"


def _parse_names(value: Any, where: str, faults: list[str]) -> tuple[str, ...]:
    if not isinstance(value, list):
        faults.append(f"{where}: source_labels: a list of label names is wanted, like [pod], not {_shown(value)}")
        return ()
    faults += [
        f"{where}: source_labels: {_shown(name)} is no label name: give a text that is not empty"
        for name in value
        if not isinstance(name, str) or not name or not _is_utf8(name)
    ]
    return tuple(value)


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)
