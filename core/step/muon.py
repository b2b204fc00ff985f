"""Muon on matrices and AdamW on the rest, as one optimizer whose updates allocate no memory.

The update of a matrix is its momentum with all singular values moved near one, by Newton-Schulz iterations. torch's
`torch.optim.Muon` has the same maths, and tests hold this file to it. It is not used, because it takes only whole 2-D
parameters and allocates in every update, which could run out of memory between two matrices. Here queries, keys and
values in one parameter, gate and up, and the experts of a mixture are matrices of their own, and all updates share one
workspace, which exists from the start.

Sources: https://kellerjordan.github.io/posts/muon; learning rates of AdamW for Muon: Moonlight, arXiv:2502.16982.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from core.models.layer_matrices import Joint

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic in each iteration; they move small singular values up fastest."""
_SMALLEST_NORM = 1e-7
_RMS_OF_ADAMW = 0.2
"""Root mean square of AdamW's updates at a learning rate of one, as Moonlight measured it."""


class MuonAndAdamW(torch.optim.Optimizer):
    """One optimizer with the groups and the state of both.

    Args:
        joints: The parameters that Muon changes, and how matrices lie in them.
        groups: Their groups, with `lr`, `weight_decay`, `momentum`, `nesterov` and `iterations`.
        adamw: Optimizer of all other parameters.
        dtype: Number format of the matrix products. None: that of the parameters.
    """

    def __init__(
        self,
        joints: Mapping[Tensor, Joint],
        groups: Sequence[dict[str, Any]],
        adamw: torch.optim.AdamW,
        *,
        dtype: torch.dtype | None,
    ) -> None:
        # Both hold the same dictionaries, so that a rate set in `param_groups` reaches AdamW.
        super().__init__([*groups, *adamw.param_groups], {})
        self._groups, self._joints, self._adamw = list(groups), joints, adamw
        self.state = adamw.state
        for parameter in joints:
            zeros = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            self.state[parameter] = {"momentum_buffer": zeros}
        matrices = [one for parameter, joint in joints.items() for one in joint.matrices(parameter.detach())]
        self._workspace = _Workspace(matrices, dtype or matrices[0].dtype)

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Change all parameters that have a gradient; the gradients of Muon's are overwritten."""
        assert closure is None, "a step here never computes the loss again"
        self._adamw.step()
        with torch.no_grad():
            for group in self._groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._change(parameter, parameter.grad, group)

    def _change(self, parameter: Tensor, gradient: Tensor, group: Mapping[str, Any]) -> None:
        momentum = self.state[parameter]["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        # In place of the gradient, which nobody reads after the update.
        update = gradient.lerp_(momentum, group["momentum"]) if group["nesterov"] else momentum
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        joint = self._joints[parameter]
        for weights, direction in zip(joint.matrices(parameter), joint.matrices(update), strict=True):
            rate = group["lr"] * _RMS_OF_ADAMW * math.sqrt(max(weights.shape))
            orthogonal = self._workspace.orthogonalized(direction, iterations=group["iterations"])
            weights.add_(orthogonal, alpha=-rate)


class _Workspace:
    """Memory for the Newton-Schulz iterations of the largest of some matrices."""

    def __init__(self, matrices: Sequence[Tensor], dtype: torch.dtype) -> None:
        device = matrices[0].device
        area = max(matrix.numel() for matrix in matrices)
        square = max(min(matrix.shape) for matrix in matrices) ** 2
        self._matrices = [torch.empty(area, dtype=dtype, device=device) for _ in range(2)]
        self._squares = [torch.empty(square, dtype=dtype, device=device) for _ in range(2)]
        self._norm = torch.empty((), dtype=dtype, device=device)

    def orthogonalized(self, matrix: Tensor, *, iterations: int) -> Tensor:
        """The matrix with singular values near one, valid until the next call."""
        is_tall = matrix.shape[0] > matrix.shape[1]
        flat = matrix.T if is_tall else matrix
        rows, columns = flat.shape
        x, next_x = (one[: rows * columns].view(rows, columns) for one in self._matrices)
        gram, polynomial = (one[: rows * rows].view(rows, rows) for one in self._squares)
        x.copy_(flat)
        # The iterations need singular values of at most one.
        torch.linalg.vector_norm(x, out=self._norm)
        x.div_(self._norm.clamp_(min=_SMALLEST_NORM))
        a, b, c = _COEFFICIENTS
        for _ in range(iterations):
            torch.mm(x, x.T, out=gram)
            torch.addmm(gram, gram, gram, beta=b, alpha=c, out=polynomial)
            torch.addmm(x, polynomial, x, beta=a, out=next_x)
            x, next_x = next_x, x
        return x.T if is_tall else x
