import pytest

from core.run_config import RunConfig
from sweep_examples import record, tiny_sweep
from sweeps.memory_frontier import MemoryFrontier
from sweeps.outcomes import Outcome

MEBIBYTE = 2**20


def run(micro_batch: int | str, *, batch: int = 64, rate: float = 0.15, width: int = 32) -> RunConfig:
    return tiny_sweep().run_config(
        {
            "training.micro_batch_size": micro_batch,
            "training.batch_size": batch,
            "objective.masked_lm.masking_rate": rate,
            "model.width": width,
        }
    )


@pytest.fixture
def frontier() -> MemoryFrontier:
    """A worker with 100 MiB, on which a row is predicted to need 5 MiB."""

    def predict(run: RunConfig) -> int | None:
        asked = run.training.micro_batch_size
        return None if asked == "auto" else 5 * MEBIBYTE * min(asked, run.training.batch_size)

    return MemoryFrontier(100 * MEBIBYTE, num_workers=1, predict=predict)


def test_what_is_predicted_not_to_fit_is_refused_with_the_numbers(frontier: MemoryFrontier) -> None:
    refusal = frontier.refusal(run(32))
    assert refusal is not None
    assert refusal.verdict == "refused by prediction"
    assert refusal.reason == "micro-batch 32 needs 160.00 MiB (predicted) of 100.00 MiB"
    assert frontier.refusal(run(20)) is None


def test_a_prediction_does_not_refuse_what_the_file_asks_for(frontier: MemoryFrontier) -> None:
    assert frontier.refusal(run(32), trust_prediction=False) is None


def test_nothing_at_or_above_a_micro_batch_that_ran_out_is_launched_for_that_shape(frontier: MemoryFrontier) -> None:
    frontier.learn_shortage(run(8), "trial-0001")
    for micro_batch in (8, 9, 16, 64):
        refusal = frontier.refusal(run(micro_batch), trust_prediction=False)
        assert refusal is not None, micro_batch
        assert refusal.verdict == "skipped by dominance"
        assert "trial-0001 (micro-batch 8)" in refusal.reason
    assert frontier.refusal(run(7)) is None


def test_a_shortage_says_nothing_about_another_shape(frontier: MemoryFrontier) -> None:
    frontier.learn_shortage(run(8), "trial-0001")
    assert frontier.refusal(run(8, width=64)) is None


def test_a_lower_masking_rate_may_fit_where_a_higher_one_did_not(frontier: MemoryFrontier) -> None:
    frontier.learn_shortage(run(8, rate=0.3), "trial-0001")
    assert frontier.refusal(run(8, rate=0.15)) is None
    assert frontier.refusal(run(8, rate=0.4)) is not None


def test_a_learning_rate_has_no_part_in_memory(frontier: MemoryFrontier) -> None:
    frontier.learn_shortage(run(8), "trial-0001")
    assert frontier.refusal(run(8).with_overrides({"training.learning_rate": 0.1})) is not None


def test_a_micro_batch_larger_than_the_batch_counts_as_the_batch(frontier: MemoryFrontier) -> None:
    assert frontier.refusal(run(64, batch=16)) is None


def test_an_automatic_micro_batch_is_never_refused(frontier: MemoryFrontier) -> None:
    frontier.learn_shortage(run(1), "trial-0001")
    assert frontier.refusal(run("auto")) is None


def test_a_restored_frontier_remembers_only_what_was_observed(frontier: MemoryFrontier) -> None:
    observed = record(1, Outcome.INFEASIBLE, memory_verdict="ran out of memory")
    refused = record(2, Outcome.INFEASIBLE, memory_verdict="refused by prediction")
    runs = {1: run(16), 2: run(4)}
    frontier.restore([observed, refused], lambda record: runs[record.number])
    assert frontier.refusal(run(16)) is not None
    assert frontier.refusal(run(4)) is None
