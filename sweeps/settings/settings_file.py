"""Loads YAML settings files: applies size and overrides, checks all rules, reports all faults at once."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from data_pipeline.schema.dotted_paths import set_at
from sweeps.search_space.distribution import Distribution
from sweeps.settings.other_syntax import KEYWORDS, in_our_syntax
from sweeps.settings.settings_faults import (
    Fault,
    SettingsFileError,
    fault_of,
    nearest,
    takes_whole_numbers,
    without_union_noise,
)
from sweeps.settings.size_presets import LAPTOP, lines_of_size, with_size
from sweeps.settings.yaml_lines import MOST_BYTES, YamlDocument, YamlRuleError, decode_yaml, parse_value, read_yaml

Config = TypeVar("Config", bound=BaseModel)
_EXTENSION = "x-"
"""Beginning of top-level keys that are ignored."""


@dataclass(frozen=True)
class SettingsKind(Generic[Config]):
    """A kind of settings file: its config class, name, example and extra checks."""

    config: type[Config]
    """Must have a field `size`."""
    what: str
    """Name of the kind with its article, as in `give the path of a sweep file`."""
    example: str
    """Path of a complete file, for the message about an empty one."""
    is_another: Callable[[dict[str, Any]], str | None]
    """Returns the command for a file of another kind; None if the values are of this kind."""
    more_faults: Callable[[dict[str, Any], YamlDocument], Iterator[Fault]]
    """Finds the faults beyond the config's own rules."""
    sweepable: Callable[[], Iterable[str]]
    """Dotted paths that may be in the section `search`."""


def load_settings(path: Path, kind: SettingsKind[Config], overrides: Sequence[str] = ()) -> Config:
    """The settings of a file, after `key=value` overrides on dotted paths.

    Raises:
        SettingsFileError: The file cannot be read or breaks rules; the message lists every fault.
    """
    try:
        with path.open("rb") as file:
            # One more than a file may have: a larger one is refused without reading it all.
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml") if p != path], n=1)
        remedy = f"did you mean {path.parent / near[0]}?" if near else f"give the path of {kind.what}"
        raise SettingsFileError(str(path), [Fault("file", None, None, f"cannot be read ({error})", remedy)]) from error
    try:
        document = read_yaml(decode_yaml(data))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        line = mark.line + 1 if mark else None
        rule = problem if isinstance(error, YamlRuleError) else f"is not YAML: {problem}"
        raise SettingsFileError(str(path), [Fault("file", line, None, rule)]) from error
    return resolve_settings(document, kind, overrides, source=str(path))


def resolve_settings(
    document: YamlDocument, kind: SettingsKind[Config], overrides: Sequence[str] = (), *, source: str
) -> Config:
    """The settings of a YAML document; see `load_settings`."""
    values = document.values
    if isinstance(values, dict):
        # Extensions hold anchors for other sections, as in Compose files and OpenAPI.
        values = {key: value for key, value in values.items() if not key.startswith(_EXTENSION)}
    if not isinstance(values, dict):
        rule = f"contains no settings; start it with `name: my-sweep` (see {kind.example})"
        raise SettingsFileError(source, [Fault("file", None, None, rule)])
    command = kind.is_another(values)
    if command is not None:
        rule, remedy = f"does not belong in {kind.what}", f"run this file with {command}"
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
        # Check the other sizes too, so that their faults appear now and not at their first use.
        for name, differences in sizes.items():
            faults += _faults_of_size(name, as_it_stands, differences, kind, document) if name != size else []
    if faults or config is None:
        raise SettingsFileError(source, sorted(faults, key=lambda fault: fault.line or 0))
    return config


def _checked(
    values: dict[str, Any], kind: SettingsKind[Config], document: YamlDocument
) -> tuple[Config | None, list[Fault]]:
    """The config, or None with the faults of the values."""
    config = None
    faults: list[Fault] = []
    if "constraint" in kind.config.model_fields:
        values, document = _constraint_lifted(values, document)
    if isinstance(values.get("search"), dict):
        known = list(kind.sweepable())
        whole = [path for path in known if takes_whole_numbers(path, kind.config)]
        search, faults = in_our_syntax(values["search"], document, known=known, whole=whole)
        values = {**values, "search": search}
    try:
        config = kind.config.model_validate(values)
    except ValidationError as error:
        faults += [fault_of(detail, kind.config, document) for detail in without_union_noise(error)]
    return None if faults else config, [*faults, *kind.more_faults(values, document)]


def _constraint_lifted(values: dict[str, Any], document: YamlDocument) -> tuple[dict[str, Any], YamlDocument]:
    """The values with `search.constraint` beside `search`, where the config has it, and the lines of both."""
    search = values.get("search")
    if not isinstance(search, dict) or "constraint" not in search or "constraint" in values:
        return values, document
    lines = {f"search.{key}": key for key in ("constraint", *(f"constraint.{index}" for index in range(99)))}
    known = {key: document.lines[written] for written, key in lines.items() if written in document.lines}
    rest = {path: one for path, one in search.items() if path != "constraint"}
    lifted = {**values, "search": rest, "constraint": search["constraint"]}
    return lifted, replace(document, lines=document.lines | known)


def _is_size(override: str) -> bool:
    return override.partition("=")[0].strip() == "size"


def _sizes(
    values: dict[str, Any], overrides: Sequence[str], document: YamlDocument
) -> tuple[dict[str, dict[str, Any]], str, list[Fault]]:
    """The differences of each size in the file, the requested size, and the faults of both."""
    faults = []
    asked = [override.partition("=")[2].strip() for override in overrides if _is_size(override)]
    stands_as = str(values.get("size", LAPTOP))
    size = asked[-1] if asked else stands_as
    given = values.get("sizes", {})
    is_a_mapping = isinstance(given, dict) and all(isinstance(one, dict) for one in given.values())
    if not is_a_mapping:
        rule, remedy = "is not a mapping of size names to settings", "write sizes: {full: {model: {layers: 6}}}"
        faults.append(Fault("sizes", document.line_of("sizes"), None, rule, remedy))
        given = {}
    # Without `sizes` a size is only a label: a resolved file has its size applied already.
    known = list(dict.fromkeys([LAPTOP, *given])) if "sizes" in values else [stands_as]
    if size not in known and is_a_mapping:
        location = f"--set size={size}" if asked else "size"
        line = None if asked else document.line_of("size")
        remedy = nearest(size, known, listed=True) or f"choose one of: {', '.join(known)}"
        faults.append(Fault(location, line, None, "is not a size of this file", remedy))
    return given, size, faults


def _faults_of_size(
    name: str,
    as_it_stands: dict[str, Any],
    differences: dict[str, Any],
    kind: SettingsKind[Config],
    document: YamlDocument,
) -> Iterator[Fault]:
    own_lines = lines_of_size(document, name)
    known = {fault.location for fault in _checked(as_it_stands, kind, document)[1]}
    for fault in _checked(with_size(as_it_stands, differences) | {"size": name}, kind, own_lines)[1]:
        if fault.location not in known:
            yield replace(fault, location=f"sizes.{name}.{fault.location}")


def _apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> list[Fault]:
    faults = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            faults.append(Fault(f"--set {override}", None, None, "is not key=value", "write --set corpus.path=my.csv"))
            continue
        try:
            set_at(values, _override_path(key.strip()), parse_value(text))
        except YamlRuleError as error:
            faults.append(Fault(f"--set {key}", None, None, str(error.problem)))
            continue
        except yaml.YAMLError:
            faults.append(Fault(f"--set {override}", None, None, "has a value that is not YAML", "quote the value"))
            continue
        # A corpus has one source: a path on the command line replaces a builtin corpus of the file, and vice versa.
        if key.strip() in ("corpus.path", "corpus.builtin"):
            values["corpus"].pop("builtin" if key.strip() == "corpus.path" else "path", None)
    return faults


def _override_path(key: str) -> list[str]:
    # Keys of `search` contain dots: search.training.batch_size.choice has three levels, not four.
    if key.startswith("search."):
        setting, _, kind = key.removeprefix("search.").rpartition(".")
        if kind in Distribution.model_fields or kind in KEYWORDS:
            return ["search", setting, kind]
        return ["search", key.removeprefix("search.")]
    return key.split(".")


def objective_of(values: dict[str, Any]) -> Any:
    """Name of the objective in the values of a file; None without one."""
    objective = values.get("objective")
    return next(iter(objective), None) if isinstance(objective, dict) else objective
