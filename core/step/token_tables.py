"""Losses of tables of token counts on the holdout: the yardsticks that a trained model must be below.

Both tables are interpolated as Witten and Bell did: a context that many different tokens have followed leaves more to
the table below it. Tokens are counted where the objective predicts, and the losses are means over the positions that
every evaluation predicts, so they compare with a model's.

Source: Witten and Bell 1991, IEEE Transactions on Information Theory 37 (4), method C; in the form of Chen and Goodman
1999, Computer Speech and Language 13.

Shape suffix: P predicted positions.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.step.evaluation import holdout_source
from data_pipeline.tokens.batches import BatchSource, Shard
from data_pipeline.tokens.token_blocks import PreparedCorpus

_MOST_TOKENS = 2**23
"""Their pairs take some 130 MB if all of them differ, and counting them some two seconds."""
_TOKENS_AT_ONCE = 2**19


@dataclass(frozen=True)
class TableLosses:
    """Losses of tables of token counts over the predicted positions of the holdout, in nats per token."""

    unigram_nats: float
    """Of a table of token frequencies."""
    bigram_nats: float | None
    """Of a table of the tokens that follow each token. None for masked LM: its model sees both neighbours of a masked
    token, so a table of the left one alone is no yardstick, and a table of both is too sparse to be one."""
    num_counted: int
    """Predicted positions of the training part that were counted."""
    num_predicted: int
    """Predicted positions of the holdout."""


def table_losses(data: PreparedCorpus, *, is_causal: bool, most_tokens: int = _MOST_TOKENS) -> TableLosses | None:
    """The losses of both tables; None if one of the splits predicts no token.

    Args:
        is_causal: False: masked LM.
        most_tokens: Maximum number of training tokens to read. A larger corpus is counted on rows at even distances.
    """
    size = data.vocabulary.size
    train = BatchSource(data.train, data.vocabulary, masking_rate=None if is_causal else 1.0, seed=0, shuffle=False)
    unigrams, pairs = np.zeros(size, np.int64), _PairCounts(size)
    for before_P, predicted_P in _predictions(train, most_tokens):
        unigrams += np.bincount(predicted_P, minlength=size)
        if is_causal:
            pairs.add(before_P, predicted_P)
    num_counted, num_kinds = int(unigrams.sum()), np.count_nonzero(unigrams)
    if not num_counted:
        return None
    sums, num_predicted = np.zeros(2), 0
    for before_P, predicted_P in _predictions(holdout_source(data, is_causal=is_causal)):
        shares_P = (unigrams[predicted_P] + num_kinds / size) / (num_counted + num_kinds)
        sums[0] -= np.log(shares_P).sum()
        sums[1] -= np.log(pairs.shares(before_P, predicted_P, shares_P)).sum()
        num_predicted += len(predicted_P)
    if not num_predicted:
        return None
    unigram_nats, bigram_nats = (sums / num_predicted).tolist()
    return TableLosses(unigram_nats, bigram_nats if is_causal else None, num_counted, num_predicted)


def _predictions(
    source: BatchSource, most_tokens: int | None = None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Predicted tokens, each with the input token at its position: for causal LM the token before it."""
    length, num_rows = source.blocks.sequence_length, source.num_rows
    most_rows = num_rows if most_tokens is None else min(num_rows, max(1, most_tokens // length))
    chosen = np.arange(most_rows, dtype=np.int64) * num_rows // max(most_rows, 1)
    rows_at_once = max(1, _TOKENS_AT_ONCE // length)
    for start in range(0, most_rows, rows_at_once):
        numbers = chosen[start : start + rows_at_once]
        batch = source.batch(Shard(numbers, np.zeros_like(numbers)), 0, len(numbers))
        yield batch.inputs_BT.numpy().reshape(-1)[batch.positions_P.numpy()], batch.labels_P.numpy()


class _PairCounts:
    """Counts of pairs of neighbours, sorted by a code of the pair."""

    def __init__(self, vocabulary_size: int) -> None:
        self._size = vocabulary_size
        self._codes = np.zeros(0, np.int64)
        self._counts = np.zeros(0, np.int64)

    def add(self, before_P: NDArray[np.int64], after_P: NDArray[np.int64]) -> None:
        """Count these pairs too."""
        codes, counts = np.unique(before_P * self._size + after_P, return_counts=True)
        self._codes, place = np.unique(np.concatenate([self._codes, codes]), return_inverse=True)
        sums = np.zeros(len(self._codes), np.int64)
        np.add.at(sums, place, np.concatenate([self._counts, counts]))
        self._counts = sums

    def shares(
        self, before_P: NDArray[np.int64], after_P: NDArray[np.int64], unigram_shares_P: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """(P,) probability of each token after the one before it; by unigrams after a token that was never seen."""
        if not len(self._codes):
            return unigram_shares_P
        firsts = self._codes // self._size
        totals = np.bincount(firsts, weights=self._counts, minlength=self._size)[before_P]
        kinds = np.bincount(firsts, minlength=self._size)[before_P]
        codes = before_P * self._size + after_P
        place = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
        counts = np.where(self._codes[place] == codes, self._counts[place], 0)
        shares = (counts + kinds * unigram_shares_P) / np.maximum(totals + kinds, 1)
        return np.where(totals > 0, shares, unigram_shares_P)
