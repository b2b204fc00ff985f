"""Parts shared by all transformers here: linear layers, embeddings, masks, rotary positions, attention.

Shape suffixes: B rows, T tokens a row, D width, H heads, G key/value heads, K width of a head, S visible tokens.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.layers.attention_kernel import attention_kernel
from core.layers.cpu_attention import fused_attention

INITIAL_STD = 0.02
"""Standard deviation of initial weights, as in BERT, RoBERTa and Llama."""

_HIDDEN = -1e4
# Not -inf: a row of only padding would become 0/0. exp(-10,000) is exactly zero in every float type.


class Linear(nn.Linear):
    """A linear layer initialized as in BERT: normal weights with standard deviation 0.02, zero bias."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=INITIAL_STD)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Embedding(nn.Embedding):
    """An embedding table, normal with standard deviation 0.02; the `padding_idx` row is zero and gets no gradient."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=INITIAL_STD)
        if self.padding_idx is not None:
            nn.init.zeros_(self.weight[self.padding_idx])


@dataclass(frozen=True, slots=True)
class RowLayout:
    """Attention mask and positions, computed once per forward pass for all layers."""

    mask: Tensor | None = None
    """(B, 1, T or 1, S), added to the scores: 0 where visible. None: only `is_causal` hides tokens."""
    is_causal: bool = False
    """True: a token sees itself and earlier tokens. A mask, if present, must hide later tokens too."""
    rotary: tuple[Tensor, Tensor] | None = None
    """Cosine and sine, (T, 1, K/2) or (B, T, 1, K/2); None for models with learned positions."""


def compute_dtype(like: Tensor) -> torch.dtype:
    """Dtype of the matrix products of this pass: autocast's if it is enabled, else that of `like`."""
    device_type = like.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else like.dtype


def positions_in_documents(document_ids_BT: Tensor) -> Tensor:
    """(B, T) position of each token within its document, from zero; a document is a run of equal ids."""
    index_T = torch.arange(document_ids_BT.shape[1], device=document_ids_BT.device)
    is_first_BT = torch.ones_like(document_ids_BT, dtype=torch.bool)
    is_first_BT[:, 1:] = document_ids_BT[:, 1:] != document_ids_BT[:, :-1]
    first_BT = torch.cummax(torch.where(is_first_BT, index_T, 0), dim=1).values
    return index_T - first_BT


def document_mask(document_ids_BT: Tensor, *, is_causal: bool, dtype: torch.dtype) -> Tensor:
    """(B, 1, T, T) additive mask: zero where a token may see another of its document, else large and negative."""
    seen_BTT = document_ids_BT[:, :, None] == document_ids_BT[:, None, :]
    if is_causal:
        seen_BTT = seen_BTT.tril()
    return hidden_unless(seen_BTT[:, None], dtype)


def hidden_unless(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask for attention scores: zero where `seen`, else a large negative number."""
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, _HIDDEN)


def rotary_tables(positions: Tensor, *, head_dim: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(cosine, sine) of the angles of each position, (..., 1, head_dim / 2); the 1 broadcasts over heads.

    Source: RoFormer, arXiv:2104.09864, with frequencies in fp32 as in Llama.
    """
    exponents_K = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions[..., None, None].float() * base**-exponents_K
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x_BTHK: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the pairs (i, i + K/2) of each head by the angles of its position."""
    cos, sin = rotary
    left, right = x_BTHK.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


class KeyValueCache:
    """Keys and values, (B, S, G, K), of the tokens that one layer has processed."""

    def __init__(self) -> None:
        self.keys_BSGK: Tensor | None = None
        self.values_BSGK: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        return 0 if self.keys_BSGK is None else self.keys_BSGK.shape[1]

    def extended(self, k_BTGK: Tensor, v_BTGK: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values of new tokens; returns those of all tokens."""
        if self.keys_BSGK is not None and self.values_BSGK is not None:
            k_BTGK = torch.cat((self.keys_BSGK, k_BTGK), dim=1)
            v_BTGK = torch.cat((self.values_BSGK, v_BTGK), dim=1)
        self.keys_BSGK, self.values_BSGK = k_BTGK, v_BTGK
        return k_BTGK, v_BTGK


class Attention(nn.Module):
    """Multi-head attention with one joint matrix for queries, keys and values; grouped if `kv_heads` < `heads`."""

    def __init__(self, *, width: int, heads: int, kv_heads: int, bias: bool, dropout: float) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, width // heads
        self.dropout = dropout
        self.qkv = Linear(width, (heads + 2 * kv_heads) * self.head_dim, bias=bias)
        self.out = Linear(width, width, bias=bias)

    def forward(self, x_BTD: Tensor, layout: RowLayout, cache: KeyValueCache | None = None) -> Tensor:
        qkv_BTNK = self.qkv(x_BTD).unflatten(-1, (-1, self.head_dim))
        dropout = self.dropout if self.training else 0.0
        chosen = attention_kernel(
            qkv_BTNK.device,
            qkv_BTNK.dtype,
            is_grouped=self.kv_heads != self.heads,
            has_mask=layout.mask is not None,
            has_cache=cache is not None,
            has_dropout=dropout > 0.0,
        )
        if chosen.kernel == "cache blocks":
            out_BTHK = fused_attention(
                qkv_BTNK,
                heads=self.heads,
                kv_heads=self.kv_heads,
                mask=layout.mask,
                rotary=layout.rotary,
                is_causal=layout.is_causal,
            )
        else:
            out_BTHK = self._attend(qkv_BTNK, layout, cache, dropout, repeats_keys=chosen.repeats_keys)
        mixed: Tensor = self.out(out_BTHK.flatten(2))
        return mixed

    def _attend(
        self,
        qkv_BTNK: Tensor,
        layout: RowLayout,
        cache: KeyValueCache | None,
        dropout: float,
        *,
        repeats_keys: bool,
    ) -> Tensor:
        """(B, T, H, K) attention with torch's own kernel."""
        if layout.rotary is None:
            q_BTHK, k_BTGK, v_BTGK = torch.split(qkv_BTNK, [self.heads, self.kv_heads, self.kv_heads], dim=2)
        else:
            # Queries and keys rotate by the same angles, so one pass serves both.
            qk_BTNK, v_BTGK = torch.split(qkv_BTNK, [self.heads + self.kv_heads, self.kv_heads], dim=2)
            q_BTHK, k_BTGK = torch.split(rotate(qk_BTNK, layout.rotary), [self.heads, self.kv_heads], dim=2)
        if cache is not None:
            k_BTGK, v_BTGK = cache.extended(k_BTGK, v_BTGK)
        if repeats_keys:
            times = self.heads // self.kv_heads
            k_BTGK, v_BTGK = (one.repeat_interleave(times, dim=2) for one in (k_BTGK, v_BTGK))
        out_BHTK = F.scaled_dot_product_attention(
            q_BTHK.transpose(1, 2),
            k_BTGK.transpose(1, 2),
            v_BTGK.transpose(1, 2),
            attn_mask=layout.mask,
            is_causal=layout.is_causal and layout.mask is None,
            dropout_p=dropout,
            enable_gqa=self.kv_heads != self.heads and not repeats_keys,
        )
        return out_BHTK.transpose(1, 2)
