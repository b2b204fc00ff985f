"""Ties, intervals and repeats: what luck between seeds leaves undecided."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep_examples import record
from sweeps.analysis.noise_floor import next_repeat, noise_floor, seed_groups, standings, verdict
from sweeps.analysis.result_tables import best_trial, ranked
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import TrialRecord
from sweeps.settings.setting_paths import SEED

RATE = "training.learning_rate"


def trials(losses_of: dict[float, list[float]]) -> list[TrialRecord]:
    """Completed trials: learning rate to the loss of each seed."""
    found = []
    for rate, losses in losses_of.items():
        for seed, loss in enumerate(losses):
            settings = {RATE: rate} | ({SEED: seed} if seed else {})
            found.append(record(len(found) + 1, loss=loss, settings=settings))
    return found


def test_without_repeats_settings_stand_by_their_losses_and_nothing_is_called_a_tie() -> None:
    records = trials({0.1: [3.2], 0.2: [3.0], 0.3: [3.1]})
    assert noise_floor(records) is None
    assert [one.number for one in ranked(records)] == [2, 3, 1]
    assert {one.tie_group for one in standings(records).values()} == {None}
    found = verdict(records)
    assert found is not None
    assert (found.is_told_apart, found.margin_nats) == (None, pytest.approx(0.1))


def test_the_noise_is_pooled_over_all_settings_that_were_repeated() -> None:
    losses = {0.1: [3.0, 3.2], 0.2: [3.5, 3.6, 3.9], 0.3: [3.1]}
    noise = noise_floor(trials(losses))
    assert noise is not None
    pooled = (1 * statistics.variance(losses[0.1]) + 2 * statistics.variance(losses[0.2])) / 3
    assert (noise.std_nats, noise.degrees) == (pytest.approx(math.sqrt(pooled)), 3)


def test_intervals_hold_the_true_mean_and_luck_alone_seldom_tells_two_settings_apart() -> None:
    """With three seeds of four settings that are all alike: each is promised for 95 in 100 sweeps."""
    rng = np.random.default_rng(0)
    held = told_apart = 0
    num_sweeps = 500
    for _ in range(num_sweeps):
        records = trials({rate: list(rng.normal(3.0, 0.01, 3)) for rate in (0.1, 0.2, 0.3, 0.4)})
        standing, noise = standings(records)[1], noise_floor(records)
        assert noise is not None
        assert standing.low is not None
        assert standing.high is not None
        held += standing.low <= 3.0 <= standing.high
        first, second = standings(records)[1].mean_loss, standings(records)[4].mean_loss
        told_apart += abs(first - second) > noise.least_difference(3, 3)
    # Three standard deviations of a count of 500 at 5 % are 15.
    assert 475 - 15 <= held <= 475 + 15
    assert 25 - 15 <= told_apart <= 25 + 15


def test_one_lucky_run_does_not_beat_what_held_over_seeds() -> None:
    records = trials({0.1: [3.00, 3.02, 3.01], 0.2: [3.006], 0.3: [3.4, 3.42]})
    best = best_trial(records)
    assert best is not None
    assert best.settings[RATE] == 0.1
    standing = standings(records)
    assert standing[4].tie_group == standing[1].tie_group == 1
    assert standing[5].tie_group == 2


@given(st.lists(st.lists(st.floats(2, 4), min_size=1, max_size=3), min_size=1, max_size=6))
def test_ranks_keep_seeds_of_one_setting_together_and_lose_no_trial(losses: list[list[float]]) -> None:
    records = trials({0.1 * (index + 1): values for index, values in enumerate(losses)})
    order = ranked(records)
    assert sorted(one.number for one in order) == [one.number for one in records]
    rates = [one.settings[RATE] for one in order]
    assert len(list(dict.fromkeys(rates))) == sum(a != b for a, b in zip(rates, [None, *rates], strict=False))
    groups = [standings(records)[one.number].tie_group for one in order]
    assert groups == sorted(groups, key=lambda group: group or 0)
    assert best_trial(records) == seed_groups(records)[0].records[0] == order[0]


def test_a_trial_that_did_not_complete_is_no_repeat() -> None:
    records = [
        *trials({0.1: [3.0]}),
        record(2, Outcome.STOPPED, loss=2.9, settings={RATE: 0.1, SEED: 1}, rung_losses={10: 2.9}),
        record(3, loss=math.nan, settings={RATE: 0.1, SEED: 2}),
    ]
    assert noise_floor(records) is None


def test_leaders_are_repeated_in_turn_with_seeds_of_their_own_until_they_can_be_told_apart() -> None:
    records = trials({0.1: [3.0], 0.2: [3.001], 0.3: [3.002]})
    chosen = []
    # The others are truly worse by fifty times the noise, which one run each could not know.
    true_loss = {0.1: 3.0, 0.2: 3.05, 0.3: 3.05}
    while (settings := next_repeat(records, leaders=2, file_seed=0)) is not None:
        chosen.append((settings[RATE], settings[SEED]))
        loss = true_loss[settings[RATE]] + 0.001 * (-1) ** len(chosen)
        records.append(record(len(records) + 1, loss=loss, settings=settings))
        assert len(records) < 40, "never told apart"
    assert chosen[:2] == [(0.1, 1), (0.2, 1)]
    assert len(set(chosen)) == len(chosen)
    found = verdict(records)
    assert found is not None
    assert found.best.records[0].settings[RATE] == 0.1


def test_a_repeat_that_runs_already_counts_as_one() -> None:
    records = trials({0.1: [3.0], 0.2: [3.001]})
    records.append(record(3, None, settings={RATE: 0.1, SEED: 1}))
    assert next_repeat(records, leaders=2, file_seed=0) == {RATE: 0.2, SEED: 1}
