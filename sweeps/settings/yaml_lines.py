"""Parses YAML text into plain values with their line numbers.

A few hundred bytes of aliases can expand to gigabytes, so the size and depth of a text are checked before it is read.
"""

import codecs
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

_MOST_CHARACTERS = 1 << 20
"""Of a settings file."""
MOST_BYTES = 4 * _MOST_CHARACTERS
"""Of a settings file, in any encoding."""
_MOST_NODES = 50_000
_DEEPEST = 30
_LONGEST_KEY = 200
_LARGEST_INTEGER = 2**63 - 1
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks; that of UTF-32 begins like that of UTF-16."""
_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


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


class YamlRuleError(yaml.error.MarkedYAMLError):
    """The text is YAML, but larger or other than a settings file may be; `problem` holds rule and remedy."""


class _Loader(yaml.SafeLoader):
    """Safe YAML loader that reads `5e-4` as a number, as YAML 1.2 does, and a date as text.

    PyYAML's YAML 1.1 reads the number as text. No setting is a date.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            # PyYAML lets the errors of int() and its like out: too many digits, !!int x, !!timestamp x.
            raise _broken_rule(f"a value cannot be read as {node.tag.rpartition(':')[2]}; check it", node) from error
        if isinstance(value, float) and not math.isfinite(value):
            raise _broken_rule(f"{node.value} is not a finite number; write one of at most 1e308", node)
        if isinstance(value, int) and abs(value) > _LARGEST_INTEGER:
            raise _broken_rule(f"a number is beyond {_LARGEST_INTEGER:,}; write a smaller one", node)
        if not isinstance(value, str | int | float | list | dict | None):
            raise _broken_rule(f"no setting is of the kind {node.tag.rpartition(':')[2]}; remove the tag", node)
        return value


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+"), list("-+0123456789")
)


def decode_yaml(data: bytes) -> str:
    """The text of a YAML file in UTF-8, UTF-16 or UTF-32; PowerShell's `>` writes UTF-16.

    Raises:
        YamlRuleError: It is in none of them, or longer than a settings file may be.
    """
    if len(data) > MOST_BYTES:
        raise _too_long()
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), None) or _encoding_without_mark(data)
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        rule = f"is not text in {encoding.upper()} (line {line}); save it as UTF-8"
        raise YamlRuleError(problem=rule) from error


def _encoding_without_mark(data: bytes) -> str:
    # The first characters of a settings file are ASCII: in UTF-16 every second byte of them is 0.
    high, low = data[0:8:2], data[1:8:2]
    if len(data) >= 4 and any(high) and not any(low):
        return "utf-16-le"
    return "utf-16-be" if len(data) >= 4 and any(low) and not any(high) else "utf-8"


def parse_value(text: str) -> Any:
    """One YAML value from the command line.

    Raises:
        yaml.YAMLError: The text is not YAML, or breaks a rule of settings files (YamlRuleError).
    """
    return read_yaml(text).values


def read_yaml(text: str) -> YamlDocument:
    """The values of a YAML text with their lines.

    Raises:
        yaml.YAMLError: The text is not YAML, or breaks a rule of settings files (YamlRuleError).
    """
    if len(text) > _MOST_CHARACTERS:
        raise _too_long()
    try:
        _check_size(yaml.parse(text, Loader=_Loader))
    except yaml.scanner.ScannerError as error:
        if "'\\t'" not in str(error.problem):
            raise
        rule = "a tab is in the place of a space; indent and separate with spaces"
        raise YamlRuleError(problem=rule, problem_mark=error.problem_mark) from error
    lines: dict[str, int] = {}
    duplicates: list[tuple[str, int]] = []
    root = yaml.compose(text, Loader=_Loader)
    if root is not None:
        _walk(root, "", lines, duplicates)
    # A SafeLoader: builds plain values only.
    return YamlDocument(yaml.load(text, Loader=_Loader), lines, tuple(duplicates))


class _Size(NamedTuple):
    """A node with all that its aliases expand to."""

    num_nodes: int
    depth: int


@dataclass
class _Open:
    """A node that is not closed yet."""

    anchor: str | None
    num_nodes: int = 0
    depth: int = 0


def _check_size(events: Iterator[yaml.Event]) -> None:
    """Check the depth of a YAML text and the number of nodes that it expands to, without building one.

    Raises:
        YamlRuleError: They are larger than those of any settings file, or an alias contains itself.
    """
    opened: list[_Open] = []
    sizes: dict[str, _Size | None] = {}
    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append(_Open(event.anchor))
            size = _Size(1, 0)
            if event.anchor is not None:
                sizes[event.anchor] = None
        elif isinstance(event, yaml.CollectionEndEvent):
            ended = opened.pop()
            size = _Size(0, ended.depth)
            if ended.anchor is not None:
                sizes[ended.anchor] = _Size(ended.num_nodes, ended.depth)
        elif isinstance(event, yaml.ScalarEvent):
            size = _Size(1, 1)
            if event.anchor is not None:
                sizes[event.anchor] = size
        elif isinstance(event, yaml.AliasEvent):
            known = sizes.get(event.anchor or "", _Size(1, 1))  # An unknown alias is an error of its own.
            if known is None:
                raise _broken_rule(f"the alias *{event.anchor} contains itself; write its values out", event)
            size = known
        else:
            continue
        for index, around in enumerate(opened):
            around.num_nodes += size.num_nodes
            around.depth = max(around.depth, len(opened) - index + size.depth)
        if opened and opened[0].num_nodes > _MOST_NODES:
            raise _broken_rule(f"the text expands to more than {_MOST_NODES:,} values; use fewer aliases", event)
        if opened and max(len(opened), opened[0].depth) > _DEEPEST:
            raise _broken_rule(f"settings are nested more than {_DEEPEST} levels deep; write fewer levels", event)


def _too_long() -> YamlRuleError:
    return YamlRuleError(problem=f"is longer than {_MOST_CHARACTERS:,} characters; give a settings file")


def _broken_rule(rule: str, where: Any) -> YamlRuleError:
    return YamlRuleError(problem=rule, problem_mark=where.start_mark)


def _walk(node: yaml.Node, path: str, lines: dict[str, int], duplicates: list[tuple[str, int]]) -> None:
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key_node, value_node in node.value:
            if key_node.tag not in (_TEXT, _MERGE):
                raise _broken_rule("a name is not text; put it in quotes", key_node)
            if len(key_node.value) > _LONGEST_KEY:
                raise _broken_rule(f"a name is longer than {_LONGEST_KEY} characters; shorten it", key_node)
            key = str(key_node.value)
            here = f"{path}.{key}" if path else key
            if key in seen:
                # safe_load silently keeps the last value; a duplicate key is a mistake of the user.
                duplicates.append((here, key_node.start_mark.line + 1))
            seen.add(key)
            lines[here] = key_node.start_mark.line + 1
            _walk(value_node, here, lines, duplicates)
            if key_node.tag == _MERGE:
                for path_below, line in _lines_merged(value_node, path).items():
                    lines.setdefault(path_below, line)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            here = f"{path}.{index}"
            lines[here] = item.start_mark.line + 1
            _walk(item, here, lines, duplicates)


def _lines_merged(node: yaml.Node, path: str) -> dict[str, int]:
    """Lines of the settings that `<<` brings to a path; of two sections the first counts."""
    found: dict[str, int] = {}
    for one in node.value if isinstance(node, yaml.SequenceNode) else [node]:
        lines: dict[str, int] = {}
        _walk(one, path, lines, [])
        found = lines | found
    return found
