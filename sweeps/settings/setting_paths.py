"""Dotted paths of settings that code names: micro-batch, seed, learning rate, batch."""

import math

LEARNING_RATE = "training.learning_rate"
BATCH = "training.batch_size"
MASKING = "objective.masked_lm.masking_rate"
BETA2 = "training.beta2"
HALF_LIFE = "training.beta2_half_life_tokens"
MICRO_BATCH = "training.micro_batch_size"
SEED = "training.seed"


def half_life_tokens(beta2: float, *, batch_size: float, sequence_length: int) -> float:
    """Tokens after which a squared gradient weighs half in Adam's second moment."""
    return math.log(0.5) / math.log(beta2) * batch_size * sequence_length
