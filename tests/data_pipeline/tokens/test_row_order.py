import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.tokens.row_order import permute, rows_at


def order(size: int, *, seed: int = 0, epoch: int = 0) -> list[int]:
    return permute(np.arange(size), size=size, seed=seed, epochs=np.full(size, epoch)).tolist()


@given(num_rows=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 10_000))
def test_every_row_comes_exactly_once_in_each_epoch(num_rows: int, seed: int, epoch: int) -> None:
    positions = np.arange(epoch * num_rows, (epoch + 1) * num_rows)
    rows, epochs = rows_at(positions, num_rows=num_rows, seed=seed, shuffle=True)
    assert sorted(rows.tolist()) == list(range(num_rows))
    assert set(epochs.tolist()) == {epoch}


@given(num_rows=st.integers(1, 500), first=st.integers(0, 5000), size=st.integers(1, 700), cut=st.integers(0, 700))
def test_order_does_not_depend_on_how_it_is_asked_for(num_rows: int, first: int, size: int, cut: int) -> None:
    def ask(start: int, stop: int) -> list[list[int]]:
        return [part.tolist() for part in rows_at(np.arange(start, stop), num_rows=num_rows, seed=3, shuffle=True)]

    middle = first + min(cut, size)
    (left_rows, left_epochs), (right_rows, right_epochs) = ask(first, middle), ask(middle, first + size)
    assert ask(first, first + size) == [left_rows + right_rows, left_epochs + right_epochs]


def test_epochs_and_seeds_differ_in_order() -> None:
    orders = {tuple(order(50, seed=seed, epoch=epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_every_row_is_as_likely_in_every_place() -> None:
    orders = np.array([order(10, epoch=epoch) for epoch in range(2000)])
    counts = np.array([np.bincount(orders[:, place], minlength=10) for place in range(10)])
    # 100 counts around 200 with a standard deviation of 13.4; six of them.
    assert np.abs(counts - 200).max() < 6 * 13.4


def test_neighbours_are_torn_apart() -> None:
    # Two of 10,000 places are neighbours by chance twice in 10,000 pairs.
    assert np.mean(np.abs(np.diff(order(10_000))) == 1) < 0.002


def test_one_batch_of_a_trillion_rows_needs_memory_for_the_batch_only() -> None:
    tracemalloc.start()
    rows, _ = rows_at(np.arange(10**15, 10**15 + 64), num_rows=10**12, seed=0, shuffle=True)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows.max() < 10**12
    assert peak_bytes < 100_000


def test_unshuffled_rows_come_in_stored_order() -> None:
    rows, epochs = rows_at(np.arange(5, 11), num_rows=4, seed=9, shuffle=False)
    assert (rows.tolist(), epochs.tolist()) == ([1, 2, 3, 0, 1, 2], [1, 1, 1, 2, 2, 2])


def test_permutation_of_one_row_is_that_row() -> None:
    assert order(1, seed=5, epoch=2) == [0]


@pytest.mark.parametrize("size", [2, 3, 4, 5, 16, 17, 255, 256, 257, 65_536, 65_537])
def test_permutation_is_one_at_sizes_around_powers_of_two(size: int) -> None:
    assert sorted(order(size, seed=1, epoch=1)) == list(range(size))
