"""The gated activation against autograd's own derivative, in fp64, where only a mistake can make a difference."""

from typing import Literal

import pytest
import torch
import torch.nn.functional as F

from core.layers.gated_activation import gated


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_gated_activation_and_its_gradient_equal_those_of_autograd(activation: Literal["silu", "gelu"]) -> None:
    torch.manual_seed(0)
    joint = torch.randn(3, 5, 16, dtype=torch.float64, requires_grad=True)
    gate, up = joint.chunk(2, dim=-1)
    expected = (F.silu(gate) if activation == "silu" else F.gelu(gate)) * up
    out = gated(joint, activation)
    direction = torch.randn_like(out)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-14)
    ours, theirs = (torch.autograd.grad(result, joint, direction)[0] for result in (out, expected))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)
