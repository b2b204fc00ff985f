"""Parses YAML text into plain values with their line numbers."""

import re
from dataclasses import dataclass, field
from typing import Any

import yaml


@dataclass(frozen=True)
class YamlDocument:
    """Values of a YAML text with their line numbers."""

    values: Any
    lines: dict[str, int] = field(default_factory=dict)
    """Dotted path of a key or item to its line, from 1."""
    duplicate_keys: tuple[tuple[str, int], ...] = ()
    """Dotted paths that occur more than once, with the line of the later one."""

    def line_of(self, path: str) -> int | None:
        """Line of a path, or of its nearest parent in the text; None if neither occurs."""
        while path and path not in self.lines:
            path = path.rpartition(".")[0]
        return self.lines.get(path)


class _Loader(yaml.SafeLoader):
    """Safe YAML loader that reads `5e-4` as a number, as YAML 1.2 does; PyYAML's YAML 1.1 reads a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+"), list("-+0123456789")
)


def parse_value(text: str) -> Any:
    """One YAML value from the command line.

    Raises:
        yaml.YAMLError: The text is not YAML.
    """
    # A SafeLoader: builds plain values only.
    return yaml.load(text, Loader=_Loader)


def read_yaml(text: str) -> YamlDocument:
    """The values of a YAML text with their lines.

    Raises:
        yaml.YAMLError: The text is not YAML.
    """
    lines: dict[str, int] = {}
    duplicates: list[tuple[str, int]] = []
    root = yaml.compose(text, Loader=_Loader)
    if root is not None:
        _walk(root, "", lines, duplicates)
    return YamlDocument(parse_value(text), lines, tuple(duplicates))


def _walk(node: yaml.Node, path: str, lines: dict[str, int], duplicates: list[tuple[str, int]]) -> None:
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key_node, value_node in node.value:
            key = str(key_node.value)
            here = f"{path}.{key}" if path else key
            if key in seen:
                # safe_load silently keeps the last value; a duplicate key is a mistake of the user.
                duplicates.append((here, key_node.start_mark.line + 1))
            seen.add(key)
            lines[here] = key_node.start_mark.line + 1
            _walk(value_node, here, lines, duplicates)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            here = f"{path}.{index}"
            lines[here] = item.start_mark.line + 1
            _walk(item, here, lines, duplicates)
