"""Trials that another metric than the holdout loss ranks: order, winner, noise, files and searcher follow it."""

import csv
import io
import math
from pathlib import Path
from typing import Any

import pytest

from sweep_examples import record, tiny_sweep
from sweeps.analysis.comparable_losses import equal_progress
from sweeps.analysis.expected_gain import expected_gain
from sweeps.analysis.fairness import RemarkVerdict, remarks
from sweeps.analysis.noise_floor import noise_floor, standings, verdict, winner_in_words
from sweeps.analysis.result_tables import best_trial, ranked, results_in_words, winner_figures, write_trials_csv
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import LOSS, TrialRecord
from sweeps.search.settings_sampler import SettingsSampler
from sweeps.settings.metric_config import Metric
from sweeps.settings.setting_paths import SEED

NAME = "task/topics/accuracy"
METRIC = Metric(name=NAME, mode="max")
RATE = "training.learning_rate"


def trial(number: int, accuracy: float | None, loss: float = 3.0, **fields: Any) -> TrialRecord:
    """A trial that a task judges, by default the better the higher its loss."""
    made = record(number, loss=loss, **fields)
    metrics = made.metrics | ({} if accuracy is None else {NAME: accuracy, f"{NAME}_standard_error": 0.01})
    return made.model_copy(update={"metrics": metrics, "ranked_by": METRIC})


def test_the_highest_accuracy_wins_whatever_the_losses_and_without_one_nothing_wins() -> None:
    records = [trial(1, 0.7, loss=2.0), trial(2, 0.9, loss=4.0), trial(3, 0.8, loss=3.0), trial(4, None, loss=1.0)]
    assert [one.number for one in ranked(records)] == [2, 3, 1, 4]
    best = best_trial(records)
    assert best is not None
    assert best.number == 2
    assert results_in_words(best) == f"{NAME} 0.9000, holdout loss 4.0000"
    assert best_trial([trial(1, None), trial(2, math.nan)]) is None


def test_a_stopped_trial_ranks_below_a_completed_one_of_less_accuracy() -> None:
    stopped = trial(1, 0.99, outcome=Outcome.STOPPED, rung_losses={1000: 3.0})
    assert [one.number for one in ranked([stopped, trial(2, 0.5)])] == [2, 1]


def test_repeats_measure_the_noise_of_the_metric_without_the_prior_of_losses() -> None:
    seeded = {RATE: 0.1, SEED: 1}
    records = [trial(1, 0.80, settings={RATE: 0.1}), trial(2, 0.84, settings=seeded), trial(3, 0.70)]
    noise = noise_floor(records)
    assert noise is not None
    # Two values 0.04 apart: the standard deviation is 0.04 / sqrt(2), with one degree of freedom.
    assert (noise.std_nats, noise.degrees) == (pytest.approx(0.04 / math.sqrt(2)), 1)
    assert noise.holdout_nats == pytest.approx(0.01 * math.sqrt(2)), "test rows count as independent"
    found = verdict(records)
    assert found is not None
    assert found.best.mean == pytest.approx(-0.82)
    words = winner_in_words(found)
    assert f"by 0.1200 in {NAME}" in words
    assert "nats" not in words
    assert "from the rows that test the linear probe" in words


def test_tables_name_the_metric_and_hold_values_not_costs(tmp_path: Path) -> None:
    seeded = {RATE: 0.1, SEED: 1}
    records = [trial(1, 0.80, settings={RATE: 0.1}), trial(2, 0.84, settings=seeded), trial(3, 0.70)]
    write_trials_csv(tmp_path / "trials.csv", records)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "trials.csv").read_text())))
    first = next(row for row in rows if row["trial"] == "trial-0001")
    assert float(first["task_topics_accuracy"]) == 0.8
    low, mean, high = (
        float(first[f"mean_task_topics_accuracy_{what}"]) for what in ("low_95", "over_seeds", "high_95")
    )
    assert mean == pytest.approx(0.82)
    assert low < mean < high
    assert not any("mean_holdout_loss" in name for name in first)
    figures = winner_figures(records)
    assert figures is not None
    assert (figures["metric"], figures["mean"], figures["margin"]) == (NAME, pytest.approx(0.82), pytest.approx(0.12))
    assert standings(records)[1].num_seeds == 2


def test_effects_of_settings_are_read_from_the_metric_at_the_end_and_not_from_losses_at_rungs() -> None:
    records = [trial(number, 0.5 + number / 100, rung_losses={1000: 3.0}) for number in range(1, 9)]
    found = equal_progress(records)
    assert found.rung is None
    assert found.losses == pytest.approx([-0.5 - number / 100 for number in range(1, 9)])
    sweep = tiny_sweep(_tasks(), f"metric={NAME}", "budget.patience=3")
    gain = expected_gain(sweep, records)
    assert gain is None or gain.gain_nats < 1, "in units of accuracy"


def test_the_searcher_is_told_costs_so_that_the_highest_accuracy_is_its_best() -> None:
    sweep = tiny_sweep(_tasks(), f"metric={NAME}")
    settings = [{RATE: 0.001 * n, "training.batch_size": 16, "training.micro_batch_size": 4} for n in (2, 4, 8)]
    known = [
        trial(1, 0.6, loss=2.0, settings=settings[0]),
        trial(2, 0.9, loss=4.0, settings=settings[1]),
        trial(3, 0.8, outcome=Outcome.STOPPED, settings=settings[2], rung_losses={1000: 9.0}),
    ]
    sampler = SettingsSampler(sweep, worst_loss=sweep.ranked_by.worst_cost(1000), known=known)
    told = sampler._study.get_trials()
    assert sampler._study.best_trial.params[RATE] == settings[1][RATE]
    assert [one.value for one in told] == [-0.6, -0.9, None]
    assert told[2].intermediate_values == {1000: -0.8}, "not the loss, which has another unit"


def test_early_stopping_by_losses_beside_another_metric_is_warned_of() -> None:
    asked = tiny_sweep(_tasks(), f"metric={NAME}", "early_stopping.method=asha")
    (warned,) = (one for one in remarks(asked, rungs=(3000, 9000)) if one.what.startswith(NAME))
    assert warned.verdict is RemarkVerdict.WARNING
    assert "Set early_stopping: {method: none}" in warned.fix
    by_loss = tiny_sweep("early_stopping.method=asha")
    assert not any(LOSS in one.what for one in remarks(by_loss, rungs=(3000, 9000)))


def _tasks() -> str:
    return "evaluation.tasks=[{name: topics, path: labelled.csv, label: topic}]"
