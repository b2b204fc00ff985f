"""Scaling of a learning rate from one batch size and training length to another.

- Batch size: the learning rate grows with the square root of the batch size, which keeps Adam's noise the same
  (Malladi et al., arXiv:2205.10287).
- Length, schedules with a constant phase (wsd, constant): the learning rate is kept. The trunk does not depend on the
  length, so training can resume from it (Hägele et al., arXiv:2405.18392).
- Length, schedules that decay throughout (cosine, linear): longer training lowers it by the power 0.32 of the tokens
  (Bjorck et al., arXiv:2409.19913). Shorter training does not raise it: the paper measured nothing there.
"""

import math
from dataclasses import dataclass

from core.settings.training_config import TrainingConfig

TRUNK_SCHEDULES = ("wsd", "constant")
_HORIZON_POWER = 0.32


@dataclass(frozen=True)
class ScaledRate:
    """A learning rate and its derivation."""

    value: float
    reason: str


def scaled_learning_rate(
    found: TrainingConfig, here: TrainingConfig, *, tokens_there: int, tokens_here: int
) -> ScaledRate:
    """The learning rate of a training, scaled from that of a sweep's winner.

    Args:
        found: Settings of the winner.
        here: Settings of the new training; its learning rate is ignored.
    """
    rate, reasons = found.learning_rate, []
    if here.batch_size != found.batch_size:
        factor = math.sqrt(here.batch_size / found.batch_size)
        rate *= factor
        reasons.append(
            f"times {factor:.3g}, the square root of batch {here.batch_size} over {found.batch_size} (arXiv:2205.10287)"
        )
    if here.schedule not in TRUNK_SCHEDULES and tokens_here > tokens_there:
        factor = (tokens_there / tokens_here) ** _HORIZON_POWER
        rate *= factor
        reasons.append(
            f"times {factor:.3g}, the power {_HORIZON_POWER} of {tokens_there:,} over {tokens_here:,} tokens, since a "
            f"{here.schedule} schedule falls all the way (arXiv:2409.19913)"
        )
    if not reasons:
        length = " at any length, since it is constant up to the cooldown (arXiv:2405.18392)"
        reasons.append("kept" + (length if here.schedule in TRUNK_SCHEDULES else ""))
    return ScaledRate(rate, f"learning rate {found.learning_rate:.3g} {' and '.join(reasons)}: {rate:.3g}")
