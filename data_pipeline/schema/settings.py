"""Base class of all settings, and parsers for quantities with a unit: 2%, 20M, 1.5GiB."""

import math
import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo


class Settings(BaseModel):
    """Base of all settings: frozen. An unknown key is an error; otherwise a typo would silently keep a default."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        # A diverged loss is written as NaN, which Python's json reads; null would mean that no loss exists.
        ser_json_inf_nan="constants",
    )


_DECIMAL = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}
_BYTES = {"": 1, "B": 1} | {
    f"{prefix}{unit}": base ** (power + 1)
    for power, prefix in enumerate("KMGT")
    for unit, base in (("iB", 1024), ("B", 1000))
}
_NUMBER_WITH_UNIT = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_count(value: Any) -> Any:
    """Parse `20M`, `1.5k` or `2e6` into a whole number; values that are not strings pass unchanged.

    Raises:
        ValueError: A string that is no quantity, or not a whole number.
    """
    return _scaled(value, _DECIMAL, example="20M")


def parse_bytes(value: Any) -> Any:
    """Parse `24GiB` or `800MB` into bytes; values that are not strings pass unchanged.

    Raises:
        ValueError: A string that is no quantity, or not a whole number of bytes.
    """
    return _scaled(value, _BYTES, example="1.5GiB")


def parse_share(value: Any) -> Any:
    """Parse `2%` into 0.02; other values pass unchanged."""
    if isinstance(value, str) and value.strip().endswith("%"):
        return float(value.strip()[:-1]) / 100
    return value


def format_bytes(num_bytes: float) -> str:
    """Text such as `1.50 GiB`, in the largest binary unit that gives a number of at least one."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(num_bytes) >= size:
            return f"{num_bytes / size:.2f} {unit}"
    return f"{num_bytes:.0f} B"


def _scaled(value: Any, units: dict[str, int], *, example: str) -> Any:
    if not isinstance(value, str):
        return value
    match = _NUMBER_WITH_UNIT.fullmatch(value)
    if match is None or match[2] not in units:
        raise ValueError(
            f"not a quantity; write a number, optionally with one of the units {', '.join(filter(None, units))}, for "
            f"example {example}"
        )
    scaled = float(match[1]) * units[match[2]]
    if not math.isfinite(scaled):
        raise ValueError("not a finite number; write a smaller one")
    if scaled != int(scaled):
        raise ValueError(f"not a whole number: {scaled:g}; add digits or use a smaller unit")
    return int(scaled)


Count = Annotated[int, BeforeValidator(parse_count), Field(ge=1)]
"""A whole number from 1, also written `20M`."""

NumBytes = Annotated[int, BeforeValidator(parse_bytes), Field(ge=1)]
"""A number of bytes, also written `24GiB` (1024) or `24GB` (1000)."""

Share = Annotated[float, BeforeValidator(parse_share), Field(ge=0, le=1)]
"""A share of a whole in [0, 1], also written `2%`."""


def younger(default: Any) -> FieldInfo:
    """Metadata of a field that is younger than the first results: dumps leave it out at its default.

    So the resolved files, identities and checkpoints of before stay as they are.
    """
    field: FieldInfo = Field(exclude_if=lambda value: bool(value == default))
    return field


def clock(seconds: float) -> str:
    """Duration as text: `1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
