"""Sizes of a sweep file: the file itself is the laptop size; `sizes` lists the differences of others, e.g. `full`."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

from sweeps.settings.yaml_lines import YamlDocument

LAPTOP = "laptop"
"""Size of a file without any differences applied."""
SIZES = (
    "Sizes of the file by name, each with the settings that differ from the file as it stands. --set size=full takes "
    "one. Example: `sizes: {full: {model: {layers: 6}}}`"
)
"""The explanation of the section `sizes`."""


def with_size(values: Mapping[str, Any], differences: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a file's values with the differences of one size applied.

    Sections are merged key by key. A swept setting is replaced whole: ranges of two sizes do not mix.
    """
    merged = {**deepcopy(dict(values))}
    for key, value in differences.items():
        there = merged.get(key)
        if key == "search" and isinstance(there, dict) and isinstance(value, dict):
            merged[key] = there | deepcopy(value)
        elif isinstance(there, dict) and isinstance(value, dict):
            merged[key] = with_size(there, value)
        else:
            merged[key] = deepcopy(value)
    return merged


def lines_of_size(document: YamlDocument, size: str) -> YamlDocument:
    """The document in which settings of a size have the line numbers of that size."""
    prefix = f"sizes.{size}."
    own = {path.removeprefix(prefix): line for path, line in document.lines.items() if path.startswith(prefix)}
    return replace(document, lines=document.lines | own)
