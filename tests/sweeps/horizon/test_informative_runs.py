"""The run that teaches most: near likely winners, cheap before dear, and not where the answer is known."""

import math
from typing import Any

import numpy as np

from sweeps.horizon.informative_runs import Run, information, most_informative
from sweeps.horizon.loss_over_length import KnownLoss, fit_loss_over_length
from sweeps.horizon.setting_axes import axes_of
from sweeps.search_space.distribution import Distribution
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


def runs_at_two_lengths(seed: int) -> list[Run]:
    chosen = np.random.default_rng(seed).choice(len(GRID), 16, replace=False)
    return [(GRID[index], FULL // (16 if place % 2 else 8)) for place, index in enumerate(chosen)]


def test_a_run_in_the_valley_teaches_more_than_one_on_the_wall_and_than_a_known_one_again() -> None:
    taught = []
    for seed in range(4):
        runs = runs_at_two_lengths(seed)
        model = fit_loss_over_length(axes_of(SPACE), known(runs))
        assert model is not None
        valley, wall = model.optimum(FULL // 8), {LEARNING_RATE: 3e-2, BATCH: 16}
        best_known = min((run for run in runs if run[1] == FULL // 8), key=lambda run: loss_of(dict(run[0]), run[1]))
        taught.append(information([(valley, FULL // 8), (wall, FULL // 8), best_known], model, GRID, FULL))
    in_valley, on_wall, again = np.array(taught).T
    assert in_valley.sum() > 2 * on_wall.sum()
    assert (again < 0.2 * in_valley).all()


def test_of_two_equal_runs_the_cheaper_is_chosen() -> None:
    model = fit_loss_over_length(axes_of(SPACE), known(first_runs(0)))
    assert model is not None
    run = (model.optimum(FULL // 8), FULL // 8)
    costs = iter([2.0, 1.0, 3.0])
    assert most_informative([run, run, run], model, GRID, FULL, lambda _: next(costs)) == 1


def regret_of(runs: list[Run]) -> float:
    true = np.array([loss_of(at, FULL) for at in GRID])
    model = fit_loss_over_length(axes_of(SPACE), known(runs))
    assert model is not None
    return float(true[model.predict(GRID, FULL).mean.argmin()] - true.min())


def test_chosen_runs_find_the_best_settings_of_the_full_length_where_drawn_ones_do_not() -> None:
    chosen_regrets, drawn_regrets = [], []
    for seed in range(3):
        rng, chosen, drawn = np.random.default_rng(seed), first_runs(seed), first_runs(seed)
        for _ in range(8):
            candidates = [
                (GRID[index], tokens) for index in rng.choice(len(GRID), 24) for tokens in (FULL // 16, FULL // 8)
            ]
            model = fit_loss_over_length(axes_of(SPACE), known(chosen))
            assert model is not None
            chosen.append(candidates[most_informative(candidates, model, GRID, FULL, tokens_of)])
            drawn.append(candidates[1])
        assert sum(map(tokens_of, chosen)) <= sum(map(tokens_of, drawn))
        chosen_regrets.append(regret_of(chosen))
        drawn_regrets.append(regret_of(drawn))
    # The second best is 0.02 nats away.
    assert chosen_regrets == [0.0, 0.0, 0.0]
    assert max(drawn_regrets) > 0.02
