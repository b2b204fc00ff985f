"""The section on downstream tasks: correlations as scipy gives them, and the choice by each figure."""

from typing import Any

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from sweep_examples import record, tiny_sweep
from sweeps.analysis.result_tables import ranked
from sweeps.analysis.sweep_findings import Findings
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import TrialRecord
from sweeps.report.experiment_record import markdown_record
from sweeps.report.report_tasks import rank_correlation, tasks_section

TASKS = "evaluation.tasks=[{name: topics, path: labelled.csv, label: topic}]"
ACCURACY, F1 = "task/topics/accuracy", "task/topics/macro_f1"
FIGURES = {
    "rows": 100,
    "rows_to_test": 30,
    "rows_read": 120,
    "rows_rejected": 5,
    "classes": ["a", "b"],
    "accuracy_of_the_commonest": 0.55,
}

values = st.integers(0, 5).map(float)


@given(st.lists(st.tuples(values, values), min_size=3, max_size=12))
def test_the_rank_correlation_is_that_of_scipy_with_ties_too(pairs: list[tuple[float, float]]) -> None:
    first, second = zip(*pairs, strict=True)
    found = rank_correlation(first, second)
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(scipy.stats.spearmanr(first, second).statistic)


def trial(number: int, loss: float, accuracy: float, **fields: Any) -> TrialRecord:
    made = record(number, loss=loss, **fields)
    return made.model_copy(update={"metrics": made.metrics | {ACCURACY: accuracy, F1: accuracy / 2}})


def section_of(records: list[TrialRecord], *overrides: str) -> str:
    findings = Findings(
        sweep=tiny_sweep(*overrides),
        summary={"tasks": {"topics": FIGURES}},
        records=tuple(ranked(records)),
        curves={},
        refused=(),
        manifest=None,
    )
    return markdown_record(title="", subtitle="", summary=[], sections=[tasks_section(findings)])


def test_a_task_that_chooses_another_trial_than_the_loss_is_said_with_both_trials() -> None:
    records = [trial(1, 3.0, 0.8), trial(2, 2.0, 0.7), trial(3, 2.5, 0.9), trial(4, 4.0, 0.6)]
    text = section_of(records, TASKS)
    assert "task/topics/accuracy: rank correlation with the holdout loss -0.40 (Spearman, n = 4;" in text
    assert (
        "It chooses trial-0003 (0.9000). The holdout loss chooses trial-0002 (2.0000), whose value is 0.7000." in text
    )
    assert "70 rows fit a linear probe and 30 test it, 2 classes; 5 of 120 rows were rejected" in text
    assert "Always naming the commonest class has an accuracy of 0.5500" in text


def test_a_task_that_agrees_with_the_loss_says_so_and_two_trials_have_no_correlation() -> None:
    text = section_of([trial(1, 3.0, 0.8), trial(2, 2.0, 0.9)], TASKS)
    assert "too few of the 2 completed trials differ for a rank correlation" in text
    assert "The trial of the lowest loss, trial-0002, also has the highest value, 0.9000." in text


def test_stopped_trials_are_listed_and_count_in_no_correlation() -> None:
    stopped = trial(3, 1.0, 0.99, outcome=Outcome.STOPPED, rung_losses={1000: 1.0})
    text = section_of([trial(1, 3.0, 0.8), trial(2, 2.0, 0.9), stopped], TASKS)
    assert "the 2 completed trials" in text
    assert "trial-0003" in text
