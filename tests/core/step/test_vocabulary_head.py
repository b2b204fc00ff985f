"""The head without a graph against autograd's own, in fp64, and what it holds in memory."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core.memory.memory_limit import memory_limit
from core.step import vocabulary_head
from core.step.vocabulary_head import add_head_gradients

torch.set_num_threads(1)
NUM_POSITIONS, WIDTH, VOCABULARY_SIZE = 23, 8, 101


def head(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, matrix, bias and labels; logits are some tens, so that likely and unlikely tokens occur."""
    torch.manual_seed(0)
    features = torch.randn(NUM_POSITIONS, WIDTH, dtype=dtype)
    matrix = torch.nn.Parameter(4 * torch.randn(VOCABULARY_SIZE, WIDTH, dtype=dtype))
    bias = torch.nn.Parameter(torch.randn(VOCABULARY_SIZE, dtype=dtype))
    return features, matrix, bias, torch.randint(0, VOCABULARY_SIZE, (NUM_POSITIONS,))


def run(
    features: Tensor,
    matrix: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    *,
    dtype: torch.dtype = torch.float64,
    scale: float = 1.0,
    positions_at_once: int = 1000,
) -> tuple[Tensor, Tensor]:
    return add_head_gradients(
        features,
        matrix,
        bias,
        labels,
        dtype=dtype,
        scale=scale,
        positions_at_once=positions_at_once,
        span=lambda _: nullcontext(),
    )


@pytest.mark.parametrize("positions_at_once", [1, 5, 1000])
@pytest.mark.parametrize("elements_in_block", [1, 300, 2**21])
@pytest.mark.parametrize("has_bias", [True, False])
def test_loss_and_gradients_are_those_of_autograd_whatever_the_blocks(
    has_bias: bool, elements_in_block: int, positions_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary_head, "_LOGITS_IN_CACHE", elements_in_block)
    monkeypatch.setattr(vocabulary_head, "_WEIGHTS_IN_CACHE", elements_in_block)
    features, matrix, bias, labels = head()
    used = [matrix, bias] if has_bias else [matrix]
    leaf = features.clone().requires_grad_()
    expected = F.cross_entropy(F.linear(leaf, matrix, bias if has_bias else None), labels, reduction="sum")
    expected.backward()
    expected_gradients = [p.grad.clone() for p in used if p.grad is not None]
    # On top of what is there: the gradients of autograd stay in place.
    loss, gradient = run(
        features, matrix, bias if has_bias else None, labels, scale=2.0, positions_at_once=positions_at_once
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(gradient, 2 * leaf.grad, rtol=0, atol=1e-12)
    for parameter, once in zip(used, expected_gradients, strict=True):
        torch.testing.assert_close(parameter.grad, 3 * once, rtol=0, atol=1e-12)


def test_loss_of_bf16_logits_is_exact() -> None:
    features, matrix, bias, labels = head(torch.float32)
    loss, _ = run(features, matrix, bias, labels, dtype=torch.bfloat16)
    logits = F.linear(features.bfloat16(), matrix.bfloat16(), bias.bfloat16())
    # Nothing but the logits is rounded to bf16; a loss from bf16 probabilities would be off by a thousandth.
    assert loss.item() == pytest.approx(F.cross_entropy(logits.double(), labels, reduction="sum").item(), rel=1e-6)


def test_loss_is_finite_where_the_probability_of_the_truth_is_zero_in_fp32() -> None:
    features, matrix = torch.tensor([[1.0]]), torch.nn.Parameter(torch.tensor([[0.0], [500.0]]))
    loss, _ = run(features, matrix, None, torch.tensor([0]), dtype=torch.float32)
    assert loss.item() == pytest.approx(500.0, rel=1e-6)


def test_logits_exist_once_and_the_gradient_of_the_matrix_never_beside_itself() -> None:
    num_positions, width, vocabulary_size = 2000, 64, 20_000
    features = torch.zeros(num_positions, width)
    matrix = torch.nn.Parameter(torch.zeros(vocabulary_size, width))
    labels = torch.zeros(num_positions, dtype=torch.int64)
    with memory_limit(None, torch.device("cpu")) as meter:
        run(features, matrix, None, labels, dtype=torch.bfloat16, positions_at_once=num_positions)
    logits_bytes = 2 * num_positions * vocabulary_size
    matrix_bytes = (2 + 4) * vocabulary_size * width  # cast, and the gradient
    features_bytes = (2 + 4 + 2) * num_positions * width  # cast, their gradient, and that in bf16 for a moment
    blocks_bytes = 4 * 4 * 2**20  # fp32 logits and probabilities, and what operators on them return
    assert meter.peak_bytes < logits_bytes + matrix_bytes + features_bytes + blocks_bytes
