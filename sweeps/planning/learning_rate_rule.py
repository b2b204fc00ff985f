"""What becomes of a learning rate that was found at one batch size and length, at another.

- Batch size: the learning rate grows with its square root, which keeps Adam's noise the same (Malladi et al.,
  arXiv:2205.10287).
- Length, constant but for its ends (wsd, constant): kept. The trunk is the same whatever its length, which is why one
  can continue from it (Hägele et al., arXiv:2405.18392).
- Length, falling all the way (cosine, linear): lower for longer, by the power 0.32 of the tokens (Bjorck et al.,
  arXiv:2409.19913). Never raised for less: nothing was measured there.
"""

import math
from dataclasses import dataclass

from core.settings.training_config import TrainingConfig

TRUNK_SCHEDULES = ("wsd", "constant")
_HORIZON_POWER = 0.32


@dataclass(frozen=True)
class ScaledRate:
    """A learning rate, and how it came about."""

    value: float
    reason: str


def scaled_learning_rate(
    found: TrainingConfig, here: TrainingConfig, *, tokens_there: int, tokens_here: int
) -> ScaledRate:
    """The learning rate for a training, from the one that won a sweep.

    Args:
        found: The winner's.
        here: What it is wanted for; its own learning rate does not matter.
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
