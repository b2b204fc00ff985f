"""MiniMind's `model_no_feed`: Llama's attention with grouped queries and rotary positions, and no feed-forward."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NoFeed(nn.Module):
    """The fast path: `hidden_states` for all tokens, `logits` at the positions that are asked for."""

    def __init__(
        self, vocabulary_size: int, dim: int = 512, layers: int = 8, heads: int = 32, kv_heads: int = 8
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary_size, dim)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.layers = nn.ModuleList(Attention(dim, heads, kv_heads) for _ in range(layers))
        self.norm = nn.RMSNorm(dim, eps=1e-5)

    def hidden_states(self, input_ids: Tensor, document_ids: Tensor | None) -> Tensor:
        x = self.tokens(input_ids)
        for layer in self.layers:
            x = x + layer(x, document_ids)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.tokens.weight.T  # The head is the embedding of tokens.


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, dim // heads
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.qkv = nn.Linear(dim, (heads + 2 * kv_heads) * self.head_dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        for linear in (self.qkv, self.out):
            nn.init.normal_(linear.weight, std=0.02)

    def forward(self, x: Tensor, document_ids: Tensor | None) -> Tensor:
        rows, length, _ = x.shape
        parts = self.qkv(self.norm(x)).view(rows, length, -1, self.head_dim).transpose(1, 2)
        q, k, v = parts.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        mask = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        position = torch.arange(length, device=x.device).expand(rows, -1)
        if document_ids is not None:  # Documents of a row do not see each other, and each begins at position 0.
            same = document_ids[:, :, None] == document_ids[:, None, :]
            mask, position = (mask & same)[:, None], (mask & same).sum(-1) - 1
        q, k = rotated(q, position), rotated(k, position)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


def rotated(x: Tensor, position: Tensor) -> Tensor:
    """Each pair of a head turned by its position (RoFormer, arXiv:2104.09864)."""
    half = x.shape[-1] // 2
    angles = position[:, None, :, None] * 10_000 ** (-torch.arange(half, device=x.device) / half)
    left, right = x.chunk(2, dim=-1)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)
