"""The noise of a loss, and the ties that follow from it.

The standard deviation between seeds is pooled over all repeated settings, and with a prior: two repeats that happen to
agree do not show that seeds change nothing. Intervals are Student's, because the estimate of the deviation is itself
uncertain. The holdout is a sample as well: a difference of two losses on it has a sampling error.

Where a sweep file names another metric, its costs (TrialRecord.cost) take the place of losses, in the unit of the
metric; there is no prior then, and rows to test on count as independent.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sweeps.analysis.winners_luck import luck_of_lowest
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import TrialRecord
from sweeps.settings.metric_config import Metric
from sweeps.settings.setting_paths import SEED

_CONFIDENCE = 0.95
_Z = 1.96
_LARGEST_HOLDOUT = 1000
"""Times the present holdout, at most, that is advised."""
PRIOR_NATS, PRIOR_DEGREES = 0.01, 2
"""Deviation between seeds before any repeat, and its weight in degrees of freedom. Known deviations span more than an
order: 0.001 nats for 124M parameters (32 published settings of five seeds), 0.03 in causal_books of
tests/benchmarks/ground_truth. The prior lies between."""
PAIRED = 0.4
"""Standard error of a difference of two losses on one holdout, over that of two independent holdouts. Measured on ten
pairs of settings a job (tests/benchmarks/ground_truth/measure_noise.py): median 0.42 for causal_books, 0.31 for
masked_packets."""


@dataclass(frozen=True)
class SeedGroup:
    """Completed trials that differ only in the seed, lowest cost first."""

    records: tuple[TrialRecord, ...]

    @property
    def count(self) -> int:
        """Number of trials."""
        return len(self.records)

    @cached_property
    def losses(self) -> tuple[float, ...]:
        """Costs of the trials: by default losses in nats per predicted token."""
        return tuple(record.cost for record in self.records if record.cost is not None)

    @cached_property
    def mean(self) -> float:
        """Mean loss over the seeds."""
        return math.fsum(self.losses) / self.count


@dataclass(frozen=True)
class NoiseFloor:
    """The noise of differences between losses."""

    std_nats: float
    """Standard deviation between seeds."""
    degrees: int
    """Degrees of freedom behind it, those of the prior included."""
    holdout_nats: float
    """Standard error of a difference of two losses on this holdout, as an estimate for other text; 0: unknown."""

    def half_width(self, count: int) -> float:
        """Half width of the 95 % interval around a mean over `count` seeds, on this holdout."""
        return self._quantile * self.std_nats / math.sqrt(count)

    def least_difference(self, count: int, other: int) -> float:
        """Least significant difference between means over `count` and `other` seeds; smaller ones are ties."""
        return math.hypot(self.seed_part(count, other), self.holdout_part)

    def seed_part(self, count: int, other: int) -> float:
        """The least significant difference on an endless holdout."""
        return self._quantile * self.std_nats * math.sqrt(1 / count + 1 / other)

    @property
    def holdout_part(self) -> float:
        """The least significant difference with endless seeds."""
        return _Z * self.holdout_nats

    def seeds_may_decide(self, difference: float) -> bool:
        """Whether enough seeds would make a difference significant."""
        return abs(difference) > self.holdout_part

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
    num_settings: int
    """Settings that completed."""
    luck_nats: float
    """Expected luck of the best mean as the lowest of all; 0 without repeats."""

    @property
    def metric(self) -> Metric:
        """The metric that ranks the trials."""
        return self.best.records[0].ranked_by

    @property
    def margin_nats(self) -> float | None:
        """Difference between the next mean and the best mean."""
        return None if self.second is None else self.second.mean - self.best.mean

    @property
    def least_margin_nats(self) -> float | None:
        """Margin from which on the winner is no tie; None without repeats."""
        if self.second is None or self.noise is None:
            return None
        return self.noise.least_difference(self.best.count, self.second.count)

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
    luck = 0.0 if noise is None else luck_of_lowest([g.mean for g in groups], [_error(g, noise) for g in groups])
    return Verdict(groups[0], groups[1] if len(groups) > 1 else None, noise, tied, len(groups), luck)


def winner_in_words(found: Verdict) -> str:
    """The winner, its margin and its ties, as a sentence."""
    name = found.best.records[0].name
    if found.second is None:
        return f"{name} has the only completed settings."
    unit = found.metric.unit
    by = "" if found.metric.is_loss else f" in {found.metric.name}"
    gap = nats(found.margin_nats or 0.0, unit) + by
    if found.noise is None:
        return (
            f"{name} leads {found.second.records[0].name} by {gap}. No settings were repeated with another seed, so "
            "the noise is unknown."
        )
    least = found.least_margin_nats
    assert least is not None, "there is noise, and a second"
    parts = f"{found.noise.std_nats:.4f}{unit} between seeds ({found.noise.degrees} degrees of freedom)"
    if found.noise.holdout_nats:
        parts += f", {found.noise.holdout_nats:.4f}{unit} from {_measured_on(found.metric)}"
    noise = f"differences up to {nats(least, unit)} are noise (95 %; standard deviations: {parts})"
    if not found.tied:
        return f"{name} wins by {gap}; {noise}.{_luck_in_words(found)}"
    names = ", ".join(group.records[0].name for group in found.tied[:4])
    more = f" and {len(found.tied) - 4} more" if len(found.tied) > 4 else ""
    return f"{name} leads by {gap} and ties with {names}{more}; {noise}.{_luck_in_words(found)} {remedy(found)}"


def _luck_in_words(found: Verdict) -> str:
    if found.luck_nats < 5e-5:
        return ""
    metric = found.metric
    extreme = "highest" if metric.mode == "max" else "lowest"
    return (
        f" As the {extreme} of {found.num_settings} settings it was lucky by {found.luck_nats:.4f}{metric.unit} on "
        f"average: expect {metric.value(found.best.mean + found.luck_nats):.4f} of further seeds."
    )


def _measured_on(metric: Metric) -> str:
    return "the rows that test the linear probe" if metric.name.startswith("task/") else "the holdout"


def remedy(found: Verdict) -> str:
    """The way to decide a tie with the next settings, as a sentence."""
    noise, margin = found.noise, found.margin_nats
    assert noise is not None, "without noise there is no tie"
    assert margin is not None, "a tie has two sides"
    if noise.seeds_may_decide(margin):
        return "More seeds may decide."
    factor = (noise.holdout_part / margin) ** 2 if margin > 0 else math.inf
    if factor > _LARGEST_HOLDOUT:
        return "No larger holdout decides: take any of them."
    rows = "a holdout" if found.metric.name.startswith("holdout/") else "a set of test rows"
    return f"More seeds do not decide; {rows} {max(2, math.ceil(factor))} times as large may."


def nats(value: float, unit: str = " nats") -> str:
    """A difference of two losses or other metrics, which is never shown as 0.0000 unless it is zero."""
    return f"{value:.4f}{unit}" if value == 0 or abs(value) >= 5e-5 else f"less than 0.0001{unit}"


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
        # A tie within the error of the holdout stays one; the winner still gets a second seed.
        tied = [one for one in tied if one.count == 1 or noise.seeds_may_decide(one.mean - best.mean)]
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
        if record.outcome is Outcome.COMPLETED and record.cost is not None and math.isfinite(record.cost):
            alike.setdefault(_key(record), []).append(record)
    return [SeedGroup(tuple(sorted(group, key=lambda r: (r.cost or 0.0, r.number)))) for group in alike.values()]


def _noise(groups: Sequence[SeedGroup]) -> NoiseFloor | None:
    repeats = sum(group.count - 1 for group in groups)
    if not repeats:
        return None
    squares = math.fsum((loss - group.mean) ** 2 for group in groups for loss in group.losses)
    metric = groups[0].records[0].ranked_by
    # The prior is one of losses, and so is the correlation of two results on one holdout.
    prior_degrees, paired = (PRIOR_DEGREES, PAIRED) if metric.is_loss else (0, 1.0)
    degrees = prior_degrees + repeats
    errors = [record.metrics.get(metric.standard_error, math.nan) for group in groups for record in group.records]
    known = [error for error in errors if math.isfinite(error)]
    holdout = paired * math.sqrt(2) * math.fsum(known) / len(known) if known else 0.0
    return NoiseFloor(math.sqrt((prior_degrees * PRIOR_NATS**2 + squares) / degrees), degrees, holdout)


def _error(group: SeedGroup, noise: NoiseFloor) -> float:
    """Standard error of the mean of a group."""
    return noise.std_nats / math.sqrt(group.count)


def _with_its_error(group: SeedGroup, noise: NoiseFloor | None) -> float:
    return group.mean + (_error(group, noise) if noise else 0.0)


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
