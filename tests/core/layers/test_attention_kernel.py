"""The kernel of attention by family, mask and grouping: equal numbers, and no score materialised on a GPU."""

from itertools import product

import pytest
import torch

from core.layers.attention_kernel import attention_kernel
from core.layers.cache_blocks import as_on_a_gpu
from core.layers.transformer_parts import Attention, RowLayout, document_mask
from core.memory_prediction.peak_memory import WorkerSetup, predict_memory
from core.settings.run_config import RunConfig

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
PLAIN = {"has_cache": False, "has_dropout": False}


@pytest.mark.parametrize(
    ("dtype", "is_grouped", "has_mask", "kernel", "repeats_keys"),
    [
        (torch.bfloat16, False, False, "flash", False),
        (torch.bfloat16, True, False, "flash", False),
        (torch.bfloat16, False, True, "memory-efficient", False),
        (torch.bfloat16, True, True, "memory-efficient", True),
        (torch.float32, False, False, "memory-efficient", False),
        (torch.float32, True, False, "memory-efficient", True),
        (torch.float32, True, True, "memory-efficient", True),
    ],
)
def test_no_kernel_of_a_gpu_materialises_scores(
    dtype: torch.dtype, is_grouped: bool, has_mask: bool, kernel: str, repeats_keys: bool
) -> None:
    found = attention_kernel(GPU, dtype, is_grouped=is_grouped, has_mask=has_mask, **PLAIN)
    assert (found.kernel, found.repeats_keys) == (kernel, repeats_keys)
    assert found.reason


def test_processors_keep_their_kernels() -> None:
    for is_grouped, has_mask in product((False, True), repeat=2):
        how = {"is_grouped": is_grouped, "has_mask": has_mask}
        assert attention_kernel(CPU, torch.bfloat16, **how, **PLAIN).kernel == "cache blocks"
        with as_on_a_gpu():
            assert attention_kernel(CPU, torch.bfloat16, **how, **PLAIN).kernel in ("flash", "memory-efficient")
        for dtype, others in (
            (torch.float32, PLAIN),
            (torch.bfloat16, {"has_cache": True, "has_dropout": False}),
            (torch.bfloat16, {"has_cache": False, "has_dropout": True}),
        ):
            found = attention_kernel(CPU, dtype, **how, **others)
            assert (found.kernel, found.repeats_keys) == ("torch for processors", False)


@pytest.mark.parametrize("has_mask", [False, True])
def test_repeated_keys_give_the_numbers_and_gradients_of_grouped_ones(has_mask: bool) -> None:
    torch.manual_seed(0)
    attention = Attention(width=32, heads=4, kv_heads=2, bias=False, dropout=0.0).double()
    ids_BT = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2]] * 2)
    mask = document_mask(ids_BT, is_causal=True, dtype=torch.float64) if has_mask else None
    layout = RowLayout(mask=mask, is_causal=True)
    found = []
    for _ in range(2):
        x_BTD = torch.linspace(-1, 1, 2 * 8 * 32, dtype=torch.float64).view(2, 8, 32).requires_grad_()
        attention.zero_grad()
        if found:
            with as_on_a_gpu():
                out = attention(x_BTD, layout)
        else:
            out = attention(x_BTD, layout)
        out.square().sum().backward()
        assert x_BTD.grad is not None
        assert attention.qkv.weight.grad is not None
        found.append((out.detach(), x_BTD.grad, attention.qkv.weight.grad.clone()))
    for one, other in zip(*found, strict=True):
        # fp64 sums in another order.
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_grouped_heads_on_packed_rows_are_predicted_without_scores_of_every_head(precision: str) -> None:
    def predicted(kv_heads: int) -> int:
        model = {"family": "decoder", "layers": 2, "width": 128, "heads": 8, "kv_heads": kv_heads}
        run = RunConfig.model_validate(
            {
                "model": {**model, "sequence_length": 512},
                "objective": "causal_lm",
                "training": {"batch_size": 8, "precision": precision},
            }
        )
        setup = WorkerSetup(device_type="cuda", has_document_ids=True)
        return predict_memory(run, 500, micro_batch_size=8, setup=setup).peak_bytes

    scores_bytes = 8 * 8 * 512 * 512 * 4
    grouped, full = predicted(2), predicted(8)
    assert grouped < full + scores_bytes / 2, "grouped heads cost as much as the scores of every head"
