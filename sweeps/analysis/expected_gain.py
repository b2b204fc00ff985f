"""Whether more trials are expected to improve on the best by more than luck does."""

from collections.abc import Sequence
from dataclasses import dataclass

from sweeps.analysis.comparable_losses import EqualProgress, equal_progress
from sweeps.analysis.loss_surface import LossSurface, fit_surface
from sweeps.analysis.noise_floor import noise_floor
from sweeps.records.trial_records import TrialRecord
from sweeps.settings.search_space import SearchSpace, holds
from sweeps.settings.setting_paths import MICRO_BATCH, SEED
from sweeps.settings.sweep_config import SweepConfig

ONLY_SPEED = frozenset(
    {
        *(MICRO_BATCH, "training.activation_checkpointing", "training.lora.recompute_feed_forward"),
        *("training.compile", "training.on_oom", SEED),
    }
)
"""Settings that change nothing in what is learnt, or only by luck: the best value of them is no discovery."""


@dataclass(frozen=True)
class ExpectedGain:
    """What one more trial is expected to bring, and what luck brings."""

    gain_nats: float
    """The largest expected improvement over the space."""
    noise_nats: float
    """Standard deviation between seeds where settings were repeated, else what the settings do not explain."""

    @property
    def is_worth_a_trial(self) -> bool:
        """Whether the gain is above the noise."""
        return self.gain_nats > self.noise_nats


def expected_gain(sweep: SweepConfig, records: Sequence[TrialRecord]) -> ExpectedGain | None:
    """Of one more trial; None where too few have losses that compare."""
    found = loss_model(sweep, records)
    if found is None:
        return None
    surface, _ = found
    noise = noise_floor(records)
    return ExpectedGain(surface.expected_improvement(), surface.noise_nats if noise is None else noise.std_nats)


def learning_space(sweep: SweepConfig) -> SearchSpace:
    """The part of the search space that changes what is learnt."""
    return {path: distribution for path, distribution in sweep.search.items() if path not in ONLY_SPEED}


def loss_model(sweep: SweepConfig, records: Sequence[TrialRecord]) -> tuple[LossSurface, EqualProgress] | None:
    """The loss over the space that is learnt in, and the losses behind it; None where they are too few."""
    space = learning_space(sweep)
    found = equal_progress(records)
    settings, losses = [], []
    for record, loss in zip(found.records, found.losses, strict=True):
        values = {path: record.settings.get(path, sweep.value_at(path)) for path in space}
        if all(holds(space[path].to_optuna(), value) for path, value in values.items()):
            settings.append(values)
            losses.append(loss)
    # Noise at the end; at a rung it may be another.
    noise = noise_floor(records) if found.rung is None else None
    surface = fit_surface(space, settings, losses, noise_nats=None if noise is None else noise.std_nats)
    return None if surface is None else (surface, found)
