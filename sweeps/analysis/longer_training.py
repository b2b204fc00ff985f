"""Learning rate and batch size of a longer training, moved along the path of the optimum that a sweep has measured."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sweeps.analysis.full_length import losses_of_trials
from sweeps.early_stopping.rungs import rung_tokens
from sweeps.horizon.loss_over_length import FARTHEST, Exponent, fit_loss_over_length
from sweeps.horizon.setting_axes import axes_of
from sweeps.records.trial_records import TrialRecord
from sweeps.search_space.distribution import format_setting, short_name
from sweeps.settings.sweep_config import SweepConfig


@dataclass(frozen=True)
class MovedSettings:
    """Settings of another length, and their derivation."""

    values: dict[str, Any]
    """Dotted paths of learning rate and batch size, as far as they are swept."""
    reasons: tuple[str, ...]


def moved_to_length(
    sweep: SweepConfig, records: Iterable[TrialRecord], settings: Mapping[str, Any], tokens: int
) -> MovedSettings | None:
    """Settings of a sweep at another length; None if it did not probe several lengths.

    The winner of a sweep that ranked trials at rungs continues from its trunk instead, with its settings.

    Args:
        settings: Of a trial, best at the full length of the sweep.
        tokens: The other length.
    """
    full, stopping, axes = sweep.budget.trial_tokens, sweep.early_stopping, axes_of(sweep.search)
    if stopping.method != "full-length" or not axes:
        return None
    known = losses_of_trials(sweep, records, rung_tokens(stopping, full))
    fitted = fit_loss_over_length(axes, [one for one in known if all(axis.path in one.settings for axis in axes)])
    if fitted is None or not fitted.has_lengths:
        return None
    exponents = fitted.exponents()
    moved = fitted.scaled_down(settings, full, tokens)
    values = {path: value for path, value in moved.items() if value != settings[path]}
    if not values:
        return None
    reasons = [_in_words(path, settings[path], value, exponents[path], tokens / full) for path, value in values.items()]
    farthest = max(tokens / full, full / tokens)
    far = f"; beyond {FARTHEST:g} times nobody has measured it: check with a sweep at a length between"
    reasons.append(
        f"extrapolated from {full:,} to {tokens:,} tokens, {farthest:.3g} times{far if farthest > FARTHEST else ''}"
    )
    return MovedSettings(values, tuple(reasons))


def _in_words(path: str, before: Any, after: Any, exponent: Exponent, ratio: float) -> str:
    low, high = sorted((ratio**exponent.low, ratio**exponent.high))
    source = "learnt by the sweep" if exponent.is_learnt else "of published work, which the sweep did not narrow"
    return (
        f"{short_name(path).replace('_', ' ')} {format_setting(before)} times {ratio**exponent.value:.3g} "
        f"({low:.3g} to {high:.3g}, 95 %), tokens to the power {exponent.value:.2f}, {source}: {format_setting(after)}"
    )
