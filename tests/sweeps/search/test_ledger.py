"""What becomes of trials whose memory runs out, from Tune's last result to records, frontier and later sweeps."""

from pathlib import Path
from typing import Any

import pytest

from core.memory.memory_reports import OutOfMemoryEvent
from core.memory.out_of_memory import OomFacts, OomKind, OomPhase
from core.settings.run_config import RunConfig
from core.training.run_end import RunEnd
from data_pipeline.files.disk_room import NoRoomError
from sweep_examples import tiny_sweep
from sweeps.early_stopping.rungs import Rungs
from sweeps.early_stopping.token_scheduler import TokenScheduler
from sweeps.memory_knowledge.memory_frontier import MemoryFrontier
from sweeps.memory_knowledge.memory_observations import MemoryObservation, without_repetitions
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_events import TrialEvent
from sweeps.records.trial_records import LOSS, TrialRecord, TrialStore
from sweeps.search.ledger import Ledger

SWEEP = tiny_sweep()
SETTINGS = {"training.learning_rate": 2e-3, "training.batch_size": 64, "training.micro_batch_size": 32}


class Told:
    """A ledger with one trial that is running, asked for 32 rows at once."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.remembered: list[MemoryObservation] = []
        self.frontier = MemoryFrontier(1000, num_workers=1, predict=predict, source="here")
        self.scheduler = TokenScheduler(Rungs((), 3))
        self.ledger = Ledger(
            TrialStore(folder / "trials"),
            frontier=self.frontier,
            scheduler=self.scheduler,
            run_of=lambda record: SWEEP.run_config(record.settings),
            rungs=(),
            remember=self.remembered.extend,
        )
        asked = self.ledger.open(SETTINGS | settings, "search").micro_batch_size_asked
        self.ledger.start(1, micro_batch_size=None if asked == "auto" else asked)

    def report(self, tokens: int, micro_batch: int, **more: float) -> None:
        values = {"tokens": tokens, "micro_batch_size": micro_batch, "memory/peak_bytes": 900, LOSS: 5.0}
        self.ledger.report(1, values | more)

    def end(self, outcome: str, micro_batch: int, *, oom: OomFacts | None = None, **more: Any) -> TrialRecord:
        end = RunEnd(
            outcome=outcome,  # type: ignore[arg-type]
            reason="in words",
            metrics={LOSS: 4.0} if oom is None else {},
            tokens=3000 if oom is None else 0,
            micro_batch_size_used=micro_batch,
            peak_memory_bytes=950,
            oom=oom,
            **more,
        )
        return self.ledger.settle(
            1, {"outcome": str(Outcome[outcome.upper()]), "reason": end.reason, "interruptions": 0, "end": end}
        )

    def seen(self) -> list[tuple[int, bool]]:
        """Micro-batches and whether they fit, as later sweeps read them."""
        assert without_repetitions(self.remembered) == list(self.frontier.observations)
        return sorted((one.micro_batch_size, one.fits) for one in self.frontier.observations)


class FullStore(TrialStore):
    """A store on a disk that takes nothing more."""

    def save(self, record: TrialRecord) -> None:
        raise NoRoomError(str(self.folder / record.name), 2000, 0)


def predict(run: RunConfig) -> int:
    """50 bytes a row."""
    asked = run.training.micro_batch_size
    assert isinstance(asked, int)
    return 50 * asked


def ran_out(kind: OomKind = "device", phase: OomPhase = "backward") -> OomFacts:
    return OomFacts(kind=kind, error_type="torch.OutOfMemoryError", message="", phase=phase)


def test_a_trial_that_fitted_teaches_its_size_and_its_error_of_prediction(tmp_path: Path) -> None:
    told = Told(tmp_path, **{"training.micro_batch_size": 16})
    record = told.end("completed", 16)
    assert (record.memory_verdict, record.out_of_memory_events) == (None, 0)
    assert record.prediction_error == pytest.approx(950 / 800 - 1)
    assert told.seen() == [(16, True)]


def test_a_trial_that_ran_out_says_so_and_rules_out_its_size(tmp_path: Path) -> None:
    told = Told(tmp_path)
    record = told.end("infeasible", 32, oom=ran_out())
    assert record.outcome is Outcome.INFEASIBLE
    assert record.memory_verdict == "ran out of memory"
    assert (record.out_of_memory_events, record.out_of_memory_micro_batches) == (1, (32,))
    assert record.prediction_error is None
    assert told.seen() == [(32, False)]


@pytest.mark.parametrize("kind", ["node", "suspect"])
def test_an_out_of_memory_of_the_node_rules_out_nothing(tmp_path: Path, kind: OomKind) -> None:
    told = Told(tmp_path)
    record = told.end("infeasible", 32, oom=ran_out(kind))
    assert record.memory_verdict == "ran out of memory"
    assert told.seen() == []


def test_a_stage_with_a_smaller_micro_batch_is_no_out_of_memory_but_shrinking_within_it_is(tmp_path: Path) -> None:
    told = Told(tmp_path)
    told.report(1000, 16, stage=1.0)
    told.report(2000, 8, stage=2.0)
    told.report(3000, 8, stage=2.0)
    assert told.ledger.records[1].out_of_memory_events == 0
    told.report(4000, 4, stage=2.0)
    assert told.ledger.records[1].out_of_memory_micro_batches == (8,)


def test_a_trial_that_shrank_and_was_stopped_early_says_so_by_its_reports_alone(tmp_path: Path) -> None:
    told = Told(tmp_path)
    told.report(1000, 16)
    told.report(2000, 8)
    # That 32 rows are too many was predicted: the next proposal need not wait for the end of this trial.
    assert told.seen() == [(16, False), (32, False)]
    told.scheduler.stopped[1] = "not among the best"
    record = told.ledger.settle(1, None)
    assert record.outcome is Outcome.STOPPED
    assert record.memory_verdict == "ran out of memory and went on"
    assert (record.micro_batch_size_asked, record.micro_batch_size_used) == (32, 8)
    assert (record.out_of_memory_events, record.out_of_memory_micro_batches) == (2, (32, 16))
    assert told.seen() == [(8, True), (16, False), (32, False)]


def test_the_peak_of_an_automatic_micro_batch_is_predicted_for_the_size_used(tmp_path: Path) -> None:
    told = Told(tmp_path, **{"training.micro_batch_size": "auto"})
    told.report(1000, 16)
    record = told.end("completed", 16)
    assert record.predicted_peak_memory_bytes == 800
    assert record.memory_verdict is None
    assert told.seen() == [(16, True)]


def test_a_resumed_sweep_learns_the_same_from_the_records_alone(tmp_path: Path) -> None:
    told = Told(tmp_path)
    told.report(1000, 16)
    told.end("completed", 16)
    again = MemoryFrontier(1000, num_workers=1, predict=predict, source="here")
    for record in TrialStore(tmp_path / "trials").load_all():
        again.learn_trial(record, SWEEP.run_config(record.settings))
    assert again.observations == told.frontier.observations


def test_a_survived_out_of_memory_is_told_from_the_end_and_one_in_evaluation_rules_out_no_training(
    tmp_path: Path,
) -> None:
    told = Told(tmp_path)
    told.report(1000, 16)
    survived = (
        OutOfMemoryEvent(ran_out(), step=0, size=32, smaller=16),
        OutOfMemoryEvent(ran_out(phase="evaluation"), step=2, size=16, smaller=8),
    )
    record = told.end("completed", 16, oom_events=survived)
    assert record.outcome is Outcome.COMPLETED
    assert record.memory_verdict == "ran out of memory and went on"
    assert (record.out_of_memory_events, record.out_of_memory_micro_batches) == (2, (32,))
    assert told.seen() == [(16, True), (32, False)]


def test_what_a_neighbour_took_rules_out_nothing(tmp_path: Path) -> None:
    told = Told(tmp_path, **{"training.micro_batch_size": 16})
    told.report(1000, 8)
    record = told.end(
        "completed", 16, oom_events=(OutOfMemoryEvent(ran_out(), step=0, size=16, smaller=8, is_neighbours=True),)
    )
    assert (record.out_of_memory_events, record.out_of_memory_micro_batches) == (1, ())
    assert told.seen() == [(16, True)]


def test_three_trials_in_a_row_that_break_before_they_train_end_the_search_and_one_that_trains_does_not(
    tmp_path: Path,
) -> None:
    told = Told(tmp_path)
    broken = {"outcome": "FAILED", "reason": "a fault", "interruptions": 0}
    told.report(1000, 32)
    told.ledger.settle(1, broken)
    for number in (2, 3, 4):
        assert not told.ledger.is_hopeless()
        told.ledger.open(SETTINGS, "search")
        told.ledger.settle(number, broken)
    # The first had trained.
    assert told.ledger.is_hopeless()
    again = Told(tmp_path)
    assert again.ledger.records[5].outcome is None
    assert again.ledger.is_hopeless()


def test_failures_before_a_retry_do_not_end_the_search_of_the_retried_trial(tmp_path: Path) -> None:
    told = Told(tmp_path)
    broken = {"outcome": "FAILED", "reason": "a fault", "interruptions": 0}
    for number in (1, 2, 3):
        if number > 1:
            told.ledger.open(SETTINGS, "search")
        told.ledger.settle(number, broken)
    assert told.ledger.is_hopeless()
    store = TrialStore(tmp_path / "trials")
    store.set_aside(store.load_all()[0])
    again = Told(tmp_path)
    assert not again.ledger.is_hopeless()
    assert [record.number for record in again.ledger.unfinished()] == [1, 4]


def test_a_machine_that_fails_leaves_older_records_on_disk_and_tells_listeners_all_the_same(tmp_path: Path) -> None:
    told = Told(tmp_path)
    told.report(1000, 32)
    heard: list[tuple[TrialEvent, TrialRecord]] = []
    told.ledger.listeners.append(lambda event, record, _: heard.append((event, record)))
    told.ledger._store = FullStore(tmp_path / "trials")
    with pytest.raises(NoRoomError):
        told.report(2000, 32)
    told.ledger.is_halted = True
    record = told.ledger.settle(1, None, reason="/x: the disk is full. Make room there.")
    assert (record.outcome, record.reason) == (Outcome.INTERRUPTED, "/x: the disk is full. Make room there.")
    assert heard == [(TrialEvent.ENDED, record)]
    (on_disk,) = TrialStore(tmp_path / "trials").load_all()
    assert (on_disk.outcome, on_disk.tokens, on_disk.is_done) == (None, 1000, False)
    # The report of the refused record is there, and the resumed trial repeats it.
    assert [report["tokens"] for report in TrialStore(tmp_path / "trials").reports(on_disk)] == [1000, 2000]
