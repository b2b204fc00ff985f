"""The rule behind `micro_batch_size: auto`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_corpus import small_corpus
from small_runs import small_run

from core.distributed.workers import Workers
from core.memory_prediction.automatic_micro_batch import automatic_micro_batch, choose_micro_batch
from core.memory_prediction.peak_memory import predict_memory


@pytest.mark.parametrize(
    ("batch_size", "num_workers", "sequence_length", "feasible", "expected"),
    [
        (64, 1, 128, None, 64),  # 8,192 tokens at once
        (64, 1, 512, None, 16),
        (64, 2, 128, None, 32),
        (64, 1, 128, 50, 32),
        (48, 1, 128, None, 16),  # 3 x 16 and not 32 + 16
        (33, 1, 128, None, 32),  # 32 + 1 and not 33 x 1
        (64, 1, 128, 0, 1),
        (1, 1, 100_000, None, 1),
    ],
)
def test_automatic_micro_batch_follows_its_rule(
    batch_size: int, num_workers: int, sequence_length: int, feasible: int | None, expected: int
) -> None:
    found = automatic_micro_batch(
        batch_size=batch_size, num_workers=num_workers, sequence_length=sequence_length, largest_feasible=feasible
    )
    assert found == expected


@given(st.integers(1, 5000), st.integers(1, 9), st.integers(1, 5000), st.none() | st.integers(0, 300))
def test_automatic_micro_batch_is_a_power_of_two_within_its_limits(
    batch_size: int, num_workers: int, sequence_length: int, feasible: int | None
) -> None:
    found = automatic_micro_batch(
        batch_size=batch_size, num_workers=num_workers, sequence_length=sequence_length, largest_feasible=feasible
    )
    assert found & (found - 1) == 0
    assert found * sequence_length <= 8192 or found == 1
    assert found <= -(-batch_size // num_workers)
    assert feasible is None or found <= max(feasible, 1)


def test_micro_batch_under_a_limit_is_predicted_to_fit_and_twice_as_much_is_not() -> None:
    run = small_run(micro_batch_size="auto", batch_size=32)
    at_8 = predict_memory(run, 61, micro_batch_size=8).peak_bytes
    assert choose_micro_batch(run, small_corpus(), Workers(), memory_limit_bytes=at_8) == 8


@given(st.integers(1, 300), st.integers(1, 300))
def test_halving_what_no_memory_limits_gives_what_the_largest_feasible_size_gives(rows: int, feasible: int) -> None:
    settings = {"batch_size": rows, "num_workers": 1, "sequence_length": 32}
    halved = automatic_micro_batch(**settings, largest_feasible=None)
    while halved > feasible:
        halved //= 2
    assert automatic_micro_batch(**settings, largest_feasible=halved) == automatic_micro_batch(
        **settings, largest_feasible=feasible
    )


def test_micro_batch_that_is_set_is_taken_as_it_is() -> None:
    assert choose_micro_batch(small_run(micro_batch_size=5), small_corpus(), Workers(), memory_limit_bytes=1) == 5
