"""The loss over settings and length: recovered from short runs, sure where it may be, and in doubt where it must be."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.horizon.loss_over_length import KnownLoss, LossOverLength, fit_loss_over_length
from sweeps.horizon.setting_axes import axes_of
from sweeps.search_space.distribution import Distribution
from sweeps.settings.setting_paths import BATCH, LEARNING_RATE

SPACE = {
    LEARNING_RATE: Distribution(log_uniform=(3e-4, 2e-2)),
    BATCH: Distribution(choice=(16, 32, 64, 128, 256, 512, 1024)),
    "model.form": Distribution(choice=("roberta", "modern")),
    "training.weight_decay": Distribution(uniform=(0.0, 0.2)),
}
RATE_AND_BATCH = {path: SPACE[path] for path in (LEARNING_RATE, BATCH)}
FULL = 80_000_000
NOISE = 0.002


def loss_of(
    at: dict[str, Any], tokens: int, *, rate_exponent: float = 0.2, batch_exponent: float = 0.45, full: int = FULL
) -> float:
    """A valley, steep towards large learning rates and flat towards small batches, that moves with tokens."""
    t = math.log(tokens / full)
    rate = math.log(at[LEARNING_RATE] / 3e-3) - rate_exponent * t
    batch = math.log(at[BATCH] / 256) - batch_exponent * t
    bowl = (
        0.03 * rate**2
        + 0.02 * math.exp(rate)
        + 0.03 * math.log1p(math.exp(batch)) ** 2
        + 0.01 * (rate - batch / 2) ** 2
    )
    form = 0.05 if at.get("model.form") == "roberta" else 0.0
    return 2.0 + math.exp(-0.3 * t) * (0.4 + bowl + form)


def drawn(count: int, tokens: int, *, seed: int, space: dict[str, Distribution] = RATE_AND_BATCH) -> list[KnownLoss]:
    rng = np.random.default_rng(seed)
    known = []
    for _ in range(count):
        at = {path: values.grid(64)[rng.integers(len(values.grid(64)))] for path, values in space.items()}
        known.append(KnownLoss(at, tokens, loss_of(at, tokens) + float(rng.normal(0, NOISE))))
    return known


def fitted(known: list[KnownLoss], space: dict[str, Distribution] = RATE_AND_BATCH) -> LossOverLength:
    model = fit_loss_over_length(axes_of(space), known)
    assert model is not None
    return model


def full_grid() -> list[dict[str, Any]]:
    return [
        {LEARNING_RATE: rate, BATCH: batch} for rate in SPACE[LEARNING_RATE].grid(10) for batch in SPACE[BATCH].grid(7)
    ]


def two_lengths(seed: int = 0) -> list[KnownLoss]:
    return [*drawn(20, FULL // 16, seed=seed), *drawn(20, FULL // 6, seed=seed + 100)]


@pytest.fixture(scope="module")
def model() -> LossOverLength:
    return fitted(two_lengths())


def test_short_runs_name_settings_that_are_nearly_the_best_at_the_full_length(model: LossOverLength) -> None:
    grid = full_grid()
    true = np.array([loss_of(at, FULL) for at in grid])
    predicted = model.predict(grid, FULL)
    # The second best is 0.003 away, which is the noise of one or two losses.
    assert true[predicted.mean.argmin()] - true.min() < 2 * NOISE
    near = true < true.min() + 0.2
    assert np.corrcoef(predicted.mean[near], true[near])[0, 1] > 0.9
    assert np.mean(np.abs(predicted.mean - true)[near] < 1.96 * predicted.sd[near]) > 0.9


def test_the_own_loss_of_the_short_run_names_a_worse_one() -> None:
    # Otherwise the test above shows nothing.
    grid = full_grid()
    true = np.array([loss_of(at, FULL) for at in grid])
    short = np.array([loss_of(at, FULL // 16) for at in grid])
    assert true[short.argmin()] - true.min() > 5 * NOISE


def test_known_exponents_are_recovered_within_their_intervals() -> None:
    covered = []
    for seed in range(5):
        exponents = fitted(two_lengths(seed)).exponents()
        rate, batch = exponents[LEARNING_RATE], exponents[BATCH]
        assert rate.is_learnt
        assert rate.value == pytest.approx(0.2, abs=0.06)
        assert batch.value == pytest.approx(0.45, abs=0.1)
        covered += [rate.low <= 0.2 <= rate.high, batch.low <= 0.45 <= batch.high]
    # Of ten intervals of 95 %, two misses or more have a probability of 9 %; none of these draws has one.
    assert all(covered)


def test_the_optimum_moves_with_the_length_as_the_true_one(model: LossOverLength) -> None:
    rates, batches = np.geomspace(5e-4, 1e-2, 40), np.geomspace(8, 1024, 40)
    for tokens in (FULL // 16, FULL):
        found = model.optimum(tokens)
        least = min(loss_of({LEARNING_RATE: r, BATCH: b}, tokens) for r in rates for b in batches)
        assert loss_of(found, tokens) - least < 4 * NOISE
    assert model.optimum(FULL)[BATCH] > 2 * model.optimum(FULL // 16)[BATCH]


def test_the_optimum_keeps_settings_without_a_published_shift_inside_the_space() -> None:
    space = {**RATE_AND_BATCH, "training.weight_decay": SPACE["training.weight_decay"]}
    known = [
        # Lower decay is better to the edge of the space.
        KnownLoss(one.settings, one.tokens, one.loss + one.settings["training.weight_decay"])
        for one in (*drawn(16, FULL // 16, seed=3, space=space), *drawn(16, FULL // 6, seed=4, space=space))
    ]
    assert fitted(known, space).optimum(FULL)["training.weight_decay"] == pytest.approx(0, abs=0.02)
    assert fitted(known, space).optimum(FULL)["training.weight_decay"] >= 0


def test_settings_are_scaled_along_the_exponents_and_whole_numbers_stay_whole(model: LossOverLength) -> None:
    at = {LEARNING_RATE: 3e-3, BATCH: 256, "training.weight_decay": 0.1}
    down = model.scaled_down(at, FULL, FULL // 16)
    exponents = model.exponents()
    assert down[LEARNING_RATE] == pytest.approx(3e-3 / 16 ** exponents[LEARNING_RATE].value)
    assert down[BATCH] == round(256 / 16 ** exponents[BATCH].value)
    assert down["training.weight_decay"] == 0.1
    assert model.scaled_down(at, FULL, FULL) == pytest.approx(at)
    assert model.scaled_down(at, FULL, 1)[BATCH] == 1


@settings(max_examples=8, deadline=None)
@given(st.floats(-3, 30), st.randoms(use_true_random=False))
def test_a_constant_moves_all_predictions_by_it_and_the_order_of_losses_changes_nothing(
    constant: float, random: Any
) -> None:
    known = two_lengths(1)[::2]
    moved = [KnownLoss(one.settings, one.tokens, one.loss + constant) for one in known]
    random.shuffle(moved)
    plain, other = fitted(known).predict(full_grid(), FULL), fitted(moved).predict(full_grid(), FULL)
    # The mode is found to 0.01 of a prior deviation.
    np.testing.assert_allclose(other.mean, plain.mean + constant, atol=1e-4)
    np.testing.assert_allclose(other.sd, plain.sd, atol=1e-4)


def test_the_order_of_losses_changes_no_bit() -> None:
    known = two_lengths(1)
    plain, other = (fitted(losses).predict(full_grid(), FULL) for losses in (known, known[::-1]))
    np.testing.assert_array_equal(plain.mean, other.mean)
    np.testing.assert_array_equal(plain.covariance, other.covariance)


def test_divergences_leave_the_valley_where_it_is(model: LossOverLength) -> None:
    grid = full_grid()
    wild = [KnownLoss({LEARNING_RATE: 2e-2, BATCH: 16}, FULL // 16, loss) for loss in (math.nan, math.inf, 11.0, 1e6)]
    predicted = fitted([*two_lengths(), *wild]).predict(grid, FULL)
    true = np.array([loss_of(at, FULL) for at in grid])
    assert np.isfinite(predicted.covariance).all()
    assert true[predicted.mean.argmin()] - true.min() < 4 * NOISE


def test_one_loss_that_all_others_contradict_loses_its_weight() -> None:
    known = two_lengths()
    best = min(known[20:], key=lambda one: one.loss)
    spoilt = [KnownLoss(one.settings, one.tokens, one.loss + 0.2) if one is best else one for one in known]
    without = [one for one in known if one is not best]
    other, dropped = (fitted(losses).predict([best.settings], FULL // 6).mean[0] for losses in (spoilt, without))
    # At its face value it would lift the prediction by nearly 0.2.
    assert abs(other - dropped) < 0.02


def test_losses_at_one_length_say_that_the_shift_is_not_learnt() -> None:
    model = fitted(drawn(20, FULL // 16, seed=0))
    assert not model.knows(FULL)
    assert "one length" in model.doubts[0]
    assert not model.exponents()[LEARNING_RATE].is_learnt
    # The published shifts are no worse than none.
    grid = full_grid()
    true = np.array([loss_of(at, FULL) for at in grid])
    short = np.array([loss_of(at, FULL // 16) for at in grid])
    assert true[model.predict(grid, FULL).mean.argmin()] < true[short.argmin()]


def test_few_losses_and_far_lengths_are_in_doubt(model: LossOverLength) -> None:
    assert "only 1 losses" in fitted(two_lengths()[:1]).doubts[0]
    assert model.knows(FULL)
    assert "38 times" in model.doubts_at(FULL // 6 * 38)[0]
    far, near = (model.predict(full_grid(), tokens).sd.min() for tokens in (FULL * 10, FULL))
    assert far > 1.5 * near


@pytest.mark.parametrize("losses", [[3.0], [3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0], [math.nan, 3.0, math.inf], [3.0, 3.1]])
def test_hardly_any_knowledge_gives_wide_finite_predictions(losses: list[float]) -> None:
    grid = full_grid()
    known = [KnownLoss(at, FULL // 4, loss) for at, loss in zip(grid[::9], losses, strict=False)]
    predicted = fitted(known).predict(grid, FULL)
    assert np.isfinite(predicted.mean).all()
    assert predicted.sd.min() > 0.02
    assert predicted.probability_of_best().sum() == pytest.approx(1)


def test_without_a_finite_loss_there_is_no_model() -> None:
    at = full_grid()[0]
    assert fit_loss_over_length(axes_of(RATE_AND_BATCH), []) is None
    assert fit_loss_over_length(axes_of(RATE_AND_BATCH), [KnownLoss(at, FULL, math.nan)]) is None


def test_a_word_has_its_own_offset() -> None:
    space = {**RATE_AND_BATCH, "model.form": SPACE["model.form"]}
    model = fitted([*drawn(16, FULL // 16, seed=3, space=space), *drawn(16, FULL // 6, seed=4, space=space)], space)
    at = {LEARNING_RATE: 3e-3, BATCH: 256}
    roberta, modern = model.predict([{**at, "model.form": form} for form in ("roberta", "modern")], FULL).mean
    assert roberta - modern == pytest.approx(0.05, abs=0.02)
    assert model.optimum(FULL)["model.form"] == "modern"


@pytest.mark.parametrize("paths", [["model.form"], ["training.weight_decay"], []])
def test_fixed_learning_rate_and_batch_size_leave_the_other_settings(paths: list[str]) -> None:
    space = {path: SPACE[path] for path in paths}
    rest = {LEARNING_RATE: 3e-3, BATCH: 256}
    forms = ["roberta", "modern"] * 6
    known = [
        KnownLoss(at := {**rest, "model.form": form, "training.weight_decay": 0.01 * n}, tokens, loss_of(at, tokens))
        for tokens in (FULL // 16, FULL // 8)
        for n, form in enumerate(forms)
    ]
    model = fitted(known, space)
    predicted = model.predict([one.settings for one in known[:2]], FULL)
    assert np.isfinite(predicted.mean).all()
    if paths == ["model.form"]:
        assert predicted.mean[0] - predicted.mean[1] == pytest.approx(0.05, abs=0.02)
    assert set(model.optimum(FULL)) == set(paths)
    assert set(model.exponents()) == set()


def test_settings_without_a_value_for_an_axis_are_named(model: LossOverLength) -> None:
    with pytest.raises(KeyError, match=LEARNING_RATE):
        model.predict([{BATCH: 32}], FULL)


def test_more_losses_than_a_fit_takes_are_thinned_to_the_lower_ones() -> None:
    known = [loss for seed in range(8) for loss in two_lengths(seed)]
    true = np.array([loss_of(at, FULL) for at in full_grid()])
    predicted = fitted(known).predict(full_grid(), FULL)
    assert true[predicted.mean.argmin()] - true.min() < 2 * NOISE


def test_the_noise_between_seeds_is_found_where_settings_repeat() -> None:
    known = two_lengths()
    known += [KnownLoss(one.settings, one.tokens, one.loss + shift) for one in known[:8] for shift in (0.03, -0.03)]
    assert fitted(known).noise_sd == pytest.approx(0.025, rel=0.3)
    assert fitted(two_lengths()).noise_sd < 0.01
