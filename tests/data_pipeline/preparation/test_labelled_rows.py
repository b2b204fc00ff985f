"""Labelled rows: the same from every format, equal texts on one side, every class on both."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data_pipeline.preparation.labelled_rows import (
    LabelledTexts,
    encode_texts,
    hold_out,
    labelled_corpus,
    read_labelled,
)
from data_pipeline.reading.table_rows import open_table
from data_pipeline.schema.corpus_config import CorpusError, TokenizerConfig
from data_pipeline.schema.rejects import Reason
from data_pipeline.tokens.batches import BatchSource
from data_pipeline.tokens.tokenizer import train_tokenizer, vocabulary_of

ROWS = [
    (f"packet {number} of {'dns' if number % 3 else 'http'}", "dns" if number % 3 else "http") for number in range(40)
]


def write_csv(path: Path, rows: list[tuple[str, str]], header: str = "payload,app") -> str:
    path.write_text("\n".join([header, *(f"{text},{label}" for text, label in rows)]) + "\n")
    return str(path)


def read(path: str, label: str = "app", **options: int) -> LabelledTexts:
    return read_labelled(open_table(path, text="payload"), label, **options)


def test_csv_jsonl_and_parquet_give_the_same_texts_and_labels(tmp_path: Path) -> None:
    jsonl, parquet = tmp_path / "rows.jsonl", tmp_path / "rows.parquet"
    jsonl.write_text("\n".join(json.dumps({"app": label, "payload": text}) for text, label in ROWS))
    table = pa.table({"payload": [text for text, _ in ROWS], "app": [label for _, label in ROWS]})
    pq.write_table(table, parquet)
    found = [read(path) for path in (write_csv(tmp_path / "rows.csv", ROWS), str(jsonl), str(parquet))]
    assert [list(zip(one.texts, one.labels, strict=True)) for one in found] == [ROWS] * 3
    assert {one.classes for one in found} == {("dns", "http")}


def test_labels_that_are_numbers_are_ordered_by_value(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"payload": f"t {n}", "app": n % 12}) for n in range(48)))
    assert read(str(path)).classes == tuple(map(str, range(12)))


def test_rows_without_a_text_or_a_label_are_rejected_with_their_lines(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "rows.csv", [*ROWS, ("", "dns"), ("a text", "")])
    found = read(path)
    assert len(found.texts) == len(ROWS)
    assert [(one.line, one.reason) for one in found.rejects] == [(42, Reason.EMPTY_TEXT), (43, Reason.NO_LABEL)]


texts_and_labels = st.lists(st.tuples(st.integers(0, 30).map("text {}".format), st.sampled_from("abc")), min_size=2)


@given(rows=texts_and_labels, share=st.floats(0.01, 0.9))
@example(
    rows=[("text 0", "b"), ("text 1", "b"), ("text 2", "a"), ("text 5", "a"), ("text 23", "a"), ("text 23", "b")],
    share=0.25,
)
def test_equal_texts_stand_on_one_side_and_every_class_on_both(rows: list[tuple[str, str]], share: float) -> None:
    texts, labels = [text for text, _ in rows], [label for _, label in rows]
    try:
        is_held_out = hold_out(texts, labels, share)
    except CorpusError:
        # Only where a class has one text, or shares what it has with another class.
        by_class = {label: {text for text, other in rows if other == label} for label in set(labels)}
        own = [
            by_class[label] - set().union(*(by_class[other] for other in by_class if other != label))
            for label in by_class
        ]
        assert any(len(texts) < 2 for texts in own)
        return
    for text in set(texts):
        assert len({bool(side) for side, other in zip(is_held_out, texts, strict=True) if other == text}) == 1
    for label in set(labels):
        assert len({bool(side) for side, other in zip(is_held_out, labels, strict=True) if other == label}) == 2


def test_texts_are_held_out_by_the_hash_that_splits_corpora() -> None:
    texts = [f"text number {number}" for number in range(2000)]
    is_held_out = hold_out(texts, ["a", "b"] * 1000, 0.2)
    # By hand: the first 64 bits of BLAKE2b, little-endian, below a fifth of their range.
    first = [int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest()[:8], "little") for text in texts]
    assert is_held_out.tolist() == [value < round(0.2 * 2**64) for value in first]


def test_batches_predict_each_rows_class_at_its_first_token(tmp_path: Path) -> None:
    found = read(write_csv(tmp_path / "rows.csv", ROWS))
    tokenizer = train_tokenizer(TokenizerConfig(vocabulary=300, min_frequency=1), found.texts)
    vocabulary = vocabulary_of(tokenizer)
    encoded = encode_texts([*found.texts[:-1], "packet " * 50], tokenizer, vocabulary, longest=16)
    is_held_out = np.arange(len(ROWS)) < 4
    data = labelled_corpus(found, encoded, is_held_out, vocabulary, tokenizer_path=Path("none"), fingerprint="x")
    source = BatchSource(data.train, vocabulary, masking_rate=None, seed=0, shuffle=False)
    shard = source.shard(position=0, batch_size=36, rank=0, num_workers=1)
    batch = source.batch(shard, 30, 36)
    assert batch.positions_P.tolist() == [16 * row for row in range(6)]
    assert (batch.inputs_BT.flatten()[batch.positions_P] == vocabulary.bos_id).all()
    assert [found.classes[number] for number in batch.labels_P.tolist()] == [label for _, label in ROWS[34:]]
    # The text that is too long keeps its beginning and ends as every other does.
    assert encoded.num_cut == 1
    assert batch.inputs_BT[-1, -1] == vocabulary.eos_id
    assert batch.num_tokens == sum(len(row) for row in encoded.tokens[34:])


@pytest.mark.parametrize(
    ("rows", "label", "words"),
    [
        (ROWS, "ap", "has no column 'ap'; did you mean --classify app?"),
        (ROWS, "payload", "column 'payload' is both the text and the label"),
        ([(text, "dns") for text, _ in ROWS], "app", "one class only, 'dns' in all 40 rows"),
        ([*ROWS, ("lonely", "ftp")], "app", "has a single row ('ftp')"),
        ([("", "dns"), ("", "http")], "app", "2 times empty text"),
    ],
)
def test_what_cannot_be_learnt_from_is_said(
    tmp_path: Path, rows: list[tuple[str, str]], label: str, words: str
) -> None:
    with pytest.raises(CorpusError, match=re.escape(words)) as caught:
        read(write_csv(tmp_path / "rows.csv", rows), label)
    assert "\n" not in str(caught.value)


def test_a_missing_text_column_is_said_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"has no column 'paylod'; did you mean --text payload\?"):
        open_table(write_csv(tmp_path / "rows.csv", ROWS), text="paylod")


def test_rare_classes_are_left_out_and_counted(tmp_path: Path) -> None:
    found = read(write_csv(tmp_path / "rows.csv", [*ROWS, ("lonely", "ftp")]), least_rows=2)
    assert found.classes == ("dns", "http")
    assert found.left_out == {"ftp": 1}


def test_a_class_whose_rows_all_have_one_text_is_said() -> None:
    with pytest.raises(CorpusError, match="the 3 rows of class 'b' have too few different texts"):
        hold_out(["x", "y", "z", "t", "t", "t"], list("aaabbb"), 0.5)
