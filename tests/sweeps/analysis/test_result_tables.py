import csv
import json
import math
from pathlib import Path

import pytest

from sweep_examples import record
from sweeps.analysis.result_tables import (
    best_trial,
    calibration,
    memory_counts,
    ranked,
    summarize,
    trial_row,
    write_summary,
    write_trials_csv,
)
from sweeps.records.outcomes import Outcome
from sweeps.records.sweep_status import SweepStatus
from sweeps.records.trial_records import MemoryVerdict, RefusedProposal, TrialRecord

TRIALS = [
    record(1, Outcome.INFEASIBLE, reason="ran out of memory: 2 of 1 GiB", memory_verdict=MemoryVerdict.RAN_OUT),
    record(2, Outcome.STOPPED, loss=2.0, tokens=1100, rung_losses={1000: 2.0}),
    record(3, Outcome.COMPLETED, loss=3.0, tokens=9000),
    record(4, Outcome.STOPPED, loss=2.9, tokens=3000, rung_losses={1000: 3.1, 3000: 2.9}),
    record(9, Outcome.STOPPED, loss=2.1, tokens=1900, rung_losses={1000: 2.1}),
    record(5, Outcome.COMPLETED, loss=2.5, tokens=9000, training_s=4.0),
    record(6, Outcome.DIVERGED, loss=math.nan),
    record(7, Outcome.FAILED, reason="Traceback\n  in f\nKeyError: 'x'"),
    record(8, Outcome.INTERRUPTED),
]


def test_a_trial_stopped_early_never_ranks_above_one_that_completed() -> None:
    assert [trial.number for trial in ranked(TRIALS)] == [5, 3, 4, 2, 9, 6, 8, 7, 1]


def test_the_best_trial_is_a_completed_one_or_none() -> None:
    best = best_trial(TRIALS)
    assert best is not None
    assert best.number == 5
    assert best_trial([trial for trial in TRIALS if trial.outcome is not Outcome.COMPLETED]) is None


def test_a_loss_that_is_not_a_number_ranks_last_and_is_never_the_best() -> None:
    trials = [record(1, loss=3.0), record(2, loss=math.nan), record(3, loss=2.0), record(4, loss=2.5)]
    assert [trial.number for trial in ranked(trials)] == [3, 4, 1, 2]
    assert best_trial([trials[1]]) is None


def test_trials_csv_has_a_row_for_every_trial_and_its_numbers_are_those_of_the_records(tmp_path: Path) -> None:
    write_trials_csv(tmp_path / "trials.csv", TRIALS)
    with (tmp_path / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == [trial.name for trial in ranked(TRIALS)]
    assert float(rows[0]["holdout_loss_nats_per_token"]) == 2.5
    assert float(rows[0]["training.learning_rate"]) == 0.005
    assert rows[-1]["holdout_loss_nats_per_token"] == ""
    assert rows[-1]["reason"] == "ran out of memory: 2 of 1 GiB"
    assert rows[-2]["reason"] == "Traceback\n  in f\nKeyError: 'x'"


def test_summary_counts_every_outcome_and_names_the_best(tmp_path: Path) -> None:
    summary = summarize(
        name="x",
        identity="abc",
        status=SweepStatus.FINISHED,
        records=TRIALS,
        refused=[],
        data={"train_rows": 3},
        wall_s=10,
    )
    write_summary(tmp_path / "summary.json", summary)
    read = json.loads((tmp_path / "summary.json").read_text())
    assert sum(read["outcomes"].values()) == len(TRIALS)
    assert read["best"]["trial"] == "trial-0005"
    assert read["ranking"][0] == "trial-0005"
    assert read["training_s_by_outcome"]["COMPLETED"] == 4.0
    assert read["memory_verdicts"] == {"ran out of memory": 1}


def test_summary_tells_the_ways_apart_in_which_memory_had_a_say() -> None:
    trials = [
        record(1, Outcome.INFEASIBLE, memory_verdict=MemoryVerdict.RAN_OUT),
        record(2, loss=3.0, memory_verdict=MemoryVerdict.SURVIVED),
        record(3, Outcome.INFEASIBLE, memory_verdict=MemoryVerdict.SKIPPED),
        record(4, loss=3.0),
    ]
    refused = [RefusedProposal(settings={}, verdict=MemoryVerdict.REFUSED, reason="x")] * 3
    assert memory_counts(trials, refused) == {
        "refused by prediction": 3,
        "skipped by dominance": 1,
        "ran out of memory": 1,
        "ran out of memory and went on": 1,
    }


def test_calibration_compares_trials_that_never_ran_out() -> None:
    def trial(number: int, measured: int, outcome: Outcome = Outcome.COMPLETED, events: int = 0) -> TrialRecord:
        memory = {"predicted_peak_memory_bytes": 100, "peak_memory_bytes": measured, "out_of_memory_events": events}
        return record(number, outcome, **memory)

    trials = [trial(1, 90), trial(2, 102), trial(3, 101), trial(4, 50, Outcome.INFEASIBLE), trial(5, 50, events=1)]
    assert calibration(trials) == pytest.approx(
        {
            "calibrated_trials": 3,
            "median_relative_error": 0.02,
            "largest_relative_error": 0.1,
            "mean_signed_relative_error": -0.07 / 3,
        }
    )
    assert calibration(trials[3:]) == {}


def test_a_row_has_predicted_and_measured_peak_and_both_margins() -> None:
    memory = {"predicted_peak_memory_bytes": 125, "peak_memory_bytes": 80, "memory_limit_bytes": 100}
    row = trial_row(record(1, loss=3.0, micro_batch_size_asked=64, micro_batch_size_used=32, **memory), 1)
    assert (row["predicted_memory_margin"], row["measured_memory_margin"]) == (-0.25, 0.2)
    assert (row["micro_batch_size_asked"], row["micro_batch_size_used"]) == (64, 32)
