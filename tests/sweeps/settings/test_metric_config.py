"""The metric that ranks trials: known by name before anything starts, with a direction, silent where it is left out."""

import pytest

from sweep_examples import TINY, tiny_sweep
from sweeps.records.results_folder import sweep_identity
from sweeps.settings.metric_config import BY_LOSS, Metric
from sweeps.settings.settings_faults import SettingsFileError
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_file import dump_sweep, resolve_sweep
from sweeps.settings.yaml_lines import read_yaml

TASKS = "evaluation.tasks=[{name: topics, path: labelled.csv, text: text, label: topic}]"


def test_the_name_alone_is_the_metric_with_the_direction_that_it_has() -> None:
    short = tiny_sweep(TASKS, "metric=task/topics/accuracy")
    whole = tiny_sweep(TASKS, "metric={name: task/topics/accuracy, mode: max}")
    assert short.ranked_by == whole.ranked_by == Metric(name="task/topics/accuracy", mode="max")
    assert tiny_sweep("metric=holdout/bits_per_byte").ranked_by.mode == "min"
    assert tiny_sweep("metric=holdout/perplexity").ranked_by.mode == "min"
    assert tiny_sweep("metric={name: holdout/accuracy, mode: min}").ranked_by.mode == "min"
    assert tiny_sweep().ranked_by == tiny_sweep("metric=holdout/loss_nats_per_token").ranked_by == BY_LOSS


def test_a_name_that_no_trial_reports_is_refused_with_the_names_that_they_report() -> None:
    with pytest.raises(SettingsFileError) as caught:
        tiny_sweep(TASKS, "metric=task/topic/accuracy")
    words = str(caught.value)
    assert "metric=task/topic/accuracy is reported by no trial; did you mean task/topics/accuracy?" in words
    assert all(name in words for name in ("holdout/loss_nats_per_token", "holdout/macro_f1", "task/topics/macro_f1"))


def test_with_another_metric_no_trial_stops_early_unless_the_file_says_so() -> None:
    assert tiny_sweep().early_stopping.method != "none"
    assert tiny_sweep("metric=holdout/accuracy").early_stopping.method == "none"
    assert tiny_sweep("metric=holdout/accuracy", "training.schedule=cosine").early_stopping.method == "none"
    assert tiny_sweep("metric=holdout/accuracy", "early_stopping.method=asha").early_stopping.method == "asha"
    assert tiny_sweep("metric=holdout/loss_nats_per_token").early_stopping == tiny_sweep().early_stopping


def test_the_law_of_losses_over_length_is_refused_for_another_metric() -> None:
    with pytest.raises(
        SettingsFileError, match=r"full-length predicts the holdout loss .* use early_stopping.method: n"
    ):
        tiny_sweep("metric=holdout/accuracy", "early_stopping.method=full-length")


def test_two_tasks_of_one_name_are_refused() -> None:
    task = "{name: topics, path: labelled.csv, label: topic}"
    with pytest.raises(SettingsFileError, match="the name topics stands twice"):
        tiny_sweep(f"evaluation.tasks=[{task}, {task}]")


def read_back(sweep: SweepConfig) -> SweepConfig:
    return resolve_sweep(read_yaml(dump_sweep(sweep)), source="again")


def test_a_file_without_them_is_written_and_identified_as_before_and_one_with_them_is_another_sweep() -> None:
    plain = resolve_sweep(read_yaml(TINY), source="tiny.yaml")
    assert "metric" not in dump_sweep(plain)
    assert "tasks" not in dump_sweep(plain)
    tasked = tiny_sweep(TASKS)
    ranked = tiny_sweep(TASKS, "metric=task/topics/accuracy")
    for sweep in (plain, tasked, ranked):
        assert read_back(sweep) == sweep
    assert len({sweep_identity(sweep, "data", "rows") for sweep in (plain, tasked, ranked)}) == 3
    assert sweep_identity(tasked, "data", "rows") != sweep_identity(tasked, "data", "other rows")
    assert sweep_identity(plain, "data", "rows") == sweep_identity(plain, "data")


def test_costs_are_lowest_for_the_best_and_a_diverged_trial_is_worse_than_any() -> None:
    accuracy = Metric(name="holdout/accuracy", mode="max")
    assert accuracy.cost(0.9) < accuracy.cost(0.1) <= accuracy.worst_cost(1000)
    assert accuracy.value(accuracy.cost(0.9)) == 0.9
    assert BY_LOSS.cost(2.0) == 2.0
    assert BY_LOSS.worst_cost(1000) == pytest.approx(6.9078, abs=1e-4)
