"""What is known of micro-batches is measured once, kept, and spares twins their training."""

from pathlib import Path

import pytest

from core.memory.memory_reports import MicroBatchSpeed
from core.settings.run_config import RunConfig
from sweep_examples import record, tiny_sweep
from sweeps.early_stopping.rungs import Rungs
from sweeps.early_stopping.token_scheduler import TokenScheduler
from sweeps.memory_knowledge.memory_frontier import MemoryFrontier
from sweeps.memory_knowledge.memory_observations import MemoryStoreError
from sweeps.memory_knowledge.micro_batch_store import MicroBatches, swept_micro_batches
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import LOSS, TrialStore
from sweeps.search.ledger import Ledger
from sweeps.search.sweep_searcher import SweepSearcher

SWEEP = tiny_sweep("search.training.learning_rate={choice: [1e-3]}", "searcher.method=grid", "searcher.start=none")
SPEEDS = (MicroBatchSpeed(4, 100.0, 40), MicroBatchSpeed(8, 150.0, 80), MicroBatchSpeed(16, 120.0, 160))


def known(folder: Path, *, largest: int = 16, swept: tuple[int, ...] = (4, 8, 16)) -> MicroBatches:
    return MicroBatches(
        folder / "memory" / "cpu-micro-batches.json",
        shape_of=lambda run: f"width {run.model.width}",
        largest=lambda _: largest,
        fits=lambda run: isinstance(run.training.micro_batch_size, int) and run.training.micro_batch_size <= largest,
        swept=swept,
    )


def automatic_run(**training: object) -> RunConfig:
    return RunConfig.model_validate({"objective": "masked_lm", "training": {"tokens": 1000, **training}})


def test_shape_is_measured_once_and_another_sweep_knows_it(tmp_path: Path) -> None:
    run = automatic_run()
    micro_batches = known(tmp_path)
    asked = micro_batches.to_measure(run)
    assert asked == (4, 8, 16)
    assert micro_batches.fastest(run) is None
    micro_batches.learn(run, asked, SPEEDS)
    for one in (micro_batches, known(tmp_path)):
        assert one.to_measure(run) == ()
        assert one.fastest(run) == 8
    assert known(tmp_path, largest=4).fastest(run) == 4
    assert known(tmp_path, largest=64).to_measure(run) == (4, 8, 16, 32, 64)
    other = run.with_overrides({"model.width": 512})
    assert micro_batches.to_measure(other) == (4, 8, 16)


def test_swept_values_that_fit_are_measured_and_a_number_in_the_file_is_not(tmp_path: Path) -> None:
    assert swept_micro_batches(SWEEP) == (4, 8, 16)
    fixed = automatic_run(micro_batch_size=8)
    assert known(tmp_path, largest=10).to_measure(fixed) == (4, 8)
    assert known(tmp_path, swept=()).to_measure(fixed) == ()


def test_damaged_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "cpu-micro-batches.json").write_text("{")
    with pytest.raises(MemoryStoreError, match=r"cpu-micro-batches\.json.*Remove it"):
        known(tmp_path)


def test_twin_is_not_trained_and_has_the_loss_of_the_other_with_its_own_speed(tmp_path: Path) -> None:
    """A grid of one learning rate, two batch sizes and three micro-batches: two trainings, and four twins."""
    micro_batches = known(tmp_path)
    frontier = MemoryFrontier(2**40, num_workers=1, predict=lambda _: 1, source="here")
    ledger = Ledger(
        TrialStore(tmp_path / "trials"),
        frontier=frontier,
        scheduler=TokenScheduler(Rungs((), 3)),
        run_of=lambda record: SWEEP.run_config(record.settings),
        rungs=(),
    )
    searcher = SweepSearcher(
        SWEEP, ledger, frontier, worst_loss=7.0, trial_config=lambda record, _: {"number": record.number},
        largest_micro_batch=lambda *_: 16, micro_batches=micro_batches,
    )  # fmt: skip
    trained = {}
    config = searcher.suggest("a")
    micro_batches.learn(SWEEP.run_config(ledger.records[1].settings), (4, 8, 16), SPEEDS)
    while isinstance(config, dict):
        number = config["number"]
        trained[number] = 5.0 + number
        ledger.report(number, {"tokens": 30_000, LOSS: trained[number], "training_s": 1.0})
        ended = {"outcome": "COMPLETED", "reason": "trained all its tokens", "interruptions": 0}
        searcher.on_trial_complete("a", ended)
        config = searcher.suggest("a")
    assert len(trained) == 2
    records = ledger.records
    assert len(records) == 6
    twins = [one for one in records.values() if one.twin_of is not None]
    assert len(twins) == 4
    for twin in twins:
        assert twin.twin_of is not None
        original = records[twin.twin_of]
        assert original.settings["training.batch_size"] == twin.settings["training.batch_size"]
        assert (twin.outcome, twin.loss, twin.tokens) == (Outcome.COMPLETED, original.loss, 0)
        size = twin.settings["training.micro_batch_size"]
        speed = next(one for one in SPEEDS if one.rows == size)
        assert speed.rows_per_s is not None
        assert twin.tokens_per_s == pytest.approx(speed.rows_per_s * SWEEP.model.sequence_length)
        assert twin.peak_memory_bytes == speed.peak_bytes
        assert twin.reason.startswith(f"not trained: {original.name} differs only in the micro-batch")
    assert TrialStore(tmp_path / "trials").load_all() == [records[number] for number in sorted(records)]


def test_twin_of_a_trial_that_still_runs_ends_with_it(tmp_path: Path) -> None:
    ledger = Ledger(
        TrialStore(tmp_path / "trials"),
        frontier=MemoryFrontier(2**40, num_workers=1, predict=lambda _: 1),
        scheduler=TokenScheduler(Rungs((), 3)),
        run_of=lambda record: SWEEP.run_config(record.settings),
        rungs=(),
    )
    settings = {"training.learning_rate": 1e-3, "training.batch_size": 16, "training.micro_batch_size": 4}
    original = ledger.open(settings, "search")
    ledger.start(1, micro_batch_size=4)
    twin = ledger.open_twin(settings | {"training.micro_batch_size": 8}, original, SPEEDS[1])
    assert twin.outcome is None
    assert ledger.unfinished() == [ledger.records[1]]
    ledger.settle(1, {"outcome": "DIVERGED", "reason": "diverged at step 3", "interruptions": 0})
    assert ledger.records[2].outcome is Outcome.DIVERGED
    assert "diverged at step 3" in ledger.records[2].reason
    assert record(2).twin_of is None
