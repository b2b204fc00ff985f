"""Refuses a sweep before it starts if none of its settings fit in memory; the error says what would fit."""

from typing import Any

from pydantic import ValidationError

from core.user_code.code_places import UserCodeError
from data_pipeline.schema.settings import format_bytes
from data_pipeline.schema.user_errors import InputFault
from sweeps.memory_knowledge.frontier_map import least_demanding
from sweeps.memory_knowledge.memory_frontier import MemoryFrontier
from sweeps.planning.sweep_plan import SweepPlan
from sweeps.search_space.distribution import format_setting
from sweeps.settings.setting_paths import MICRO_BATCH

_SURELY = 1.1
"""Tolerance of the check: memory dips a little between sizes, so the search for the minimum may miss a smaller one."""


class NothingFitsError(InputFault):
    """No settings of the search space fit in the memory of one worker."""


def check_that_something_fits(plan: SweepPlan, frontier: MemoryFrontier, *, nothing_ran: bool = False) -> None:
    """Check that some settings in the search space fit.

    Args:
        nothing_ran: Every proposal was refused, so apply no tolerance.

    Raises:
        NothingFitsError: No settings fit.
    """
    sweep = plan.sweep
    capacity = frontier.capacity().num_bytes
    may_shrink = sweep.training.on_oom == "shrink" and MICRO_BATCH not in sweep.search

    def num_bytes(settings: dict[str, Any]) -> int | None:
        try:
            run = sweep.run_config(settings)
            is_free = may_shrink or run.training.micro_batch_size == "auto"
            return frontier.predict(run.with_overrides({MICRO_BATCH: 1}) if is_free else run)
        except (ValidationError, UserCodeError):
            return None

    settings, least = least_demanding(sweep, num_bytes, enough=capacity)
    if least <= capacity * (1 if nothing_ran else _SURELY):
        return
    given = ", ".join(f"{path} {format_setting(value)}" for path, value in settings.items())
    least_run = sweep.run_config(settings)
    learnt = frontier.capacity(least_run).learnt
    raise NothingFitsError(
        f"no settings of this sweep fit in {format_bytes(plan.memory_bytes)} of one worker"
        + (f" ({learnt})" if learnt else "")
        + f". The least demanding ({given or 'those of the file'}): {plan.how_to_fit(least_run)}. "
        f"Or give resources.memory of at least {format_bytes(least)}."
    )
