"""The run that teaches most: near likely winners, cheap before dear, and not where the answer is known."""

import math
from typing import Any

import numpy as np
import pytest

from sweeps.horizon.informative_runs import Run, information, most_informative
from sweeps.horizon.loss_over_length import KnownLoss, fit_loss_over_length
from sweeps.horizon.setting_axes import axes_of
from sweeps.settings.search_space import Distribution
from sweeps.settings.setting_paths import BATCH, LEARNING_RATE

SPACE = {
    LEARNING_RATE: Distribution(log_uniform=(3e-4, 3e-2)),
    BATCH: Distribution(choice=(16, 32, 64, 128, 256, 512)),
}
FULL = 80_000_000
GRID: list[dict[str, Any]] = [
    {LEARNING_RATE: rate, BATCH: batch} for rate in SPACE[LEARNING_RATE].grid(9) for batch in SPACE[BATCH].grid(6)
]


def loss_of(at: dict[str, Any], tokens: int) -> float:
    t = math.log(tokens / FULL)
    rate, batch = math.log(at[LEARNING_RATE] / 3e-3) - 0.2 * t, math.log(at[BATCH] / 128) - 0.45 * t
    return 2.0 + math.exp(-0.3 * t) * (0.4 + 0.05 * rate**2 + 0.05 * (batch - rate / 2) ** 2)


def known(runs: list[Run]) -> list[KnownLoss]:
    rng = np.random.default_rng(1)
    return [KnownLoss(at, tokens, loss_of(dict(at), tokens) + rng.normal(0, 0.002)) for at, tokens in runs]


def first_runs(seed: int) -> list[Run]:
    rng = np.random.default_rng(seed)
    return [(GRID[index], FULL // 16) for index in rng.choice(len(GRID), 6, replace=False)]


def tokens_of(run: Run) -> float:
    return float(run[1])


def test_a_run_in_the_valley_teaches_more_than_one_on_the_wall() -> None:
    model = fit_loss_over_length(axes_of(SPACE), known(first_runs(0)))
    assert model is not None
    valley, wall = model.optimum(FULL // 8), {LEARNING_RATE: 3e-2, BATCH: 16}
    taught = information([(valley, FULL // 8), (wall, FULL // 8)], model, GRID, FULL)
    assert taught[0] > 2 * taught[1]


def test_of_two_equal_runs_the_cheaper_is_chosen() -> None:
    model = fit_loss_over_length(axes_of(SPACE), known(first_runs(0)))
    assert model is not None
    run = (model.optimum(FULL // 8), FULL // 8)
    costs = iter([2.0, 1.0, 3.0])
    assert most_informative([run, run, run], model, GRID, FULL, lambda _: next(costs)) == 1


def test_a_second_run_of_known_settings_teaches_less_than_the_first() -> None:
    runs = first_runs(0)
    model = fit_loss_over_length(axes_of(SPACE), known(runs))
    assert model is not None
    run = (model.optimum(FULL // 8), FULL // 8)
    again = fit_loss_over_length(axes_of(SPACE), known([*runs, run]))
    assert again is not None
    assert information([run], again, GRID, FULL)[0] < 0.7 * information([run], model, GRID, FULL)[0]


def test_chosen_runs_find_the_best_of_the_full_length_for_fewer_tokens_than_drawn_ones() -> None:
    true = np.array([loss_of(at, FULL) for at in GRID])
    regrets: dict[str, list[float]] = {"chosen": [], "drawn": []}
    for seed in range(3):
        for rule, found in regrets.items():
            rng, runs = np.random.default_rng(seed), first_runs(seed)
            for _ in range(8):
                model = fit_loss_over_length(axes_of(SPACE), known(runs))
                assert model is not None
                lengths = (FULL // 16, FULL // 8)
                candidates = [(GRID[index], length) for index in rng.choice(len(GRID), 24) for length in lengths]
                chosen = most_informative(candidates, model, GRID, FULL, tokens_of) if rule == "chosen" else 0
                runs = [*runs, candidates[chosen]]
            model = fit_loss_over_length(axes_of(SPACE), known(runs))
            assert model is not None
            found.append(true[model.predict(GRID, FULL).mean.argmin()] - true.min())
    assert np.mean(regrets["chosen"]) <= np.mean(regrets["drawn"])
    assert np.max(regrets["chosen"]) == pytest.approx(0, abs=0.01)
