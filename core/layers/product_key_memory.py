"""Product-key memory: a table of up to millions of vectors that replaces a feed-forward.

Shape suffixes: B rows, T tokens a row, N = B T tokens, D width, H heads, C width of half a key, S keys of one half,
K values a head reads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.layers.transformer_parts import Linear
from core.settings.model_config import MemoryLayerConfig


class Values(nn.Embedding):
    """The table of values, shared by all layers as in arXiv:2412.09764, because it is too large to exist twice."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.embedding_dim**-0.5)


class ProductKeyMemory(nn.Module):
    """Each head reads the values whose keys match its query best; a key is a pair of half-keys.

    The best K of S x S pairs are among the K best of each half, so a million entries cost 2 x 1,024 comparisons.
    Queries are normed separately; the paper norms them over the batch, which would make the result depend on the
    micro-batch size.

    Source: arXiv:1907.05242.
    """

    def __init__(self, width: int, config: MemoryLayerConfig, *, values: Values | None) -> None:
        """
        Args:
            values: The table of another layer. None: this layer owns a new table.
        """
        super().__init__()
        self.num_half_keys = config.half_keys
        self.heads, self.values_per_head = config.heads, config.entries_per_token
        half_width = -(-width // (2 * config.heads))
        self.query = Linear(width, config.heads * 2 * half_width, bias=False)
        # With this scale, the scores of a normed query have standard deviation 1.
        half_keys = torch.empty(config.heads, 2, self.num_half_keys, half_width).normal_(std=half_width**-0.5)
        self.half_keys_H2SC = nn.Parameter(half_keys)
        self.values = Values(config.entries, width) if values is None else None
        # A tuple hides the table from nn.Module, so that a state_dict contains it once.
        self._table = (self.values if values is None else values,)

    @property
    def table(self) -> Values:
        """The table of values, also if another layer owns it."""
        (table,) = self._table
        assert table is not None
        return table

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, None]:
        query_NH2C = self.query(x_BTD).view(-1, self.heads, 2, self.half_keys_H2SC.shape[-1])
        query_NH2C = F.rms_norm(query_NH2C, query_NH2C.shape[-1:])
        scores_NH2S = torch.einsum("nhpc,hpsc->nhps", query_NH2C, self.half_keys_H2SC.to(query_NH2C.dtype)).float()
        best_NH2K, which_NH2K = scores_NH2S.topk(self.values_per_head, dim=-1)
        pair_scores = (best_NH2K[:, :, 0, :, None] + best_NH2K[:, :, 1, None, :]).flatten(2)
        pairs = (which_NH2K[:, :, 0, :, None] * self.num_half_keys + which_NH2K[:, :, 1, None, :]).flatten(2)
        best_NHK, which_NHK = pair_scores.topk(self.values_per_head, dim=-1)
        entries_NHK = pairs.gather(-1, which_NHK)
        weights_NHK = best_NHK.softmax(dim=-1).to(self.table.weight.dtype)
        # Heads are summed, so all their values form one bag.
        read_ND = F.embedding_bag(
            entries_NHK.flatten(1), self.table.weight, mode="sum", per_sample_weights=weights_NHK.flatten(1)
        )
        return read_ND.view_as(x_BTD).to(x_BTD.dtype), None
