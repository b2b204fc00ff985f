"""Values of swept settings in the types of their settings: 32.0 is 32 for a whole number, and "16" is a fault."""

import math
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from sweeps.search_space.distribution import Distribution, SearchSpace
from sweeps.settings.settings_faults import field_at, models_in

Location = tuple[int | str, ...]
Values = TypeVar("Values")


def typed_space(config: type[BaseModel], space: SearchSpace) -> dict[str, Distribution]:
    """The space with each value in the type of its setting. Paths that name no setting stay as they are.

    Raises:
        ValidationError: Values have another type or break a rule; it lists all of them.
    """
    typed, faults = dict(space), list[InitErrorDetails]()
    for path, distribution in space.items():
        setting = _setting(config, path)
        if setting is None:
            continue
        found = [*_faults_of_kind(setting, path, distribution)]
        values = (
            distribution.extremes()
            if found
            else [
                _typed(setting, value, (path, distribution.kind, index), found)
                for index, value in enumerate(distribution.extremes())
            ]
        )
        if not found and distribution.kind == "choice":
            try:
                typed[path] = Distribution(choice=tuple(values), when=distribution.when)
            except ValidationError as error:  # 32 and 32.0 are one value.
                found += [fault_at((path, "choice"), None, detail["ctx"]["error"]) for detail in error.errors()]
        faults += found
    return _checked(typed, config, faults)


def typed_settings(config: type[BaseModel], settings: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
    """Settings (dotted path to value) with each value in the type of its setting; see `typed_space`."""
    faults: list[InitErrorDetails] = []
    typed = tuple(
        {
            path: value
            if (setting := _setting(config, path)) is None
            else _typed(setting, value, (index, path), faults)
            for path, value in one.items()
        }
        for index, one in enumerate(settings)
    )
    return _checked(typed, config, faults)


def _checked(values: Values, config: type[BaseModel], faults: list[InitErrorDetails]) -> Values:
    if faults:
        raise ValidationError.from_exception_data(config.__name__, faults)
    return values


class _Setting(NamedTuple):
    adapter: TypeAdapter[Any]
    types: frozenset[Any]
    """Types that its values may have."""

    @property
    def is_number(self) -> bool:
        return bool(self.types & {int, float})


@cache
def _setting(config: type[BaseModel], path: str) -> _Setting | None:
    """The type and the rules of a setting; None if the path names none."""
    field = field_at(path, config)
    if field is None or any(models_in(field.annotation)):
        return None
    annotation: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    return _Setting(TypeAdapter(annotation), frozenset(_types(field.annotation)))


def _types(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin is Literal:
        yield from map(type, get_args(annotation))
    elif origin is None:
        yield annotation
    else:
        for argument in get_args(annotation)[: 1 if origin is Annotated else None]:
            yield from _types(argument)


def _faults_of_kind(setting: _Setting, path: str, distribution: Distribution) -> Iterator[InitErrorDetails]:
    kind = distribution.kind
    if kind == "choice":
        return
    if not setting.is_number:
        yield fault_at((path, kind), None, f"{kind} gives numbers, and this setting is none; list its values: choice")
    elif "int" not in kind and float not in setting.types:
        whole = kind.replace("uniform", "int_uniform")
        yield fault_at((path, kind), None, f"{kind} gives fractions, and this setting is a whole number; use {whole}")


def _typed(setting: _Setting, value: Any, location: Location, faults: list[InitErrorDetails]) -> Any:
    """The value in the type of its setting. The faults of a value of another type are added to `faults`."""
    if setting.is_number and isinstance(value, str) and _is_number(value):
        faults.append(fault_at(location, value, f'"{value}" is text; write {value.strip()}, without quotes'))
        return value
    if setting.is_number and isinstance(value, bool):
        faults.append(fault_at(location, value, f"{str(value).lower()} is no number; write a number"))
        return value
    try:
        typed = setting.adapter.validate_python(value)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            loc = (*location, *detail["loc"])
            faults.append(InitErrorDetails(type=detail["type"], loc=loc, input=value, ctx=detail.get("ctx", {})))
        return value
    # A path made absolute, or a list joined, stays as the file has it: the identity of earlier sweeps depends on it.
    return typed if isinstance(value, str | float) and isinstance(typed, int | float) else value


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def fault_at(location: Location, value: Any, words: object) -> InitErrorDetails:
    """A fault for `ValidationError.from_exception_data`, in words that hold rule and remedy."""
    custom = PydanticCustomError("value_error", "{words}", {"words": str(words)})
    return InitErrorDetails(type=custom, loc=location, input=value)
