"""A frozen linear layer with a trained low-rank term: x W^T + b + scale x (x A^T) B^T.

It replaces the solutions of torch and PEFT. torch's parametrization multiplies A and B, so the whole gradient of W and
its inputs exist in memory. PEFT adapts whole matrices, so it cannot adapt queries, keys and values of one joint matrix
separately. `tests/benchmarks/lora_memory.py` measures all three.

Shape suffixes: N tokens, I inputs, O outputs, R rank x parts.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from core.layers.transformer_parts import Linear, compute_dtype


class Part(NamedTuple):
    """Rows of a joint matrix that form a separate one, for example the queries in a joint qkv matrix."""

    name: str
    """Name in transformers."""
    first_row: int
    last_row: int
    """Exclusive end of the rows."""


class LowRankLinear(nn.Module):
    """Replaces a linear layer and freezes its weights. B is zero at first, so the output is initially unchanged.

    Args:
        linear: The replaced layer; do not use it any more.
        parts: Adapted rows, each with its own matrices.
        rank: Rows of A per part.
        scale: Factor on the low-rank term.
    """

    def __init__(self, linear: Linear, parts: Sequence[Part], *, rank: int, scale: float) -> None:
        super().__init__()
        self.parts, self.rank, self.scale = tuple(parts), rank, scale
        self.weight, self.bias = linear.weight.requires_grad_(False), linear.bias
        if self.bias is not None:
            self.bias.requires_grad_(False)
        num_inputs = linear.in_features
        # Initialized as in PEFT. One matrix for all parts, so the input is read once.
        self.lora_A = nn.Parameter(torch.empty(rank * len(self.parts), num_inputs).uniform_(-1, 1) * num_inputs**-0.5)
        num_rows = sum(part.last_row - part.first_row for part in self.parts)
        self.lora_B = nn.Parameter(torch.zeros(num_rows, rank))

    def forward(self, x: Tensor) -> Tensor:
        rows = [(part.first_row, part.last_row) for part in self.parts]
        out: Tensor = _LowRank.apply(  # type: ignore[no-untyped-call]
            x, self.weight, self.bias, self.lora_A, self.lora_B, rows, self.scale, compute_dtype(x)
        )
        return out

    def thin(self) -> tuple[Tensor, Tensor]:
        """The two trained matrices (A, B), over all parts."""
        return self.lora_A, self.lora_B

    def matrices(self) -> dict[Part, tuple[Tensor, Tensor]]:
        """(A (rank, inputs), B (rows, rank)) of each part, detached."""
        sizes = [part.last_row - part.first_row for part in self.parts]
        downs, ups = torch.split(self.lora_A.detach(), self.rank), torch.split(self.lora_B.detach(), sizes)
        return {part: (down, up) for part, down, up in zip(self.parts, downs, ups, strict=True)}

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """The equivalent single matrix, in fp32."""
        merged = self.weight.float().clone()
        for part, (down, up) in self.matrices().items():
            merged[part.first_row : part.last_row].addmm_(up.float(), down.float(), alpha=self.scale)
        return merged


class _LowRank(torch.autograd.Function):
    """The forward and backward pass; keeps the input, in the format of the products, and R numbers per token."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        down_RI: Tensor,
        up: Tensor,
        rows: list[tuple[int, int]],
        scale: float,
        dtype: torch.dtype,
    ) -> Tensor:
        cast_x, cast_RI, cast_up = x.to(dtype), down_RI.to(dtype), up.to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            out = F.linear(cast_x, weight_OI.to(dtype), None if bias_O is None else bias_O.to(dtype))
            low = F.linear(cast_x, cast_RI).mul_(scale)
            out_NO, low_NR = out.view(-1, out.shape[-1]), low.view(-1, low.shape[-1])
            for (first, last), low_Nr, up_Or in _parts(rows, low_NR, cast_up):
                torch.addmm(out_NO[:, first:last], low_Nr, up_Or.t(), out=out_NO[:, first:last])
        ctx.save_for_backward(cast_x, weight_OI, low_NR, cast_RI, cast_up)
        ctx.rows, ctx.scale, ctx.formats = rows, scale, (x.dtype, down_RI.dtype)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_OI, low_NR, down_RI, up = ctx.saved_tensors
        x_format, weight_format = ctx.formats
        with torch.autocast(gradient.device.type, enabled=False):
            gradient_NO, x_NI = gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1, x.shape[-1])
            d_low_NR, d_up = torch.empty_like(low_NR), torch.empty_like(up)
            d_low_parts = _parts(ctx.rows, d_low_NR, d_up)
            for ((first, last), low_Nr, up_Or), (_, d_low_Nr, d_up_Or) in zip(
                _parts(ctx.rows, low_NR, up), d_low_parts, strict=True
            ):
                gradient_No = gradient_NO[:, first:last]
                torch.mm(gradient_No.t(), low_Nr, out=d_up_Or)
                torch.mm(gradient_No, up_Or, out=d_low_Nr)
            d_low_NR.mul_(ctx.scale)
            d_down_RI = (d_low_NR.t() @ x_NI).to(weight_format)
            d_x = None
            if ctx.needs_input_grad[0]:
                d_x_NI = gradient_NO @ weight_OI.to(gradient.dtype)
                d_x = torch.addmm(d_x_NI, d_low_NR, down_RI, out=d_x_NI).view_as(x).to(x_format)
        return d_x, None, None, d_down_RI, d_up.to(weight_format), None, None, None


def _parts(rows: list[tuple[int, int]], low_NR: Tensor, up: Tensor) -> list[tuple[tuple[int, int], Tensor, Tensor]]:
    """(rows, slice of low_NR, slice of B) of each part; views."""
    lows = low_NR.chunk(len(rows), dim=1)
    ups = torch.split(up, [last - first for first, last in rows])
    return list(zip(rows, lows, ups, strict=True))
