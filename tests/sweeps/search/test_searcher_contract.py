"""One contract for all searchers: what they are told of each end, what they never propose, what counts."""

import math
import random
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from searcher_driver import RUNG, TOKENS, WORST_LOSS, DrivenSweep

from sweep_examples import tiny_sweep
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import MemoryVerdict, TrialRecord
from sweeps.settings.sweep_config import SweepConfig

METHODS = ("tpe", "gp", "random", "grid")
LONG_GP = pytest.param("gp", marks=pytest.mark.long)
"""Where many trials end: each is a Gaussian process fitted anew."""
SLOW_GP = pytest.param("gp", marks=pytest.mark.slow)
"""Where the tests with `tpe`, and the others of `gp`, run the same code of ours."""
LONG_WITH_GP = ("tpe", LONG_GP, "random", "grid")
RATE, BATCH, MICRO = "training.learning_rate", "training.batch_size", "training.micro_batch_size"


def sweep_with(method: str, *overrides: str, trials: int = 12) -> SweepConfig:
    return tiny_sweep(
        f"searcher.method={method}",
        "searcher.grid_points=4",
        "searcher.start=none",
        f"budget.trials={trials}",
        *overrides,
    )


def loss_of(record: TrialRecord) -> float:
    """Best at a learning rate of 0.003."""
    return 3.0 + abs(math.log(record.settings[RATE] / 0.003)) + 0.01 * record.settings[BATCH] / 16


def completes(record: TrialRecord) -> tuple[Outcome, float | None]:
    return Outcome.COMPLETED, loss_of(record)


def told(driven: DrivenSweep) -> list[Any]:
    """What the sampler holds of trials that ended, open ones and those without a trace left out."""
    trials = driven.searcher._sampler._study.get_trials(deepcopy=False)
    return [trial for trial in trials if trial.state not in (TrialState.FAIL, TrialState.RUNNING)]


@pytest.mark.parametrize("method", METHODS)
def test_the_budget_of_trials_is_used_up_and_not_exceeded(method: str, tmp_path: Path) -> None:
    driven = DrivenSweep(tmp_path, sweep_with(method, trials=7))
    assert len(driven.run(completes)) == 7
    assert "7 trials" in driven.searcher.ended_by


@pytest.mark.parametrize("method", ["tpe", SLOW_GP, "random", "grid"])
def test_no_settings_are_proposed_twice(method: str, tmp_path: Path) -> None:
    sweep = sweep_with(method, 'search.training.learning_rate={"choice": [1e-3, 3e-3]}')
    driven = DrivenSweep(tmp_path, sweep)
    # 2 x 2 x 3 settings, and a budget of as many: each once.
    assert len({str(record.settings) for record in driven.run(completes)}) == 12


@pytest.mark.parametrize("method", LONG_WITH_GP)
def test_what_did_not_fit_is_never_proposed_again_nor_anything_that_needs_more_memory(
    method: str, tmp_path: Path
) -> None:
    driven = DrivenSweep(tmp_path, sweep_with(method, trials=20))
    smallest_that_ran_out = math.inf
    proposed_after: list[float] = []

    def end(record: TrialRecord) -> tuple[Outcome, float | None]:
        nonlocal smallest_that_ran_out
        rows = min(record.settings[MICRO], record.settings[BATCH])
        proposed_after.append(rows if rows < smallest_that_ran_out else math.inf)
        if rows >= 8:
            smallest_that_ran_out = min(smallest_that_ran_out, rows)
            return Outcome.INFEASIBLE, None
        return completes(record)

    driven.run(end)
    assert smallest_that_ran_out < math.inf, "nothing ran out, so nothing was tested"
    assert math.inf not in proposed_after
    ran_out = [record for record in driven.records if record.outcome is Outcome.INFEASIBLE]
    for record in ran_out:
        (known,) = (one for one in told(driven) if one.params == record.settings)
        assert known.state is TrialState.PRUNED
        assert known.constraints["memory"] > 0


@pytest.mark.parametrize("method", METHODS)
def test_neither_refused_proposals_nor_infeasible_trials_use_up_a_trial(method: str, tmp_path: Path) -> None:
    """Micro-batches of 16 are predicted not to fit; the first one of 8 runs out."""
    driven = DrivenSweep(tmp_path, sweep_with(method, trials=5), limit_bytes=50 * 8)

    def end(record: TrialRecord) -> tuple[Outcome, float | None]:
        return (Outcome.INFEASIBLE, None) if record.settings[MICRO] == 8 else completes(record)

    driven.run(end)
    assert sum(record.outcome is Outcome.COMPLETED for record in driven.records) == 5
    assert driven.ledger.refused
    assert all(proposal.settings[MICRO] >= 8 for proposal in driven.ledger.refused)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("outcome", list(Outcome))
def test_each_end_is_told_as_what_it_is(method: str, outcome: Outcome, tmp_path: Path) -> None:
    driven = DrivenSweep(tmp_path, sweep_with(method))
    loss = 4.0 if outcome in (Outcome.COMPLETED, Outcome.STOPPED) else None
    (record,) = driven.run(lambda _: (outcome, loss), at_most=1)
    found = [
        (one.state, one.value, one.intermediate_values, one.constraints["memory"] > 0)
        for one in told(driven)
        if one.params == record.settings
    ]
    nothing: list[Any] = []
    assert (
        found
        == {
            Outcome.COMPLETED: [(TrialState.COMPLETE, 4.0, {RUNG: 5.0}, False)] if loss else nothing,
            Outcome.STOPPED: [(TrialState.PRUNED, None, {RUNG: 4.0}, False)],
            Outcome.DIVERGED: [(TrialState.COMPLETE, WORST_LOSS, {}, False)],
            Outcome.INFEASIBLE: [(TrialState.PRUNED, None, {}, True)],
            Outcome.INTERRUPTED: nothing,
            Outcome.FAILED: nothing,
        }[outcome]
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_sweep_that_goes_on_runs_what_is_left_over_first_and_repeats_nothing(method: str, tmp_path: Path) -> None:
    sweep = sweep_with(method, trials=9)
    before = DrivenSweep(tmp_path, sweep)
    done = before.run(completes, at_most=4)
    cut_off = before.start()
    assert cut_off is not None
    again = DrivenSweep(tmp_path, sweep)
    assert [one.params for one in told(again)] == [record.settings for record in done]
    after = again.run(completes)
    assert after[0].number == cut_off.number
    assert after[0].settings == cut_off.settings
    everything = [*done, *after]
    assert len({str(record.settings) for record in everything}) == len(everything) == 9


@pytest.mark.parametrize("method", METHODS)
def test_tokens_are_never_exceeded_and_trials_in_flight_may_end(method: str, tmp_path: Path) -> None:
    driven = DrivenSweep(tmp_path, sweep_with(method, f"budget.tokens={4 * TOKENS + 100}", trials=100))
    running = [driven.start() for _ in range(5)]
    # The fifth would exceed them, unless one of the four is stopped early.
    assert [record is not None for record in running] == [True, True, True, True, False]
    for record in running[:4]:
        assert record is not None
        driven.end(record, Outcome.STOPPED, 4.0)
    driven.run(completes)
    assert 3 * TOKENS < sum(record.tokens for record in driven.records) <= 4 * TOKENS + 100
    assert "tokens" in driven.searcher.ended_by


@pytest.mark.parametrize("method", METHODS)
def test_operations_are_never_exceeded(method: str, tmp_path: Path) -> None:
    # Two operations a token.
    driven = DrivenSweep(tmp_path, sweep_with(method, f"budget.flops={2.0 * TOKENS * 3.5}", trials=100))
    assert len(driven.run(completes)) == 3
    assert "FLOPs" in driven.searcher.ended_by


@pytest.mark.parametrize("method", METHODS)
def test_no_trial_starts_that_the_wall_clock_would_cut_off(method: str, tmp_path: Path) -> None:
    clock = [0.0]
    driven = DrivenSweep(tmp_path, sweep_with(method, "budget.wall_clock=100s", trials=100), elapsed_s=lambda: clock[0])

    def end(record: TrialRecord) -> tuple[Outcome, float | None]:
        clock[0] += 30  # As long as its 30,000 tokens take.
        return completes(record)

    assert len(driven.run(end)) == 3
    assert "wall-clock" in driven.searcher.ended_by


# Of the last 20 of 40 trials, with these seeds: chance would be 7 near the best rate, and 10 above 0.003.


@pytest.mark.parametrize("method", ["tpe", LONG_GP])
def test_a_model_learns_where_losses_are_small(method: str, tmp_path: Path) -> None:
    driven = DrivenSweep(tmp_path, sweep_with(method, trials=40))
    rates = [record.settings[RATE] for record in driven.run(completes)][-20:]
    assert sum(2 / 3 < rate / 0.003 < 1.5 for rate in rates) >= 12, rates


@pytest.mark.parametrize("method", ["tpe", SLOW_GP])
def test_a_model_keeps_away_from_where_trials_are_stopped(method: str, tmp_path: Path) -> None:
    """Nothing above 0.003 ever completes: a search that forgot stopped trials would ask for it again and again."""

    def end(record: TrialRecord) -> tuple[Outcome, float | None]:
        stops = record.settings[RATE] > 0.003
        return (Outcome.STOPPED, 6.5) if stops else (Outcome.COMPLETED, 3.0 + 300 * abs(record.settings[RATE] - 0.002))

    driven = DrivenSweep(tmp_path, sweep_with(method, trials=40))
    rates = [record.settings[RATE] for record in driven.run(end)][-20:]
    assert sum(rate > 0.003 for rate in rates) <= 7, rates


@pytest.mark.parametrize("method", ["tpe", SLOW_GP])
def test_a_model_keeps_away_from_where_trials_diverge(method: str, tmp_path: Path) -> None:
    def end(record: TrialRecord) -> tuple[Outcome, float | None]:
        return (Outcome.DIVERGED, None) if record.settings[RATE] > 0.003 else (Outcome.COMPLETED, 4.0)

    driven = DrivenSweep(tmp_path, sweep_with(method, trials=40))
    rates = [record.settings[RATE] for record in driven.run(end)][-20:]
    assert sum(rate > 0.003 for rate in rates) <= 7, rates


@pytest.mark.parametrize("method", LONG_WITH_GP)
def test_informed_points_come_after_those_of_the_file_and_once_each(method: str, tmp_path: Path) -> None:
    listed = {RATE: 2e-3, BATCH: 32, MICRO: 8}
    sweep = sweep_with(method, "searcher.start=informed", f"start_with=[{listed}]".replace("'", '"'))
    started = DrivenSweep(tmp_path, sweep).run(completes, at_most=2)
    started += DrivenSweep(tmp_path, sweep).run(completes)
    chosen_by = [record.chosen_by for record in started]
    num_informed = 0 if method == "grid" else 2
    assert chosen_by == ["start_with"] + ["informed"] * num_informed + ["search"] * (11 - num_informed)


def test_an_informed_point_takes_the_largest_micro_batch_that_fits(tmp_path: Path) -> None:
    driven = DrivenSweep(tmp_path, sweep_with("tpe", "searcher.start=informed"), limit_bytes=50 * 8)
    (record,) = driven.run(completes, at_most=1)
    assert (record.chosen_by, record.settings[MICRO]) == ("informed", 8)


def test_trials_in_flight_stop_when_the_wall_clock_is_used_up(tmp_path: Path) -> None:
    clock = [0.0]
    driven = DrivenSweep(tmp_path, sweep_with("tpe", "budget.wall_clock=100s"), elapsed_s=lambda: clock[0])
    record = driven.start()
    assert record is not None
    tune_id = driven.tune_ids[record.number]
    assert not driven.searcher.is_cut_off(tune_id, {"done": False})
    clock[0] = 100.0
    assert driven.searcher.is_cut_off(tune_id, {"done": False})
    driven.searcher.on_trial_complete(tune_id, {})
    ended = driven.ledger.records[record.number]
    assert (ended.outcome, ended.reason) == (Outcome.STOPPED, "budget.wall_clock was used up")


def test_leaders_are_repeated_after_the_search_and_the_sampler_does_not_hear_of_it(tmp_path: Path) -> None:
    sweep = sweep_with("tpe", "repeats.trials=3", "repeats.leaders=2", trials=5)
    driven = DrivenSweep(tmp_path, sweep, num_repeats=3)

    def end(record: TrialRecord) -> tuple[Outcome, float | None]:
        # Seeds move the loss by more than settings do, so three repeats decide nothing.
        return Outcome.COMPLETED, 3.0 + 1e-6 * loss_of(record) - 0.01 * record.settings.get("training.seed", 0)

    started = driven.run(end, at_most=6)
    # A driver that is killed between two repeats goes on with the others.
    started += DrivenSweep(tmp_path, sweep, num_repeats=3).run(end)
    assert [record.chosen_by for record in started] == ["search"] * 5 + ["repeat"] * 3
    leaders = sorted(started[:5], key=loss_of)[:2]
    seed = "training.seed"
    without_seeds = [{path: value for path, value in one.settings.items() if path != seed} for one in started[5:]]
    assert without_seeds == [leaders[0].settings, leaders[1].settings, leaders[0].settings]
    assert [record.settings[seed] for record in started[5:]] == [1, 1, 2]
    assert len(told(driven)) == 5


def test_search_leaves_the_tokens_that_repeats_need(tmp_path: Path) -> None:
    sweep = sweep_with("random", f"budget.tokens={5 * TOKENS}", "repeats.trials=2", trials=100)

    def end(record: TrialRecord) -> tuple[Outcome, float | None]:
        return Outcome.COMPLETED, 3.0 - 0.01 * record.settings.get("training.seed", 0)

    started = DrivenSweep(tmp_path, sweep, num_repeats=2).run(end)
    assert [record.chosen_by for record in started] == ["search"] * 3 + ["repeat"] * 2


@pytest.mark.parametrize("method", ["tpe", SLOW_GP, "random", "grid"])
def test_a_best_trial_on_the_edge_widens_the_space_and_the_search_goes_on(method: str, tmp_path: Path) -> None:
    """The loss falls up to a rate of 0.02, and the space ends at 0.01."""

    def end(record: TrialRecord) -> tuple[Outcome, float | None]:
        return Outcome.COMPLETED, 3.0 + abs(math.log(record.settings[RATE] / 0.02))

    sweep = sweep_with(method, "searcher.extend=true", f"search.{MICRO}.choice=[4]", f"search.{BATCH}.choice=[16]")
    driven = DrivenSweep(tmp_path, sweep)
    first = driven.run(end, at_most=13)
    # A driver that is killed goes on in the wider space.
    more = DrivenSweep(tmp_path, sweep).run(end)
    widest = DrivenSweep(tmp_path, sweep)
    assert widest.ledger.widenings[0].search[RATE].extremes()[1] == pytest.approx(0.03)
    assert any(record.settings[RATE] > 1e-2 for record in [*first, *more])


def test_a_search_ends_when_less_is_to_be_gained_than_noise(tmp_path: Path) -> None:
    """Nothing matters but luck: after some trials the model expects nothing of any other settings."""
    rng = random.Random(0)

    def end(record: TrialRecord) -> tuple[Outcome, float | None]:
        return Outcome.COMPLETED, 3.0 + rng.gauss(0, 0.01)

    driven = DrivenSweep(tmp_path, sweep_with("random", "budget.patience=3", trials=60))
    assert 6 <= len(driven.run(end)) < 60
    assert "an expected gain below the noise" in driven.searcher.ended_by


@pytest.mark.parametrize("method", ["tpe", "gp", "random", "grid"])
def test_a_combination_that_breaks_a_rule_is_refused_and_counted_and_never_launched(
    tmp_path: Path, method: str
) -> None:
    space = "search={model.width: {choice: [30, 32, 48]}, model.heads: {choice: [2, 3, 5]}}"
    sweep = tiny_sweep(space, f"searcher.method={method}", "budget.trials=4", "training.micro_batch_size=4")
    driven = DrivenSweep(tmp_path, sweep)
    started = driven.run(lambda record: (Outcome.COMPLETED, 5.0 + record.number / 100))
    assert all(record.settings["model.width"] % record.settings["model.heads"] == 0 for record in started)
    assert len(started) == 4
    refused = driven.ledger.refused
    assert all(one.settings["model.width"] % one.settings["model.heads"] for one in refused)
    assert {one.verdict for one in refused} <= {MemoryVerdict.INVALID}
    assert method != "grid" or sorted(tuple(one.settings.values()) for one in refused) == [(32, 3), (32, 5), (48, 5)]


def test_a_sweep_that_goes_on_keeps_its_refused_combinations(tmp_path: Path) -> None:
    space = "search={model.width: {choice: [30, 32]}, model.heads: {choice: [2, 3]}}"
    sweep = tiny_sweep(space, "searcher.method=grid", "training.micro_batch_size=4")
    first = DrivenSweep(tmp_path, sweep)
    first.run(lambda _: (Outcome.COMPLETED, 5.0), at_most=1)
    again = DrivenSweep(tmp_path, sweep)
    assert [one.reason for one in again.ledger.refused] == ["width=32 is not a multiple of heads=3; try width=33"]
    assert len(again.run(lambda _: (Outcome.COMPLETED, 5.0))) == 2
