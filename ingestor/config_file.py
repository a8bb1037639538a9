"""The YAML file of settings: a section a command, its keys the flags' names, its values as typed."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import yaml

from ingestor.settings import CONFIG, ConfigFile, Document, Fault, Pairs, fault_of
from ingestor.yaml_text import composed, is_null

DEFAULTS = "defaults"
"""The section for all commands; each takes what it has a flag for, and its own section wins."""

_BOOL = "tag:yaml.org,2002:bool"


def load_config(ctx: click.Context, path: Path) -> None:
    """Read a group's file of settings; its faults are told with those of the command that is called.

    Raises:
        click.BadParameter: the file is no YAML.
    """
    group = ctx.command
    config = read_config(path, group.commands if isinstance(group, click.Group) else {}, ctx)
    ctx.default_map = config.values
    ctx.meta[CONFIG] = config


def read_config(path: Path, commands: Mapping[str, click.Command], ctx: click.Context) -> ConfigFile:
    """Read a file of settings, and check all of it.

    A value means what it would mean on the command line: ``start: 2026-11-23T00:00:00Z`` is a time and
    no date of Python's, ``settle: 30`` lacks its unit. A key without a value is not set.

    Raises:
        click.BadParameter: the file is no YAML. The message has nothing of its content, which may be secret.
    """
    try:
        root = composed(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise click.BadParameter(f"{path} cannot be read: {_reason(error)}", ctx=ctx) from error
    if root is None or is_null(root):
        return ConfigFile()
    if not isinstance(root, yaml.MappingNode):
        raise click.BadParameter(f"{path} must hold a section a command: {_listed(commands)}", ctx=ctx)
    return _Reader(path, commands, ctx).read(root)


class _Reader:
    def __init__(self, path: Path, commands: Mapping[str, click.Command], ctx: click.Context) -> None:
        self._path, self._ctx = path, ctx
        self._options = {name: _options(command) for name, command in commands.items()}
        self._shared: dict[str, dict[str, Any]] = {name: {} for name in commands}
        self._own: dict[str, dict[str, Any]] = {name: {} for name in commands}
        self._meant: dict[str, set[str]] = {name: set() for name in commands}
        self._faults: list[Fault] = []

    def read(self, root: yaml.MappingNode) -> ConfigFile:
        for name, node in self._pairs(root):
            if name != DEFAULTS and name not in self._options:
                known = [*self._options, DEFAULTS]
                self._fault(f"there is no such section{_hint(name, known) or f'; it is one of {_listed(known)}'}", name)
            elif isinstance(node, yaml.MappingNode):
                self._section(name, node)
            elif not is_null(node):
                self._fault("must hold its settings as key: value", name)
        values = {name: {**self._shared[name], **own} for name, own in self._own.items()}
        return ConfigFile(values, self._meant, self._faults)

    def _section(self, section: str, node: yaml.MappingNode) -> None:
        commands = [section] if section in self._options else list(self._options)
        known = {flag: option for name in reversed(commands) for flag, option in self._options[name].items()}
        for key, value in self._pairs(node, section):
            flag = key.replace("_", "-")
            if flag in known and is_null(value):
                continue
            nearest = [flag] if flag in known else difflib.get_close_matches(flag, known, 1)
            takers = [name for name in commands if nearest and nearest[0] in self._options[name]]
            for name in takers:
                self._meant[name].add(str(self._options[name][nearest[0]].name))
            if flag not in known:
                its = f"; {section} has {_listed(sorted(known))}"
                self._fault(f"there is no such setting{_hint(flag, known) or its}", section, key)
            elif (found := self._value(known[flag], value, section, key)) is not None:
                values = self._own if section in self._options else self._shared
                for name in takers:
                    values[name][str(self._options[name][flag].name)] = found

    def _value(self, option: click.Option, node: yaml.Node, *where: str) -> Any:
        """Return the text, or the texts of a repeatable flag; None where one is wrong."""
        if isinstance(option.type, Document) and not isinstance(node, yaml.ScalarNode):
            text = yaml.serialize(node)
            wrong = fault_of(option, text, self._ctx)
            if wrong:
                self._fault(wrong, *where)
            return None if wrong else text
        if isinstance(node, yaml.ScalarNode):
            items: list[tuple[yaml.Node, str | None]] = [(node, None)]
        elif isinstance(node, yaml.SequenceNode) and option.multiple:
            items = [(item, None) for item in node.value]
        elif isinstance(node, yaml.MappingNode) and isinstance(option.type, Pairs):
            items = [(item, name) for name, item in self._pairs(node, *where)]
        else:
            kind = "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
            self._fault(f"is {kind}, and takes one value{' or a list' * option.multiple}", *where)
            return None
        before = len(self._faults)
        texts = [self._text(option, item, name, where) for item, name in items]
        if len(self._faults) > before:
            return None
        return texts if option.multiple else texts[0]

    def _text(self, option: click.Option, node: yaml.Node, name: str | None, where: tuple[str, ...]) -> str:
        where = (*where, name) if name else where
        if not isinstance(node, yaml.ScalarNode) or is_null(node):
            self._fault("has an item that is no text", *where)
            return ""
        typed = str(node.value)
        text = option.type.from_pair(name, typed) if name and isinstance(option.type, Pairs) else typed
        if wrong := fault_of(option, text, self._ctx):
            self._fault(wrong, *where)
        elif node.tag == _BOOL and not option.is_flag and not isinstance(option.type, click.Choice):
            self._fault(f"{typed} is a yes or no in YAML: put it in quotes if it is meant as text", *where)
        return text

    def _pairs(self, node: yaml.MappingNode, *where: str) -> Iterator[tuple[str, yaml.Node]]:
        """Yield keys and values, merged ones (``<<: *others``) too; a key that stands twice is a fault."""
        own = [str(key.value) for key, _ in node.value if key.value != "<<"]
        for key in sorted({key for key in own if own.count(key) > 1}, key=own.index):
            self._fault("is there twice", *where, key)
        try:
            yaml.constructor.SafeConstructor().flatten_mapping(node)
        except yaml.MarkedYAMLError as error:
            self._fault(_reason(error), *where)
        yield from {str(key.value): value for key, value in node.value if isinstance(key, yaml.ScalarNode)}.items()

    def _fault(self, text: str, *where: str) -> None:
        self._faults.append(Fault(": ".join([str(self._path), *where]), text))


def _options(command: click.Command) -> dict[str, click.Option]:
    """Return a command's options by their flags' names, without dashes before them."""
    return {
        flag.removeprefix("--"): option
        for option in command.params
        if isinstance(option, click.Option)
        for flag in option.opts
        if flag.startswith("--")
    }


def _hint(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    nearest = difflib.get_close_matches(name, known, 1)
    return f": did you mean {nearest[0]}?" if nearest else ""


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(names)


def _reason(error: Exception) -> str:
    """Say in one line what YAML refuses; its own text repeats lines of the file."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    if isinstance(error, OSError):
        return str(error.strerror)
    return "it is nested too deeply" if isinstance(error.__cause__, RecursionError) else "it is not YAML in UTF-8"
