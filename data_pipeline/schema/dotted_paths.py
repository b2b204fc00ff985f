"""Settings by dotted path, as `training.learning_rate`: look one up, set one, list them all."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel


def value_at(settings: BaseModel, path: str) -> Any:
    """The value at a dotted path; None where a section on the way is left out or unknown."""
    value: Any = settings
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
    return value


def set_at(values: dict[str, Any], names: Sequence[str], value: Any) -> None:
    """Set a value in nested values, in place. Sections on the way that are left out are made.

    Args:
        names: The parts of the path; a part may itself hold dots.
    """
    *parents, leaf = names
    for name in parents:
        if not isinstance(values.get(name), dict):
            values[name] = {}
        values = values[name]
    values[leaf] = value


def flattened(settings: BaseModel | Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every setting with its dotted path, in order. A section without settings comes as `{}`."""
    for name, value in dict(settings).items():
        inner = list(flattened(value)) if isinstance(value, BaseModel | Mapping) else None
        if inner:
            yield from ((f"{name}.{path}", setting) for path, setting in inner)
        else:
            yield name, value if inner is None else {}
