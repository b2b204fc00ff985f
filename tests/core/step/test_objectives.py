"""Two ways to the same gradients: the whole graph at once, and the head chunk by chunk before the body."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_corpus import VOCABULARY, small_corpus
from torch.utils._python_dispatch import TorchDispatchMode

from core.models.language_model import LanguageModel
from core.models.model_factory import build_model
from core.settings.model_config import ModelConfig
from core.settings.precision import Precision
from core.step.objectives import add_gradients, chunk_length, summed_loss
from data_pipeline.tokens.batches import Batch, BatchSource

torch.set_num_threads(1)
FP32 = Precision("fp32", "cpu")


def model_and_batch(family: str, dtype: torch.dtype = torch.float64, rows: int = 6) -> tuple[LanguageModel, Batch]:
    torch.manual_seed(0)
    config = ModelConfig.model_validate({"family": family, "layers": 2, "width": 32, "heads": 2, "sequence_length": 16})
    model = build_model(config, VOCABULARY.size).to(dtype)
    rate = 0.3 if family == "encoder" else None
    source = BatchSource(small_corpus(padded=True).train, VOCABULARY, masking_rate=rate, seed=0)
    return model, source.batch(source.shard(position=0, batch_size=rows, rank=0, num_workers=1), 0, rows)


def gradients_of(model: LanguageModel) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("family", ["encoder", "decoder"])
def test_summed_loss_is_torchs_cross_entropy_at_the_predicted_positions(family: str) -> None:
    model, batch = model_and_batch(family)
    loss, num_predicted = summed_loss(model, batch, FP32, positions_at_once=5)
    logits = model(batch.inputs_BT).flatten(0, 1)[batch.positions_P]
    assert num_predicted == len(batch.labels_P)
    assert loss.item() == pytest.approx(F.cross_entropy(logits, batch.labels_P, reduction="sum").item(), rel=1e-12)


@pytest.mark.parametrize("family", ["encoder", "decoder"])
@pytest.mark.parametrize("positions_at_once", [1, 7, 10_000])
def test_gradients_in_chunks_are_those_of_the_whole_graph(family: str, positions_at_once: int) -> None:
    model, batch = model_and_batch(family)
    loss, _ = summed_loss(model, batch, FP32)
    loss.backward()
    expected = gradients_of(model)
    chunked_loss, auxiliary = add_gradients(model, batch, FP32, positions_at_once=positions_at_once)
    found = gradients_of(model)
    assert auxiliary is None
    assert chunked_loss.item() == pytest.approx(loss.item(), rel=1e-12)
    assert found.keys() == expected.keys()
    assert max((found[name] - expected[name]).abs().max().item() for name in found) < 1e-12


@pytest.mark.parametrize("family", ["encoder", "decoder"])
def test_bf16_gradients_in_chunks_are_those_of_the_whole_graph(family: str) -> None:
    model, batch = model_and_batch(family, torch.float32)
    bf16 = Precision("bf16", "cpu")
    summed_loss(model, batch, bf16)[0].backward()
    expected = gradients_of(model)
    add_gradients(model, batch, bf16, positions_at_once=7)
    found = gradients_of(model)
    for name, gradient in expected.items():
        # bf16 has 8 bits; logits' gradients are rounded once in both, sums over chunks differ in order.
        assert (found[name] - gradient).norm() < 0.02 * gradient.norm() + 1e-6, name


def test_scale_multiplies_gradients_and_not_the_loss() -> None:
    model, batch = model_and_batch("decoder")
    loss, _ = add_gradients(model, batch, FP32)
    plain = gradients_of(model)
    scaled_loss, _ = add_gradients(model, batch, FP32, scale=8.0)
    assert scaled_loss.item() == loss.item()
    assert all(torch.allclose(8 * plain[name], gradient, rtol=1e-12) for name, gradient in gradients_of(model).items())


def test_gradients_add_to_what_is_there() -> None:
    model, batch = model_and_batch("encoder")
    add_gradients(model, batch, FP32)
    once = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    add_gradients(model, batch, FP32)
    assert all(torch.allclose(2 * once[name], gradient, rtol=1e-12) for name, gradient in gradients_of(model).items())


class LargestTensor(TorchDispatchMode):
    """Rows of the largest (any x vocabulary) tensor that an operator makes."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        is_logits = isinstance(out, torch.Tensor) and out.ndim == 2 and out.shape[-1] == VOCABULARY.size
        self.rows = max(self.rows, out.shape[0] if is_logits and out.shape[0] != 32 else 0)
        return out


def test_logits_of_all_positions_never_exist_at_once() -> None:
    model, batch = model_and_batch("decoder")
    assert len(batch.labels_P) > 40
    with LargestTensor() as seen:
        add_gradients(model, batch, FP32, positions_at_once=10)
    assert 0 < seen.rows <= 10


def test_masked_lm_makes_logits_at_masked_positions_only() -> None:
    model, batch = model_and_batch("encoder")
    with LargestTensor() as seen:
        add_gradients(model, batch, FP32)
    assert seen.rows == len(batch.labels_P) < batch.inputs_BT.numel() / 3


def test_head_in_chunks_costs_less_memory_than_the_body_at_a_large_vocabulary() -> None:
    # Causal LM with a vocabulary of 50,000: all logits would be 16 times the activations.
    config = ModelConfig(family="decoder", layers=2, width=64, heads=2, sequence_length=512)
    model = build_model(config, 50_000)
    batch = Batch(
        torch.zeros(32, 512, dtype=torch.int64), torch.arange(16_352), torch.zeros(16_352), None, 16_384, 16_352
    )
    # Four bytes a logit against 32 bytes an element, or 16 million logits where that is little.
    assert chunk_length(model, batch) * 50_000 <= max(2**24, 32 * 16_384 * 64 * 2 / 4)
