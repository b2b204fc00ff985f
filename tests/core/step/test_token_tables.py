"""Tables of token counts against dictionaries."""

import itertools
import math
from collections import Counter
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
from small_corpus import RowsInMemory, small_corpus

from core.step.evaluation import holdout_source
from core.step.token_tables import table_losses
from data_pipeline.tokens.token_blocks import PreparedCorpus, TokenBlocks

Row = list[int]


def rows_of(blocks: TokenBlocks) -> list[Row]:
    """Rows without padding."""
    rows = blocks.rows(np.arange(blocks.num_rows))
    return [row[:length].tolist() for row, length in zip(rows.tokens, rows.num_tokens, strict=True)]


def pairs_of(rows: list[Row]) -> list[tuple[int, int]]:
    return [pair for row in rows for pair in itertools.pairwise(row)]


def causal_losses(train: list[Row], holdout: list[Row], size: int) -> tuple[float, float]:
    """Both losses by counting in dictionaries, a position at a time."""
    counted = Counter(pairs_of(train))
    after = Counter(token for _, token in pairs_of(train))
    begins = Counter(token for token, _ in pairs_of(train))
    kinds = Counter(before for before, _ in counted)

    def unigram(token: int) -> float:
        return (after[token] + len(after) * (1 / size)) / (after.total() + len(after))

    def bigram(before: int, token: int) -> float:
        if not begins[before]:
            return unigram(token)
        weight = begins[before] / (begins[before] + kinds[before])
        return weight * counted[before, token] / begins[before] + (1 - weight) * unigram(token)

    asked = pairs_of(holdout)
    return (
        -sum(math.log(unigram(token)) for _, token in asked) / len(asked),
        -sum(math.log(bigram(*pair)) for pair in asked) / len(asked),
    )


@pytest.mark.parametrize("padded", [False, True])
def test_losses_of_a_causal_lm_are_those_of_tables_counted_by_hand(padded: bool) -> None:
    data = small_corpus(padded=padded)
    found = table_losses(data, is_causal=True)
    assert found is not None
    unigram, bigram = causal_losses(rows_of(data.train), rows_of(data.holdout), data.vocabulary.size)
    # Only the order of the sums differs.
    assert found.unigram_nats == pytest.approx(unigram, rel=1e-12)
    assert found.bigram_nats == pytest.approx(bigram, rel=1e-12)
    assert found.num_counted == len(pairs_of(rows_of(data.train)))
    assert found.num_predicted == len(pairs_of(rows_of(data.holdout)))


def test_a_masked_lm_is_measured_by_frequencies_alone_where_every_evaluation_masks() -> None:
    data = small_corpus(padded=True)
    found = table_losses(data, is_causal=False)
    assert found is not None
    counts = Counter(token for row in rows_of(data.train) for token in row)  # None of them is special.
    source = holdout_source(data, is_causal=False)
    labels = source.batch(
        source.shard(position=0, batch_size=source.num_rows, rank=0, num_workers=1), 0, source.num_rows
    ).labels_P.tolist()
    size, total = data.vocabulary.size, counts.total()
    losses = [-math.log((counts[label] + len(counts) / size) / (total + len(counts))) for label in labels]
    assert found.unigram_nats == pytest.approx(sum(losses) / len(losses), rel=1e-12)
    assert found.bigram_nats is None
    assert (found.num_counted, found.num_predicted) == (total, len(labels))


def test_pairs_are_learnt_where_the_next_token_is_a_function_of_this_one() -> None:
    found = table_losses(small_corpus(num_rows=2000), is_causal=True)
    assert found is not None
    assert found.bigram_nats is not None
    # A token follows its predecessor with probability 0.9, and is any of 56 otherwise: about 0.72 nats.
    assert found.bigram_nats < 0.9
    assert found.unigram_nats > math.log(56) - 0.1


def test_a_table_of_uniform_tokens_has_the_loss_of_a_guess() -> None:
    rng = np.random.default_rng(3)
    data = small_corpus()
    tokens = rng.integers(0, data.vocabulary.size, (4000, 16)).astype(np.uint16)
    uniform = of_rows(data, tokens, tokens[:200])
    found = table_losses(uniform, is_causal=True)
    assert found is not None
    # 60,000 tokens estimate 61 shares to within a tenth of a per cent.
    assert found.unigram_nats == pytest.approx(math.log(data.vocabulary.size), abs=2e-3)


@pytest.mark.parametrize("most_tokens", [1, 16, 1000, 3199, 3200, 10**9])
def test_no_more_tokens_are_read_than_asked_for_and_rows_are_spread_evenly(most_tokens: int) -> None:
    data = small_corpus()
    seen: list[int] = []

    class Watched(RowsInMemory):
        def rows(self, row_numbers):  # type: ignore[no-untyped-def]
            seen.extend(row_numbers.tolist())
            return super().rows(row_numbers)

    plain = cast(RowsInMemory, data.train)
    watched = replace(data, train=cast(TokenBlocks, Watched(plain.tokens, plain.lengths)))
    table_losses(watched, is_causal=True, most_tokens=most_tokens)
    assert len(seen) == len(set(seen)) == max(1, min(most_tokens, 3200) // 16)
    gaps = np.diff([*seen, 200])
    assert gaps.max() - gaps.min() <= 1


def test_splits_that_predict_nothing_have_no_table() -> None:
    data = small_corpus()
    one_token = np.full((2, 1), 7, np.uint16)
    assert table_losses(of_rows(data, one_token, one_token), is_causal=True) is None
    rows = np.full((2, 16), 7, np.uint16)
    assert table_losses(of_rows(data, one_token, rows[:, :1]), is_causal=True) is None
    assert table_losses(of_rows(data, rows, rows), is_causal=True) is not None


def of_rows(data: PreparedCorpus, train: np.ndarray, holdout: np.ndarray) -> PreparedCorpus:
    splits = [RowsInMemory(rows, np.full(len(rows), rows.shape[1], np.int32)) for rows in (train, holdout)]
    return replace(data, train=cast(TokenBlocks, splits[0]), holdout=cast(TokenBlocks, splits[1]))
