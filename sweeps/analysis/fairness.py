"""Comparisons that would mislead: warnings in the plan and before a sweep, refusals where no conclusion would hold.

The checks: a swept masking rate or precision; rungs that come too early for the largest batch size; a decaying schedule
with early stopping; one beta2 for a wide range of batch sizes; a holdout too small for the differences. An optimum on
the edge of the space shows only after the sweep (`space_widening`).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from core.step.holdout_masks import MASKING_RATE
from data_pipeline.schema.manifest import Manifest
from data_pipeline.schema.user_errors import InputFault
from sweeps.early_stopping.probe_lengths import probed_at, tokens_to_probe
from sweeps.settings.default_stopping import FEWEST_BRANCH_STEPS
from sweeps.settings.setting_paths import BATCH, BETA2, HALF_LIFE, MASKING, half_life_tokens
from sweeps.settings.sweep_config import SweepConfig

_FEWEST_STEPS = 10
"""Least optimizer steps before the first rung: with fewer, a trial's loss there depends little on its settings."""
_WIDE_BATCH_RANGE = 16
"""Ratio of batch sizes at which one beta2 averages over that many times more tokens at one end."""
_FEWEST_PREDICTED = 2_000
"""Least predicted positions: with fewer, a loss of a few nats has a standard error above 0.05 nats."""
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
    """Remarks on the comparisons of a sweep before its first trial; refusals first.

    Args:
        rungs: Token counts at which trials are compared.
        num_predicted: Positions that an evaluation predicts. None: the corpus is not prepared yet.
    """
    checks: tuple[Callable[[SweepConfig, tuple[int, ...]], Iterator[Remark]], ...] = (
        _evaluation,
        _rungs_and_batches,
        _probes,
        _schedule_and_stopping,
        _metric_and_stopping,
        _beta2_and_batches,
    )
    found = [remark for check in checks for remark in check(sweep, rungs)]
    if num_predicted is not None:
        found += _holdout(sweep, num_predicted)
    return sorted(found, key=lambda remark: list(RemarkVerdict).index(remark.verdict))


def num_predicted_positions(sweep: SweepConfig, manifest: Manifest) -> int:
    """Approximate number of holdout positions that an evaluation predicts; of conversations the answers only."""
    rows = manifest.rows["holdout"]
    if rows.num_answer_tokens is not None:
        return rows.num_answer_tokens
    return round(rows.num_tokens * (MASKING_RATE if sweep.objective.masked_lm else 1.0))


def refuse_unfair(found: list[Remark]) -> None:
    """Check that no comparison was refused.

    Raises:
        UnfairSweepError: Lists all refused comparisons.
    """
    refused = [remark for remark in found if remark.verdict is RemarkVerdict.REFUSED]
    if refused:
        listed = "\n".join(f"  {remark}" for remark in refused)
        raise UnfairSweepError(f"the trials of this sweep would not compare:\n{listed}")


def _evaluation(sweep: SweepConfig, _rungs: tuple[int, ...]) -> Iterator[Remark]:
    if MASKING in sweep.search:
        yield Remark(
            RemarkVerdict.FAIR,
            f"the masking rate is swept; every trial is evaluated at {MASKING_RATE:.0%} under the same masks",
        )
    precisions = sweep.search.get(_PRECISION)
    if precisions is not None and len(precisions.extremes()) > 1:
        yield Remark(
            RemarkVerdict.WARNING,
            "training.precision is swept, and each trial is evaluated in its own: rounding changes the loss",
            "Treat differences of 0.001 nats as ties, or sweep precision for its speed only",
        )


def _rungs_and_batches(sweep: SweepConfig, rungs: tuple[int, ...]) -> Iterator[Remark]:
    if not rungs or sweep.early_stopping.method == "full-length":
        return
    if BATCH in sweep.search:
        largest = max(value for value in sweep.search[BATCH].extremes() if isinstance(value, int))
        steps = rungs[0] / (largest * sweep.model.sequence_length)
        if steps < _FEWEST_STEPS:
            enough = _FEWEST_STEPS * largest * sweep.model.sequence_length
            yield Remark(
                RemarkVerdict.WARNING,
                f"at the first rung, {rungs[0]:,} tokens, a batch of {largest} rows has taken {steps:.1f} steps: early "
                "stopping would select the batch size, not the better settings",
                f"Put the first rung after {enough:,} tokens: raise early_stopping.first_rung or "
                "budget.tokens_per_trial, or remove the largest batch sizes",
            )
        else:
            yield Remark(
                RemarkVerdict.FAIR, "the batch size is swept, and rungs count tokens: equal text for every batch size"
            )
    warmup = sweep.longest_warmup
    if warmup * sweep.budget.trial_tokens > rungs[0]:
        yield Remark(
            RemarkVerdict.WARNING,
            f"the first rung, {rungs[0]:,} tokens, lies in the warm-up ({warmup:.0%} of all tokens)",
            "Shorten training.warmup, or raise early_stopping.first_rung",
        )


_OWN_UNITS = {
    "training.warmup_tokens": "the warm-up in tokens",
    "training.warmup_steps": "the warm-up in steps",
    "training.beta2_half_life_tokens": "the half-life of beta2 in tokens",
    "training.weight_decay_timescale": "the time scale of weight decay, as a share of the training that they begin",
}
"""Settings in a unit that learning rate and batch size do not move."""


def _probes(sweep: SweepConfig, rungs: tuple[int, ...]) -> Iterator[Remark]:
    """Whether probes are long enough to say something of the full length."""
    if sweep.early_stopping.method != "full-length" or not sweep.search:
        return
    batches = sorted(value for value in sweep.values_of(BATCH) if isinstance(value, int))
    probed = {batch: probed_at(sweep, batch, rungs) for batch in (batches[0], batches[-1])}
    smallest, largest = batches[0], batches[-1]
    more = f"Give budget.tokens_per_trial of at least {tokens_to_probe(sweep, smallest):,}, or a smaller batch size"
    if not probed[smallest]:
        yield Remark(
            RemarkVerdict.REFUSED,
            f"no probe is long enough: the longest has {rungs[-1]:,} tokens, and even with a batch of {smallest} rows "
            f"its cooldown has fewer than {FEWEST_BRANCH_STEPS} steps",
            f"{more}; or set early_stopping.method: asha",
        )
        return
    lengths = {rung for one in probed.values() for rung in one}
    if len(lengths) < 2:
        yield Remark(
            RemarkVerdict.WARNING,
            f"probes have one length, {min(lengths):,} tokens: the shift of the best settings with the length is that "
            "of published work and not learnt",
            f"{more}, or add to early_stopping.probe_lengths",
        )
    elif not probed[largest]:
        yield Remark(
            RemarkVerdict.WARNING,
            f"batches near {largest} rows are not probed, because their cooldown would have fewer than "
            f"{FEWEST_BRANCH_STEPS} steps: their loss is predicted from smaller batches",
            f"Give budget.tokens_per_trial of at least {tokens_to_probe(sweep, largest):,}, or remove the largest "
            "batch sizes",
        )
    else:
        yield Remark(
            RemarkVerdict.FAIR,
            "settings are compared by their predicted loss at the full length; probes use learning rates and batch "
            "sizes scaled down to their length",
        )
    units = [words for path, words in _OWN_UNITS.items() if sweep.values_of(path) != (None,)]
    if units:
        yield Remark(RemarkVerdict.FAIR, f"probes at scaled learning rates and batch sizes keep {', '.join(units)}")


def _schedule_and_stopping(sweep: SweepConfig, rungs: tuple[int, ...]) -> Iterator[Remark]:
    if not rungs:
        return
    schedules = [str(value) for value in sweep.values_of(_SCHEDULE)]
    decaying = [name for name in schedules if name in _DECAYING]
    if decaying and len(schedules) > 1:
        yield Remark(
            RemarkVerdict.REFUSED,
            f"training.schedule is swept over {', '.join(schedules)} with early stopping: at a rung the "
            f"learning rate of {decaying[0]} is partly decayed and that of the others is not, so losses there do not "
            "compare",
            "Set early_stopping: {method: none}, or sweep each schedule by itself",
        )
    elif decaying:
        yield Remark(
            RemarkVerdict.WARNING,
            f"the schedule is {decaying[0]}, with early stopping: a loss at a rung comes from the middle of the decay, "
            "so the ranking there differs more from the final ranking",
            "Set training.schedule: wsd, or early_stopping: {method: none}",
        )


def _metric_and_stopping(sweep: SweepConfig, rungs: tuple[int, ...]) -> Iterator[Remark]:
    metric = sweep.ranked_by
    if metric.is_loss or not rungs:
        return
    yield Remark(
        RemarkVerdict.WARNING,
        f"{metric.name} ranks the trials, and early_stopping.method={sweep.early_stopping.method} compares holdout "
        "losses at rungs: it may stop the trial that would have been best",
        "Set early_stopping: {method: none}, which trains every trial to its end",
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
        f"moment averages over {ratio:.0f} times as many tokens at one end, and small batches look worse than they are "
        "(arXiv:2507.07101)",
        f"Set training.beta2_half_life_tokens: {round(tokens):,}".replace(",", "_")
        + ", which holds for every batch size",
    )


def _holdout(sweep: SweepConfig, num_predicted: int) -> Iterator[Remark]:
    if num_predicted >= _FEWEST_PREDICTED:
        return
    wanted = sweep.corpus.holdout * 5 * _FEWEST_PREDICTED / max(num_predicted, 1)
    fix = f"Set corpus.holdout: {wanted:.0%}" if wanted <= 0.2 else "Give a larger corpus, or a larger corpus.holdout"
    yield Remark(
        RemarkVerdict.WARNING,
        f"the holdout predicts {num_predicted:,} positions: two trials tie on it unless they differ by some hundredths "
        "of a nat",
        fix,
    )
