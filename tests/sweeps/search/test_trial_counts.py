"""Counts of trials: those that the plan and the reports name are those that the search starts."""

import io
from pathlib import Path
from typing import Any

import pytest
from searcher_driver import DrivenSweep
from swept_folder import example_records, example_sweep, write_results

from sweep_examples import record, tiny_sweep
from sweeps.analysis.result_tables import ended_by
from sweeps.commands.terminal import Terminal
from sweeps.planning.plan_facts import PlanFacts
from sweeps.planning.plan_output import plan_as_json, print_plan
from sweeps.planning.sweep_plan import plan_sweep
from sweeps.records.outcomes import Outcome
from sweeps.records.sweep_status import SweepStatus
from sweeps.records.trial_records import TrialRecord, TrialStore
from sweeps.report.report import write_report
from sweeps.search.sweep_budget import SweepBudget
from sweeps.settings.sweep_config import SweepConfig

RATE, BATCH, MICRO = "training.learning_rate", "training.batch_size", "training.micro_batch_size"
TWELVE: dict[str, Any] = {RATE: {"choice": [1e-3, 3e-3]}, BATCH: {"choice": [16, 32]}, MICRO: {"choice": [4, 8, 16]}}
TWENTY_FOUR = TWELVE | {RATE: {"log_uniform": [1e-3, 1e-2]}}
IN_SPACE: dict[str, Any] = {RATE: 1e-3, BATCH: 16, MICRO: 4}
BESIDE: list[dict[str, Any]] = [{BATCH: 16}, {RATE: 2e-3, BATCH: 16, MICRO: 4}]


def sweep_of(search: dict[str, Any], **changes: Any) -> SweepConfig:
    values = tiny_sweep("searcher.start=none").model_dump(mode="json", exclude_none=True)
    budget = values["budget"] | {"trials": changes.pop("trials", 40)}
    searcher = values["searcher"] | {"method": "grid", "grid_points": 4} | changes.pop("searcher", {})
    values |= {"search": search, "budget": budget, "searcher": searcher, "repeats": {"trials": 0}}
    return SweepConfig.model_validate(values | changes)


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        (sweep_of(TWELVE), 12),
        (sweep_of(TWELVE, trials=7), 7),
        (sweep_of(TWENTY_FOUR), 24),
        (sweep_of(TWELVE, searcher={"method": "random"}), 12),
        (sweep_of(TWENTY_FOUR, searcher={"method": "random"}, trials=30), 30),
        (sweep_of({"model.layers": {"int_uniform": [1, 3]}}, searcher={"method": "random"}), 3),
        (sweep_of({}), 1),
        (sweep_of(TWELVE, start_with=[IN_SPACE]), 12),
        (sweep_of(TWELVE, start_with=[IN_SPACE, *BESIDE]), 14),
        (sweep_of(TWELVE, start_with=[IN_SPACE, *BESIDE], trials=2), 3),
    ],
)
def test_the_search_starts_as_many_trials_as_the_sweep_says(sweep: SweepConfig, expected: int, tmp_path: Path) -> None:
    # All diverge: trials with a loss would be repeated.
    started = DrivenSweep(tmp_path, sweep).run(lambda _: (Outcome.DIVERGED, None))
    assert sweep.num_trials == len(started) == expected


def test_a_space_that_is_widened_has_the_trials_of_the_budget() -> None:
    assert sweep_of(TWELVE, searcher={"extend": True}).num_trials == 40


def test_the_plan_names_the_trials_of_the_grid_and_their_tokens() -> None:
    plan = plan_sweep(sweep_of(TWELVE, trials=400), vocabulary_size=1000)
    console = Terminal(file=io.StringIO(), width=200)
    print_plan(PlanFacts(plan), console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "12 of up to 30,000 tokens: 360,000 at most" in printed
    assert "budget.trials is 400, and the search space has no more settings" in printed
    assert plan_as_json(PlanFacts(plan))["max_tokens"] == 360_000


def test_the_reports_count_the_trials_of_the_grid_and_leave_out_repeats_and_infeasible_ones(tmp_path: Path) -> None:
    search = TWELVE | {"objective.masked_lm.masking_rate": {"choice": [0.1, 0.2]}}
    sweep = example_sweep(
        search=search, searcher={"method": "grid"}, start_with=[], budget={"trials": 400, "tokens_per_trial": 2_000_000}
    )
    records = example_records(TrialStore(tmp_path / "trials"))
    write_report(tmp_path, sweep, records, write_results(tmp_path, records))
    done = sum(one.is_done and one.outcome is not Outcome.INFEASIBLE for one in records)
    assert any(one.outcome is Outcome.INFEASIBLE for one in records)
    record_of_experiment = (tmp_path / "EXPERIMENT.md").read_text("utf-8")
    assert f"{done} of 24 trials of the search have ended" in record_of_experiment
    for text in (record_of_experiment, (tmp_path / "report.html").read_text("utf-8")):
        assert "(budget 24)" in text
        assert "24 trials of 2,000,000 tokens each" in text


@pytest.mark.parametrize(
    ("status", "outcomes", "limit", "words"),
    [
        (SweepStatus.FINISHED, "CCC", "all 3 trials of the budget", "all 3 trials of the budget"),
        (SweepStatus.RUNNING, "CC.", "", ""),
        (
            SweepStatus.INTERRUPTED,
            "CCI",
            "all 3 trials of the budget",
            "an interruption: 2 of 3 trials of the search have ended",
        ),
        (SweepStatus.INTERRUPTED, "C", "", "an interruption: 1 of 3 trials of the search have ended"),
        (
            SweepStatus.INCOMPLETE,
            "CIC",
            "all 3 trials of the budget",
            "lost workers: 2 of 3 trials of the search have ended",
        ),
        (
            SweepStatus.INTERRUPTED,
            "CCCr",
            "all 3 trials of the budget",
            "all 3 trials of the budget; an interruption ended the repeats",
        ),
    ],
)
def test_the_end_of_the_search_names_the_trials_that_have_ended(
    status: SweepStatus, outcomes: str, limit: str, words: str
) -> None:
    kinds = {"C": Outcome.COMPLETED, "I": Outcome.INTERRUPTED, "r": Outcome.INTERRUPTED, ".": None}
    records: list[TrialRecord] = [
        record(number, kinds[letter], chosen_by="repeat" if letter == "r" else "search")
        for number, letter in enumerate(outcomes, start=1)
    ]
    assert ended_by(status, limit, records, most=3) == words


def test_the_budget_says_how_many_trials_a_widened_space_has_run() -> None:
    budget = SweepBudget(tiny_sweep("budget.trials=4").budget, elapsed_s=lambda: 0.0)
    run = [record(number, loss=4.0) for number in range(1, 8)]
    assert budget.may_start_trial(run[:6], num_waiting=-3)[0] == "yes"
    assert budget.may_start_trial(run, num_waiting=-3) == ("no", "all 7 trials of the budget")
