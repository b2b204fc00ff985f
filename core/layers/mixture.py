"""Mixture of experts without token dropping: a router sends each token to its top K of E feed-forwards.

Shape suffixes: B rows, T tokens a row, N = B T tokens, D width, F width inside an expert, E experts, K experts a token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.layers.gated_activation import Activation, gated
from core.layers.transformer_parts import INITIAL_STD, Linear, compute_dtype
from core.settings.model_config import MixtureConfig

_ALIGNMENT = 8
"""Grouped products need rows whose size is a multiple of 16 bytes."""


class Mixture(nn.Module):
    """Routed and shared experts, all gated.

    The balance loss of Switch (arXiv:2101.03961) is computed per row and averaged over rows, as in DeepSeek and
    MiniMind: computed per micro-batch, the result of training would depend on the micro-batch size.
    """

    def __init__(self, width: int, inner_width: int, config: MixtureConfig, *, activation: Activation) -> None:
        super().__init__()
        self.experts_per_token = config.experts_per_token
        self.balance_weight = config.balance_weight
        self.activation = activation
        self.router = Linear(width, config.experts, bias=False)
        self.gate_and_up_EDF = nn.Parameter(
            torch.empty(config.experts, width, 2 * inner_width).normal_(std=INITIAL_STD)
        )
        self.down_EFD = nn.Parameter(torch.empty(config.experts, inner_width, width).normal_(std=INITIAL_STD))
        num_shared = config.shared_experts * inner_width
        # Several shared experts are one wider expert.
        self.shared_gate_and_up = Linear(width, 2 * num_shared, bias=False) if num_shared else None
        self.shared_down = Linear(num_shared, width, bias=False) if num_shared else None

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """(sum of the experts' outputs (B, T, D), weighted balance loss)."""
        # Route in fp32: in bf16, rounding would decide near ties.
        with torch.autocast(x_BTD.device.type, enabled=False):
            shares_BTE = F.linear(x_BTD.float(), self.router.weight.float()).softmax(dim=-1)
        weights_BTK, chosen_BTK = shares_BTE.topk(self.experts_per_token, dim=-1)
        weights_BTK = weights_BTK / weights_BTK.sum(dim=-1, keepdim=True)
        routed_ND = self._routed(x_BTD.flatten(0, 1), weights_BTK.flatten(0, 1), chosen_BTK.flatten(0, 1))
        added_BTD = routed_ND.view_as(x_BTD)
        if self.shared_gate_and_up is not None and self.shared_down is not None:
            added_BTD = added_BTD + self.shared_down(gated(self.shared_gate_and_up(x_BTD), self.activation))
        return added_BTD, self.balance_weight * balance_loss(shares_BTE, chosen_BTK)

    def _routed(self, x_ND: Tensor, weights_NK: Tensor, chosen_NK: Tensor) -> Tensor:
        num_experts = self.router.out_features
        dtype = compute_dtype(x_ND)
        expert_of_each = chosen_NK.flatten()
        # Sort tokens by expert, process them in groups, and restore the order.
        order = expert_of_each.argsort(stable=True)
        sorted_experts = expert_of_each[order]
        copies = x_ND.to(dtype).repeat_interleave(self.experts_per_token, dim=0).index_select(0, order)
        hidden = grouped_product(copies, self.gate_and_up_EDF.to(dtype), sorted_experts, num_experts)
        out = grouped_product(gated(hidden, self.activation), self.down_EFD.to(dtype), sorted_experts, num_experts)
        back_NKD = out.index_select(0, order.argsort()).view(*chosen_NK.shape, -1)
        return torch.einsum("nkd,nk->nd", back_NKD, weights_NK.to(dtype))


def balance_loss(shares_BTE: Tensor, chosen_BTK: Tensor) -> Tensor:
    """E x sum over experts of (share of choices x mean probability), averaged over rows.

    It is 1 for balanced experts and at most E, when one expert gets all tokens.

    Source: Switch Transformer, arXiv:2101.03961.
    """
    num_experts = shares_BTE.shape[-1]
    choices_BE = F.one_hot(chosen_BTK.flatten(1), num_experts).to(shares_BTE.dtype).mean(dim=1)
    return num_experts * (choices_BE * shares_BTE.mean(dim=1)).sum(dim=-1).mean()


def grouped_product(x: Tensor, weights_EIO: Tensor, sorted_experts: Tensor, num_experts: int) -> Tensor:
    """Each row of `x` times the matrix of its expert. No shape depends on values.

    Args:
        x: (rows, I), sorted by expert.
        sorted_experts: (rows,) expert of each row, ascending.
    """
    is_aligned = all(size % _ALIGNMENT == 0 for size in weights_EIO.shape[1:])
    if x.dtype == torch.bfloat16 and is_aligned:
        counts_E = torch.zeros(num_experts, dtype=torch.int32, device=x.device)
        counts_E = counts_E.index_add(0, sorted_experts, torch.ones_like(sorted_experts, dtype=torch.int32))
        return F.grouped_mm(x, weights_EIO, offs=counts_E.cumsum(0, dtype=torch.int32))
    # torch groups products in bf16 only. Otherwise every expert processes every row: exact, but E times slower.
    out = x.new_zeros(x.shape[0], weights_EIO.shape[-1])
    for number in range(num_experts):
        out = torch.where((sorted_experts == number)[:, None], x @ weights_EIO[number], out)
    return out
