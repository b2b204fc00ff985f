"""A new random order of all rows in each epoch, computed row by row without a stored permutation."""

import numpy as np
from numpy.typing import NDArray

from data_pipeline.tokens.masking import mix64

_NUM_ROUNDS = 8
_ORDER = 0x0DE2


def rows_at(
    positions: NDArray[np.int64], *, num_rows: int, seed: int, shuffle: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row number and epoch at each position of the endless sequence of rows.

    Args:
        positions: Rows consumed before, since the start of training; epoch e begins at position e x num_rows.

    Returns:
        (row_numbers, epochs). Each epoch contains every row exactly once.
    """
    epochs, offsets = np.divmod(positions.astype(np.int64), num_rows)
    if not shuffle:
        return offsets, epochs
    return permute(offsets, size=num_rows, seed=seed, epochs=epochs), epochs


def permute(offsets: NDArray[np.int64], *, size: int, seed: int, epochs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Image of each offset under the pseudo-random permutation of range(size) for (seed, epoch).

    A Feistel network permutes the next power of four; values outside the range pass through it again (cycle walking),
    fewer than four passes on average.

    Source: Black and Rogaway 2002, Ciphers with arbitrary finite domains.
    """
    half_bits = max(2, -(-max(size - 1, 1).bit_length() // 2))
    key = mix64(mix64(np.array([seed + _ORDER], np.uint64)) + epochs.astype(np.uint64))
    round_keys = [mix64(key + np.uint64(number)) for number in range(_NUM_ROUNDS)]
    images = _feistel(offsets.astype(np.uint64), half_bits, round_keys)
    outside = np.flatnonzero(images >= size)
    while outside.size:
        images[outside] = _feistel(images[outside], half_bits, [keys[outside] for keys in round_keys])
        outside = outside[images[outside] >= size]
    return images.astype(np.int64)


def _feistel(values: NDArray[np.uint64], half_bits: int, round_keys: list[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for round_key in round_keys:
        left, right = right, left ^ (mix64(right + round_key) & mask)
    return (left << shift) | right
