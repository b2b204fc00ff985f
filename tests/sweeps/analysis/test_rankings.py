"""Rankings at equal tokens, time and operations, and other stopping rules, on curves whose answer is known."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from swept_folder import TOKENS, example_sweep

from sweeps.analysis.rankings import comparable_curve, disagreement, equal_budgets
from sweeps.analysis.stopping_replay import replay
from sweeps.analysis.sweep_findings import Findings, gather
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import LOSS, TrialRecord, TrialStore
from sweeps.report.report_comparison import budgets_section
from sweeps.settings.sweep_config import SweepConfig

RATE = "training.learning_rate"


def swept(folder: Path, trials: list[dict[str, Any]], **changes: Any) -> Findings:
    """A finished sweep of trials whose loss is a + b / share of the tokens, each with its own speed and operations."""
    store = TrialStore(folder / "trials")
    records = []
    sweep: SweepConfig = example_sweep(early_stopping={"method": "asha"}, **changes)
    for number, trial in enumerate(trials, start=1):
        record = TrialRecord(number=number, settings={RATE: 1e-3 * number}, outcome=Outcome.COMPLETED)
        for share in np.linspace(0.05, 1, 20):
            report = {"tokens": share * TOKENS, "training_s": share * trial["seconds"], LOSS: loss(trial, share)}
            store.append_report(record, report)
        records.append(
            record.model_copy(
                update={
                    "metrics": {LOSS: loss(trial, 1.0)},
                    "tokens": TOKENS,
                    "training_s": trial["seconds"],
                    "flops_per_token": trial.get("flops", 1.0),
                }
            )
        )
    return gather(folder, sweep, records, {"status": "finished"})


def loss(trial: dict[str, Any], share: float) -> float:
    return float(trial["end"] + trial.get("fall", 0.1) * (1 / share - 1))


def test_a_faster_trial_may_be_best_at_equal_time_and_a_better_one_at_equal_tokens(tmp_path: Path) -> None:
    findings = swept(tmp_path, [{"end": 3.0, "seconds": 400.0}, {"end": 3.05, "seconds": 100.0}])
    budgets = equal_budgets(findings)
    first = {budget.axis: budget.losses[0][0].number for budget in budgets}
    assert first == {"tokens": 1, "training time": 2, "operations": 1}
    (warning,) = disagreement(findings, budgets)
    assert "At equal training time" in warning
    assert "trial-0002 beats trial-0001, the best at equal tokens" in warning


def test_rankings_that_agree_are_not_warned_of(tmp_path: Path) -> None:
    findings = swept(tmp_path, [{"end": 3.0, "seconds": 100.0}, {"end": 3.05, "seconds": 100.0}])
    assert disagreement(findings, equal_budgets(findings)) == []


def test_the_loss_at_an_equal_budget_is_that_of_the_curve_there(tmp_path: Path) -> None:
    """At 85 seconds, the faster trial's last loss before its cooldown, the slower one has 21 % of its tokens."""
    slow, fast = {"end": 3.0, "seconds": 400.0}, {"end": 3.05, "seconds": 100.0}
    (budget,) = [one for one in equal_budgets(swept(tmp_path, [slow, fast])) if one.axis == "training time"]
    assert budget.at == pytest.approx(85.0)
    losses = {record.number: value for record, value in budget.losses}
    assert losses[2] == pytest.approx(loss(fast, 0.85))
    # Read off a line between evaluations at 20 % and 25 % of the tokens, on a logarithmic axis.
    assert losses[1] == pytest.approx(loss(slow, 0.2125), abs=0.01)


def test_losses_of_the_cooldown_and_of_decays_do_not_compare(tmp_path: Path) -> None:
    findings = swept(tmp_path / "wsd", [{"end": 3.0, "seconds": 1.0}])
    assert comparable_curve(findings, findings.records[0]).tokens[-1] <= 0.85 * TOKENS
    decaying = swept(tmp_path / "cosine", [{"end": 3.0, "seconds": 1.0}] * 2, training={"schedule": "cosine"})
    assert comparable_curve(decaying, decaying.records[0]).is_empty
    assert equal_budgets(decaying) == []


def test_a_rule_that_keeps_the_best_loses_nothing_and_saves_what_it_does_not_train(tmp_path: Path) -> None:
    """Curves that never cross: whatever is among the best at a rung is so at the end."""
    trials = [{"end": 3.0 + 0.1 * index, "seconds": 1.0} for index in range(9)]
    found = replay(swept(tmp_path, trials))
    assert found is not None
    assert list(found.rank_correlation.values()) == pytest.approx([1.0] * len(found.rank_correlation))
    for rule in found.rules:
        assert rule.lost_nats == 0.0
        assert 0 < rule.saved < 1
        assert rule.num_stopped > 0
    # The best came first, so every later trial but those that nothing is known of yet ends at the first rung.
    strictest = max(found.rules, key=lambda rule: rule.saved)
    assert strictest.num_stopped >= 6


def test_a_rule_that_stops_the_best_says_what_that_costs(tmp_path: Path) -> None:
    """The best at the end is the worst for its first half: every rule but a late one stops it."""
    good_start = [{"end": 3.2, "seconds": 1.0, "fall": 0.01}] * 6
    late = {"end": 3.0, "seconds": 1.0, "fall": 0.3}
    found = replay(swept(tmp_path, [*good_start, late]))
    assert found is not None
    assert max(rule.lost_nats for rule in found.rules) == pytest.approx(0.2, abs=0.01)


def test_too_few_curves_are_not_replayed(tmp_path: Path) -> None:
    assert replay(swept(tmp_path, [{"end": 3.0, "seconds": 1.0}] * 3)) is None


def test_the_median_rule_is_replayed_beside_halving_and_stops_those_that_stay_behind(tmp_path: Path) -> None:
    good = [{"end": 3.0, "seconds": 1.0}] * 5
    found = replay(swept(tmp_path, [*good, {"end": 9.0, "seconds": 1.0}]))
    assert found is not None
    (median,) = [rule for rule in found.rules if rule.name.startswith("median")]
    assert (median.num_stopped, median.lost_nats) == (1, 0.0)
    # The sixth trial's tokens but for the tenth up to the first rung.
    assert median.saved == pytest.approx(0.9 / 6)


def test_a_first_place_that_changes_within_the_noise_is_not_called_the_same(tmp_path: Path) -> None:
    findings = swept(tmp_path, [{"end": 3.0, "seconds": 400.0}, {"end": 3.0001, "seconds": 100.0}])
    seeds = [
        TrialRecord(number=n, settings={RATE: 5e-3, "training.seed": n}, outcome=Outcome.COMPLETED, metrics={LOSS: end})
        for n, end in ((3, 3.5), (4, 3.9))
    ]
    noisy = gather(tmp_path, findings.sweep, [*findings.records, *seeds], {"status": "finished"})
    assert disagreement(noisy, equal_budgets(noisy)) == []
    text = str(budgets_section(noisy))
    assert "the differences in loss are below the noise" in text
    assert "is the same" not in text
