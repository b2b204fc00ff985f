"""YAML files of settings: read, sized, overridden and checked, with all faults of a file at once."""

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from data_pipeline.input_fault import InputFault
from sweeps.search_space import Distribution
from sweeps.sizes import LAPTOP, lines_of_size, with_size
from sweeps.yaml_places import YamlDocument, parse_value, read_yaml

Config = TypeVar("Config", bound=BaseModel)


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a file of settings."""

    place: str
    """Dotted path of the setting, or the file."""
    line: int | None
    value: Any
    rule: str
    remedy: str = ""

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        shown = "" if self.value is None or isinstance(self.value, dict | list) else f" = {self.value!r}"
        return f"{where}{self.place}{shown}: {self.rule}" + (f"; {self.remedy}" if self.remedy else "") + "."


class SettingsFileError(InputFault):
    """A file of settings that cannot be carried out, with every fault that was found."""

    def __init__(self, source: str, faults: Sequence[Fault]) -> None:
        self.source, self.faults = source, tuple(faults)
        count = "one fault" if len(faults) == 1 else f"{len(faults)} faults"
        super().__init__(f"{source} has {count}:\n" + "\n".join(f"  {fault}" for fault in faults))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.source, self.faults)


@dataclass(frozen=True)
class SettingsKind(Generic[Config]):
    """What a file is to be."""

    config: type[Config]
    """Has a field `size`."""
    what: str
    """As in `give the path of a sweep file`."""
    example: str
    """One that is complete, for somebody who gave an empty one."""
    is_another: Callable[[dict[str, Any]], str | None]
    """Of the values of a file of another kind: which command takes it. None: it is of this kind."""
    more_faults: Callable[[dict[str, Any], YamlDocument], Iterator[Fault]]
    """Those that the config's own rules do not find."""


def load_settings(path: Path, kind: SettingsKind[Config], overrides: Sequence[str] = ()) -> Config:
    """What a file describes, after `key=value` overrides on dotted keys.

    Raises:
        SettingsFileError: The file cannot be read, or anything in it breaks a rule; lists every fault.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        remedy = f"did you mean {path.parent / near[0]}?" if near else f"give the path of {kind.what}"
        raise SettingsFileError(str(path), [Fault("file", None, None, f"cannot be read ({error})", remedy)]) from error
    try:
        document = read_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        line = mark.line + 1 if mark else None
        raise SettingsFileError(str(path), [Fault("file", line, None, f"is not YAML: {problem}")]) from error
    return resolve_settings(document, kind, overrides, source=str(path))


def resolve_settings(
    document: YamlDocument, kind: SettingsKind[Config], overrides: Sequence[str] = (), *, source: str
) -> Config:
    """What a YAML document describes; see `load_settings`."""
    values = document.values
    if not isinstance(values, dict):
        rule = f"holds no settings; it starts with `name: my-sweep` (see {kind.example})"
        raise SettingsFileError(source, [Fault("file", None, None, rule)])
    command = kind.is_another(values)
    if command is not None:
        rule, remedy = f"says that this is not {kind.what}", f"{command} carries it out"
        raise SettingsFileError(source, [Fault("objective", document.line_of("objective"), None, rule, remedy)])
    faults = [Fault(key, line, None, "is given twice", "keep one of them") for key, line in document.duplicate_keys]
    as_it_stands = {key: value for key, value in values.items() if key != "sizes"}
    sizes, size, size_faults = _sizes(values, overrides, document)
    values = with_size(as_it_stands, sizes.get(size, {}))
    faults += size_faults + _apply_overrides(values, [one for one in overrides if not _is_size(one)])
    values["size"] = size
    config, found = _checked(values, kind, lines_of_size(document, size))
    faults += found
    if not faults:
        # The sizes that are not asked for now are wrong now, and not on the day when they are.
        for name, differences in sizes.items():
            faults += _faults_of_size(name, as_it_stands, differences, kind, document) if name != size else []
    if faults or config is None:
        raise SettingsFileError(source, sorted(faults, key=lambda fault: fault.line or 0))
    return config


def _checked(
    values: dict[str, Any], kind: SettingsKind[Config], document: YamlDocument
) -> tuple[Config | None, list[Fault]]:
    """The config, or all that keeps the values from being one."""
    config, faults = None, []
    try:
        config = kind.config.model_validate(values)
    except ValidationError as error:
        faults = [_fault_of(detail, kind.config, document) for detail in _without_union_noise(error)]
    return config, [*faults, *kind.more_faults(values, document)]


def _is_size(override: str) -> bool:
    return override.partition("=")[0].strip() == "size"


def _sizes(
    values: dict[str, Any], overrides: Sequence[str], document: YamlDocument
) -> tuple[dict[str, dict[str, Any]], str, list[Fault]]:
    """What differs in each size that the file has, and which one is asked for."""
    faults = []
    asked = [override.partition("=")[2].strip() for override in overrides if _is_size(override)]
    stands_as = str(values.get("size", LAPTOP))
    size = asked[-1] if asked else stands_as
    given = values.get("sizes", {})
    is_a_mapping = isinstance(given, dict) and all(isinstance(one, dict) for one in given.values())
    if not is_a_mapping:
        rule, remedy = "is not sizes by name, each with what differs", "write sizes: {full: {model: {layers: 6}}}"
        faults.append(Fault("sizes", document.line_of("sizes"), None, rule, remedy))
        given = {}
    # Without `sizes` a size is only a label: that of a resolved file, in which it has been laid over already.
    known = list(dict.fromkeys([LAPTOP, *given])) if "sizes" in values else [stands_as]
    if size not in known and is_a_mapping:
        place = f"--set size={size}" if asked else "size"
        line = None if asked else document.line_of("size")
        remedy = nearest(size, known, listed=True) or f"it has {', '.join(known)}"
        faults.append(Fault(place, line, None, "is not a size of this file", remedy))
    return given, size, faults


def _faults_of_size(
    name: str,
    as_it_stands: dict[str, Any],
    differences: dict[str, Any],
    kind: SettingsKind[Config],
    document: YamlDocument,
) -> Iterator[Fault]:
    own_lines = lines_of_size(document, name)
    known = {fault.place for fault in _checked(as_it_stands, kind, document)[1]}
    for fault in _checked(with_size(as_it_stands, differences) | {"size": name}, kind, own_lines)[1]:
        if fault.place not in known:
            yield replace(fault, place=f"sizes.{name}.{fault.place}")


def _apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> list[Fault]:
    faults = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            faults.append(Fault(f"--set {override}", None, None, "is not key=value", "write --set corpus.path=my.csv"))
            continue
        place: Any = values
        *parents, leaf = _override_path(key.strip())
        for name in parents:
            if not isinstance(place.get(name), dict):
                place[name] = {}
            place = place[name]
        try:
            place[leaf] = parse_value(text)
        except yaml.YAMLError:
            faults.append(Fault(f"--set {override}", None, None, "its value is not YAML", "put it in quotes"))
        # A corpus has one source: naming a path on the command line replaces a builtin corpus of the file.
        if key.strip() in ("corpus.path", "corpus.builtin"):
            place.pop("builtin" if leaf == "path" else "path", None)
    return faults


def _override_path(key: str) -> list[str]:
    # Keys of `search` are dotted themselves: search.training.batch_size.choice is two levels, not four.
    if key.startswith("search."):
        setting, _, kind = key.removeprefix("search.").rpartition(".")
        if kind in Distribution.model_fields:
            return ["search", setting, kind]
        return ["search", key.removeprefix("search.")]
    return key.split(".")


def _without_union_noise(error: ValidationError) -> Iterator[Any]:
    """One detail for each place: a union reports a fault for every member that did not fit."""
    by_place: dict[str, list[Any]] = {}
    for detail in error.errors(include_url=False):
        by_place.setdefault(_place_of(detail["loc"]), []).append(detail)
    for details in by_place.values():
        if len(details) > 1 and {"literal_error"} & {detail["type"] for detail in details}:
            literal = next(detail for detail in details if detail["type"] == "literal_error")
            other = next(detail for detail in details if detail["type"] != "literal_error")
            literal["msg"] = f"{_rule_of(other)}, or {literal['ctx']['expected']}"
            literal["type"] = "union"
            yield literal
        else:
            yield details[0]


def _place_of(location: tuple[int | str, ...]) -> str:
    # pydantic names the union member it tried (`constrained-int`, `literal['auto']`, `function-before[...]`).
    parts = [
        str(part)
        for part in location
        if not re.search(r"^(constrained-|literal\[|function-|int$|float$|str$|bool$)", str(part))
    ]
    return ".".join(parts)


def _fault_of(detail: Any, config: type[BaseModel], document: YamlDocument) -> Fault:
    place = _place_of(detail["loc"])
    remedy = ""
    value = detail.get("input")
    match detail["type"]:
        case "extra_forbidden":
            parent, _, key = place.rpartition(".")
            rule = "is not a setting"
            remedy = nearest(key, _fields_at(parent, config))
            value = None
        case "missing":
            rule, value = "is missing", None
            description = _description(place, config)
            remedy = f"give it: {description}" if description else "give it"
        case "literal_error":
            rule = f"is not one of {detail['ctx']['expected']}"
            remedy = nearest(str(value), re.findall(r"'([^']*)'", detail["ctx"]["expected"]), listed=True)
        case _:
            rule = _rule_of(detail)
    return Fault(place or "file", document.line_of(place), value, rule, remedy)


def _rule_of(detail: Any) -> str:
    message = str(detail["msg"])
    for prefix, plain in (("Value error, ", ""), ("Input should be a valid ", "is not a "), ("Input should", "should")):
        if message.startswith(prefix):
            return plain + message.removeprefix(prefix)
    return message


def faults_of_value(section: type[BaseModel], path: str, value: Any, where: Fault) -> Iterator[Fault]:
    """What is wrong with a value of a setting on its own: its section is valid but for it.

    Args:
        path: Dotted path of the setting in its section.
        where: The fault without its rule.
    """
    nested: Any = value
    for part in reversed(path.split(".")):
        nested = {part: nested}
    try:
        section.model_validate(nested)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            if _place_of(detail["loc"]) == path:
                yield replace(where, rule=_rule_of(detail))
                return


def objective_of(values: dict[str, Any]) -> Any:
    """The name of the objective in the values of a file; None where there is none."""
    objective = values.get("objective")
    return next(iter(objective), None) if isinstance(objective, dict) else objective


def nearest(word: str, known: Sequence[str], *, listed: bool = False) -> str:
    """What to say of a word that is not known: the one that was meant, or else all there are.

    Args:
        listed: They stand in the message already.
    """
    matches = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if matches:
        return f"did you mean {matches[0]}?"
    return "" if listed else f"known here: {', '.join(known)}"


def _model_at(path: str, config: type[BaseModel]) -> type[BaseModel] | None:
    model: type[BaseModel] | None = config
    for part in path.split(".") if path else []:
        field = model.model_fields.get(part) if model else None
        model = next(iter(models_in(field.annotation)), None) if field else None
    return model


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Sections that a field of this annotation may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def _fields_at(path: str, config: type[BaseModel]) -> list[str]:
    model = _model_at(path, config)
    return list(model.model_fields) if model else []


def _description(path: str, config: type[BaseModel]) -> str:
    parent, _, key = path.rpartition(".")
    model = _model_at(parent, config)
    description = (model.model_fields[key].description or "") if model and key in model.model_fields else ""
    return description.split("\n")[0].rstrip(".")
