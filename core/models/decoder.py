"""Llama decoder for causal LM: pre-RMSNorm, rotary positions, grouped-query attention, no biases.

Shape suffixes: B rows, T tokens a row, D width, P selected positions, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from core.layers.feed_forward import FeedForwardResult, TransformerLayer, build_feed_forwards
from core.layers.rms_norm import RMSNorm
from core.layers.transformer_parts import (
    Attention,
    Embedding,
    KeyValueCache,
    Linear,
    RowLayout,
    compute_dtype,
    document_mask,
    positions_in_documents,
    rotary_tables,
)
from core.models.language_model import LanguageModel
from core.settings.model_config import ModelConfig


class LlamaLayer(TransformerLayer):
    """Pre-norm layer: attention and feed-forward, each applied to the normed residual stream and added to it."""

    def __init__(self, config: ModelConfig, feed_forward: nn.Module | None) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_epsilon)
        self.attention = Attention(
            width=config.width,
            heads=config.heads,
            kv_heads=config.kv_heads or config.heads,
            bias=False,
            dropout=config.dropout,
        )
        self.feed_forward = feed_forward
        if self.feed_forward is not None:
            self.feed_forward_norm = RMSNorm(config.width, config.norm_epsilon)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, layout: RowLayout, cache: KeyValueCache | None = None) -> FeedForwardResult:
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), layout, cache))
        if self.feed_forward is None:
            return x_BTD, None
        feed_forward, norm = self.feed_forward, self.feed_forward_norm
        added_BTD, balance_loss = self.through_feed_forward(lambda stream_BTD: feed_forward(norm(stream_BTD)), x_BTD)
        return x_BTD + self.dropout(added_BTD), balance_loss


class LlamaDecoder(LanguageModel):
    """Llama for causal LM (arXiv:2302.13971), numerically equal to Hugging Face's `LlamaForCausalLM`."""

    is_causal = True

    def __init__(self, config: ModelConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.head_dim = config.width // config.heads
        self.rotary_base = config.rotary_base
        self.num_positions = config.num_positions
        self.tokens = Embedding(vocabulary_size, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(LlamaLayer(config, part) for part in build_feed_forwards(config))
        self.final_norm = RMSNorm(config.width, config.norm_epsilon)
        self.head_bias = None
        self.head_weight = None if config.tied_embeddings else Linear(config.width, vocabulary_size, bias=False).weight

    def hidden_states(self, inputs_BT: Tensor, document_ids_BT: Tensor | None = None) -> Tensor:
        x_BTD = self.dropout(self.tokens(inputs_BT))
        dtype = compute_dtype(x_BTD)
        mask = None
        positions = torch.arange(inputs_BT.shape[1], device=inputs_BT.device)
        if document_ids_BT is not None:
            mask = document_mask(document_ids_BT, is_causal=True, dtype=dtype)
            positions = positions_in_documents(document_ids_BT)
        layout = RowLayout(mask=mask, is_causal=True, rotary=self._rotary(positions, dtype))
        hidden_BTD: Tensor = self.final_norm(self.through_layers(self.layers, x_BTD, layout))
        return hidden_BTD

    def hidden_states_after(self, inputs_BT: Tensor, caches: Sequence[KeyValueCache]) -> Tensor:
        """(B, T, D) hidden states of tokens that follow those in `caches` (one per layer); extends the caches.

        Either the caches are empty or T is 1: a single later token sees everything before it and needs no mask.
        """
        num_before = caches[0].num_tokens
        assert num_before == 0 or inputs_BT.shape[1] == 1, "a cached continuation takes one token at a time"
        x_BTD = self.tokens(inputs_BT)
        positions = torch.arange(num_before, num_before + inputs_BT.shape[1], device=inputs_BT.device)
        layout = RowLayout(is_causal=num_before == 0, rotary=self._rotary(positions, compute_dtype(x_BTD)))
        for layer, cache in zip(self.layers, caches, strict=True):
            x_BTD, _ = layer(x_BTD, layout, cache)
        hidden_BTD: Tensor = self.final_norm(x_BTD)
        return hidden_BTD

    def head_features(self, hidden_PD: Tensor) -> Tensor:
        return hidden_PD

    def _rotary(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return rotary_tables(positions, head_dim=self.head_dim, base=self.rotary_base, dtype=dtype)
