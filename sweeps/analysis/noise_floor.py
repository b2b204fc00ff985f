"""The noise of a loss between seeds, and the ties that follow from it.

The standard deviation between seeds is pooled over all repeated settings. Intervals are Student's: with few repeats the
estimate of the deviation is itself uncertain, and normal intervals would be too narrow and miss ties.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import TrialRecord
from sweeps.settings.setting_paths import SEED

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class SeedGroup:
    """Completed trials that differ only in the seed, smallest loss first."""

    records: tuple[TrialRecord, ...]

    @property
    def count(self) -> int:
        """Number of trials."""
        return len(self.records)

    @cached_property
    def losses(self) -> tuple[float, ...]:
        """In nats per predicted token."""
        return tuple(record.loss for record in self.records if record.loss is not None)

    @cached_property
    def mean(self) -> float:
        """Mean loss over the seeds."""
        return math.fsum(self.losses) / self.count


@dataclass(frozen=True)
class NoiseFloor:
    """Standard deviation of the loss between seeds, in nats, and the degrees of freedom behind it."""

    std_nats: float
    degrees: int

    def half_width(self, count: int) -> float:
        """Half width of the 95 % interval around a mean over `count` seeds."""
        return self._quantile * self.std_nats / math.sqrt(count)

    def least_difference(self, count: int, other: int) -> float:
        """Least significant difference between means over `count` and `other` seeds; smaller ones are ties."""
        return self._quantile * self.standard_error(count, other)

    def standard_error(self, count: int, other: int) -> float:
        """Standard error of the difference between means over `count` and `other` seeds."""
        return self.std_nats * math.sqrt(1 / count + 1 / other)

    @cached_property
    def _quantile(self) -> float:
        # scipy takes longer to import than most commands that rank trials, and only repeats need it.
        from scipy.special import stdtrit

        return float(stdtrit(self.degrees, 0.5 + _CONFIDENCE / 2))


@dataclass(frozen=True)
class Standing:
    """Mean, interval and tie group of one trial's settings over their seeds."""

    group: SeedGroup
    mean_loss: float
    num_seeds: int
    low: float | None
    """Lower end of the 95 % interval of the mean; None without repeats."""
    high: float | None
    tie_group: int | None
    """1: ties with the best. 2: ties with the best of the rest; and so on. None without repeats."""


@dataclass(frozen=True)
class Verdict:
    """The best settings, the next ones, and the settings that tie with the best."""

    best: SeedGroup
    second: SeedGroup | None
    noise: NoiseFloor | None
    tied: tuple[SeedGroup, ...]
    """Other settings that tie with the best (difference below the noise)."""

    @property
    def margin_nats(self) -> float | None:
        """Difference between the next mean and the best mean."""
        return None if self.second is None else self.second.mean - self.best.mean

    @property
    def margin_over_noise(self) -> float | None:
        """The margin in its standard errors; None without repeats."""
        if self.second is None or self.noise is None or self.margin_nats is None:
            return None
        error = self.noise.standard_error(self.best.count, self.second.count)
        return self.margin_nats / error if error else None

    @property
    def is_told_apart(self) -> bool | None:
        """Whether no other settings tie with the best; None without repeats."""
        return None if self.noise is None else not self.tied


def seed_groups(records: Sequence[TrialRecord]) -> list[SeedGroup]:
    """Completed trials with a finite loss by their settings, the best settings first.

    Settings are ordered by their mean plus one standard error, so a single low loss does not beat a mean over several
    seeds. Without repeats that is the order of losses.
    """
    groups = _grouped(records)
    noise = _noise(groups)
    order = _tie_groups(groups, noise)
    return sorted(
        groups, key=lambda group: (order.get(id(group), 0), _with_its_error(group, noise), group.records[0].number)
    )


def noise_floor(records: Sequence[TrialRecord]) -> NoiseFloor | None:
    """The noise between seeds; None if no settings completed twice."""
    return _noise(_grouped(records))


def standings(records: Sequence[TrialRecord]) -> dict[int, Standing]:
    """Trial number to standing, for every completed trial with a finite loss."""
    groups = _grouped(records)
    noise = _noise(groups)
    order = _tie_groups(groups, noise)
    found = {}
    for group in groups:
        half = None if noise is None else noise.half_width(group.count)
        standing = Standing(
            group=group,
            mean_loss=group.mean,
            num_seeds=group.count,
            low=None if half is None else group.mean - half,
            high=None if half is None else group.mean + half,
            tie_group=order.get(id(group)),
        )
        found.update({record.number: standing for record in group.records})
    return found


def verdict(records: Sequence[TrialRecord]) -> Verdict | None:
    """The winner and its ties; None if no trial completed."""
    groups = seed_groups(records)
    if not groups:
        return None
    noise = noise_floor(records)
    order = _tie_groups(groups, noise)
    tied = tuple(group for group in groups[1:] if order.get(id(group)) == 1)
    return Verdict(groups[0], groups[1] if len(groups) > 1 else None, noise, tied)


def winner_in_words(found: Verdict) -> str:
    """The winner, its margin and its ties, as a sentence."""
    name = found.best.records[0].name
    if found.second is None:
        return f"{name} has the only completed settings."
    gap = nats(found.margin_nats or 0.0)
    if found.noise is None:
        return (
            f"{name} leads {found.second.records[0].name} by {gap}. No settings were repeated with another seed, so "
            "the noise is unknown."
        )
    floor = f"{found.noise.std_nats:.4f} nats between seeds ({found.noise.degrees} degrees of freedom)"
    over = "" if found.margin_over_noise is None else f", {found.margin_over_noise:.1f} standard errors"
    if found.tied:
        names = ", ".join(group.records[0].name for group in found.tied[:4])
        more = f" and {len(found.tied) - 4} more" if len(found.tied) > 4 else ""
        return (
            f"{name} leads by {gap}{over}. It ties with {names}{more} (difference below the noise): the standard "
            f"deviation is {floor}."
        )
    return f"{name} wins by {gap}{over}, above the noise: the standard deviation is {floor}."


def nats(difference: float) -> str:
    """A difference of two losses, which is never shown as 0.0000 unless it is zero."""
    return f"{difference:.4f} nats" if difference == 0 or abs(difference) >= 5e-5 else "less than 0.0001 nats"


def next_repeat(records: Sequence[TrialRecord], *, leaders: int, file_seed: int) -> dict[str, Any] | None:
    """Settings of a leading trial with an unused seed; None once no other leader ties with the best.

    Args:
        leaders: Number of best settings that are repeated.
        file_seed: Seed of the trials whose settings name none.
    """
    groups = seed_groups(records)[:leaders]
    if not groups:
        return None
    noise = noise_floor(records)
    wanted = groups
    if noise is not None:
        best = groups[0]
        tied = [one for one in groups[1:] if one.mean - best.mean <= noise.least_difference(one.count, best.count)]
        wanted = [best, *tied] if tied or len(groups) == 1 else []
        if len(groups) == 1 and best.count > 1:
            wanted = []
    started = {_key(group.records[0]): [r for r in records if _key(r) == _key(group.records[0])] for group in groups}
    # The fewest seeds first; of two settings with equally many, the better one.
    chosen = min(wanted, key=lambda group: len(started[_key(group.records[0])]), default=None)
    if chosen is None:
        return None
    settings = chosen.records[0].settings
    used = [int(record.settings.get(SEED, file_seed)) for record in started[_key(chosen.records[0])]]
    return settings | {SEED: max(used) + 1}


def _key(record: TrialRecord) -> str:
    return repr(sorted((path, value) for path, value in record.settings.items() if path != SEED))


def _grouped(records: Sequence[TrialRecord]) -> list[SeedGroup]:
    alike: dict[str, list[TrialRecord]] = {}
    # A twin has the loss of another trial: it is no second sample.
    for record in (one for one in records if one.twin_of is None):
        if record.outcome is Outcome.COMPLETED and record.loss is not None and math.isfinite(record.loss):
            alike.setdefault(_key(record), []).append(record)
    return [SeedGroup(tuple(sorted(group, key=lambda r: (r.loss or 0.0, r.number)))) for group in alike.values()]


def _noise(groups: Sequence[SeedGroup]) -> NoiseFloor | None:
    degrees = sum(group.count - 1 for group in groups)
    if not degrees:
        return None
    squares = math.fsum((loss - group.mean) ** 2 for group in groups for loss in group.losses)
    return NoiseFloor(math.sqrt(squares / degrees), degrees)


def _with_its_error(group: SeedGroup, noise: NoiseFloor | None) -> float:
    return group.mean + (noise.std_nats / math.sqrt(group.count) if noise else 0.0)


def _tie_groups(groups: Sequence[SeedGroup], noise: NoiseFloor | None) -> dict[int, int]:
    """`id` of a group to the number of its tie group; empty if the noise is unknown."""
    if noise is None:
        return {}
    left = sorted(groups, key=lambda group: (_with_its_error(group, noise), group.records[0].number))
    order: dict[int, int] = {}
    number = 0
    while left:
        number += 1
        best = left[0]
        tied = [one for one in left if one.mean - best.mean <= noise.least_difference(one.count, best.count)]
        tied = [best, *(one for one in tied if one is not best)]
        order |= {id(group): number for group in tied}
        left = [group for group in left if id(group) not in order]
    return order
