"""The processor's attention against torch's own, in fp64, where nothing but a mistake can make a difference."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core.layers import cpu_attention
from core.layers.cpu_attention import fused_attention
from core.layers.transformer_parts import document_mask, hidden_unless, positions_in_documents, rotary_tables, rotate

DOCUMENTS = torch.tensor([[0] * 11 + [1] * 26, [0] * 30 + [-1] * 7, [0] * 37], dtype=torch.int32)


def by_torch(
    qkv_BTNK: Tensor, heads: int, kv_heads: int, mask: Tensor | None, rotary: tuple[Tensor, Tensor] | None, causal: bool
) -> Tensor:
    q, k, v = torch.split(qkv_BTNK, [heads, kv_heads, kv_heads], dim=2)
    if rotary is not None:
        q, k = rotate(q, rotary), rotate(k, rotary)
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    k, v = (part.repeat_interleave(heads // kv_heads, dim=1) for part in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal and mask is None).transpose(1, 2)


@pytest.mark.parametrize("scores_at_once", [1, 2**21], ids=["row-by-row", "all-rows"])
@pytest.mark.parametrize("is_rotary", [False, True], ids=["still", "rotary"])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("kind", ["open", "padding", "documents", "causal", "causal-documents"])
def test_fused_attention_and_its_gradient_equal_torch_in_fp64(
    kind: str, kv_heads: int, is_rotary: bool, scores_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_attention, "_SCORES_AT_ONCE", scores_at_once)
    monkeypatch.setattr(cpu_attention, "_QUERIES_AT_ONCE", 16)  # 37 tokens: two whole blocks and a short one.
    torch.manual_seed(0)
    num_rows, num_tokens, heads, head_dim = 3, 37, 4, 8
    qkv = torch.randn(num_rows, num_tokens, heads + 2 * kv_heads, head_dim, dtype=torch.float64, requires_grad=True)
    mask = {
        "padding": hidden_unless(DOCUMENTS[:, None, None, :] >= 0, torch.float64),
        "documents": document_mask(DOCUMENTS, is_causal=False, dtype=torch.float64),
        "causal-documents": document_mask(DOCUMENTS, is_causal=True, dtype=torch.float64),
    }.get(kind)
    positions = positions_in_documents(DOCUMENTS) if "documents" in kind else torch.arange(num_tokens)
    tables = rotary_tables(positions, head_dim=head_dim, base=1e4, dtype=torch.float64)
    rotary = tables if is_rotary else None
    is_causal = kind.startswith("causal")

    ours = fused_attention(qkv, heads=heads, kv_heads=kv_heads, mask=mask, rotary=rotary, is_causal=is_causal)
    theirs = by_torch(qkv, heads, kv_heads, mask, rotary, is_causal)
    direction = torch.randn_like(ours)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    our_gradient, their_gradient = (torch.autograd.grad(out, qkv, direction)[0] for out in (ours, theirs))
    torch.testing.assert_close(our_gradient, their_gradient, rtol=0, atol=1e-12)


def test_bf16_attention_strays_no_further_from_the_truth_than_a_bf16_number_allows() -> None:
    torch.manual_seed(0)
    qkv = torch.randn(2, 64, 12, 16).bfloat16()
    truth = fused_attention(qkv.double(), heads=4, kv_heads=4, is_causal=True)
    bf16 = fused_attention(qkv, heads=4, kv_heads=4, is_causal=True).double()
    # bf16 has 8 bits; scores, probabilities and sums are each rounded once.
    assert (bf16 - truth).abs().max().item() < 4 * 2**-8 * truth.abs().max().item()
