"""Faults of a settings file, as text with location, rule and remedy."""

import difflib
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from data_pipeline.schema.redaction import redact_urls
from data_pipeline.schema.user_errors import InputFault
from sweeps.settings.setting_paths import outermost
from sweeps.settings.yaml_lines import YamlDocument

_SHOWN_CHARACTERS = 200
_SEARCH_ELSEWHERE = ("parameters", "params", "hyperparameters", "search_space", "param_space")
"""Names that other tools give to the section `search`."""


@dataclass(frozen=True)
class Fault:
    """One fault of a settings file."""

    location: str
    """Dotted path of the setting, or the file."""
    line: int | None
    value: Any
    rule: str
    remedy: str = ""

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        value = redact_urls(self.value)
        shown = "" if value is None or isinstance(value, dict | list) else f" = {_shortened(repr(value))}"
        return f"{where}{self.location}{shown}: {self.rule}" + (f"; {self.remedy}" if self.remedy else "") + "."


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


class SettingsFileError(InputFault):
    """A settings file is invalid; the message lists every fault."""

    def __init__(self, source: str, faults: Sequence[Fault]) -> None:
        self.source, self.faults = source, tuple(faults)
        count = "one fault" if len(faults) == 1 else f"{len(faults)} faults"
        super().__init__(f"{source} has {count}:\n" + "\n".join(f"  {fault}" for fault in faults))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.source, self.faults)


def without_union_noise(error: ValidationError) -> Iterator[Any]:
    """One detail per location: pydantic reports one for every member of a union that did not match."""
    by_location: dict[str, list[Any]] = {}
    for detail in error.errors(include_url=False):
        by_location.setdefault(_location_of(detail["loc"]), []).append(detail)
    for details in by_location.values():
        if len(details) > 1 and {"literal_error"} & {detail["type"] for detail in details}:
            literal = next(detail for detail in details if detail["type"] == "literal_error")
            other = next(detail for detail in details if detail["type"] != "literal_error")
            literal["msg"] = f"{_rule_of(other)}, or {literal['ctx']['expected']}"
            literal["type"] = "union"
            yield literal
        else:
            yield details[0]


def _location_of(loc: tuple[int | str, ...]) -> str:
    return ".".join(_parts_of(loc))


def _parts_of(loc: tuple[int | str, ...]) -> list[str]:
    # pydantic names the union member it tried (`constrained-int`, `literal['auto']`, `function-before[...]`).
    return [
        str(part)
        for part in loc
        if not re.search(r"^(constrained-|literal\[|function-|int$|float$|str$|bool$)", str(part))
    ]


def fault_of(detail: Any, config: type[BaseModel], document: YamlDocument) -> Fault:
    """One of pydantic's details as a fault with its line and remedy."""
    parts = _parts_of(detail["loc"])
    location = ".".join(parts)
    description = _description(parts, config)
    remedy = ""
    value = detail.get("input")
    match detail["type"]:
        case "extra_forbidden":
            rule = "is not a setting"
            is_search = location in _SEARCH_ELSEWHERE and "search" in config.model_fields
            remedy = "name it search" if is_search else _where_it_belongs(parts, config)
            value = None
        case "missing":
            rule, value = "is missing", None
            remedy = f"give it: {description}" if description else "give it"
        case "literal_error":
            rule = f"is not one of {detail['ctx']['expected']}"
            remedy = nearest(str(value), re.findall(r"'([^']*)'", detail["ctx"]["expected"]), listed=True)
        case "model_type" | "model_attributes_type":
            rule = "is not a section"
            remedy = f"its settings are {', '.join(_fields_at(parts, config))}"
        case "dict_type":
            rule = "is not a section"
        case "tuple_type":
            rule = "is not a list"
        case "too_long":
            rule = f"has {detail['ctx']['actual_length']} values and may have {detail['ctx']['max_length']}"
        case _:
            rule = _rule_of(detail)
    # Rules of our own ("value_error") come with a remedy; those of a type say only which values are wrong.
    if not remedy and detail["type"] != "value_error" and description:
        remedy = f"see `pretune explain {shlex.quote(location)}`"
    shown = _VALUE_OF_SEARCH.sub(r"\1", location) or "file"
    return Fault(shown, document.line_of(location), value, rule, remedy)


_VALUE_OF_SEARCH = re.compile(r"^(search\..+)\.\w*(?:choice|uniform)\.\d+$")
"""Location of one value of a swept setting: the value itself is shown, and its line, but not its number."""


def rules_broken(error: ValidationError) -> str:
    """All rules that settings break together, with their remedies."""
    return "; ".join(dict.fromkeys(_rule_of(detail) for detail in without_union_noise(error)))


def _rule_of(detail: Any) -> str:
    message = str(detail["msg"])
    for prefix, plain in (
        ("Value error, ", ""),
        ("Input should be a valid integer", "is not a whole number"),
        ("Input should be a valid ", "is not a "),
        ("Input should", "should"),
    ):
        if message.startswith(prefix):
            return plain + message.removeprefix(prefix)
    return message


def nearest(word: str, known: Sequence[str], *, listed: bool = False) -> str:
    """Remedy for an unknown word: the closest known word, else the list of all known words.

    Args:
        listed: The message lists the known words already.
    """
    matches = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if matches:
        return f"did you mean {matches[0]}?"
    return "" if listed or not known else f"choose one of: {', '.join(known)}"


def _model_at(parts: Sequence[str], config: type[BaseModel]) -> type[BaseModel] | None:
    model: type[BaseModel] | None = config
    is_entry = False
    for part in parts:
        if is_entry:  # The key of a mapping, or the number in a list.
            is_entry = False
            continue
        field = _field(model, part) if model else None
        model = next(iter(models_in(field.annotation)), None) if field else None
        is_entry = field is not None and get_origin(field.annotation) in (dict, tuple)
    return model


def takes_whole_numbers(path: str, config: type[BaseModel]) -> bool:
    """Whether the setting at a dotted path is a number without a fraction."""
    field = field_at(path, config)
    types = [*_types_in(field.annotation)] if field else []
    return int in types and float not in types


def _types_in(annotation: Any) -> Iterator[Any]:
    yield annotation
    for argument in get_args(annotation):
        yield from _types_in(argument)


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Sections that a field of this annotation may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def leaf_paths(config: type[BaseModel]) -> Iterator[str]:
    """Dotted paths of all settings of a config, without those of its sections."""
    for section, field in config.model_fields.items():
        yield from _leaves(section, field.annotation)


def _leaves(prefix: str, annotation: Any) -> Iterator[str]:
    models = list(models_in(annotation))
    if not models:
        yield prefix
    for model in models:
        for name, field in model.model_fields.items():
            yield from _leaves(f"{prefix}.{field.alias or name}", field.annotation)


def field_at(path: str, config: type[BaseModel]) -> FieldInfo | None:
    """The field at a dotted path; None if the path names none."""
    *above, key = path.split(".")
    model = _model_at(above, config)
    return _field(model, key) if model else None


def _field(model: type[BaseModel], key: str) -> FieldInfo | None:
    """The field that a file calls by this key."""
    return next((field for name, field in model.model_fields.items() if (field.alias or name) == key), None)


def _where_it_belongs(parts: Sequence[str], config: type[BaseModel]) -> str:
    """Remedy for an unknown key: a close name of its section, or else the place where a key of this name lives."""
    known = _fields_at(parts[:-1], config)
    homes = outermost(path for path in _paths_below("", config) if path.rpartition(".")[2] == parts[-1])
    is_near = bool(difflib.get_close_matches(parts[-1], known, n=1, cutoff=0.8))
    return f"it belongs elsewhere: {' or '.join(homes[:3])}" if homes and not is_near else nearest(parts[-1], known)


def _paths_below(prefix: str, config: type[BaseModel]) -> Iterator[str]:
    """Dotted paths of all settings; those in lists and under swept settings have no fixed place and are left out."""
    for own_name, field in config.model_fields.items():
        name = field.alias or own_name
        yield f"{prefix}{name}"
        if get_origin(field.annotation) not in (dict, tuple):
            for model in models_in(field.annotation):
                yield from _paths_below(f"{prefix}{name}.", model)


def _fields_at(parts: Sequence[str], config: type[BaseModel]) -> list[str]:
    model = _model_at(parts, config)
    return [field.alias or name for name, field in model.model_fields.items()] if model else []


def _description(parts: Sequence[str], config: type[BaseModel]) -> str:
    field = field_at(".".join(parts), config)
    return first_sentence((field.description or "") if field else "")


def first_sentence(docstring: str) -> str:
    """The first sentence of a docstring, on one line and without its full stop."""
    return " ".join(docstring.split()).split(". ")[0].removesuffix(".")
