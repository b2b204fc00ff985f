"""Comparisons that would mislead: said in the plan and before a sweep, refused where no conclusion would hold.

What is looked at: a masking rate swept with an evaluation that changes; batch sizes swept with rungs that come too
early for the largest; a decaying schedule with early stopping; beta2 fixed over a wide range of batch sizes; a holdout
too small for the differences that are claimed. An optimum on the edge of the space shows only after the sweep.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from core.step.holdout_masks import MASKING_RATE
from data_pipeline.schema.manifest import Manifest
from data_pipeline.schema.user_errors import InputFault
from sweeps.settings.setting_paths import BATCH, BETA2, HALF_LIFE, MASKING, half_life_tokens
from sweeps.settings.sweep_config import SweepConfig

_FEWEST_STEPS = 10
"""Optimizer steps before the first rung below which a trial's loss there says little about its settings."""
_WIDE_BATCH_RANGE = 16
"""Over which one beta2 averages over 16 times as many tokens at one end as at the other."""
_FEWEST_PREDICTED = 2_000
"""Positions of the holdout below which a loss of a few nats has a standard error above a twentieth of a nat."""
_Z = 1.96
"""Standard errors of a 95 % interval."""
_DECAYING = ("cosine", "linear")
_SCHEDULE = "training.schedule"
_PRECISION = "training.precision"


class RemarkVerdict(StrEnum):
    """Whether a comparison holds, the worst first."""

    REFUSED = "refused"
    WARNING = "warning"
    FAIR = "fair"


@dataclass(frozen=True)
class Remark:
    """One comparison of a sweep, and whether it holds."""

    verdict: RemarkVerdict
    what: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.what}. {self.fix}." if self.fix else f"{self.what}."


class UnfairSweepError(InputFault):
    """A sweep whose trials could not be compared."""


def remarks(sweep: SweepConfig, *, rungs: tuple[int, ...], num_predicted: int | None = None) -> list[Remark]:
    """All that there is to say of a sweep's comparisons before its first trial; refusals first.

    Args:
        rungs: Token counts at which trials are compared.
        num_predicted: Positions that an evaluation predicts. None: not known before the corpus is prepared.
    """
    checks: tuple[Callable[[SweepConfig, tuple[int, ...]], Iterator[Remark]], ...] = (
        _evaluation,
        _rungs_and_batches,
        _schedule_and_stopping,
        _beta2_and_batches,
    )
    found = [remark for check in checks for remark in check(sweep, rungs)]
    if num_predicted is not None:
        found += _holdout(sweep, num_predicted)
    return sorted(found, key=lambda remark: list(RemarkVerdict).index(remark.verdict))


def holdout_remark(*, loss: float, margin_nats: float | None, num_predicted: int) -> Remark | None:
    """After a sweep: whether its holdout can tell the winner from the next settings; None if it can.

    The losses of single tokens spread about as wide as their mean, as those of an exponential distribution do. Of the
    same tokens under the same masks a difference is surer than that, so this is the cautious side.

    Args:
        loss: Of the winner, in nats per predicted token.
        margin_nats: By which it leads; None where nobody follows.
    """
    if not margin_nats or margin_nats <= 0 or not math.isfinite(margin_nats):
        return None
    error = loss / math.sqrt(max(num_predicted, 1))
    if margin_nats >= _Z * error:
        return None
    return Remark(
        RemarkVerdict.WARNING,
        f"the winner leads by {margin_nats:.4f} nats, and the holdout's {num_predicted:,} predicted tokens know a loss "
        f"of {loss:.2f} to within {_Z * error:.4f} (95 %)",
        f"To tell these settings apart by their losses on other text give a holdout that predicts "
        f"{math.ceil((_Z * loss / margin_nats) ** 2):,} tokens, or take them for tied",
    )


def num_predicted_positions(sweep: SweepConfig, manifest: Manifest) -> int:
    """Positions of the holdout that an evaluation predicts, nearly; of conversations the answers alone."""
    rows = manifest.rows["holdout"]
    if rows.num_answer_tokens is not None:
        return rows.num_answer_tokens
    return round(rows.num_tokens * (MASKING_RATE if sweep.objective.masked_lm else 1.0))


def refuse_unfair(found: list[Remark]) -> None:
    """See that no comparison was refused.

    Raises:
        UnfairSweepError: One was; all of them are listed.
    """
    refused = [remark for remark in found if remark.verdict is RemarkVerdict.REFUSED]
    if refused:
        listed = "\n".join(f"  {remark}" for remark in refused)
        raise UnfairSweepError(f"the trials of this sweep could not be compared:\n{listed}")


def _evaluation(sweep: SweepConfig, _rungs: tuple[int, ...]) -> Iterator[Remark]:
    if MASKING in sweep.search:
        yield Remark(
            RemarkVerdict.FAIR,
            f"the masking rate is swept, and every trial is evaluated at {MASKING_RATE:.0%} under the same masks",
        )
    precisions = sweep.search.get(_PRECISION)
    if precisions is not None and len(precisions.extremes()) > 1:
        yield Remark(
            RemarkVerdict.WARNING,
            "training.precision is swept, and each trial is evaluated in its own: the loss moves with the rounding",
            "Take differences of a thousandth of a nat for equal, or sweep precision for its speed alone",
        )


def _rungs_and_batches(sweep: SweepConfig, rungs: tuple[int, ...]) -> Iterator[Remark]:
    if not rungs:
        return
    if BATCH in sweep.search:
        largest = max(value for value in sweep.search[BATCH].extremes() if isinstance(value, int))
        steps = rungs[0] / (largest * sweep.model.sequence_length)
        if steps < _FEWEST_STEPS:
            enough = _FEWEST_STEPS * largest * sweep.model.sequence_length
            yield Remark(
                RemarkVerdict.WARNING,
                f"at the first rung, {rungs[0]:,} tokens, a batch of {largest} rows has taken {steps:.1f} steps: early "
                "stopping would choose between batch sizes and call it quality",
                f"Let the first rung come after {enough:,} tokens: raise early_stopping.first_rung or "
                "budget.tokens_per_trial, or take the largest batch sizes out",
            )
        else:
            yield Remark(
                RemarkVerdict.FAIR, "the batch size is swept, and rungs count tokens: equal text for every batch size"
            )
    warmup = max(value for value in sweep.values_of("training.warmup"))
    if warmup * sweep.budget.trial_tokens > rungs[0]:
        yield Remark(
            RemarkVerdict.WARNING,
            f"the first rung, {rungs[0]:,} tokens, lies in the warm-up ({warmup:.0%} of all tokens)",
            "Shorten training.warmup, or raise early_stopping.first_rung",
        )


def _schedule_and_stopping(sweep: SweepConfig, rungs: tuple[int, ...]) -> Iterator[Remark]:
    if not rungs:
        return
    schedules = [str(value) for value in sweep.values_of(_SCHEDULE)]
    decaying = [name for name in schedules if name in _DECAYING]
    if decaying and len(schedules) > 1:
        yield Remark(
            RemarkVerdict.REFUSED,
            f"training.schedule is swept over {', '.join(schedules)} with early stopping: at a rung {decaying[0]} has "
            "come down part of the way and others have not, so their losses there do not compare",
            "Say early_stopping: {method: none}, or sweep each schedule on its own",
        )
    elif decaying:
        yield Remark(
            RemarkVerdict.WARNING,
            f"the schedule is {decaying[0]}, with early stopping: a loss at a rung is that of a run broken off in the "
            "middle of its decay, and the order there is less like the order at the end",
            "Say training.schedule: wsd, or early_stopping: {method: none}",
        )


def _beta2_and_batches(sweep: SweepConfig, _rungs: tuple[int, ...]) -> Iterator[Remark]:
    batches = [value for value in sweep.values_of(BATCH) if isinstance(value, int)]
    ratio = max(batches) / min(batches)
    is_free = BETA2 in sweep.search or HALF_LIFE in sweep.search or sweep.training.beta2_half_life_tokens is not None
    if ratio < _WIDE_BATCH_RANGE or is_free:
        return
    middle = math.sqrt(max(batches) * min(batches))
    tokens = half_life_tokens(sweep.training.beta2, batch_size=middle, sequence_length=sweep.model.sequence_length)
    yield Remark(
        RemarkVerdict.WARNING,
        f"batch sizes from {min(batches)} to {max(batches)} share one beta2 of {sweep.training.beta2:g}: the second "
        f"moment remembers {ratio:.0f} times as many tokens at one end, and small batches look worse than they are "
        "(arXiv:2507.07101)",
        f"Say training.beta2_half_life_tokens: {round(tokens):,}".replace(",", "_")
        + ", which holds for every batch size",
    )


def _holdout(sweep: SweepConfig, num_predicted: int) -> Iterator[Remark]:
    if num_predicted >= _FEWEST_PREDICTED:
        return
    wanted = sweep.corpus.holdout * 5 * _FEWEST_PREDICTED / max(num_predicted, 1)
    fix = f"Say corpus.holdout: {wanted:.0%}" if wanted <= 0.2 else "Give a larger corpus, or a larger corpus.holdout"
    yield Remark(
        RemarkVerdict.WARNING,
        f"the holdout predicts {num_predicted:,} positions: two trials that differ by less than some hundredths of "
        "a nat cannot be told apart on it",
        fix,
    )
