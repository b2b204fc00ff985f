import json
import math
from pathlib import Path

import pytest

from sweep_examples import record
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import LOSS, ChosenBy, DamagedRecordError, MemoryVerdict, RefusedProposal, TrialStore


def test_a_record_read_back_equals_the_one_written(tmp_path: Path) -> None:
    store = TrialStore(tmp_path / "trials")
    written = [
        record(1, loss=3.25, rung_losses={1000: 4.0}, memory_limit_bytes=2**30),
        record(2, Outcome.INFEASIBLE, reason="ran out of memory: 3 of 2", memory_verdict=MemoryVerdict.RAN_OUT),
        record(3, None),
    ]
    for one in reversed(written):
        store.save(one)
    assert TrialStore(tmp_path / "trials").load_all() == written


def test_the_copy_of_a_record_is_read_for_a_damaged_one_which_is_named(tmp_path: Path) -> None:
    said: list[str] = []
    store, one = TrialStore(tmp_path, say=said.append), record(1, loss=3.25)
    store.save(record(1, None))
    store.save(one)
    file = tmp_path / "trial-0001" / "trial.json"
    file.write_text(file.read_text()[:-9])
    assert store.load_all() == [one]
    (line,) = said
    assert line.startswith(f"records  {file} is damaged: ")
    (tmp_path / "trial-0001" / ".trial.json.copy").write_text("{}")
    with pytest.raises(DamagedRecordError, match=f"{file} is damaged: .* Delete the folder {file.parent}: "):
        store.load_all()


@pytest.mark.parametrize("origin", ["search", "start_with", "informed", "repeat", "taken over"])
@pytest.mark.parametrize(
    "verdict",
    ["refused by prediction", "skipped by dominance", "ran out of memory", "ran out of memory and went on"],
)
def test_words_of_a_record_on_disk_are_those_of_earlier_results(tmp_path: Path, origin: str, verdict: str) -> None:
    store = TrialStore(tmp_path / "trials")
    store.save(record(1, chosen_by=origin, memory_verdict=verdict))
    kept = json.loads((tmp_path / "trials" / "trial-0001" / "trial.json").read_text())
    assert (kept["chosen_by"], kept["memory_verdict"]) == (origin, verdict)
    (read,) = store.load_all()
    assert (read.chosen_by, read.memory_verdict) == (ChosenBy(origin), MemoryVerdict(verdict))


def test_a_loss_that_is_not_a_number_is_read_back_as_such(tmp_path: Path) -> None:
    store = TrialStore(tmp_path / "trials")
    store.save(record(1, Outcome.DIVERGED, loss=math.nan, best_loss=math.inf))
    (read,) = store.load_all()
    assert read.loss is not None
    assert math.isnan(read.loss)
    assert read.best_loss == math.inf


def test_reports_trained_again_after_an_interruption_come_once_and_a_half_line_is_passed_over(tmp_path: Path) -> None:
    store, one = TrialStore(tmp_path / "trials"), record(1)
    for tokens in (100, 200, 300, 200, 300, 400):
        store.append_report(one, {"tokens": tokens, LOSS: 5.0 - tokens / 1000})
    with (store.folder_of(one) / "reports.jsonl").open("a") as file:
        file.write('{"tokens": 50')
    assert [report["tokens"] for report in store.reports(one)] == [100, 200, 300, 400]


def test_refused_proposals_are_kept_in_order(tmp_path: Path) -> None:
    store = TrialStore(tmp_path / "trials")
    refused = [
        RefusedProposal(settings={"training.batch_size": size}, verdict=MemoryVerdict.REFUSED, reason=f"{size}")
        for size in (3, 1, 2)
    ]
    for one in refused:
        store.append_refusal(one)
    assert store.load_refusals() == refused


def test_only_an_interrupted_or_unended_trial_is_run_again() -> None:
    again = [outcome for outcome in (*Outcome, None) if not record(1, outcome).is_done]
    assert again == [Outcome.INTERRUPTED, None]
