"""A command that tells all faults of its settings at once: of flags, environment variables and file."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import click
from click.core import ParameterSource, iter_params_for_processing

CONFIG = "podstream.config_file"
"""Where a context's ``meta`` holds the `ConfigFile`."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One setting that is wrong."""

    where: str
    """A flag, an environment variable, or ``FILE: section: key``."""
    text: str
    """What is wrong with it, and what is allowed."""

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """What a file sets."""

    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By command and parameter: a text, or a list of texts for a repeatable flag. Click's ``default_map``."""
    meant: dict[str, set[str]] = field(default_factory=dict)
    """By command, the parameters that are set, rightly or wrongly: none of these is missing."""
    faults: list[Fault] = field(default_factory=list)
    """In the order of the file."""


class Pairs(click.ParamType, ABC):
    """The type of a repeatable flag that a file may also give as a mapping."""

    @abstractmethod
    def from_pair(self, key: str, value: str) -> str:
        """Return how the pair is typed on a command line."""


class Document(click.ParamType):
    """The type of a flag that names a YAML file, and of which a file of settings may hold the content itself."""


class Command(click.Command):
    """A command whose environment variables are named after its flags, and which refuses all faults in one message."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as click does.

        Raises:
            click.UsageError: with a line for each fault.
        """
        self._name_variables(ctx)
        config: ConfigFile = ctx.meta.get(CONFIG, ConfigFile())
        typed = list(args)
        try:
            rest = super().parse_args(ctx, args)
        except click.UsageError as first:
            if not (faults := [*self._faults(ctx, typed, config), *config.faults]):
                raise
            raise _refusal(ctx, faults) from first
        if config.faults and not ctx.resilient_parsing:
            raise _refusal(ctx, config.faults)
        return rest

    def _name_variables(self, ctx: click.Context) -> None:
        """Let ``--settle`` be INGESTOR_RUN_SETTLE, whatever the parameter is called inside."""
        if ctx.auto_envvar_prefix is None:
            return
        for param in self.params:
            name = f"{ctx.auto_envvar_prefix}_{_flag(param)[2:].replace('-', '_').upper()}"
            if isinstance(param, click.Option) and name not in (known := _variables(param)):
                param.envvar = [*known, name]

    def _faults(self, ctx: click.Context, args: list[str], config: ConfigFile) -> list[Fault]:
        """Return all that is wrong with flags and environment: click itself stops at the first fault."""
        opts, rest, order, faults, meant = self._parse_all(ctx, args)
        meant |= config.meant.get(ctx.info_name or "", set())
        for param in iter_params_for_processing(order, self.get_params(ctx)):
            if param.is_eager:
                continue
            try:
                param.handle_parse_result(ctx, opts, [])
            except click.MissingParameter:
                if param.name not in meant:
                    faults.append(Fault(_flag(param), _missing(param)))
            except click.UsageError as error:
                # What the file has wrong was said when it was read.
                if ctx.get_parameter_source(str(param.name)) is not ParameterSource.DEFAULT_MAP:
                    faults += _wrong(ctx, param, opts, error)
        if rest:
            faults.append(Fault(" ".join(self._shown(rest, opts)), "is too much: put values with spaces in quotes"))
        return faults

    def _parse_all(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[dict[str, Any], list[str], list[click.Parameter], list[Fault], set[str]]:
        """Return what click's parser gives, without the flags that it refuses; and these, and what they may mean."""
        args, faults, meant = list(args), list[Fault](), set[str]()
        while True:
            try:
                # A parser takes its arguments away as it reads.
                opts, rest, order = self.make_parser(ctx).parse_args(list(args))
            except click.NoSuchOption as error:
                nearest = list(error.possibilities or ())[:1]
                hint = f": did you mean {nearest[0]}?" if nearest else f"; see {ctx.command_path} --help"
                faults.append(Fault(error.option_name, f"there is no such flag{hint}"))
                meant |= {str(param.name) for param in self.params if set(param.opts) & set(nearest)}
                taken = _without(args, error.option_name, with_value=not _arguments(self))
            except click.BadOptionUsage as error:
                faults.append(Fault(error.option_name, error.message.removesuffix(".")))
                meant |= {str(param.name) for param in self.params if error.option_name in param.opts}
                taken = _without(args, error.option_name, with_value=False)
            except click.UsageError as error:
                return {}, [], [], [*faults, Fault(ctx.command_path, error.format_message())], meant
            else:
                return opts, rest, order, faults, meant
            if taken == args:
                return {}, [], [], faults, meant
            args = taken

    def _shown(self, texts: list[str], opts: dict[str, Any]) -> list[str]:
        """Return texts that are too many as they may be shown: next to a secret they may be a part of it."""
        secret = any(param.name in opts and getattr(param.type, "secret", False) for param in self.params)
        return ["an argument"] if secret else texts


def fault_of(param: click.Parameter, text: Any, ctx: click.Context) -> str | None:
    """Return what is wrong with one value of a parameter, and what is allowed; None where it is right."""
    try:
        param.type(text, param, ctx)
    except click.BadParameter as error:
        if isinstance(param, click.Option) and param.is_flag:
            return f"{text!r} is neither true nor false"
        return error.message.removesuffix(".")
    return None


def _wrong(ctx: click.Context, param: click.Parameter, opts: dict[str, Any], error: click.UsageError) -> list[Fault]:
    """Return the faults of one parameter's values; each of a repeatable flag has its own."""
    value, source = param.consume_value(ctx, opts)
    where = _flag(param)
    if source is ParameterSource.ENVIRONMENT:
        names = [*_variables(param), f"{ctx.auto_envvar_prefix}_{str(param.name).upper()}"]
        where = next((name for name in names if os.environ.get(name)), where)
    values = value if param.multiple and isinstance(value, list | tuple) else [value]
    texts = [text for item in values if (text := fault_of(param, item, ctx))]
    return [Fault(where, text) for text in texts or [error.format_message()]]


def _missing(param: click.Parameter) -> str:
    if isinstance(param, click.Option) and param.help:
        return f"is missing: {param.help.removesuffix('.')}"
    return "is missing"


def _flag(param: click.Parameter) -> str:
    """Return the name of a parameter as it is typed: its long flag, or an argument's name in capitals."""
    if isinstance(param, click.Option):
        return max(param.opts, key=len)
    return param.human_readable_name


def _variables(param: click.Parameter) -> list[str]:
    return [param.envvar] if isinstance(param.envvar, str) else list(param.envvar or ())


def _arguments(command: click.Command) -> bool:
    return any(isinstance(param, click.Argument) for param in command.params)


def _without(args: list[str], flag: str, *, with_value: bool) -> list[str]:
    """Return the arguments without a flag, and without the text after it where that must be its value."""
    for place, arg in enumerate(args):
        if arg.partition("=")[0] == flag or (not flag.startswith("--") and arg.startswith(flag)):
            following = args[place + 1 : place + 2]
            value = with_value and "=" not in arg and bool(following) and not following[0].startswith("-")
            return args[:place] + args[place + 1 + value :]
    return args


def _refusal(ctx: click.Context, faults: list[Fault]) -> click.UsageError:
    if len(faults) == 1:
        return click.UsageError(str(faults[0]), ctx)
    return click.UsageError("\n  ".join([f"{len(faults)} settings are wrong:", *map(str, faults)]), ctx)
