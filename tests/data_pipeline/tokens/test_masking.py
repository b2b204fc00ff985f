import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.tokens.batches import predicted_in_full_row
from data_pipeline.tokens.masking import MaskedRows, hash_position, mask_rows

VOCABULARY, MASK = 1000, 4
ORDINARY = np.arange(5, VOCABULARY)


def masked(
    num_rows: int = 64,
    length: int = 128,
    *,
    rate: float = 0.15,
    seed: int = 0,
    epoch: int = 0,
    num_maskable: int | None = None,
) -> tuple[MaskedRows, np.ndarray, np.ndarray]:
    tokens = np.random.default_rng(1).integers(5, VOCABULARY, (num_rows, length))
    is_maskable = np.broadcast_to(np.arange(length) < (length if num_maskable is None else num_maskable), tokens.shape)
    rows = mask_rows(
        tokens,
        is_maskable,
        row_numbers=np.arange(num_rows),
        epochs=np.full(num_rows, epoch),
        seed=seed,
        masking_rate=rate,
        mask_id=MASK,
        ordinary_ids=ORDINARY,
    )
    return rows, tokens, is_maskable


@given(rate=st.floats(0.01, 1.0), num_maskable=st.integers(0, 64), seed=st.integers(0, 2**63 - 1))
def test_number_of_predicted_tokens_follows_from_rate_and_length_alone(
    rate: float, num_maskable: int, seed: int
) -> None:
    rows, _, is_maskable = masked(4, 64, rate=rate, seed=seed, num_maskable=num_maskable)
    expected = min(max(int(rate * num_maskable + 0.5), 1), num_maskable)
    assert rows.is_predicted_nT.sum(axis=1).tolist() == [expected] * 4
    assert not (rows.is_predicted_nT & ~is_maskable).any()


@given(low=st.floats(0.05, 0.5), high=st.floats(0.05, 0.5), seed=st.integers(0, 1000))
def test_tokens_masked_at_a_low_rate_are_masked_alike_at_a_higher_one(low: float, high: float, seed: int) -> None:
    low, high = sorted((low, high))
    few, many = masked(8, 64, rate=low, seed=seed)[0], masked(8, 64, rate=high, seed=seed)[0]
    assert (few.is_predicted_nT <= many.is_predicted_nT).all()
    assert (few.inputs_nT == many.inputs_nT)[few.is_predicted_nT].all()


def test_eighty_percent_are_masked_ten_replaced_ten_kept() -> None:
    rows, tokens, _ = masked(4000, 128)
    seen, original = rows.inputs_nT[rows.is_predicted_nT], tokens[rows.is_predicted_nT]
    # 76,000 draws: four standard deviations are 0.006 at 0.8 and 0.0044 at 0.1.
    assert np.mean(seen == MASK) == pytest.approx(0.8, abs=0.006)
    assert np.mean(seen == original) == pytest.approx(0.1, abs=0.005)
    assert set(seen.tolist()) <= {MASK, *ORDINARY.tolist()}


def test_tokens_that_are_not_predicted_are_not_touched() -> None:
    rows, tokens, _ = masked()
    assert (rows.inputs_nT == tokens)[~rows.is_predicted_nT].all()


def test_every_position_is_chosen_equally_often() -> None:
    rows, _, _ = masked(20_000, 64, rate=0.25)
    # Standard deviation of a share of 0.25 over 20,000 rows: 0.003; five of them for 64 positions.
    assert rows.is_predicted_nT.mean(axis=0) == pytest.approx(np.full(64, 0.25), abs=0.0155)


@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}])
def test_another_seed_or_epoch_masks_other_tokens(other: dict[str, int]) -> None:
    first, second = masked()[0].is_predicted_nT, masked(**other)[0].is_predicted_nT
    # Independent choices of 19 of 128 agree in 2.8 of them.
    assert np.mean((first & second).sum(axis=1)) == pytest.approx(19 * 19 / 128, abs=1.0)


def test_hash_has_even_bits() -> None:
    bits = np.unpackbits(hash_position(7, 1, np.arange(20_000), np.zeros(1, int), np.zeros(1, int)).view(np.uint8))
    assert bits.reshape(-1, 64).mean(axis=0) == pytest.approx(np.full(64, 0.5), abs=0.02)


@given(st.integers(1, 200), st.floats(0.001, 1.0))
def test_a_row_without_special_tokens_predicts_as_many_as_memory_is_predicted_for(length: int, rate: float) -> None:
    rows, _, _ = masked(1, length, rate=rate)
    assert rows.is_predicted_nT.sum() == predicted_in_full_row(length, rate)
