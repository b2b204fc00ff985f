import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from preparing import prepared_from_texts

from data_pipeline.schema.corpus_config import PackingConfig
from data_pipeline.tokens.batches import Batch, BatchSource, Shard
from data_pipeline.tokens.token_blocks import PreparedCorpus

TEXTS = [f"text number {n} " + "abcdefg " * (n % 9) for n in range(120)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedCorpus:
    packing = PackingConfig(sequence_length=32, attention="within_documents")
    return prepared_from_texts(tmp_path_factory.mktemp("batches"), TEXTS, packing, holdout=0.1)[0]


def masked_source(prepared: PreparedCorpus, seed: int = 0) -> BatchSource:
    return BatchSource(prepared.train, prepared.vocabulary, masking_rate=0.15, seed=seed)


def equal(one: Batch, two: Batch) -> bool:
    return torch.equal(one.inputs_BT, two.inputs_BT) and torch.equal(one.positions_P, two.positions_P)


@given(position=st.integers(0, 2000), batch_size=st.integers(1, 300), num_workers=st.integers(1, 9))
def test_global_batch_is_the_same_for_any_number_of_workers(
    prepared: PreparedCorpus, position: int, batch_size: int, num_workers: int
) -> None:
    source = masked_source(prepared)
    shards = [
        source.shard(position=position, batch_size=batch_size, rank=rank, num_workers=num_workers)
        for rank in range(num_workers)
    ]
    alone = source.shard(position=position, batch_size=batch_size, rank=0, num_workers=1)
    assert np.array_equal(np.concatenate([shard.row_numbers for shard in shards]), alone.row_numbers)
    assert np.array_equal(np.concatenate([shard.epochs for shard in shards]), alone.epochs)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("masking_rate", [0.15, None])
@pytest.mark.parametrize("micro_batch_size", [1, 3, 7])
def test_micro_batches_put_together_are_the_batch(
    prepared: PreparedCorpus, masking_rate: float | None, micro_batch_size: int
) -> None:
    source = BatchSource(prepared.train, prepared.vocabulary, masking_rate=masking_rate, seed=5)
    shard = source.shard(position=source.num_rows - 5, batch_size=20, rank=0, num_workers=1)
    whole = source.batch(shard, 0, 20)
    parts = [source.batch(shard, start, min(start + micro_batch_size, 20)) for start in range(0, 20, micro_batch_size)]
    offsets = range(0, 20 * 32, micro_batch_size * 32)
    assert torch.equal(torch.cat([part.inputs_BT for part in parts]), whole.inputs_BT)
    assert torch.equal(torch.cat([part.labels_P for part in parts]), whole.labels_P)
    shifted = [part.positions_P + offset for part, offset in zip(parts, offsets, strict=True)]
    assert torch.equal(torch.cat(shifted), whole.positions_P)
    assert sum(part.num_tokens for part in parts) == whole.num_tokens


def test_resuming_at_a_position_gives_the_very_next_row(prepared: PreparedCorpus) -> None:
    source, resumed = masked_source(prepared), pickle.loads(pickle.dumps(masked_source(prepared)))
    first = source.shard(position=0, batch_size=90, rank=0, num_workers=1)
    later = resumed.shard(position=37, batch_size=53, rank=0, num_workers=1)
    assert equal(source.batch(first, 37, 90), resumed.batch(later, 0, 53))


def test_masked_labels_are_the_tokens_that_were_there(prepared: PreparedCorpus) -> None:
    source = masked_source(prepared)
    shard = source.shard(position=0, batch_size=16, rank=0, num_workers=1)
    batch = source.batch(shard, 0, 16)
    tokens = torch.from_numpy(prepared.train.rows(shard.row_numbers).tokens.astype(np.int64)).flatten()
    assert torch.equal(tokens[batch.positions_P], batch.labels_P)
    assert not set(batch.labels_P.tolist()) & set(prepared.vocabulary.special_ids)


def test_causal_label_is_the_next_token_of_the_same_document(prepared: PreparedCorpus) -> None:
    source = BatchSource(prepared.train, prepared.vocabulary, masking_rate=None, seed=0)
    batch = source.batch(source.shard(position=0, batch_size=16, rank=0, num_workers=1), 0, 16)
    assert batch.document_ids_BT is not None
    tokens, documents = batch.inputs_BT.flatten(), batch.document_ids_BT.flatten()
    assert torch.equal(tokens[batch.positions_P + 1], batch.labels_P)
    assert torch.equal(documents[batch.positions_P + 1], documents[batch.positions_P])
    assert (batch.positions_P % 32 < 31).all()
    assert prepared.vocabulary.pad_id not in batch.labels_P
    # All other pairs of neighbours are at the end of a row or of a document.
    assert len(batch.positions_P) == 16 * 31 - int((batch.document_ids_BT.diff(dim=1) != 0).sum())


def test_causal_rows_that_see_other_documents_predict_every_token_but_the_first(tmp_path: Path) -> None:
    prepared, _ = prepared_from_texts(tmp_path, TEXTS, PackingConfig(sequence_length=32))
    source = BatchSource(prepared.train, prepared.vocabulary, masking_rate=None, seed=0)
    rows = np.arange(8)
    batch = source.batch(Shard(rows, np.zeros_like(rows)), 0, 8)
    assert batch.positions_P.tolist() == [row * 32 + place for row in range(8) for place in range(31)]
    assert batch.document_ids_BT is None


def test_evaluation_masks_are_the_same_in_every_epoch_and_order(prepared: PreparedCorpus) -> None:
    source = BatchSource(prepared.holdout, prepared.vocabulary, masking_rate=0.15, seed=11, shuffle=False)
    shard = source.shard(position=0, batch_size=source.num_rows, rank=0, num_workers=1)
    assert shard.row_numbers.tolist() == list(range(source.num_rows))
    assert set(shard.epochs.tolist()) == {0}


def test_masked_lm_without_a_mask_token_is_refused(prepared: PreparedCorpus) -> None:
    with pytest.raises(ValueError, match="needs a tokenizer with a mask token"):
        BatchSource(prepared.train, replace(prepared.vocabulary, mask_id=None), masking_rate=0.15, seed=0)


def test_batches_move_whole(prepared: PreparedCorpus) -> None:
    source = masked_source(prepared)
    moved = source.batch(source.shard(position=0, batch_size=2, rank=0, num_workers=1), 0, 2).to("meta")
    assert moved.document_ids_BT is not None
    assert {moved.inputs_BT.device, moved.positions_P.device, moved.labels_P.device, moved.document_ids_BT.device} == {
        torch.device("meta")
    }


def test_a_batch_goes_to_a_gpu_from_pinned_memory_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[tuple[int, object, bool]] = []
    pinned: set[int] = set()

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.add(id(tensor))
        return tensor

    def copy(tensor: torch.Tensor, device: object, *, non_blocking: bool = False) -> torch.Tensor:
        copied.append((id(tensor), device, non_blocking))
        return tensor

    batch = Batch(
        inputs_BT=torch.zeros(2, 4, dtype=torch.int64),
        positions_P=torch.zeros(3, dtype=torch.int64),
        labels_P=torch.zeros(3, dtype=torch.int64),
        document_ids_BT=torch.zeros(2, 4, dtype=torch.int32),
        num_tokens=8,
        most_predicted=3,
    )
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", copy)
    batch.to("cpu")
    assert pinned == set()
    copied.clear()
    batch.to("cuda")
    assert {number for number, _, _ in copied} == pinned
    assert [(device, non_blocking) for _, device, non_blocking in copied] == [("cuda", True)] * 4
