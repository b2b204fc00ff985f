"""Expected improvement of one more trial, against the noise."""

from collections.abc import Sequence
from dataclasses import dataclass

from sweeps.analysis.comparable_losses import EqualProgress, equal_progress
from sweeps.analysis.loss_surface import LossSurface, fit_surface
from sweeps.analysis.noise_floor import noise_floor
from sweeps.records.trial_records import TrialRecord
from sweeps.search_space.distribution import SearchSpace
from sweeps.settings.setting_paths import MICRO_BATCH, SEED
from sweeps.settings.sweep_config import SweepConfig

ONLY_SPEED = frozenset(
    {
        *(MICRO_BATCH, "training.activation_checkpointing", "training.lora.recompute_feed_forward"),
        *("training.compile", "training.on_oom", SEED),
    }
)
"""Settings that do not change learning, or only by chance: a best value of them is no finding."""


@dataclass(frozen=True)
class ExpectedGain:
    """Expected improvement of one more trial, and the noise of a loss."""

    gain_nats: float
    """Largest expected improvement over the search space."""
    noise_nats: float
    """Standard deviation between seeds; without repeats, that of the residuals of the model."""

    @property
    def is_worth_a_trial(self) -> bool:
        """Whether the gain is above the noise."""
        return self.gain_nats > self.noise_nats


def expected_gain(sweep: SweepConfig, records: Sequence[TrialRecord]) -> ExpectedGain | None:
    """Expected gain of one more trial; None with too few comparable losses."""
    found = loss_model(sweep, records)
    if found is None:
        return None
    surface, _ = found
    noise = noise_floor(records)
    return ExpectedGain(surface.expected_improvement(), surface.noise_nats if noise is None else noise.std_nats)


def learning_space(sweep: SweepConfig) -> SearchSpace:
    """The part of the search space that changes learning."""
    return {path: distribution for path, distribution in sweep.search.items() if path not in ONLY_SPEED}


def loss_model(sweep: SweepConfig, records: Sequence[TrialRecord]) -> tuple[LossSurface, EqualProgress] | None:
    """The model of the loss over the learning space, and its losses; None with too few of them."""
    space = learning_space(sweep)
    found = equal_progress(records)
    settings, losses = [], []
    for record, loss in zip(found.records, found.losses, strict=True):
        values = {path: record.settings.get(path, sweep.value_at(path)) for path in space}
        if all(space[path].holds(value) for path, value in values.items()):
            settings.append(values)
            losses.append(loss)
    # The noise is known at the end of training; at a rung it may differ.
    noise = noise_floor(records) if found.rung is None else None
    surface = fit_surface(space, settings, losses, noise_nats=None if noise is None else noise.std_nats)
    return None if surface is None else (surface, found)
