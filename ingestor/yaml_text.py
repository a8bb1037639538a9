"""YAML that somebody typed, in bounded memory. Pure."""

from __future__ import annotations

from typing import Any

import yaml

_MOST_NODES = 100_000
"""With aliases spelled out: ten lines of aliases to aliases are a billion values, once somebody looks at them."""


def composed(text: str) -> yaml.Node | None:
    """Return the nodes of a document; None of an empty one.

    Raises:
        yaml.YAMLError: it is no YAML, holds itself, is nested too deeply, or too large with its aliases spelled out.
    """
    loader = yaml.SafeLoader(text)
    try:
        return _checked(loader)
    finally:
        loader.dispose()


def is_null(node: yaml.Node) -> bool:
    """Tell whether a value is null, or nothing stands where it would."""
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def loaded(text: str) -> Any:
    """Return what a document means.

    Raises:
        yaml.YAMLError: as `composed`, or a value is of a type that nobody types.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = _checked(loader)
        return None if node is None else loader.construct_document(node)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        # The library's own constructors stumble over values that their tags do not fit, each in its way.
        raise yaml.YAMLError(f"a value does not fit its type: {error}") from error
    finally:
        loader.dispose()


def _checked(loader: yaml.SafeLoader) -> yaml.Node | None:
    try:
        node: yaml.Node | None = loader.get_single_node()
        if node is not None:
            _size(node, {})
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
    return node


def _size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Count the nodes that *node* stands for; each is looked at once, however often it is referred to."""
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise yaml.MarkedYAMLError(problem="it holds itself", problem_mark=node.start_mark)
        return sizes[id(node)]
    sizes[id(node)] = 0
    inner = node.value if isinstance(node, yaml.CollectionNode) else []
    if isinstance(node, yaml.MappingNode):
        inner = [part for pair in inner for part in pair]
    size = 1 + sum(_size(part, sizes) for part in inner)
    if size > _MOST_NODES:
        raise yaml.MarkedYAMLError(problem="it is too large with its aliases spelled out", problem_mark=node.start_mark)
    sizes[id(node)] = size
    return size
