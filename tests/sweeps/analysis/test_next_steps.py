from pathlib import Path
from typing import Any

import pytest
from swept_folder import example_sweep

from sweeps.analysis.importances import Importances, importances
from sweeps.analysis.next_steps import next_steps
from sweeps.analysis.sweep_findings import Findings, gather
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import LOSS, MemoryVerdict, RefusedProposal, TrialRecord, TrialStore

RATE, BATCH = "training.learning_rate", "training.batch_size"


def trial(number: int, loss: float | None = None, outcome: Outcome | None = None, **changes: Any) -> TrialRecord:
    return TrialRecord(
        number=number,
        outcome=outcome or (None if loss is None else Outcome.COMPLETED),
        metrics={} if loss is None else {LOSS: loss},
        **{"settings": {}} | changes,
    )


def rates(*pairs: tuple[float, float]) -> list[TrialRecord]:
    return [trial(n, loss, settings={RATE: rate}) for n, (rate, loss) in enumerate(pairs, start=1)]


def findings_of(folder: Path, records: list[TrialRecord], search: dict[str, Any] | None = None) -> Findings:
    space = {RATE: {"log_uniform": [1e-4, 1e-2]}} if search is None else search
    return gather(folder, example_sweep(search=space, start_with=[]), records, {"status": "finished"})


def said(findings: Findings, words: str) -> str:
    """The one sentence with these words; empty when no rule speaks so."""
    found = [sentence for sentence in next_steps(findings) if words in sentence]
    assert len(found) <= 1
    return found[0] if found else ""


def test_best_on_the_upper_edge_asks_for_higher_values(tmp_path: Path) -> None:
    findings = findings_of(tmp_path, rates((9e-3, 4.0), (3e-3, 4.1), (1e-3, 4.2), (2e-4, 4.4)))
    assert "to 0.03 for instance" in said(findings, "on the edge")


def test_best_on_the_lower_edge_asks_for_lower_values(tmp_path: Path) -> None:
    findings = findings_of(tmp_path, rates((1.1e-4, 4.0), (3e-3, 4.1), (1e-3, 4.2), (9e-3, 4.4)))
    assert "to 3.33e-05 for instance" in said(findings, "on the edge")


def test_best_in_the_middle_asks_for_no_wider_range(tmp_path: Path) -> None:
    findings = findings_of(tmp_path, rates((1e-3, 4.0), (3e-3, 4.1), (2e-4, 4.2), (9e-3, 4.4)))
    assert not said(findings, "on the edge")


def test_few_trials_say_nothing_about_edges(tmp_path: Path) -> None:
    assert not said(findings_of(tmp_path, rates((9e-3, 4.0), (3e-3, 4.1), (1e-3, 4.2))), "on the edge")


def test_listed_values_go_on_as_they_went(tmp_path: Path) -> None:
    records = [trial(n, 4.0 + n, settings={BATCH: size}) for n, size in enumerate((256, 128, 64, 64), start=1)]
    findings = findings_of(tmp_path, records, {BATCH: {"choice": [64, 128, 256]}})
    assert "to 512 for instance" in said(findings, "on the edge")


def test_two_listed_values_have_no_middle_and_so_no_edge(tmp_path: Path) -> None:
    records = [trial(n, 4.0 + n, settings={BATCH: size}) for n, size in enumerate((64, 128, 64, 128), start=1)]
    assert not said(findings_of(tmp_path, records, {BATCH: {"choice": [64, 128]}}), "on the edge")


def test_no_value_is_proposed_that_the_setting_forbids(tmp_path: Path) -> None:
    path = "model.dropout"
    records = [trial(n, 4.0 + n, settings={path: n / 100}) for n in range(5)]
    assert not said(findings_of(tmp_path, records, {path: {"uniform": [0.0, 0.3]}}), "on the edge")


def test_micro_batch_on_an_edge_is_no_discovery(tmp_path: Path) -> None:
    path = "training.micro_batch_size"
    records = [trial(n, 4.0 + n, settings={path: size}) for n, size in enumerate((32, 16, 8, 4), start=1)]
    assert not said(findings_of(tmp_path, records, {path: {"choice": [4, 8, 16, 32]}}), "on the edge")


def test_divergence_above_all_that_was_stable_names_the_bound(tmp_path: Path) -> None:
    wild = [trial(n, outcome=Outcome.DIVERGED, settings={RATE: rate}) for n, rate in ((8, 6e-3), (9, 9e-3))]
    findings = findings_of(tmp_path, [*rates((1e-3, 4.0), (5e-3, 4.1)), *wild])
    assert "all at learning rates of 0.006 or more" in said(findings, "2 trials diverged")


def test_divergence_among_stable_trials_asks_for_a_safer_sweep(tmp_path: Path) -> None:
    wild = trial(9, outcome=Outcome.DIVERGED, settings={RATE: 2e-3})
    sentence = said(findings_of(tmp_path, [*rates((5e-3, 4.0)), wild]), "1 trial diverged")
    assert "where other trials were stable" in sentence


def test_many_infeasible_ask_for_memory_or_a_smaller_micro_batch(tmp_path: Path) -> None:
    store = TrialStore(tmp_path / "trials")
    store.append_refusal(RefusedProposal(settings={}, verdict=MemoryVerdict.REFUSED, reason="x"))
    out = trial(3, outcome=Outcome.INFEASIBLE, memory_limit_bytes=2**30)
    sentence = said(findings_of(tmp_path, [*rates((1e-3, 4.0), (2e-3, 4.1)), out]), "do not fit")
    assert "2 of 4 trials and proposals" in sentence
    assert "memory of 1.00 GiB" in sentence
    assert "training.micro_batch_size: auto" in sentence
    assert "training.activation_checkpointing: true" in sentence


def test_few_infeasible_are_not_worth_a_sentence(tmp_path: Path) -> None:
    out = trial(9, outcome=Outcome.INFEASIBLE)
    assert not said(findings_of(tmp_path, [*rates(*[(1e-3, 4.0 + n) for n in range(4)]), out]), "do not fit")


def test_without_repeats_a_tie_cannot_be_excluded(tmp_path: Path) -> None:
    findings = findings_of(tmp_path, rates((1e-3, 4.0), (2e-3, 4.002)))
    assert "0.0020 nats (0.05%) apart" in said(findings, "They may tie")


def test_loss_still_falling_at_the_end_asks_for_more_tokens(tmp_path: Path) -> None:
    store = TrialStore(tmp_path / "trials")
    best = trial(1, 4.0)
    for tokens, loss in ((25.0, 6.0), (50.0, 5.0), (75.0, 4.3), (100.0, 4.0)):
        store.append_report(best, {"tokens": tokens, LOSS: loss})
    assert "fell by 0.3000 nats" in said(findings_of(tmp_path, [best]), "is still falling")


def test_flat_loss_asks_for_no_more_tokens(tmp_path: Path) -> None:
    store = TrialStore(tmp_path / "trials")
    best = trial(1, 4.0)
    for tokens, loss in ((25.0, 6.0), (50.0, 5.0), (75.0, 4.01), (100.0, 4.0)):
        store.append_report(best, {"tokens": tokens, LOSS: loss})
    assert not said(findings_of(tmp_path, [best]), "is still falling")


@pytest.mark.parametrize(("scale", "words"), [(10.0, "a smaller batch"), (1000.0, "larger batch")])
def test_batch_far_from_the_noise_scale_is_said_so(tmp_path: Path, scale: float, words: str) -> None:
    best = trial(1, 4.0, settings={BATCH: 64})
    TrialStore(tmp_path / "trials").append_report(best, {"tokens": 1.0, "noise/scale_rows": scale})
    assert words in said(findings_of(tmp_path, [best]), "gradient noise scale")


def test_waiting_for_data_is_said(tmp_path: Path) -> None:
    slow = trial(1, 4.0)
    report = {"tokens": 1.0, "step": 1.0, "profile/data_ms": 30.0, "profile/forward_ms": 70.0}
    TrialStore(tmp_path / "trials").append_report(slow, report)
    assert said(findings_of(tmp_path, [slow]), "waiting for data")


def test_setting_that_decides_the_loss_is_the_most_important(tmp_path: Path) -> None:
    search = {RATE: {"log_uniform": [1e-4, 1e-2]}, "training.weight_decay": {"uniform": [0.0, 1.0]}}
    records = [
        trial(n, 4.0 + n / 10, settings={RATE: 1e-4 * 10 ** (n / 10), "training.weight_decay": (7 * n % 20) / 20})
        for n in range(20)
    ]
    found = importances(findings_of(tmp_path, records, search))
    assert isinstance(found, Importances)
    assert next(iter(found.shares)) == RATE
    assert found.shares[RATE] > 0.6
    assert sum(found.shares.values()) == pytest.approx(1.0)


def test_importances_are_left_out_with_fewer_than_six_completed(tmp_path: Path) -> None:
    search = {RATE: {"log_uniform": [1e-4, 1e-2]}, BATCH: {"choice": [32, 64]}}
    records = [trial(n, 4.0 + n, settings={RATE: 1e-3, BATCH: 32}) for n in range(5)]
    assert importances(findings_of(tmp_path, records, search)) == (
        "only 5 trials have comparable losses inside the search space; 6 are needed."
    )


def test_equal_losses_have_no_importances(tmp_path: Path) -> None:
    search = {RATE: {"log_uniform": [1e-4, 1e-2]}, BATCH: {"choice": [32, 64]}}
    records = [trial(n, 4.0, settings={RATE: 1e-3, BATCH: 32}) for n in range(8)]
    assert importances(findings_of(tmp_path, records, search)) == "all trials have the same loss."
