import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.settings.run_config import RunConfig
from sweep_examples import record, tiny_sweep
from sweeps.memory_knowledge.memory_frontier import MemoryFrontier, shape_of
from sweeps.memory_knowledge.memory_observations import MemoryObservation, without_repetitions
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import MemoryVerdict, TrialRecord

MEBIBYTE = 2**20
LIMIT = 100 * MEBIBYTE
BEGAN_AT = datetime(2026, 1, 1, tzinfo=UTC)


def run(micro_batch: int | str, *, batch: int = 64, rate: float = 0.15, width: int = 32, **more: Any) -> RunConfig:
    return tiny_sweep().run_config(
        {
            "training.micro_batch_size": micro_batch,
            "training.batch_size": batch,
            "training.on_oom": "stop",
            "objective.masked_lm.masking_rate": rate,
            "model.width": width,
            **more,
        }
    )


def predict(run: RunConfig) -> int:
    """5 MiB a row, and as much again for each 32 of width beyond the first."""
    asked = run.training.micro_batch_size
    assert isinstance(asked, int)
    return 5 * MEBIBYTE * min(asked, run.training.batch_size) * run.model.width // 32


def new_frontier(**more: Any) -> MemoryFrontier:
    """A worker with 100 MiB."""
    return MemoryFrontier(**{"limit_bytes": LIMIT, "num_workers": 1, "predict": predict, "source": "here"} | more)


@pytest.fixture
def frontier() -> MemoryFrontier:
    return new_frontier()


def ended(number: int, *, ran_out: tuple[int, ...] = (), used: int | None = None, source: str = "") -> TrialRecord:
    """A trial whose micro-batches ran out, in order, and that ran to its end with the one used, if any."""
    return record(
        number,
        Outcome.COMPLETED if used else Outcome.INFEASIBLE,
        tokens=1000 if used else 0,
        micro_batch_size_used=used,
        out_of_memory_micro_batches=ran_out,
        ended_at=(BEGAN_AT + timedelta(minutes=number)).isoformat(timespec="seconds"),
    )


def ran_out(frontier: MemoryFrontier, run: RunConfig, number: int = 1) -> None:
    """The run's micro-batch runs out."""
    size = run.training.micro_batch_size
    assert isinstance(size, int)
    frontier.learn_trial(ended(number, ran_out=(size,)), run)


def success(frontier: MemoryFrontier, run: RunConfig, number: int = 1) -> None:
    """The run's micro-batch fits."""
    size = run.training.micro_batch_size
    assert isinstance(size, int)
    frontier.learn_trial(ended(number, used=size), run)


# Prediction


def test_what_is_predicted_not_to_fit_is_refused_with_the_numbers(frontier: MemoryFrontier) -> None:
    refusal = frontier.refusal(run(32))
    assert refusal is not None
    assert refusal.verdict == "refused by prediction"
    assert refusal.reason == "micro-batch 32 needs 160.00 MiB (predicted) of 100.00 MiB"
    assert refusal.predicted_bytes == 160 * MEBIBYTE
    assert refusal.excess == pytest.approx(0.6)
    assert frontier.refusal(run(20)) is None


def test_a_prediction_does_not_refuse_what_the_file_asks_for(frontier: MemoryFrontier) -> None:
    assert frontier.refusal(run(32), trust_prediction=False) is None


def test_a_micro_batch_larger_than_the_batch_counts_as_the_batch(frontier: MemoryFrontier) -> None:
    assert frontier.refusal(run(64, batch=16)) is None


def test_an_automatic_micro_batch_is_refused_only_where_not_even_one_row_fits(frontier: MemoryFrontier) -> None:
    ran_out(frontier, run(2))
    assert frontier.refusal(run("auto")) is None
    refusal = frontier.refusal(run("auto", width=32 * 21))
    assert refusal is not None
    assert "micro-batch 1 needs 105.00 MiB" in refusal.reason


def test_a_run_that_may_shrink_is_refused_only_where_not_even_one_row_fits(frontier: MemoryFrontier) -> None:
    shrinking = {"training.on_oom": "shrink"}
    assert frontier.refusal(run(32, **shrinking), may_shrink=True) is None
    assert frontier.refusal(run(32), may_shrink=True) is not None
    assert frontier.refusal(run(1, width=32 * 21, **shrinking), may_shrink=True) is not None


def test_a_run_that_may_shrink_is_launched_with_the_largest_micro_batch_that_fits(frontier: MemoryFrontier) -> None:
    def largest(run: RunConfig, num_bytes: int) -> int:
        return num_bytes // (5 * MEBIBYTE)

    def launched(wanted: RunConfig, *, trust_prediction: bool = True) -> int | str:
        return frontier.fitting(wanted, largest, trust_prediction=trust_prediction).training.micro_batch_size

    assert launched(run(16)) == 16
    assert launched(run(32)) == 20
    assert launched(run(32), trust_prediction=False) == 32
    ran_out(frontier, run(12))
    assert launched(run(32), trust_prediction=False) == 11


def test_a_margin_is_kept_until_a_trial_has_shown_it_not_to_be_needed() -> None:
    cautious = new_frontier(first_margin=0.1)
    refusal = cautious.refusal(run(19))
    assert refusal is not None
    assert refusal.reason.startswith("micro-batch 19 needs 95.00 MiB (predicted) of 100.00 MiB less a margin of 10%")
    assert cautious.refusal(run(18)) is None
    success(cautious, run(20, rate=0.3))
    assert cautious.refusal(run(19)) is None
    assert cautious.refusal(run(10, width=64)) is None


# Capacity


def test_an_out_of_memory_lowers_the_capacity_below_it_for_every_shape(frontier: MemoryFrontier) -> None:
    ran_out(frontier, run(16))
    assert frontier.capacity(run(1, width=64)).num_bytes == 80 * MEBIBYTE - 1
    refusal = frontier.refusal(run(8, width=64))
    assert refusal is not None
    assert refusal.verdict == "refused by prediction"
    assert refusal.reason == (
        "micro-batch 8 needs 80.00 MiB (predicted) of 100.00 MiB; trial-0001 ran out of memory at a predicted 80.00 MiB"
    )
    assert frontier.refusal(run(7, width=64)) is None


def test_a_trial_that_ran_beyond_the_limit_by_prediction_raises_the_capacity_for_every_shape(
    frontier: MemoryFrontier,
) -> None:
    success(frontier, run(24))
    assert frontier.capacity().num_bytes == 120 * MEBIBYTE
    assert frontier.capacity().learnt == "trial-0001 ran at a predicted 120.00 MiB"
    assert frontier.refusal(run(12, width=64)) is None
    refusal = frontier.refusal(run(13, width=64))
    assert refusal is not None
    assert "trial-0001 ran at a predicted 120.00 MiB" in refusal.reason


def test_outs_of_memory_and_successes_close_in_on_what_the_device_really_has(frontier: MemoryFrontier) -> None:
    """A device that holds 73 % of what is predicted, as a pessimistic caching allocator would make it look."""
    rng = random.Random(0)
    launched, wasted = 0, 0
    for number in range(1, 61):
        wanted = run(rng.randint(1, 24), width=32 * rng.randint(1, 2), rate=rng.choice([0.15, 0.3]), batch=32)
        if frontier.refusal(wanted) is not None:
            continue
        launched += 1
        if predict(wanted) > 73 * MEBIBYTE:
            ran_out(frontier, wanted, number)
            wasted += 1
        else:
            success(frontier, wanted, number)
    assert launched >= 20
    # Each out-of-memory takes the capacity down to its own size: as records of a random sequence there are few.
    assert wasted <= 4
    assert 73 * MEBIBYTE <= frontier.capacity().num_bytes <= 80 * MEBIBYTE


# Contradictions


def test_of_two_that_contradict_each_other_in_one_shape_the_later_counts(frontier: MemoryFrontier) -> None:
    ran_out(frontier, run(8), 1)
    assert frontier.refusal(run(8)) is not None
    success(frontier, run(10), 2)
    assert frontier.refusal(run(8)) is None
    assert frontier.capacity().num_bytes == LIMIT
    ran_out(frontier, run(8), 3)
    assert frontier.refusal(run(8)) is not None


def test_an_out_of_memory_below_what_another_shape_ran_with_binds_its_own_shape_alone(frontier: MemoryFrontier) -> None:
    success(frontier, run(18), 1)
    ran_out(frontier, run(6, width=64), 2)
    assert frontier.refusal(run(6, width=64)) is not None
    assert frontier.refusal(run(6, width=64, rate=0.1)) is not None
    assert frontier.refusal(run(5, width=64)) is None
    assert frontier.refusal(run(18)) is None
    assert frontier.refusal(run(6, width=96)) is None


def test_a_success_beyond_the_limit_that_another_shapes_out_of_memory_contradicts_binds_its_own_shape_alone(
    frontier: MemoryFrontier,
) -> None:
    success(frontier, run(30), 1)
    ran_out(frontier, run(12, width=64), 2)
    assert frontier.refusal(run(30)) is None
    assert frontier.refusal(run(7, width=96)) is not None
    assert frontier.refusal(run(6, width=96)) is None


# Dominance


def test_nothing_at_or_above_a_micro_batch_that_ran_out_is_launched_for_that_shape(frontier: MemoryFrontier) -> None:
    ran_out(frontier, run(8))
    for micro_batch in (8, 9, 16, 64):
        refusal = frontier.refusal(run(micro_batch), trust_prediction=False)
        assert refusal is not None, micro_batch
        assert refusal.verdict == "skipped by dominance"
        assert "trial-0001 (micro-batch 8), which ran out of 100.00 MiB" in refusal.reason
    assert frontier.refusal(run(7)) is None


def test_a_listed_trial_of_another_shape_is_not_ruled_out_by_an_out_of_memory(frontier: MemoryFrontier) -> None:
    ran_out(frontier, run(8))
    assert frontier.refusal(run(8, width=64), trust_prediction=False) is None


def test_a_lower_masking_rate_may_fit_where_a_higher_one_did_not(frontier: MemoryFrontier) -> None:
    ran_out(frontier, run(8, rate=0.3))
    assert frontier.refusal(run(8, rate=0.15), trust_prediction=False) is None
    assert frontier.refusal(run(8, rate=0.4), trust_prediction=False) is not None


def test_a_learning_rate_has_no_part_in_memory(frontier: MemoryFrontier) -> None:
    ran_out(frontier, run(8))
    assert frontier.refusal(run(8).with_overrides({"training.learning_rate": 0.1})) is not None


def test_a_larger_micro_batch_that_is_predicted_to_need_less_is_not_dominated() -> None:
    """As where the vocabulary head goes through in one chunk more."""
    dipping = new_frontier(predict=lambda run: {8: 50, 9: 45}[int(run.training.micro_batch_size)] * MEBIBYTE)
    ran_out(dipping, run(8))
    assert dipping.refusal(run(9)) is None


# Trials


def test_a_survived_out_of_memory_teaches_both_sizes(frontier: MemoryFrontier) -> None:
    frontier.learn_trial(ended(1, ran_out=(16, 12), used=10), run(16))
    seen = [(one.micro_batch_size, one.fits) for one in frontier.observations]
    assert sorted(seen) == [(10, True), (12, False), (16, False)]
    assert frontier.refusal(run(12)) is not None
    assert frontier.refusal(run(11)) is None


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.INTERRUPTED])
def test_a_trial_that_broke_teaches_nothing(frontier: MemoryFrontier, outcome: Outcome) -> None:
    broken = record(1, outcome, tokens=1000, micro_batch_size_used=16)
    assert frontier.learn_trial(broken, run(16)) == []


def test_a_refused_trial_teaches_nothing(frontier: MemoryFrontier) -> None:
    refused = record(1, Outcome.INFEASIBLE, memory_verdict=MemoryVerdict.REFUSED, micro_batch_size_used=4)
    assert frontier.learn_trial(refused, run(4)) == []


# Other sweeps


def observed(frontier: MemoryFrontier) -> list[MemoryObservation]:
    """What another sweep would read."""
    return [MemoryObservation.model_validate_json(one.model_dump_json()) for one in frontier.observations]


def test_the_next_sweep_with_the_same_limit_starts_with_what_the_first_one_learnt(frontier: MemoryFrontier) -> None:
    ran_out(frontier, run(8))
    following = new_frontier(source="there")
    following.learn(observed(frontier))
    refusal = following.refusal(run(8), trust_prediction=False)
    assert refusal is not None
    assert "trial-0001 of here (micro-batch 8)" in refusal.reason
    assert following.capacity(run(1, width=96)).num_bytes == 40 * MEBIBYTE - 1


@pytest.mark.parametrize(("limit_mib", "is_refused"), [(50, True), (100, True), (120, False), (400, False)])
def test_an_out_of_memory_speaks_of_smaller_limits_and_not_of_larger_ones(limit_mib: int, is_refused: bool) -> None:
    frontier = new_frontier()
    ran_out(frontier, run(8))
    other = new_frontier(limit_bytes=limit_mib * MEBIBYTE)
    other.learn(observed(frontier))
    assert (other.refusal(run(8)) is not None) == is_refused


def test_a_success_speaks_of_larger_limits_and_not_of_smaller_ones(frontier: MemoryFrontier) -> None:
    success(frontier, run(24))
    larger, smaller = new_frontier(limit_bytes=110 * MEBIBYTE), new_frontier(limit_bytes=90 * MEBIBYTE)
    for other in (larger, smaller):
        other.learn(observed(frontier))
    assert larger.capacity().num_bytes == 120 * MEBIBYTE
    assert smaller.capacity().num_bytes == 90 * MEBIBYTE


def test_between_limits_that_are_nearly_the_same_sizes_move_with_the_limit(frontier: MemoryFrontier) -> None:
    """As of `memory: auto`, which is what happens to be free."""
    ran_out(frontier, run(16))
    other = new_frontier(limit_bytes=round(1.02 * LIMIT))
    other.learn(observed(frontier))
    assert other.capacity(run(1, width=64)).num_bytes == pytest.approx(1.02 * 80 * MEBIBYTE, abs=2)


def test_padded_rows_do_not_raise_the_capacity_for_full_ones(frontier: MemoryFrontier) -> None:
    padded = new_frontier(rows_filled=60)
    success(padded, run(30))
    frontier.learn(observed(padded))
    assert frontier.capacity().num_bytes == LIMIT


# What is kept


SIZES = st.tuples(st.integers(1, 12), st.sampled_from([0.15, 0.3]), st.booleans(), st.sampled_from([32, 64]))
WANTED = [
    run(size, rate=rate, width=width) for size in (1, 5, 9, 12, 20, 30) for rate in (0.15, 0.3) for width in (32, 96)
]


@settings(deadline=None, max_examples=30)
@given(st.lists(SIZES, max_size=10), st.randoms(use_true_random=False))
def test_neither_repetitions_nor_the_order_of_merging_change_a_decision(
    trials: list[tuple[int, float, bool, int]], rng: random.Random
) -> None:
    every: list[MemoryObservation] = []
    for number, (size, rate, fits, width) in enumerate(trials, start=1):
        one = new_frontier()
        (success if fits else ran_out)(one, run(size, rate=rate, width=width), number)
        every += one.observations
    whole, merged = new_frontier(), new_frontier()
    whole._seen = dict(enumerate(every))
    rng.shuffle(every)
    half = len(every) // 2
    merged.learn(without_repetitions(every[:half]))
    merged.learn(without_repetitions(every[half:]))
    for wanted in WANTED:
        theirs, ours = whole.refusal(wanted), merged.refusal(wanted)
        assert (theirs and theirs.verdict) == (ours and ours.verdict), wanted


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(SIZES, st.integers(0, 5)), max_size=12))
def test_what_is_learnt_between_decisions_counts_as_if_it_had_been_known_from_the_start(
    trials: list[tuple[tuple[int, float, bool, int], int]],
) -> None:
    asked = new_frontier()
    for number, ((size, rate, fits, width), _) in enumerate(trials, start=1):
        # Most are the newest; those of other sweeps may be older than what is known.
        at = number - trials[number - 1][1]
        (success if fits else ran_out)(asked, run(size, rate=rate, width=width), at)
        fresh = new_frontier()
        fresh.learn(asked.observations)
        for wanted in WANTED:
            assert asked.refusal(wanted) == fresh.refusal(wanted), wanted
            assert asked.capacity(wanted) == fresh.capacity(wanted), wanted


def test_runs_of_two_optimizers_have_two_shapes_and_mup_has_that_of_the_standard_form() -> None:
    plain = shape_of(run(8))
    assert shape_of(run(8, **{"training.optimizer": "muon"})) != plain
    assert shape_of(run(8, **{"model.parametrization": "mup", "model.mup_base_width": 16})) == plain
