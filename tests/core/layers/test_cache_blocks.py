import torch
from hypothesis import given
from hypothesis import strategies as st

from core.layers.cache_blocks import as_on_a_gpu, blocks, has_cache_blocks, shortened


@given(length=st.integers(0, 200), at_once=st.integers(0, 250))
def test_blocks_cover_everything_once_and_in_order(length: int, at_once: int) -> None:
    found = list(blocks(length, at_once))
    assert [index for block in found for index in range(block.start, block.stop)] == list(range(length))
    assert all(block.stop - block.start == max(1, at_once) for block in found[:-1])


def test_shortened_work_stops_after_two_blocks() -> None:
    with shortened():
        assert list(blocks(10, 3)) == [slice(0, 3), slice(3, 6)]
    assert len(list(blocks(10, 3))) == 4


def test_processors_work_in_cache_blocks_unless_a_gpu_is_played() -> None:
    assert has_cache_blocks(torch.device("cpu"))
    assert not has_cache_blocks(torch.device("cuda"))
    with as_on_a_gpu():
        assert not has_cache_blocks(torch.device("cpu"))
    assert has_cache_blocks(torch.device("cpu"))
