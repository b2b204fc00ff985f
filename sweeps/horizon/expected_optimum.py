"""The batch size and the learning rate that published laws expect to be best for a model and a length of training.

Step Law (arXiv:2503.04715): over N parameters without embeddings and D tokens, the best peak learning rate of AdamW is
1.79 N^-0.713 D^0.307, and the best batch has 0.58 D^0.571 tokens. It was fitted to causal models of 60 M to 1 B
parameters and 2 to 100 B tokens. Below that it is an extrapolation, so the learning rate is held to a largest one, and
a range counts as too far off only beyond a factor.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from core.settings.model_config import ModelConfig
from sweeps.settings.setting_paths import BATCH, LEARNING_RATE
from sweeps.settings.sweep_config import SweepConfig

LARGEST_RATE = 3e-3
"""Expected learning rates are held to it: for models of a million parameters the law asks for three times the rates
that are best in the quickstart."""
_FACTOR = 2.0
"""Error of the law that a range need not cover."""


@dataclass(frozen=True)
class ExpectedOptimum:
    """Expected best settings at one length."""

    batch_rows: float
    """Rows of a batch over all workers, at least 1."""
    learning_rate: float


def expected_optimum(model: ModelConfig, tokens: int) -> ExpectedOptimum:
    """The expected best batch size and peak learning rate of a training from scratch with AdamW.

    Args:
        tokens: Tokens of the training.
    """
    num_parameters = 12 * model.layers * model.width**2
    rate = 1.79 * num_parameters**-0.713 * tokens**0.307
    rows = 0.58 * tokens**0.571 / model.sequence_length
    return ExpectedOptimum(max(1.0, rows), min(rate, LARGEST_RATE))


def batch_range(expected: ExpectedOptimum) -> tuple[int, int, int]:
    """Three batch sizes around the expected one, powers of two."""
    middle = max(1, round(math.log2(expected.batch_rows)))
    return 2 ** (middle - 1), 2**middle, 2 ** (middle + 1)


def rate_range(expected: ExpectedOptimum) -> tuple[float, float]:
    """A range of learning rates over a factor of 30, the expected one above its middle: a rate too high diverges."""
    low = _two_digits(expected.learning_rate / 10)
    return low, 30 * low


def ranges_that_leave_it_out(sweep: SweepConfig) -> Iterator[str]:
    """A sentence for each searched range that does not reach the expected value, with a range that does.

    Nothing for trainings that do not begin from scratch with AdamW: the law says nothing of them.
    """
    begins_anew = sweep.start is None and not sweep.stages and sweep.training.initial_weights is None
    if not begins_anew or sweep.training.lora is not None or _uses_another_optimizer(sweep):
        return
    tokens = sweep.budget.trial_tokens
    expected = expected_optimum(sweep.model, tokens)
    wanted = {
        BATCH: (expected.batch_rows, f"{{choice: {list(batch_range(expected))}}}"),
        LEARNING_RATE: (expected.learning_rate, f"{{log_uniform: [{', '.join(map(_short, rate_range(expected)))}]}}"),
    }
    for path, (value, proposed) in wanted.items():
        if path not in sweep.search:
            continue
        ends = [end for end in sweep.search[path].extremes() if isinstance(end, int | float)]
        if ends and not min(ends) / _FACTOR <= value <= max(ends) * _FACTOR:
            yield (
                f"{path} is searched from {_short(min(ends))} to {_short(max(ends))}, and {_short(value)} is expected "
                f"to be best for this model at {tokens:,} tokens (arXiv:2503.04715). Search {path}: {proposed}."
            )


def _uses_another_optimizer(sweep: SweepConfig) -> bool:
    return getattr(sweep.training, "optimizer", "adamw") != "adamw"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _two_digits(value: float) -> float:
    return float(f"{value:.1e}")
