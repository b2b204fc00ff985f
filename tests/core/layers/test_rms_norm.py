"""The norm in blocks against torch's chain of operators."""

import pytest
import torch
import torch.nn.functional as F

from core.layers import rms_norm
from core.layers.cache_blocks import as_on_a_gpu
from core.layers.rms_norm import RMSNorm


@pytest.mark.parametrize("elements_at_once", [1, 100, 2**18])
def test_norm_and_its_gradients_equal_torchs_in_fp64(elements_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rms_norm, "_ELEMENTS_AT_ONCE", elements_at_once)
    torch.manual_seed(0)
    norm = RMSNorm(24, epsilon=1e-3).double()
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(3, 5, 24, dtype=torch.float64, requires_grad=True)
    # A transposed gradient, as attention sends it: not contiguous.
    direction = torch.randn(5, 3, 24, dtype=torch.float64).transpose(0, 1)
    ours, theirs = norm(x), F.rms_norm(x, (24,), norm.weight, 1e-3)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)
    found = torch.autograd.grad(ours, (x, norm.weight), direction)
    expected = torch.autograd.grad(theirs, (x, norm.weight), direction)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_norm_of_bf16_is_computed_in_fp32_and_rounded_once() -> None:
    torch.manual_seed(0)
    norm = RMSNorm(64, epsilon=1e-5)
    x = torch.randn(7, 64).bfloat16()
    truth = F.rms_norm(x.double(), (64,), norm.weight.double(), 1e-5)
    assert norm(x).dtype == torch.bfloat16
    assert ((norm(x).double() - truth).abs() <= 2**-8 * truth.abs()).all()


def test_gpus_keep_torchs_own_kernel() -> None:
    norm, x = RMSNorm(8, epsilon=1e-5), torch.randn(4, 8, requires_grad=True)
    assert "BlockedRMSNorm" in norm(x).grad_fn.name()
    with as_on_a_gpu():
        assert "BlockedRMSNorm" not in norm(x).grad_fn.name()


def test_norm_makes_the_mean_square_one_and_scales_by_its_weight() -> None:
    norm = RMSNorm(64, epsilon=0.0)
    with torch.no_grad():
        norm.weight.fill_(3.0)
    x = torch.randn(5, 64) * 7
    assert norm(x).square().mean(-1).sqrt().tolist() == pytest.approx([3.0] * 5, rel=1e-5)
