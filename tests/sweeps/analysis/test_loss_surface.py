"""The model of the loss: what it expects, how sure it is, and when nothing more is to be gained."""

import numpy as np
import pytest

from sweeps.analysis.loss_surface import FEWEST_TRIALS, LossSurface, fit_surface
from sweeps.search_space.distribution import Distribution

SPACE = {
    "training.learning_rate": Distribution(log_uniform=(1e-4, 1e-2)),
    "training.batch_size": Distribution(choice=(32, 64, 128)),
    "model.form": Distribution(choice=("roberta", "modern")),
}


def loss_of(settings: dict[str, object]) -> float:
    rate, form = settings["training.learning_rate"], settings["model.form"]
    assert isinstance(rate, float)
    return 3.0 + 0.3 * np.log10(rate / 1e-3) ** 2 + (0.2 if form == "roberta" else 0.0)


def fitted(count: int, *, noise: float = 0.005) -> LossSurface:
    rng = np.random.default_rng(0)
    settings = [
        {
            "training.learning_rate": float(10 ** rng.uniform(-4, -2)),
            "training.batch_size": int(rng.choice([32, 64, 128])),
            "model.form": str(rng.choice(["roberta", "modern"])),
        }
        for _ in range(count)
    ]
    surface = fit_surface(SPACE, settings, [loss_of(one) + rng.normal(0, noise) for one in settings])
    assert surface is not None
    return surface


def test_the_curve_of_a_setting_is_what_made_the_losses() -> None:
    curve = fitted(40).curve("training.learning_rate")
    true = np.array([0.3 * np.log10(value / 1e-3) ** 2 for value in curve.values])
    # The others add a constant on average; the noise is 0.005.
    assert curve.mean - curve.mean.min() == pytest.approx(true - true.min(), abs=0.03)
    forms = fitted(40).curve("model.form")
    assert forms.mean[0] - forms.mean[1] == pytest.approx(0.2, abs=0.02)


def test_what_does_not_matter_is_flat_within_its_uncertainty() -> None:
    curve = fitted(40).curve("training.batch_size")
    assert np.ptp(curve.mean) < 4 * curve.std.max() + 0.005


def test_the_uncertainty_shrinks_with_trials() -> None:
    few, many = (fitted(count).curve("training.learning_rate").std.mean() for count in (8, 60))
    assert many < few / 2


def test_the_noise_is_found() -> None:
    # A standard deviation from sixty losses is off by a tenth or so; the fit takes some degrees of freedom besides.
    assert fitted(60, noise=0.02).noise_nats == pytest.approx(0.02, rel=0.4)


def test_less_is_to_be_gained_the_more_is_known() -> None:
    gains = [fitted(count).expected_improvement() for count in (8, 20, 60)]
    assert gains[0] > gains[2]
    assert gains[2] < 0.005, "beyond sixty trials nothing above the noise is expected"


def test_nothing_is_made_of_too_few_trials_or_of_equal_losses() -> None:
    settings = [{"training.learning_rate": 1e-3 * (1 + index)} for index in range(FEWEST_TRIALS)]
    space = {"training.learning_rate": SPACE["training.learning_rate"]}
    losses = [3.0 + 0.1 * index for index in range(FEWEST_TRIALS)]
    assert fit_surface(space, settings, losses) is not None
    assert fit_surface(space, settings[:-1], losses[:-1]) is None
    assert fit_surface(space, settings, [3.0] * FEWEST_TRIALS) is None
    assert fit_surface({}, [{}] * FEWEST_TRIALS, losses) is None
