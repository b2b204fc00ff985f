"""Positions, masks and rotations, each against what it means."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.layers.transformer_parts import compute_dtype, document_mask, positions_in_documents, rotary_tables, rotate

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=6)


@settings(deadline=None, max_examples=40)
@given(LENGTHS)
def test_positions_restart_at_every_document(lengths: list[int]) -> None:
    ids = [number for number, length in enumerate(lengths) for _ in range(length)]
    expected = [place for length in lengths for place in range(length)]
    assert positions_in_documents(torch.tensor([ids], dtype=torch.int32)).tolist() == [expected]


@settings(deadline=None, max_examples=40)
@given(LENGTHS, st.booleans())
def test_document_mask_lets_through_what_is_of_the_same_document_and_not_later(
    lengths: list[int], is_causal: bool
) -> None:
    ids = [number for number, length in enumerate(lengths) for _ in range(length)]
    mask = document_mask(torch.tensor([ids]), is_causal=is_causal, dtype=torch.float32)[0, 0]
    expected = [
        [mine == other and (place <= here or not is_causal) for place, other in enumerate(ids)]
        for here, mine in enumerate(ids)
    ]
    assert (mask == 0).tolist() == expected
    # What is hidden gets a share of exactly zero.
    assert ((mask.softmax(-1) > 0) == torch.tensor(expected)).all()


def test_rotation_keeps_lengths_and_makes_products_depend_on_distance_only() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 16, dtype=torch.float64)
    tables = rotary_tables(torch.arange(40), head_dim=16, base=1e4, dtype=torch.float64)
    queries = rotate(query.expand(1, 40, 1, 16), tables)[0, :, 0]
    keys = rotate(key.expand(1, 40, 1, 16), tables)[0, :, 0]
    torch.testing.assert_close(queries.norm(dim=-1), query.norm().expand(40))
    products = queries @ keys.T
    # Angles are rounded to fp32, as in Llama; at position 39 that is 4e-6 of a turn.
    for distance in (0, 1, 13):
        along = products.diagonal(-distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=0, atol=2e-4)


def test_compute_dtype_is_that_of_autocast_where_it_is_on() -> None:
    x = torch.zeros(1)
    assert compute_dtype(x) == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert compute_dtype(x) == torch.bfloat16
