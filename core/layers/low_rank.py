"""A frozen linear map with a trained product of two thin matrices beside it: x W^T + b + scale x (x A^T) B^T.

Plain modules, and not what torch or PEFT offer: torch's parametrization multiplies the thin matrices out, so the whole
gradient of W exists, and every input that it needs is kept; PEFT wraps matrices as a whole, so queries, keys and values
in one matrix could not be told apart. `tests/benchmarks/lora_memory.py` measures all three.

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
    """Rows of a matrix that are a matrix of their own, as the queries' in the joint one of queries, keys and values."""

    name: str
    """As transformers calls it."""
    first_row: int
    last_row: int
    """Behind its last one."""


class LowRankLinear(nn.Module):
    """Takes the place of a linear map, whose weights it freezes. As long as B is zero, as at first, it is that map.

    Args:
        linear: Is not to be used any more.
        parts: Rows that are adapted, each by matrices of its own.
        scale: Factor on what is learnt.
    """

    def __init__(self, linear: Linear, parts: Sequence[Part], *, rank: int, scale: float) -> None:
        super().__init__()
        self.parts, self.rank, self.scale = tuple(parts), rank, scale
        self.weight, self.bias = linear.weight.requires_grad_(False), linear.bias
        if self.bias is not None:
            self.bias.requires_grad_(False)
        num_inputs = linear.in_features
        # As PEFT draws them. One matrix over all parts: the input is walked through once.
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
        """The two trained matrices."""
        return self.lora_A, self.lora_B

    def matrices(self) -> dict[Part, tuple[Tensor, Tensor]]:
        """A (rank, inputs) and B (rows, rank) of each part."""
        sizes = [part.last_row - part.first_row for part in self.parts]
        downs, ups = torch.split(self.lora_A.detach(), self.rank), torch.split(self.lora_B.detach(), sizes)
        return {part: (down, up) for part, down, up in zip(self.parts, downs, ups, strict=True)}

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """The one matrix that does the same, in fp32."""
        merged = self.weight.float().clone()
        for part, (down, up) in self.matrices().items():
            merged[part.first_row : part.last_row].addmm_(up.float(), down.float(), alpha=self.scale)
        return merged


class _LowRank(torch.autograd.Function):
    """Keeps its input, in the format of the products, and R numbers a token."""

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
    """For each part its rows, and its share of the two thin tensors; views."""
    lows = low_NR.chunk(len(rows), dim=1)
    ups = torch.split(up, [last - first for first, last in rows])
    return list(zip(rows, lows, ups, strict=True))
