"""Scaling of a learning rate from one batch size and training length to another.

- Batch size: the learning rate grows with the square root of the batch size, which keeps Adam's noise the same
  (Malladi et al., arXiv:2205.10287).
- Length, schedules with a constant phase (wsd, constant): the learning rate is kept. The trunk does not depend on the
  length, so training can resume from it (Hägele et al., arXiv:2405.18392).
- Length, schedules that decay throughout (cosine, linear): longer training lowers it by the power 0.32 of the tokens
  (Bjorck et al., arXiv:2409.19913). Shorter training does not raise it: the paper measured nothing there.
- Width and depth: with `model.parametrization: mup` the learning rate transfers (arXiv:2203.03466, arXiv:2505.01618);
  without, nothing is scaled, and a note warns.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from core.settings.model_config import ModelConfig
from core.settings.schedule import decay_per_step
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


def notes_on_shape(found: ModelConfig, here: ModelConfig) -> Iterator[str]:
    """Sentences on the transfer of a learning rate between models of two shapes; none if width and layers are equal.

    Args:
        found: The model of the sweep that found the rate.
        here: The model of the new training.
    """
    if (found.width, found.layers) == (here.width, here.layers):
        return
    shapes = f"width {found.width} and {found.layers} layers to width {here.width} and {here.layers} layers"
    # At the base both parametrizations are one.
    is_base = found.width == here.mup_base_width and here.mup_base_layers in (None, found.layers)
    same_base = (found.mup_base_width, found.mup_base_layers) == (here.mup_base_width, here.mup_base_layers)
    if here.parametrization != "mup" or not (is_base or (found.parametrization == "mup" and same_base)):
        yield (
            f"warning: the learning rate goes from {shapes} without a rule, and the best rate of a small model is "
            "usually too high for a larger one. Sweep with model.parametrization: mup, whose rates transfer across "
            "width, or search training.learning_rate at this size"
        )
        return
    yield f"the learning rate transfers from {shapes} by model.parametrization: mup (arXiv:2203.03466)"
    if found.width // found.heads != here.width // here.heads:
        yield (
            f"warning: heads are {found.width // found.heads} wide there and {here.width // here.heads} here, and mup "
            f"transfers between heads of one width; use model.heads: {here.width * found.heads // found.width}"
        )
    if found.layers != here.layers and here.mup_base_layers is None:
        yield (
            f"warning: mup scales no layers here, and {here.layers} may want another rate than {found.layers}; sweep "
            f"with model.mup_base_layers: {found.layers}, which transfers across depth (arXiv:2505.01618)"
        )


def notes_on_units(
    found: TrainingConfig, here: TrainingConfig, *, tokens_there: int, tokens_here: int, row_tokens: int
) -> Iterator[str]:
    """Sentences on the settings that keep their own unit when batch or length move; none if neither moves.

    Args:
        found: Settings of the winner; `here` those of the new training, with its learning rate.
        row_tokens: Tokens of a row.
    """
    if (found.batch_size, tokens_there) == (here.batch_size, tokens_here):
        return
    sides = ((found, tokens_there), (here, tokens_here))

    def are_equal(name: str) -> bool:
        return getattr(here, name) is not None and getattr(found, name) == getattr(here, name)

    if are_equal("weight_decay_timescale") and here.weight_decay_timescale is not None:
        there, now = (
            decay_per_step(training, total_tokens=tokens, tokens_per_step=training.batch_size * row_tokens)
            for training, tokens in sides
        )
        yield (
            f"weight decay keeps its time scale, {here.weight_decay_timescale:.3g} of the training: {there:.3g} there "
            f"and {now:.3g} here"
        )
    if are_equal("beta2_half_life_tokens") and here.beta2_half_life_tokens is not None:
        half_life = here.beta2_half_life_tokens
        there, now = (0.5 ** (training.batch_size * row_tokens / half_life) for training, _ in sides)
        yield f"beta2 keeps its half-life of {half_life:,} tokens: {there:.4g} there and {now:.4g} here"
    if are_equal("warmup_tokens"):
        yield f"the warm-up stays {here.warmup_tokens:,} tokens long"
    if are_equal("warmup_steps"):
        yield f"the warm-up stays {here.warmup_steps:,} steps long"
