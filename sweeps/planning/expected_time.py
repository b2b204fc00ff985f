"""The time and the price that a sweep is expected to take, as ranges."""

import math
from dataclasses import dataclass

from data_pipeline.schema.settings import clock
from sweeps.planning.auto_lanes import expected_sweep_tokens
from sweeps.planning.shortened_budget import SHARE_OF_TRAINING
from sweeps.planning.speed_probe import Speed
from sweeps.planning.sweep_plan import SweepPlan

_START_S = 30.0
"""Seconds in which Ray, lanes and MLflow start and the results are written: the quickstart on two CPU cores."""
_UNSURE = 1.25
"""Factor on the upper end: promotions come unevenly, and the last trial may run alone."""


@dataclass(frozen=True)
class TimeRange:
    """Seconds of a whole sweep, from its corpus being prepared to its results."""

    low_s: float
    high_s: float
    speed: Speed

    def __str__(self) -> str:
        return (
            f"{clock(self.low_s)} to {clock(self.high_s)}, at {self.speed.tokens_per_s:,.0f} tokens/s of all lanes "
            f"together ({self.speed.source})"
        )

    def price(self, per_hour: float) -> tuple[float, float]:
        """The lowest and the highest price, in the currency of `per_hour`."""
        return self.low_s / 3600 * per_hour, self.high_s / 3600 * per_hour


def expected_time(plan: SweepPlan, speed: Speed) -> TimeRange:
    """From no repeat and as many promotions as the rule expects, to all repeats and uneven promotions."""
    sweep = plan.sweep
    searched = 0.0 if sweep.stages else expected_sweep_tokens(sweep)
    repeated = sweep.num_repeats * sweep.budget.trial_tokens
    if sweep.stages:
        searched, repeated = float(sweep.budget.trial_tokens), 0
    a_second = speed.tokens_per_s * SHARE_OF_TRAINING
    low_s, high_s = searched / a_second, _UNSURE * (searched + repeated) / a_second
    limit_s = sweep.budget.wall_clock_s
    most_s = math.inf if limit_s is None else limit_s
    return TimeRange(_START_S + min(low_s, most_s), _START_S + min(high_s, most_s), speed)
