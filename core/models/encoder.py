"""Encoders for masked LM: RoBERTa (post-norm, learned positions) and ModernBERT (pre-norm, rotary positions).

Shape suffixes: B rows, T tokens a row, D width, P selected positions, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.layers.feed_forward import FeedForwardResult, TransformerLayer, build_feed_forwards
from core.layers.transformer_parts import (
    Attention,
    Embedding,
    Linear,
    RowLayout,
    compute_dtype,
    document_mask,
    hidden_unless,
    positions_in_documents,
    rotary_tables,
)
from core.models.language_model import LanguageModel
from core.settings.model_config import ModelConfig


class RobertaLayer(TransformerLayer):
    """Post-norm layer: attention and feed-forward, each added to its input and then normed."""

    def __init__(self, config: ModelConfig, feed_forward: nn.Module | None) -> None:
        super().__init__()
        self.attention = Attention(
            width=config.width, heads=config.heads, kv_heads=config.heads, bias=True, dropout=config.dropout
        )
        self.attention_norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.feed_forward = feed_forward
        if self.feed_forward is not None:
            self.feed_forward_norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, layout: RowLayout) -> FeedForwardResult:
        x_BTD = self.attention_norm(x_BTD + self.dropout(self.attention(x_BTD, layout)))
        if self.feed_forward is None:
            return x_BTD, None
        added_BTD, balance_loss = self.through_feed_forward(self.feed_forward, x_BTD)
        return self.feed_forward_norm(x_BTD + self.dropout(added_BTD)), balance_loss


class RobertaEncoder(LanguageModel):
    """RoBERTa for masked LM (arXiv:1907.11692), numerically equal to Hugging Face's `RobertaForMaskedLM`."""

    def __init__(self, config: ModelConfig, vocabulary_size: int, *, pad_id: int) -> None:
        super().__init__()
        self.pad_id = pad_id
        # fairseq counts positions from pad_id + 1, because its position table reserves the padding index too.
        self.first_position = pad_id + 1
        self.num_positions = config.num_positions
        self.tokens = Embedding(vocabulary_size, config.width, padding_idx=pad_id)
        self.positions = Embedding(config.num_positions + self.first_position, config.width, padding_idx=pad_id)
        self.token_type = Embedding(1, config.width)
        self.embedding_norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(RobertaLayer(config, part) for part in build_feed_forwards(config))
        self.head_dense = Linear(config.width, config.width)
        self.head_norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.head_bias = nn.Parameter(torch.zeros(vocabulary_size))
        self.head_weight = None if config.tied_embeddings else Linear(config.width, vocabulary_size, bias=False).weight

    def hidden_states(self, inputs_BT: Tensor, document_ids_BT: Tensor | None = None) -> Tensor:
        num_tokens = inputs_BT.shape[1]
        if num_tokens > self.num_positions:
            raise ValueError(
                f"a row of {num_tokens} tokens is longer than the {self.num_positions} learned positions of this "
                "model; raise model.max_sequence_length or shorten the rows"
            )
        if document_ids_BT is None:
            # All rows have the same positions, so a slice of the table replaces a look-up.
            where_TD = self.positions.weight[self.first_position : self.first_position + num_tokens]
        else:
            where_TD = self.positions(positions_in_documents(document_ids_BT) + self.first_position)
        x_BTD = self.tokens(inputs_BT) + (where_TD + self.token_type.weight[0])
        x_BTD = self.dropout(self.embedding_norm(x_BTD))
        mask = encoder_mask(inputs_BT, document_ids_BT, pad_id=self.pad_id, dtype=compute_dtype(x_BTD))
        return self.through_layers(self.layers, x_BTD, RowLayout(mask=mask))

    def head_features(self, hidden_PD: Tensor) -> Tensor:
        features_PD: Tensor = self.head_norm(F.gelu(self.head_dense(hidden_PD)))
        return features_PD

    def num_parameters_with_pooler(self) -> int:
        """Parameter count as printed by libraries of 2020, which included the pooler of the sentence classifier, a
        width x width layer that masked LM never uses."""
        width = self.head_dense.in_features
        return self.num_parameters() + width * width + width


class ModernLayer(TransformerLayer):
    """Pre-norm layer without biases: attention and feed-forward on the normed residual stream, added to it."""

    def __init__(self, config: ModelConfig, feed_forward: nn.Module | None, *, is_first: bool) -> None:
        super().__init__()
        # The embeddings are already normed; ModernBERT omits the second norm.
        self.attention_norm = nn.Identity() if is_first else _norm_without_bias(config)
        self.attention = Attention(
            width=config.width, heads=config.heads, kv_heads=config.heads, bias=False, dropout=config.dropout
        )
        self.feed_forward = feed_forward
        if self.feed_forward is not None:
            self.feed_forward_norm = _norm_without_bias(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, layout: RowLayout) -> FeedForwardResult:
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), layout))
        if self.feed_forward is None:
            return x_BTD, None
        feed_forward, norm = self.feed_forward, self.feed_forward_norm
        added_BTD, balance_loss = self.through_feed_forward(lambda stream_BTD: feed_forward(norm(stream_BTD)), x_BTD)
        return x_BTD + self.dropout(added_BTD), balance_loss


class ModernEncoder(LanguageModel):
    """ModernBERT for masked LM (arXiv:2412.13663) with full attention in all layers."""

    def __init__(self, config: ModelConfig, vocabulary_size: int, *, pad_id: int) -> None:
        super().__init__()
        self.pad_id = pad_id
        self.head_dim = config.width // config.heads
        self.rotary_base = config.rotary_base
        self.tokens = Embedding(vocabulary_size, config.width, padding_idx=pad_id)
        self.embedding_norm = _norm_without_bias(config)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            ModernLayer(config, part, is_first=number == 0) for number, part in enumerate(build_feed_forwards(config))
        )
        self.final_norm = _norm_without_bias(config)
        self.head_dense = Linear(config.width, config.width, bias=False)
        self.head_norm = _norm_without_bias(config)
        self.head_bias = nn.Parameter(torch.zeros(vocabulary_size))
        self.head_weight = None if config.tied_embeddings else Linear(config.width, vocabulary_size, bias=False).weight

    def hidden_states(self, inputs_BT: Tensor, document_ids_BT: Tensor | None = None) -> Tensor:
        x_BTD = self.dropout(self.embedding_norm(self.tokens(inputs_BT)))
        if document_ids_BT is None:
            positions = torch.arange(inputs_BT.shape[1], device=inputs_BT.device)
        else:
            positions = positions_in_documents(document_ids_BT)
        dtype = compute_dtype(x_BTD)
        layout = RowLayout(
            mask=encoder_mask(inputs_BT, document_ids_BT, pad_id=self.pad_id, dtype=dtype),
            rotary=rotary_tables(positions, head_dim=self.head_dim, base=self.rotary_base, dtype=dtype),
        )
        hidden_BTD: Tensor = self.final_norm(self.through_layers(self.layers, x_BTD, layout))
        return hidden_BTD

    def head_features(self, hidden_PD: Tensor) -> Tensor:
        features_PD: Tensor = self.head_norm(F.gelu(self.head_dense(hidden_PD)))
        return features_PD


def encoder_mask(inputs_BT: Tensor, document_ids_BT: Tensor | None, *, pad_id: int, dtype: torch.dtype) -> Tensor:
    """(B, 1, 1 or T, T) additive mask that hides padding, and with document ids also all other documents.

    The mask exists even without padding, because checking for padding would synchronize with the device.
    """
    is_padding_BT = inputs_BT == pad_id
    if document_ids_BT is None:
        return hidden_unless(~is_padding_BT[:, None, None, :], dtype)
    return document_mask(document_ids_BT.masked_fill(is_padding_BT, -1), is_causal=False, dtype=dtype)


def _norm_without_bias(config: ModelConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.width, eps=config.norm_epsilon, bias=False)
