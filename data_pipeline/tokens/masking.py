"""Masking for masked LM: choose the predicted tokens of a row and corrupt them. Pure functions, no random generator.

Each random draw is a hash of (seed, epoch, row, position), so masks do not depend on batch size, micro-batch, worker
or retry. The tokens masked at a low rate are a subset of those at a higher rate, which makes trials with different
masking rates comparable.

Shape suffixes: n rows, T tokens a row.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# 80 % mask, 10 % another token, 10 % unchanged: BERT, arXiv:1810.04805, section 3.1.
_SHARE_MASKED = 0.8
_SHARE_MASKED_OR_RANDOM = 0.9

# One key for each draw at a position; equal keys would correlate the draws.
_SELECT, _CORRUPT, _REPLACE = 1, 2, 3

_POSITION_BITS = 20
_LAST = np.iinfo(np.uint64).max


@dataclass(frozen=True, slots=True)
class MaskedRows:
    """Corrupted input rows and their predicted positions."""

    inputs_nT: NDArray[np.int64]
    is_predicted_nT: NDArray[np.bool_]


def mask_rows(
    tokens_nT: NDArray[np.int64],
    is_maskable_nT: NDArray[np.bool_],
    *,
    row_numbers: NDArray[np.int64],
    epochs: NDArray[np.int64],
    seed: int,
    masking_rate: float,
    mask_id: int,
    ordinary_ids: NDArray[np.int64],
) -> MaskedRows:
    """Mask round(masking_rate x maskable) tokens of each row, at least one if any is maskable.

    The number is fixed instead of binomial: rows of equal length have equally many predictions, so memory and the
    size of the vocabulary head stay the same from step to step.

    Args:
        is_maskable_nT: False for padding and special tokens.
        row_numbers: (n,) number of each row in its split.
        epochs: (n,) epoch of each row.
        masking_rate: In (0, 1].
        ordinary_ids: Ids from which random replacements are drawn uniformly.
    """
    scores_nT = _scores(row_numbers, epochs, tokens_nT.shape[1], seed)
    is_predicted_nT = _lowest_scores(scores_nT, is_maskable_nT, masking_rate)
    rows, positions = np.nonzero(is_predicted_nT)
    keys = (row_numbers[rows], epochs[rows], positions)
    corruption = _uniform(hash_position(seed, _CORRUPT, *keys))
    replacement = ordinary_ids[hash_position(seed, _REPLACE, *keys) % np.uint64(len(ordinary_ids))]

    inputs_nT = tokens_nT.copy()
    inputs_nT[rows, positions] = np.where(
        corruption < _SHARE_MASKED,
        mask_id,
        np.where(corruption < _SHARE_MASKED_OR_RANDOM, replacement, tokens_nT[rows, positions]),
    )
    return MaskedRows(inputs_nT, is_predicted_nT)


def hash_position(
    seed: int,
    purpose: int,
    row_numbers: NDArray[np.int64],
    epochs: NDArray[np.int64],
    positions: NDArray[np.int64],
) -> NDArray[np.uint64]:
    """64 uniform bits for each (row, epoch, position); arguments broadcast.

    Args:
        purpose: Key of the draw; draws with different keys are independent.
    """
    key = mix64(mix64(np.array([seed], np.uint64)) + np.uint64(purpose))
    key = mix64(key + epochs.astype(np.uint64))
    key = mix64(key + row_numbers.astype(np.uint64))
    return mix64(key + positions.astype(np.uint64))


def mix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One step of SplitMix64, a bijection on 64 bits: every input bit affects every output bit.

    Source: Steele et al. 2014, Fast splittable pseudorandom number generators.
    """
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _scores(row_numbers: NDArray[np.int64], epochs: NDArray[np.int64], length: int, seed: int) -> NDArray[np.uint64]:
    positions = np.arange(length)
    hashed = hash_position(seed, _SELECT, row_numbers[:, None], epochs[:, None], positions[None, :])
    # The low bits are the position itself, so no two scores of a row are equal and the count below is exact.
    return (hashed >> np.uint64(_POSITION_BITS) << np.uint64(_POSITION_BITS)) | positions.astype(np.uint64)


def _lowest_scores(
    scores_nT: NDArray[np.uint64], is_maskable_nT: NDArray[np.bool_], masking_rate: float
) -> NDArray[np.bool_]:
    num_maskable = is_maskable_nT.sum(axis=1)
    num_predicted = np.floor(masking_rate * num_maskable + 0.5).astype(np.int64)
    num_predicted = np.minimum(np.maximum(num_predicted, 1), num_maskable)
    candidates_nT = np.where(is_maskable_nT, scores_nT, _LAST)
    last_taken = np.maximum(num_predicted - 1, 0)[:, None]
    threshold = np.take_along_axis(np.sort(candidates_nT, axis=1), last_taken, axis=1)
    selected: NDArray[np.bool_] = (candidates_nT <= threshold) & is_maskable_nT
    return selected


def _uniform(hashed: NDArray[np.uint64]) -> NDArray[np.float64]:
    return (hashed >> np.uint64(11)).astype(np.float64) * 2.0**-53
