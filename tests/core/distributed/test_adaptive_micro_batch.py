"""What a micro-batch shrinks to, whose decision that is, and when it grows back."""

import itertools

import pytest
import torch
from full_rows import a_run
from hypothesis import given, settings
from hypothesis import strategies as st
from small_steps import a_step, to_half, train
from two_workers import on_workers

from core.distributed.adaptive_micro_batch import MicroBatchSize, Smaller, half_of
from core.distributed.workers import Workers
from core.memory.allocator_thrashing import Thrashing, allocator_retries
from core.memory.out_of_memory import OomFacts
from core.memory.storage_meter import StorageMeter
from core.memory_prediction.peak_memory import SINGLE_CPU_WORKER, largest_micro_batch, predict_memory
from core.settings.run_config import RunConfig
from core.training.memory_budget import MemoryBudget

VOCABULARY_SIZE = 3000
RUN = a_run(batch_size=24, layers=1, width=32)
FEW_ROWS = a_run(batch_size=10, layers=1, width=32)


def shortage(*, in_use: int | None = None, asked: int | None = None, rank: int = 0) -> OomFacts:
    return OomFacts("device", "torch.OutOfMemoryError", "", asked, "backward", rank, in_use)


def budget(limit_bytes: int | None, run: RunConfig = RUN) -> MemoryBudget:
    return MemoryBudget(run, VOCABULARY_SIZE, SINGLE_CPU_WORKER, Workers(), StorageMeter(), limit_bytes)


def predicted(size: int) -> int:
    return predict_memory(RUN, VOCABULARY_SIZE, micro_batch_size=size).peak_bytes


@given(st.integers(2, 5000))
def test_half_is_the_next_power_of_two_below(size: int) -> None:
    shrunk = half_of(size)
    assert shrunk < size <= 2 * shrunk
    assert shrunk & (shrunk - 1) == 0


@pytest.mark.long
def test_what_was_known_not_to_fit_shrinks_to_the_largest_that_is_predicted_to() -> None:
    limit = predicted(11) + 10
    smaller = budget(limit).smaller(16, shortage(in_use=limit - 5, asked=1000))
    # 11 is neither half of 16 nor a power of two.
    assert smaller == Smaller(11, is_neighbours=False)


@pytest.mark.long
def test_a_prediction_that_misled_is_corrected_by_what_was_in_use() -> None:
    # The limit is that of 20 rows; 16 ran out when twice of what they were predicted to need was in use or asked for.
    limit = predicted(20)
    in_use, asked = limit - 1000, 2 * predicted(16) - limit + 1000
    smaller = budget(limit).smaller(16, shortage(in_use=in_use, asked=asked))
    assert smaller.size == largest_micro_batch(RUN, VOCABULARY_SIZE, memory_bytes=in_use // 2)
    # It had gone over its own limit, so it is nobody else's fault.
    assert not smaller.is_neighbours


def test_a_neighbours_shortage_shrinks_to_what_was_in_use() -> None:
    smaller = budget(predicted(20)).smaller(16, shortage(in_use=predicted(7), asked=100))
    assert smaller == Smaller(7, is_neighbours=True)


def test_a_shortage_of_which_nothing_is_known_costs_a_quarter() -> None:
    assert budget(None).smaller(16, shortage()) == Smaller(12, is_neighbours=False)
    assert budget(predicted(20)).smaller(16, shortage()) == Smaller(12, is_neighbours=True)


@pytest.mark.long
@settings(deadline=None, max_examples=50)
@given(
    st.integers(2, 10),
    st.none() | st.integers(0, 10**8),
    st.none() | st.integers(0, 10**12),
    st.none() | st.integers(1, 10**8),
)
def test_every_shortage_ends_at_one_row_in_a_few_tries(
    size: int, in_use: int | None, asked: int | None, limit: int | None
) -> None:
    tries = 0
    while size > 1:
        smaller = budget(limit, FEW_ROWS).smaller(size, shortage(in_use=in_use, asked=asked)).size
        assert 1 <= smaller < size
        size, tries = smaller, tries + 1
    # 10, 8, 6, 5, 4, 3, 2, 1
    assert tries <= 7


# Growing back


def shrunk_to(size: int, *, is_neighbours: bool) -> MicroBatchSize:
    micro_batch = MicroBatchSize(32, Workers(), lambda tried, _: Smaller(size * tried // 32, is_neighbours))
    assert micro_batch.shrink(shortage())
    assert micro_batch.rows == size
    return micro_batch


def steps_until_it_grows(micro_batch: MicroBatchSize, at_most: int = 1000) -> int:
    for number in range(1, at_most):
        micro_batch.note_clean_step()
        if micro_batch.grow_back():
            return number
    return at_most


def test_what_a_neighbour_took_is_tried_again_after_clean_steps_and_less_often_each_time() -> None:
    micro_batch = shrunk_to(16, is_neighbours=True)
    assert steps_until_it_grows(micro_batch) == 50
    assert micro_batch.rows == 32
    waits = []
    for _ in range(3):
        assert micro_batch.shrink(shortage())
        waits.append(steps_until_it_grows(micro_batch))
    assert waits == [100, 200, 400]


def test_a_size_that_held_after_growing_back_is_given_the_same_patience_again() -> None:
    micro_batch = shrunk_to(16, is_neighbours=True)
    steps_until_it_grows(micro_batch)
    assert steps_until_it_grows(micro_batch, at_most=60) == 60
    assert micro_batch.shrink(shortage())
    assert steps_until_it_grows(micro_batch) == 50


def test_sizes_given_up_one_after_another_come_back_one_after_another() -> None:
    micro_batch = shrunk_to(16, is_neighbours=True)
    assert micro_batch.shrink(shortage())
    assert micro_batch.rows == 8
    steps_until_it_grows(micro_batch)
    assert micro_batch.rows == 16
    steps_until_it_grows(micro_batch)
    assert micro_batch.rows == 32
    assert steps_until_it_grows(micro_batch) == 1000


def test_what_was_too_much_for_the_run_itself_never_comes_back() -> None:
    micro_batch = shrunk_to(16, is_neighbours=False)
    assert steps_until_it_grows(micro_batch) == 1000


def test_one_row_shrinks_no_further() -> None:
    micro_batch = MicroBatchSize(1, Workers(), lambda tried, _: Smaller(tried - 1, False))
    assert not micro_batch.shrink(shortage())


# Thrashing


def thrashing_over(retries: list[int]) -> list[bool]:
    """What is said after each step of a counter that was at 0 before."""
    counter = iter([0, *retries])
    thrashing = Thrashing(lambda: next(counter))
    return [thrashing.is_steady() for _ in retries]


def test_retries_in_three_steps_in_a_row_are_thrashing_and_then_counted_anew() -> None:
    assert thrashing_over([2, 5, 6, 9, 9, 10, 11, 12]) == [False, False, True, False, False, False, False, True]


def test_a_retry_now_and_then_is_none() -> None:
    assert not any(thrashing_over([1, 2, 2, 3, 4, 4, 4, 5]))
    assert allocator_retries(torch.device("cpu"))() == 0


def test_a_thrashing_step_is_done_again_with_smaller_micro_batches() -> None:
    clean, step = (a_step(Workers(), micro_batch_size=8, choose_smaller=to_half, padded=False) for _ in range(2))
    counter = iter([0, 0, 0, 1, 2, 3])  # at the start, and after five steps' work
    step.thrashing = Thrashing(lambda: next(counter, 3))
    results = train(step, num_steps=8)
    (shortage,) = step.oom_events
    assert (shortage.step, shortage.size, shortage.smaller) == (4, 8, 4)
    assert "thrashing" in shortage.facts.message
    assert results[-1].loss == pytest.approx(train(clean, num_steps=8)[-1].loss, rel=1e-12)


def test_thrashing_with_one_row_is_slow_and_no_shortage() -> None:
    step = a_step(Workers(), micro_batch_size=1, choose_smaller=to_half)
    step.thrashing = Thrashing(itertools.count().__next__)
    train(step, num_steps=5)
    assert not step.oom_events


# Together


def size_after_shortage(workers: Workers, prediction_fails_on: int | None) -> int:
    def choose(tried: int, _: OomFacts) -> Smaller:
        if workers.rank == prediction_fails_on:
            torch.empty(2**50)
        return Smaller(tried - 3 - workers.rank, False)

    micro_batch = MicroBatchSize(32, workers, choose)
    assert micro_batch.shrink(shortage(rank=1))
    return micro_batch.rows


@pytest.mark.parametrize(
    ("prediction_fails_on", "size"),
    [(None, 28), (0, 28), (1, 16)],
    ids=["the short rank decides", "nobody else is asked", "half, where there is no memory for predicting"],
)
def test_all_workers_shrink_to_what_the_short_one_says(prediction_fails_on: int | None, size: int) -> None:
    assert on_workers(2, size_after_shortage, prediction_fails_on) == [size, size]
