"""A prepared corpus in memory, for tests that need rows and nothing of how rows come about.

Most often the next token is a fixed function of this one, so there is something to learn.
"""

from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from data_pipeline.tokens.token_blocks import PreparedCorpus, Rows, TokenBlocks
from data_pipeline.tokens.tokenizer import Vocabulary

VOCABULARY = Vocabulary(size=61, pad_id=1, unk_id=3, bos_id=0, eos_id=2, mask_id=4, special_ids=(0, 1, 2, 3, 4))


class RowsInMemory:
    """What training reads of `TokenBlocks`."""

    def __init__(self, tokens: NDArray[np.uint16], lengths: NDArray[np.int32]) -> None:
        self.tokens = tokens
        self.lengths = lengths
        self.num_rows, self.sequence_length = tokens.shape
        self.num_tokens = int(lengths.sum())
        self.num_bytes = 4 * self.num_tokens

    def rows(self, row_numbers: NDArray[np.int64]) -> Rows:
        return Rows(self.tokens[row_numbers], self.lengths[row_numbers], None)


def small_corpus(
    *, num_rows: int = 200, sequence_length: int = 16, padded: bool = False, seed: int = 0
) -> PreparedCorpus:
    """200 training and 40 holdout rows. padded: rows end after 5 tokens or more, at different places."""
    rng = np.random.default_rng(seed)
    train, holdout = (_rows(rng, number, sequence_length, padded) for number in (num_rows, 40))
    return PreparedCorpus(
        folder=Path("."),
        manifest=cast(Any, None),
        vocabulary=VOCABULARY,
        train=cast(TokenBlocks, train),
        holdout=cast(TokenBlocks, holdout),
        tokenizer_path=Path("tokenizer.json"),
        fingerprint=f"small-{num_rows}-{sequence_length}-{padded}-{seed}",
    )


def _rows(rng: np.random.Generator, num_rows: int, sequence_length: int, padded: bool) -> RowsInMemory:
    first_ordinary = len(VOCABULARY.special_ids)
    successor = np.random.default_rng(7).permutation(np.arange(first_ordinary, VOCABULARY.size))
    tokens = rng.integers(first_ordinary, VOCABULARY.size, (num_rows, sequence_length))
    for column in range(1, sequence_length):
        follows = rng.random(num_rows) < 0.9
        tokens[follows, column] = successor[tokens[follows, column - 1] - first_ordinary]
    lengths = rng.integers(5, sequence_length + 1, num_rows) if padded else np.full(num_rows, sequence_length)
    tokens[np.arange(sequence_length) >= lengths[:, None]] = VOCABULARY.pad_id
    return RowsInMemory(tokens.astype(np.uint16), lengths.astype(np.int32))
