"""JSON of unknown origin: any fault of it is a ValueError, and its depth is limited."""

import json
import re
from typing import Any

DEEPEST_JSON = 500
"""Levels of nesting that are read. Python's own limit depends on the calls around the parser."""

# A string without an end matches too: each character is looked at once.
_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_BRACKETS = re.compile(r"[\[{]++|[\]}]++")


def parse_json(data: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: It is no JSON, no UTF-8, nested too deep, or has a number of too many digits.
    """
    text = data.decode() if isinstance(data, bytes) else data
    if is_nested_too_deep(text):
        raise ValueError(f"JSON nested more than {DEEPEST_JSON} levels deep")
    return json.loads(text)


def parse_object(data: str | bytes) -> dict[str, Any]:
    """The value of a JSON text that is an object.

    Raises:
        ValueError: As `parse_json`, or it is no object.
    """
    value = parse_json(data)
    if not isinstance(value, dict):
        raise ValueError(f"JSON that is not an object, but {type(value).__name__}")
    return value


def is_nested_too_deep(text: str) -> bool:
    """True if arrays and objects are nested deeper than `DEEPEST_JSON`."""
    if text.count("[") + text.count("{") <= DEEPEST_JSON:
        return False
    depth = 0
    for brackets in _BRACKETS.findall(_STRING.sub("", text)):
        depth += len(brackets) if brackets[0] in "[{" else -len(brackets)
        if depth > DEEPEST_JSON:
            return True
    return False
