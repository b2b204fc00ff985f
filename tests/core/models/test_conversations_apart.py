"""Conversations that share a row do not see each other: neither in what is computed nor in what is learnt."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from conversing import Turns, prepared_conversations
from core.models.decoder import LlamaDecoder
from core.models.model_factory import build_model
from core.settings.model_config import ModelConfig
from core.settings.precision import Precision
from core.step.objectives import summed_loss
from data_pipeline.tokens.batches import Batch, BatchSource

CONVERSATIONS: list[Turns] = [
    [turn for n in range(1 + number % 3) for turn in (("user", f"say {number}"), ("assistant", f"{n} {number}"))]
    for number in range(16)
]


def rows_with_several(folder: Path) -> tuple[LlamaDecoder, Batch]:
    data = prepared_conversations(folder, CONVERSATIONS, sequence_length=160)
    source = BatchSource(data.train, data.vocabulary, masking_rate=None, seed=0, shuffle=False)
    batch = source.batch(source.shard(position=0, batch_size=source.num_rows, rank=0, num_workers=1), 0, 3)
    assert batch.document_ids_BT is not None
    assert int(batch.document_ids_BT.max()) >= 2, "rows of one conversation prove nothing"
    torch.manual_seed(0)
    config = ModelConfig(family="decoder", layers=2, width=32, heads=4, kv_heads=2, sequence_length=160)
    model = build_model(config, data.vocabulary.size)
    assert isinstance(model, LlamaDecoder)
    return model.eval(), batch


@torch.no_grad()
def logits(model: LlamaDecoder, tokens_BT: Tensor, ids_BT: Tensor | None, precision: Precision) -> Tensor:
    with precision.autocast():
        return model(tokens_BT, ids_BT)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])  # two different kernels on processors
def test_changing_one_conversation_changes_no_logit_of_another(dtype: str, tmp_path: Path) -> None:
    model, batch = rows_with_several(tmp_path)
    ids_BT = batch.document_ids_BT
    assert ids_BT is not None
    precision = Precision(dtype, "cpu")  # type: ignore[arg-type]
    before = logits(model, batch.inputs_BT, ids_BT, precision)
    for conversation in range(int(ids_BT.max()) + 1):
        is_changed_BT = ids_BT == conversation
        changed_BT = torch.where(is_changed_BT, (batch.inputs_BT + 7) % model.tokens.num_embeddings, batch.inputs_BT)
        after = logits(model, changed_BT, ids_BT, precision)
        # Weights of exactly zero on what is hidden: not a bit may differ.
        assert torch.equal(after[~is_changed_BT], before[~is_changed_BT])
        assert not torch.equal(after[is_changed_BT], before[is_changed_BT])
    mixed = logits(model, changed_BT, None, precision)
    assert not torch.equal(mixed[~is_changed_BT], before[~is_changed_BT]), "without ids they do see each other"


def test_a_conversation_has_the_logits_that_it_has_alone_in_a_row(tmp_path: Path) -> None:
    model, batch = rows_with_several(tmp_path)
    ids_BT = batch.document_ids_BT
    assert ids_BT is not None
    model = model.double()
    with torch.no_grad():
        together = model(batch.inputs_BT, ids_BT)
        for conversation in range(int(ids_BT[0].max())):
            tokens_T = batch.inputs_BT[0][ids_BT[0] == conversation]
            alone = model(tokens_T[None])[0]
            # fp64; sums over the same numbers in another order.
            torch.testing.assert_close(together[0][ids_BT[0] == conversation], alone, rtol=0, atol=1e-12)


def test_the_loss_of_a_row_of_conversations_is_the_sum_of_their_losses_alone(tmp_path: Path) -> None:
    model, batch = rows_with_several(tmp_path)
    ids_BT = batch.document_ids_BT
    assert ids_BT is not None
    whole, num_predicted = summed_loss(model, batch, Precision("fp32", "cpu"))
    length = batch.inputs_BT.shape[1]
    alone = 0.0
    for row in range(len(batch.inputs_BT)):
        for conversation in range(int(ids_BT[row].max()) + 1):
            places = (ids_BT[row] == conversation).nonzero().flatten()
            chosen = torch.isin(batch.positions_P, row * length + places)
            losses = torch.nn.functional.cross_entropy(
                model(batch.inputs_BT[row][places][None])[0][batch.positions_P[chosen] - row * length - places[0]],
                batch.labels_P[chosen],
                reduction="sum",
            )
            alone += losses.item()
    assert num_predicted == len(batch.labels_P)
    assert float(whole) == pytest.approx(alone, rel=1e-5)
