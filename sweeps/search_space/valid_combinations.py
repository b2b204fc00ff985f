"""Combinations of swept settings that break a rule together: a width of 30 with 4 heads."""

import itertools
import math
import random
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sweeps.search_space.distribution import Distribution, SearchSpace, settings_in_words

MOST_JUDGED = 5_000
"""Combinations that are judged one by one; of more, or of a range of fractions, some are drawn."""
_DRAWN = 2_000
_SHOWN = 10

Linked = Collection[Collection[str]]
FaultOf = Callable[[dict[str, Any]], str | None]
"""The rule that settings (dotted path to value) break together, with its remedy; None if they are valid."""


@dataclass(frozen=True)
class Combinations:
    """The combinations of the swept settings of one section (`model`, `training`), each judged.

    The rules of settings lie within a section, so each section is judged for itself, or with those that a constraint
    ties to it.
    """

    paths: tuple[str, ...]
    num_judged: int
    is_sampled: bool
    """True: the combinations judged are drawn at random, always the same ones."""
    faults: tuple[tuple[dict[str, Any], str], ...]
    """Each invalid combination judged, with the rule it breaks."""

    @property
    def num_valid(self) -> int:
        """Valid combinations of those judged."""
        return self.num_judged - len(self.faults)

    def __str__(self) -> str:
        settings = ", ".join(self.paths)
        if self.is_sampled:
            return f"{self.num_valid:,} of {self.num_judged:,} combinations of {settings}, drawn as a sample, are valid"
        return f"{self.num_valid:,} of {self.num_judged:,} combinations of {settings} are valid"

    def in_words(self) -> Iterator[str]:
        """Lines: how many combinations are left, and each that is refused, at most ten."""
        yield f"{self}; the others are never launched"
        for settings, rule in self.faults[:_SHOWN]:
            yield f"  {settings_in_words(settings)}: {rule}"
        if len(self.faults) > _SHOWN:
            yield f"  and {len(self.faults) - _SHOWN:,} more"


def partly_invalid(
    space: SearchSpace, fault_of: FaultOf, *, linked: Linked = (), grid_points: int | None = None
) -> Iterator[Combinations]:
    """The sections some of whose combinations are invalid, with all combinations judged.

    Args:
        linked: Groups of swept settings that a constraint ties together, across sections.
        grid_points: Values that a grid takes from each range. None: the space is no grid.
    """
    for part in _sections(space, linked):
        combinations, is_sampled = _combinations(part, grid_points)
        judged = [(settings, fault_of(settings)) for settings in combinations]
        faults = tuple((settings, rule) for settings, rule in judged if rule is not None)
        if faults:
            yield Combinations(tuple(part), len(judged), is_sampled, faults)


def nothing_valid(
    space: SearchSpace, fault_of: FaultOf, *, linked: Linked = (), grid_points: int | None = None
) -> Combinations | None:
    """The first section without any valid combination; None if every section has one. See `partly_invalid`."""
    for part in _sections(space, linked):
        if all(fault_of(settings) is not None for settings in _combinations(part, grid_points)[0]):
            return next(partly_invalid(part, fault_of, linked=linked, grid_points=grid_points))
    return None


def valid_near(
    corner: dict[str, Any],
    space: SearchSpace,
    fault_of: FaultOf,
    *,
    size: Callable[[Any], float],
    linked: Linked = (),
    grid_points: int | None = None,
) -> dict[str, Any]:
    """Small valid settings: those of `corner`, and in a section where they are invalid the smallest valid combination.

    Args:
        size: Size of a value; that of a combination is the product.
    """
    near = dict(corner)
    for part in _sections(space, linked):
        if fault_of({path: corner[path] for path in part}) is not None:
            valid = [one for one in _combinations(part, grid_points)[0] if fault_of(one) is None]
            sizes = [math.prod([size(value) or 1.0 for value in one.values()]) for one in valid]
            if valid:
                near |= valid[sizes.index(min(sizes))]
    return near


def _sections(space: SearchSpace, linked: Linked) -> list[dict[str, Distribution]]:
    """The settings that are judged together: those of one section, and sections that a group of `linked` ties."""
    groups: list[set[str]] = []
    by_section = [{path for path in space if path.partition(".")[0] == name} for name in _names_of_sections(space)]
    for group in (*by_section, *map(set, linked)):
        tied = [one for one in groups if one & group]
        groups = [*(one for one in groups if one not in tied), group.union(*tied)] if group else groups
    return [{path: space[path] for path in space if path in group} for group in groups]


def _names_of_sections(space: SearchSpace) -> list[str]:
    return list(dict.fromkeys(path.partition(".")[0] for path in space))


def _combinations(part: SearchSpace, grid_points: int | None) -> tuple[Iterator[dict[str, Any]], bool]:
    """All combinations, or some that are drawn; and whether they are drawn."""
    axes = {path: _values(distribution, grid_points) for path, distribution in part.items()}
    known = {path: values for path, values in axes.items() if values is not None}
    if len(known) == len(axes) and math.prod(map(len, known.values())) <= MOST_JUDGED:
        return (dict(zip(known, values, strict=True)) for values in itertools.product(*known.values())), False
    return _drawn(part, axes), True


def _values(distribution: Distribution, grid_points: int | None) -> tuple[Any, ...] | range | None:
    """All values of a distribution; None for a range of fractions."""
    if distribution.kind == "choice" or grid_points is not None:
        return distribution.grid(grid_points or 1)
    if "int" not in distribution.kind:
        return None
    low, high = distribution.extremes()
    return range(low, high + 1)


def _drawn(part: SearchSpace, axes: Mapping[str, tuple[Any, ...] | range | None]) -> Iterator[dict[str, Any]]:
    rng = random.Random(0)
    for _ in range(_DRAWN):
        yield {
            path: _fraction(part[path], rng) if values is None else rng.choice(values) for path, values in axes.items()
        }


def _fraction(distribution: Distribution, rng: random.Random) -> float:
    low, high = distribution.extremes()
    if distribution.kind.startswith("log"):
        return float(min(max(math.exp(rng.uniform(math.log(low), math.log(high))), low), high))
    return rng.uniform(low, high)
