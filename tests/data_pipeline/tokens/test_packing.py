from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from preparing import prepared_from_texts

from data_pipeline.schema.corpus_config import PackingConfig
from data_pipeline.tokens.packing import (
    conversation_pieces,
    fitted_rows,
    num_packed_rows,
    one_document_rows,
    packed_rows,
)
from data_pipeline.tokens.token_blocks import Rows, TokenBlocks

TEXTS = st.lists(
    st.text(st.sampled_from("abcdefgh "), min_size=1, max_size=60).filter(str.strip), min_size=3, max_size=20
)


def all_rows(blocks: TokenBlocks) -> Rows:
    return blocks.rows(np.arange(blocks.num_rows))


@settings(max_examples=15, deadline=None)
@given(texts=TEXTS, length=st.integers(8, 40))
def test_packed_rows_hold_every_token_of_every_document_exactly_once_in_order(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], length: int
) -> None:
    packing = PackingConfig(sequence_length=length, attention="within_documents")
    prepared, encoded = prepared_from_texts(tmp_path_factory.mktemp("packed"), ["seed a", "seed b", *texts], packing)
    rebuilt: list[list[int]] = []
    for blocks in (prepared.train, prepared.holdout):
        rows = all_rows(blocks)
        tokens, is_real = rows.tokens, rows.is_real()
        stream = tokens[is_real].tolist()
        assert len(stream) == blocks.num_tokens
        begins = np.zeros(tokens.shape, bool)
        begins[:, 1:] = rows.document_ids[:, 1:] != rows.document_ids[:, :-1]
        # A row that begins with <s> begins a document: the stream holds <s> nowhere else.
        begins[:, 0] = tokens[:, 0] == prepared.vocabulary.bos_id
        starts = np.flatnonzero(begins[is_real]).tolist()
        rebuilt += [stream[start:stop] for start, stop in zip(starts, [*starts[1:], len(stream)], strict=True)]
    assert sorted(rebuilt) == sorted(encoded)


@settings(max_examples=15, deadline=None)
@given(texts=TEXTS, length=st.integers(8, 40))
def test_windows_of_a_document_put_together_are_the_document(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], length: int
) -> None:
    packing = PackingConfig(rows="one_per_row", too_long="split", sequence_length=length)
    prepared, encoded = prepared_from_texts(tmp_path_factory.mktemp("split"), ["seed a", "seed b", *texts], packing)
    rebuilt: list[list[int]] = []
    for blocks in (prepared.train, prepared.holdout):
        rows = all_rows(blocks)
        for tokens, num_tokens in zip(rows.tokens.tolist(), rows.num_tokens.tolist(), strict=True):
            assert set(tokens[num_tokens:]) <= {prepared.vocabulary.pad_id}
            if tokens[0] == prepared.vocabulary.bos_id:
                rebuilt.append([])
            rebuilt[-1] += tokens[:num_tokens]
    assert sorted(rebuilt) == sorted(encoded)
    assert prepared.manifest.truncated_share == 0


@settings(max_examples=15, deadline=None)
@given(texts=TEXTS, length=st.integers(8, 40))
def test_truncated_rows_are_those_of_the_tokenizers_library(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], length: int
) -> None:
    packing = PackingConfig(rows="one_per_row", too_long="truncate", sequence_length=length)
    prepared, encoded = prepared_from_texts(tmp_path_factory.mktemp("cut"), ["seed a", "seed b", *texts], packing)
    eos = prepared.vocabulary.eos_id
    expected = [ids if len(ids) <= length else [*ids[: length - 1], eos] for ids in encoded]
    found = []
    for blocks in (prepared.train, prepared.holdout):
        rows = all_rows(blocks)
        found += [ids[:n] for ids, n in zip(rows.tokens.tolist(), rows.num_tokens.tolist(), strict=True)]
    assert sorted(found) == sorted(expected)
    lost = sum(map(len, encoded)) - sum(map(len, expected))
    assert prepared.manifest.truncated_share == pytest.approx(lost / sum(map(len, encoded)))


def test_padding_share_counts_places_without_a_token(tmp_path: Path) -> None:
    packing = PackingConfig(rows="one_per_row", sequence_length=16)
    prepared, encoded = prepared_from_texts(tmp_path, ["a b", "c d", "e f g", "h"], packing)
    assert prepared.manifest.padding_share == pytest.approx(1 - sum(map(len, encoded)) / (4 * 16))


@given(num_tokens=st.integers(1, 10_000), length=st.integers(1, 64))
def test_packed_rows_follow_each_other_without_gap_or_overlap(num_tokens: int, length: int) -> None:
    num_rows = num_packed_rows(num_tokens, length)
    table = packed_rows(np.arange(num_rows), num_tokens=num_tokens, sequence_length=length)
    assert table.starts.tolist() == list(range(0, num_tokens, length))
    assert table.lengths.sum() == num_tokens
    assert table.lengths.min() >= 1


@given(lengths=st.lists(st.integers(2, 100), max_size=20), length=st.integers(8, 50))
def test_windows_follow_each_other_without_gap_or_overlap(lengths: list[int], length: int) -> None:
    table = one_document_rows(np.array(lengths, np.int64), PackingConfig(rows="one_per_row", sequence_length=length))
    stops = table.starts + table.lengths
    assert table.lengths.sum() == sum(lengths)
    assert table.starts.tolist() == [0, *stops.tolist()][: len(stops)]
    assert set(np.cumsum(lengths).tolist()) <= set(stops.tolist())


@given(lengths=st.lists(st.integers(1, 40), max_size=60), spare=st.integers(0, 30))
def test_fitted_rows_are_never_overfull_and_no_two_of_them_would_fit_in_one(lengths: list[int], spare: int) -> None:
    capacity = max(lengths, default=1) + spare
    rows = fitted_rows(np.array(lengths, np.int64), capacity)
    loads = np.bincount(rows, weights=lengths) if lengths else np.zeros(0)
    assert len(rows) == len(lengths)
    assert loads.max(initial=0) <= capacity
    assert (loads > 0).all(), "a row without a piece"
    if len(loads) > 1:
        assert np.sort(loads)[:2].sum() > capacity
    # Numbered by their first piece.
    assert list(dict.fromkeys(rows.tolist())) == list(range(len(loads)))


EXCHANGES = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=8)


@settings(max_examples=200)
@given(conversations=st.lists(EXCHANGES, min_size=1, max_size=6), longest=st.integers(8, 60))
def test_every_answer_of_a_conversation_is_in_one_slice_with_its_question_or_counted(
    conversations: list[list[tuple[int, int]]], longest: int
) -> None:
    # A question of q tokens begins with the token that begins a turn; its answer has a tokens.
    is_begin, is_target, lengths, answers = [], [], [], []
    for exchanges in conversations:
        begin = len(is_target)
        for question, answer in exchanges:
            answers.append((len(is_target), len(is_target) + question, len(is_target) + question + answer))
            is_begin += [True] + [False] * (question + answer - 1)
            is_target += [False] * question + [True] * answer
        lengths.append(len(is_target) - begin)
    packing = PackingConfig(rows="conversations", sequence_length=longest)
    found = conversation_pieces(np.array(lengths), np.array(is_target), np.array(is_begin), packing, first_start=1000)
    begins = found.starts - 1000
    slices = list(zip(begins.tolist(), (begins + found.lengths).tolist(), strict=True))
    assert all(stop - start <= longest for start, stop in slices)
    assert all(one[1] <= other[0] for one, other in pairwise(slices)), "a token stands twice"
    whole = [one for one in answers if any(start <= one[0] and one[2] <= stop for start, stop in slices)]
    cut = [one for one in answers if any(start == one[0] and one[1] < stop < one[2] for start, stop in slices)]
    lost = [one for one in answers if one[1] - one[0] >= longest]
    assert (len(cut), len(lost)) == (found.num_cut_answers, found.num_lost_answers)
    assert sorted(whole + cut + lost) == answers
    assert all(is_begin[start] for start, _ in slices)
