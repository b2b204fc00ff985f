"""Rungs on the token axis, and the rule that stops trials there.

Source: asynchronous successive halving, Li et al., arXiv:1810.05934. Ray's own ASHA keeps a trial with a NaN metric
(every comparison is false) and cannot be rebuilt from records; the rule itself is a dozen lines.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sweeps.records.trial_records import TrialRecord
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_sections import EarlyStoppingConfig


def rung_tokens(config: EarlyStoppingConfig, tokens_per_trial: int) -> tuple[int, ...]:
    """Token counts at which trials are compared, ascending, without the end of a trial."""
    if config.method == "none":
        return ()
    if config.method == "full-length":
        return tuple(max(1, round(length * tokens_per_trial)) for length in config.probe_lengths)
    if config.method == "median":
        count = math.ceil(1 / config.first_rung) - 1
        return tuple(round(config.first_rung * number * tokens_per_trial) for number in range(1, count + 1))
    rungs = []
    tokens = tokens_per_trial / config.reduction_factor
    while tokens >= config.first_rung * tokens_per_trial:
        rungs.append(round(tokens))
        tokens /= config.reduction_factor
    return tuple(reversed(rungs))


def expected_tokens(config: EarlyStoppingConfig, tokens_per_trial: int) -> float:
    """Mean tokens of a trial if each rung promotes 1/reduction_factor; all tokens for the median rule."""
    if config.method == "median":
        return tokens_per_trial
    tokens, before, share = 0.0, 0, 1.0
    for rung in (*rung_tokens(config, tokens_per_trial), tokens_per_trial):
        tokens += share * (rung - before)
        before, share = rung, share / config.reduction_factor
    return tokens


def rule_in_words(config: EarlyStoppingConfig, rungs: Sequence[int]) -> str:
    """The rule of early stopping as a phrase; `nothing` without rungs."""
    if not rungs:
        return "nothing"
    at = ", ".join(f"{rung:,}" for rung in rungs)
    best = f"the best 1/{config.reduction_factor}"
    in_full = (
        "nothing is trained in full"
        if config.confirm == "none"
        else f"the {config.num_in_full} settings predicted to be best at the full length are trained in full"
    )
    return {
        "full-length": f"full-length: probes end at {at} tokens, each with a cooldown; {in_full}",
        "trunk-and-branch": f"trunk-and-branch: all pause at {at} tokens, a branch that cools down there judges each, "
        f"and {best} continue from the trunk",
        "asha": f"asha: {best} continue at {at} tokens",
        "median": f"median: at {at} tokens trials continue if their best loss is within the others' median average",
    }[config.method]


def proposer_in_words(sweep: SweepConfig) -> str:
    """The source of the settings that are tried, as a phrase."""
    if sweep.early_stopping.method == "full-length":
        return f"the predicted loss at the full length, seed {sweep.searcher.seed}"
    return f"{sweep.searcher.method}, seed {sweep.searcher.seed}"


@dataclass(frozen=True)
class RungDecision:
    """Whether a trial continues past a rung, and the reason if not."""

    continues: bool
    reason: str


class Rungs:
    """Losses at each rung, and the rule that stops trials."""

    def __init__(self, tokens: Sequence[int], reduction_factor: int) -> None:
        self.tokens = tuple(tokens)
        self._factor = reduction_factor
        self._losses: dict[int, dict[int, float]] = {rung: {} for rung in tokens}

    def restore(self, records: Iterable[TrialRecord]) -> None:
        """Restore the losses at rungs from records."""
        for record in records:
            for rung, loss in record.rung_losses.items():
                if rung in self._losses:
                    self._losses[rung][record.number] = loss

    def reached(self, trial: int, tokens: float) -> int | None:
        """The highest rung that a trial reaches for the first time; None if there is none."""
        new = [rung for rung in self.tokens if tokens >= rung and trial not in self._losses[rung]]
        return max(new, default=None)

    def judge(self, trial: int, rung: int, loss: float) -> RungDecision:
        """Record a trial's loss at a rung and decide: the best 1/factor there continue, this trial counted."""
        seen = self._losses[rung]
        seen[trial] = loss if math.isfinite(loss) else math.inf
        if not math.isfinite(loss):
            return RungDecision(False, f"loss {loss} at {rung:,} tokens is not finite; the trial stops")
        # Fewer trials than the factor have no best 1/factor: the first ones continue.
        num_continuing = max(1, len(seen) // self._factor)
        cutoff = sorted(seen.values())[num_continuing - 1]
        if loss <= cutoff or len(seen) < self._factor:
            return RungDecision(True, "")
        return RungDecision(
            False,
            f"loss {loss:.4f} at {rung:,} tokens is not among the best {num_continuing} of {len(seen)} trials "
            f"there ({cutoff:.4f} or less)",
        )


class StoppingRule(Protocol):
    """A rule that decides at a rung whether a trial continues or stops."""

    def restore(self, records: Iterable[TrialRecord]) -> None:
        """Restore the losses at rungs from records."""

    def reached(self, trial: int, tokens: float) -> int | None:
        """The highest rung that a trial reaches for the first time; None if there is none."""

    def judge(self, trial: int, rung: int, loss: float) -> RungDecision:
        """Record a trial's loss at a rung and decide."""
