"""A fresh order of all rows in each epoch, computed row by row: no list of row numbers is ever held."""

import numpy as np
from numpy.typing import NDArray

from data_pipeline.tokens.masking import mix64

_NUM_ROUNDS = 8
_ORDER = 0x0DE2


def rows_at(
    positions: NDArray[np.int64], *, num_rows: int, seed: int, shuffle: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row number and epoch of each place in the endless sequence of rows.

    Args:
        positions: Rows consumed before, from the start of training; epoch e is positions e x num_rows and on.

    Returns:
        (row_numbers, epochs). Within an epoch every row comes exactly once.
    """
    epochs, places = np.divmod(positions.astype(np.int64), num_rows)
    if not shuffle:
        return places, epochs
    return permute(places, size=num_rows, seed=seed, epochs=epochs), epochs


def permute(places: NDArray[np.int64], *, size: int, seed: int, epochs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Image of each place under the permutation of range(size) that belongs to (seed, its epoch).

    A Feistel network permutes a power of four that holds `size`; whatever lands outside goes through it again until it
    lands inside (cycle walking; Black and Rogaway 2002), at most four passes on average.
    """
    half_bits = max(2, -(-max(size - 1, 1).bit_length() // 2))
    key = mix64(mix64(np.array([seed + _ORDER], np.uint64)) + epochs.astype(np.uint64))
    round_keys = [mix64(key + np.uint64(number)) for number in range(_NUM_ROUNDS)]
    images = _feistel(places.astype(np.uint64), half_bits, round_keys)
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
