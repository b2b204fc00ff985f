"""Settings of a file as its author needs them: dotted path, values, default, explanation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from data_pipeline.schema.settings import format_bytes, parse_bytes, parse_share
from sweeps.settings.settings_faults import models_in

ANY_SETTING = "SETTING"
"""In a path: the dotted path of a swept setting, under which a distribution is written."""
_PLURALS = {
    "text": "texts",
    "value": "values",
    "share": "shares",
    "settings with their values": "settings with their values",
}


@dataclass(frozen=True)
class FieldDoc:
    """One setting or section of a file."""

    path: str
    """Dotted path. Items of a list have no number in it: `stages.tokens`."""
    values: str
    """Values that it may have, in words."""
    default: str | None
    """As YAML. None: it must be given, or it is a section."""
    text: str
    """The docstring of the field, on one line."""
    is_section: bool
    is_required: bool


def field_docs(config: type[BaseModel], prefix: str = "") -> Iterator[FieldDoc]:
    """All settings of a config, each section before its settings."""
    for name, field in config.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        sections = list(models_in(field.annotation))
        # A distribution is the one that is given of several: that the others are null is nothing to choose.
        is_chosen = ANY_SETTING in path
        values = values_in_words(_without_null(field.annotation) if is_chosen else field.annotation, field.metadata)
        yield FieldDoc(
            path=path,
            values=_section_words(field.annotation) if sections else values,
            default=None if sections or is_chosen else _default(field),
            text=" ".join((field.description or "").split()),
            is_section=bool(sections),
            is_required=field.is_required(),
        )
        below = f"{path}.{ANY_SETTING}." if get_origin(field.annotation) is dict else f"{path}."
        for section in sections:
            yield from field_docs(section, below)


def values_in_words(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Values of a type within its limits: `whole number from 1, or auto`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return values_in_words(arguments[0], [*arguments[1:], *metadata])
    if origin in (Union, UnionType):
        return _union_words(arguments)
    if origin is Literal:
        return _one_of(arguments)
    details = list(_flat(metadata))
    if origin is tuple:
        return _sequence_words(arguments, details)
    if origin is dict:
        return "settings with their values"
    if annotation is bool:
        return "true or false"
    functions = [detail.func for detail in details if isinstance(detail, BeforeValidator)]
    kind = {int: "whole number", float: "number", str: "text"}.get(annotation, "value")
    if parse_bytes in functions:
        return "number of bytes (24GiB)"
    if parse_share in functions:
        kind = "share"
    examples = [one for detail in details for one in getattr(detail, "examples", None) or ()]
    return kind + _limits(details) + (f" ({examples[0]})" if examples else "")


def _union_words(members: tuple[Any, ...]) -> str:
    if {bool, int, float, str} <= set(members):
        return "value"
    if all(get_origin(member) is Literal or member is type(None) for member in members):
        return _one_of([word for member in members for word in (get_args(member) or ("null",))])
    words = ["null" if member is type(None) else values_in_words(member) for member in members]
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _one_of(words: Sequence[Any]) -> str:
    return str(words[0]) if len(words) == 1 else f"one of {', '.join(map(str, words))}"


def _sequence_words(items: tuple[Any, ...], details: list[Any]) -> str:
    if items[-1] is not Ellipsis:
        return f"[low, high], two {values_in_words(items[0])}s"
    if get_origin(items[0]) is Literal:
        return f"list of any of {', '.join(map(str, get_args(items[0])))}"
    fewest = "".join(f", at least {count}" for count in _named(details, "min_length"))
    of_one = values_in_words(items[0])
    # A limit follows the kind: `shares above 0`.
    kind = next((one for one in sorted(_PLURALS, key=len, reverse=True) if of_one.startswith(one)), of_one)
    return f"list of {_PLURALS[kind]}{of_one.removeprefix(kind)}{fewest}"


def _section_words(annotation: Any) -> str:
    return "list of sections" if get_origin(annotation) is tuple else "section"


def _without_null(annotation: Any) -> Any:
    return next((member for member in get_args(annotation) if member is not type(None)), annotation)


def _flat(metadata: Sequence[Any]) -> Iterator[Any]:
    """Metadata, with that of a `Field(...)` inside a union: pydantic leaves it folded there."""
    for detail in metadata:
        yield detail
        if isinstance(detail, FieldInfo):
            yield from detail.metadata


def _limits(details: list[Any]) -> str:
    # The stricter of two limits counts: a share above 0 has both.
    lows = [(limit, word) for word, name in (("from", "ge"), ("above", "gt")) for limit in _named(details, name)]
    highs = [(limit, word) for word, name in (("to", "le"), ("to below", "lt")) for limit in _named(details, name)]
    low = max(lows, key=lambda limit: (limit[0], limit[1] == "above"), default=None)
    high = min(highs, key=lambda limit: (limit[0], limit[1] == "to"), default=None)
    return "".join(f" {word} {limit}" for limit, word in (one for one in (low, high) if one is not None))


def _named(details: list[Any], name: str) -> list[Any]:
    """Limits of one kind, by the name that annotated-types gives it."""
    return [limit for detail in details if (limit := getattr(detail, name, None)) is not None]


def _default(field: FieldInfo) -> str | None:
    if field.is_required():
        return None
    value = field.get_default(call_default_factory=True)
    if any(isinstance(detail, BeforeValidator) and detail.func is parse_bytes for detail in field.metadata):
        return format_bytes(value).replace(".00 ", "")
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case tuple():
            return str([*value])
        case _:
            return str(value) or '""'
