"""Dotted paths of the settings that the code refers to."""

import math
from collections.abc import Iterable

LEARNING_RATE = "training.learning_rate"
BATCH = "training.batch_size"
MASKING = "objective.masked_lm.masking_rate"
BETA2 = "training.beta2"
HALF_LIFE = "training.beta2_half_life_tokens"
MICRO_BATCH = "training.micro_batch_size"
SEED = "training.seed"
PRECISION = "training.precision"
ARGUMENTS = "model.arguments."
"""Beginning of the paths of a user's class: its arguments have names of their own."""
INITIAL_WEIGHTS = "training.initial_weights"


def outermost(paths: Iterable[str]) -> list[str]:
    """The paths without those that refine another: `training.muon.learning_rate` beside `training.learning_rate`."""
    found = list(paths)
    return [path for path in found if not _shorter(path) & set(found)]


def _shorter(path: str) -> set[str]:
    *sections, name = path.split(".")
    return {".".join([*sections[:end], name]) for end in range(1, len(sections))}


def half_life_tokens(beta2: float, *, batch_size: float, sequence_length: int) -> float:
    """Tokens after which the weight of a squared gradient in Adam's second moment has halved."""
    return math.log(0.5) / math.log(beta2) * batch_size * sequence_length
