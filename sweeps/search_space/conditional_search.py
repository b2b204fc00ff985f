"""Conditions between swept settings: a setting with `when` is searched only where another has a certain value.

Elsewhere it has the value of the file, so every trial names all swept settings, and two settings that differ only in a
value without effect are one.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from typing import Any

from sweeps.search_space.distribution import Distribution, SearchSpace

_MOST_COUNTED = 100_000
"""Combinations that are counted one by one; of more, those with equal effect are counted as well."""


def settled(space: SearchSpace, settings: dict[str, Any], file_value: Callable[[str], Any]) -> dict[str, Any]:
    """Settings with the file's value where the condition of a setting does not hold; other paths stay.

    Args:
        file_value: The value at a dotted path of the sweep file.
    """
    conditional = [path for path in _in_order(space) if space[path].when and path in settings]
    if not conditional:
        return settings
    found = dict(settings)
    for path in conditional:
        if not space[path].is_searched(lambda other: found[other] if other in found else file_value(other)):
            found[path] = file_value(path)
    return found


def distinct(
    space: SearchSpace, proposals: Iterable[dict[str, Any]], file_value: Callable[[str], Any]
) -> Iterator[dict[str, Any]]:
    """Settled settings, each once."""
    if not any(one.when for one in space.values()):
        yield from proposals
        return
    seen = set()
    for settings in proposals:
        found = settled(space, settings, file_value)
        key = repr(found)
        if key not in seen:
            seen.add(key)
            yield found


def num_settings(space: SearchSpace, grid_points: int | None, file_value: Callable[[str], Any]) -> float:
    """Number of distinct settings of a space; infinite with a range of fractions.

    Args:
        grid_points: Values that a grid takes from each range. None: the space is no grid.
    """
    count = math.prod(distribution.count(grid_points) for distribution in space.values())
    if count > _MOST_COUNTED or not any(one.when for one in space.values()):
        return count
    axes = [one.grid(grid_points or int(one.count(None))) for one in space.values()]
    proposals = (dict(zip(space, values, strict=True)) for values in itertools.product(*axes))
    return sum(1 for _ in distinct(space, proposals, file_value))


def condition_faults(space: SearchSpace) -> Iterator[tuple[str, str]]:
    """Faults of the conditions: the path of the setting, and rule and remedy."""
    for path, distribution in space.items():
        for other, wanted in (distribution.when or {}).items():
            if other not in space:
                yield path, f"when names {other}, which is not swept; sweep it, or remove the condition"
                continue
            unknown = [value for value in wanted if not space[other].holds(value)]
            if unknown or not wanted:
                values = ", ".join(map(str, unknown)) or "no value"
                yield path, f"when waits for {other} = {values}, but it is {space[other]}; list values that it may have"
    try:
        _in_order(space)
    except CycleError as error:
        circle = [str(path) for path in error.args[1]]
        yield circle[0], f"when goes in a circle: {' waits for '.join(circle)}; remove one of the conditions"


def _in_order(space: SearchSpace) -> tuple[str, ...]:
    """Paths, each after those that its condition names."""
    sorter = TopologicalSorter({path: [one for one in space[path].when or {} if one in space] for path in space})
    return tuple(sorter.static_order())


def in_space(distribution: Distribution, value: Any) -> Any:
    """A value of the distribution for a setting whose value has no effect: its own if the distribution holds it."""
    return value if distribution.holds(value) else distribution.extremes()[0]
