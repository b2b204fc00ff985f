"""Ties, intervals and repeats: what luck between seeds leaves undecided."""

import math
import statistics

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from sweep_examples import record
from sweeps.analysis.noise_floor import (
    PAIRED,
    PRIOR_DEGREES,
    PRIOR_NATS,
    next_repeat,
    noise_floor,
    seed_groups,
    standings,
    verdict,
    winner_in_words,
)
from sweeps.analysis.result_tables import best_trial, ranked
from sweeps.analysis.winners_luck import luck_of_lowest
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import HOLDOUT_ERROR, TrialRecord
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


def with_holdout_error(records: list[TrialRecord], error: float) -> list[TrialRecord]:
    """The same trials on a holdout that measures their losses to this standard error."""
    return [one.model_copy(update={"metrics": one.metrics | {HOLDOUT_ERROR: error}}) for one in records]


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
    squares = 1 * statistics.variance(losses[0.1]) + 2 * statistics.variance(losses[0.2])
    degrees = PRIOR_DEGREES + 3
    pooled = (PRIOR_DEGREES * PRIOR_NATS**2 + squares) / degrees
    assert (noise.std_nats, noise.degrees) == (pytest.approx(math.sqrt(pooled)), degrees)


def test_two_seeds_that_happen_to_agree_make_no_certain_winner() -> None:
    found = verdict(trials({0.1: [3.0, 3.0], 0.2: [3.01], 0.3: [3.2]}))
    assert found is not None
    assert [group.records[0].settings[RATE] for group in found.tied] == [0.2]
    # Two of three degrees of freedom are the prior's.
    deviation = PRIOR_NATS * math.sqrt(PRIOR_DEGREES / (PRIOR_DEGREES + 1))
    quantile = scipy.stats.t.ppf(0.975, PRIOR_DEGREES + 1)
    assert found.least_margin_nats == pytest.approx(quantile * deviation * math.sqrt(1 / 2 + 1))


def test_a_lead_within_the_error_of_the_holdout_is_a_tie_and_more_seeds_are_not_asked_for() -> None:
    records = trials({0.1: [3.0, 3.0001, 3.0], 0.2: [3.03, 3.0301, 3.03]})
    sharp, blurred = verdict(records), verdict(with_holdout_error(records, 0.05))
    assert sharp is not None
    assert blurred is not None
    assert not sharp.tied
    assert len(blurred.tied) == 1
    factor = math.ceil((1.96 * PAIRED * math.sqrt(2) * 0.05 / 0.03) ** 2)
    assert f"a holdout {factor} times as large may" in winner_in_words(blurred)
    assert next_repeat(with_holdout_error(records, 0.05), leaders=2, file_seed=0) is None
    no_difference = verdict(with_holdout_error(trials({0.1: [3.0, 3.0], 0.2: [3.0, 3.0]}), 0.05))
    assert no_difference is not None
    assert winner_in_words(no_difference).endswith("No larger holdout decides: take any of them.")


def test_a_holdout_of_independent_tokens_calls_equal_settings_winners_in_five_of_a_hundred_sweeps() -> None:
    """Losses of single tokens of two settings correlate as PAIRED tells; both are equally good on other text."""
    rng = np.random.default_rng(0)
    count, num_tokens, wins = 400, 500, 0
    shared = math.sqrt(1 - PAIRED**2)
    for _ in range(count):
        common = rng.exponential(1.0, num_tokens)
        tokens = [3.0 + shared * common + PAIRED * rng.exponential(1.0, num_tokens) for _ in range(2)]
        records = trials({rate: [one.mean()] * 2 for rate, one in zip((0.1, 0.2), tokens, strict=True)})
        error = float(np.mean([one.std() for one in tokens])) / math.sqrt(num_tokens)
        found = verdict(with_holdout_error(records, error))
        assert found is not None
        assert found.noise is not None
        wins += (found.margin_nats or 0.0) > found.noise.holdout_part
    # Three standard deviations of a count of 400 at 5 % are 13.
    assert wins <= 20 + 13


@pytest.mark.parametrize("std", [0.001, 0.01, 0.04])
def test_a_winner_is_the_best_in_nineteen_of_twenty_sweeps_whatever_the_noise(std: float) -> None:
    """Eight settings that differ by about the noise, one seed each, and two more seeds of the two that lead."""
    rng = np.random.default_rng(1)
    wins = right = held = count = 0
    for _ in range(600):
        true = dict(
            zip([0.1 * k for k in range(1, 9)], 3 + std * rng.standard_normal(8) * rng.exponential(2), strict=True)
        )
        losses = {rate: [loss + std * rng.standard_normal()] for rate, loss in true.items()}
        for rate in sorted(losses, key=lambda one: losses[one])[:2]:
            losses[rate] += [true[rate] + std * rng.standard_normal() for _ in range(2)]
        found = verdict(trials(losses))
        assert found is not None
        best = min(true, key=lambda one: true[one])
        tied = {group.records[0].settings[RATE] for group in (found.best, *found.tied)}
        count += 1
        held += best in tied
        wins += not found.tied
        right += not found.tied and tied == {best}
    assert right >= 0.95 * wins - 3 * math.sqrt(0.05 * wins)
    # Three standard deviations of a count of 600 at 5 % are 16.
    assert held >= 0.95 * count - 16


@pytest.mark.parametrize("spread", [0.0, 0.01, 0.05])
def test_the_luck_of_the_winner_is_the_amount_by_which_it_gets_worse_when_measured_again(spread: float) -> None:
    rng = np.random.default_rng(2)
    expected, measured = [], []
    for _ in range(300):
        true = 3 + spread * rng.standard_normal(12)
        means = true + 0.01 * rng.standard_normal(12)
        expected.append(luck_of_lowest(list(means), [0.01] * 12))
        measured.append(true[means.argmin()] - means.min())
    # The means of 300 have standard errors of up to 0.0006 nats.
    assert np.mean(expected) == pytest.approx(np.mean(measured), abs=0.0025)
    assert np.mean(measured) > 0.001


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
