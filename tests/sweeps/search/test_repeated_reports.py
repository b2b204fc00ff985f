"""Reports of a trial that repeats tokens after a kill of its driver: the store has each of them once."""

from pathlib import Path

import pytest

from sweep_examples import tiny_sweep
from sweeps.early_stopping.rungs import Rungs
from sweeps.early_stopping.token_scheduler import TokenScheduler
from sweeps.memory_knowledge.memory_frontier import MemoryFrontier
from sweeps.records.trial_records import LOSS, TrialRecord, TrialStore
from sweeps.search.ledger import Ledger

SWEEP = tiny_sweep()


class KilledError(Exception):
    """The driver ends here."""


def ledger_of(store: TrialStore) -> Ledger:
    return Ledger(
        store,
        frontier=MemoryFrontier(1000, num_workers=1, predict=lambda _: 100, source="here"),
        scheduler=TokenScheduler(Rungs((), 3)),
        run_of=lambda record: SWEEP.run_config(record.settings),
        rungs=(),
    )


def report(ledger: Ledger, tokens: int) -> None:
    ledger.report(1, {"tokens": tokens, "micro_batch_size": 4, LOSS: 5.0 - tokens / 1000})


def stored(store: TrialStore) -> list[float]:
    return [one["tokens"] for one in store.reports(store.load_all()[0])]


def test_a_driver_killed_between_record_and_report_loses_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = TrialStore(tmp_path / "trials")
    ledger = ledger_of(store)
    ledger.open({"training.learning_rate": 2e-3}, "search")
    report(ledger, 100)

    save = TrialStore.save

    def killed(store: TrialStore, record: TrialRecord) -> None:
        save(store, record)
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(TrialStore, "save", killed)
        with pytest.raises(KilledError):
            report(ledger, 200)
    again = ledger_of(store)
    for tokens in (100, 200, 300):
        report(again, tokens)
    assert stored(store) == [100, 200, 300]
    assert again.records[1].tokens == 300


def test_a_report_cut_by_a_lost_machine_is_stored_when_its_tokens_are_trained_again(tmp_path: Path) -> None:
    store = TrialStore(tmp_path / "trials")
    ledger = ledger_of(store)
    ledger.open({"training.learning_rate": 2e-3}, "search")
    for tokens in (100, 200, 300):
        report(ledger, tokens)
    file = store.folder / "trial-0001" / "reports.jsonl"
    file.write_bytes(file.read_bytes()[:-5])
    again, heard = ledger_of(store), list[float]()
    again.listeners.append(lambda _event, _record, told: heard.append(told["tokens"] if told else -1))
    for tokens in (200, 300, 400):
        report(again, tokens)
    assert stored(store) == [100, 200, 300, 400]
    assert heard == [300, 400]
    assert again.records[1].loss == pytest.approx(4.6)
