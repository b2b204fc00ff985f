"""Lengths at which settings can be probed: a probe ends with a branch, and a branch of few steps does not anneal."""

import math
from collections.abc import Sequence
from typing import Any

from sweeps.settings.default_stopping import BATCH_EXPONENT, FEWEST_BRANCH_STEPS
from sweeps.settings.setting_paths import BATCH
from sweeps.settings.sweep_config import SweepConfig


def shortest_probe(sweep: SweepConfig, settings: dict[str, Any]) -> float:
    """Fewest tokens of a probe with these settings, so that its branch has enough steps."""
    batch: int = settings.get(BATCH, sweep.training.batch_size)
    return FEWEST_BRANCH_STEPS * batch * sweep.model.sequence_length / sweep.training.cooldown


def num_probes(tokens: int, rungs: Sequence[int], index: int, *, cooldown: float) -> int:
    """Probes that a number of tokens affords at one of the rungs; each rung gets the same part of the tokens.

    Args:
        cooldown: Share of a rung's tokens that its branch adds.
    """
    before = rungs[index - 1] if index else 0
    leg = rungs[index] - before + cooldown * rungs[index]
    return max(1, math.floor(tokens / len(rungs) / leg))


def probed_at(sweep: SweepConfig, batch: int, rungs: Sequence[int]) -> list[int]:
    """The rungs at which a batch size of the full length can be probed, with a batch scaled down to the rung."""
    full = sweep.budget.trial_tokens
    moves = BATCH in sweep.search
    scaled = {rung: max(1, round(batch * (rung / full) ** BATCH_EXPONENT)) if moves else batch for rung in rungs}
    return [rung for rung in rungs if shortest_probe(sweep, {BATCH: scaled[rung]}) <= rung]


def tokens_to_probe(sweep: SweepConfig, batch: int) -> int:
    """Tokens of a trial from which the longest probe is long enough for a batch size of the full length."""
    longest = sweep.early_stopping.probe_lengths[-1]
    scaled = max(1, round(batch * longest**BATCH_EXPONENT)) if BATCH in sweep.search else batch
    return math.ceil(shortest_probe(sweep, {BATCH: scaled}) / longest)
