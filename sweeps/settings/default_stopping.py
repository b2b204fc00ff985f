"""The rule of early stopping for a file that names none: full-length where its trials are long enough to be probed."""

from core.settings.training_config import TrainingConfig
from sweeps.search_space.distribution import SearchSpace
from sweeps.settings.setting_paths import BATCH, LEARNING_RATE
from sweeps.settings.sweep_sections import BudgetConfig, EarlyStoppingConfig, SearcherConfig

FEWEST_BRANCH_STEPS = 50
"""Steps of a branch below which it anneals too little: AdamW with beta2 0.98 remembers about as many."""
BATCH_EXPONENT = 0.5
"""The best batch size grows about as the square root of the tokens (sweeps/horizon)."""
FEWEST_TRIALS = 10
"""Trials whose tenth affords some losses at each of three lengths."""
_OF_RUNGS = {"first_rung", "reduction_factor", "run_to_end"}
"""Settings of other rules: a file that gives one of them wants rungs."""


def wants_full_length(
    search: SearchSpace,
    training: TrainingConfig,
    budget: BudgetConfig,
    searcher: SearcherConfig,
    stopping: EarlyStoppingConfig,
    *,
    sequence_length: int,
) -> bool:
    """Whether the default is full-length.

    Learning rate or batch size must be swept, because they move with the length. A grid is trained as asked. Two of the
    probe lengths must leave the smallest batch `FEWEST_BRANCH_STEPS` steps to cool down.
    """
    moving = [search[path] for path in (LEARNING_RATE, BATCH) if path in search]
    is_swept = any(len(set(map(repr, one.extremes()))) > 1 for one in moving)
    tokens = budget.tokens_per_trial
    if not is_swept or tokens is None or budget.shorten_to is not None or budget.trials < FEWEST_TRIALS:
        return False
    if searcher.method == "grid" or searcher.extend or budget.flops or budget.patience:
        return False
    if stopping.model_fields_set & _OF_RUNGS or training.lora is not None:
        return False
    batches = search[BATCH].extremes() if BATCH in search else (training.batch_size,)
    smallest = min(value for value in batches if isinstance(value, int))
    num_lengths = 0
    for share in stopping.probe_lengths:
        batch = max(1, round(smallest * share**BATCH_EXPONENT)) if BATCH in search else smallest
        num_lengths += FEWEST_BRANCH_STEPS * batch * sequence_length / training.cooldown <= share * tokens
    return num_lengths > 1
