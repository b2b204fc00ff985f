"""The gradient noise scale against gradients of single rows, which say it exactly."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_steps import BATCH_SIZE, a_step, train

from core.distributed.workers import Workers
from core.step.noise_scale import NoiseScale, steps_between_measurements, unbiased_estimates
from core.step.objectives import add_gradients
from core.step.optimizer_step import OptimizerStep

torch.set_num_threads(1)


def gradient_of(step: OptimizerStep, position: int, rows: int) -> torch.Tensor:
    shard = step.source.shard(position=position, batch_size=rows, rank=0, num_workers=1)
    batch = step.source.batch(shard, 0, rows)
    add_gradients(step.model, batch, step.precision)
    flat = torch.cat([p.grad.flatten() for p in step.model.parameters() if p.grad is not None]) / len(batch.labels_P)
    step.optimizer.zero_grad(set_to_none=True)
    return flat


@pytest.mark.slow
def test_estimate_agrees_with_the_covariance_of_single_rows_gradients() -> None:
    step = a_step(Workers(), micro_batch_size=4, padded=False, family="decoder")
    train(step, num_steps=5)
    num_rows = step.source.num_rows
    rows = torch.stack([gradient_of(step, position, 1) for position in range(num_rows)])
    mean = rows.mean(0)
    trace = ((rows - mean) ** 2).sum().item() / (num_rows - 1)
    squared = mean.square().sum().item() - trace / num_rows
    # 12 passes over the 200 rows in batches of 16 with a micro-batch of 4, weights kept as they are.
    sums = [0.0, 0.0]
    num_batches = 12 * num_rows // BATCH_SIZE
    for number in range(num_batches):
        small, large = (gradient_of(step, number * BATCH_SIZE, size).square().sum().item() for size in (4, BATCH_SIZE))
        found = unbiased_estimates(
            small_squared_norm=small, small_rows=4, large_squared_norm=large, large_rows=BATCH_SIZE
        )
        sums = [total + value / num_batches for total, value in zip(sums, found, strict=True)]
    # 150 batches: the standard error of both is a few per cent.
    assert sums[0] == pytest.approx(squared, rel=0.1)
    assert sums[1] == pytest.approx(trace, rel=0.1)


def test_step_measures_the_norms_of_its_first_micro_batch_and_of_the_whole() -> None:
    step = a_step(Workers(), micro_batch_size=4, padded=False)
    reference = a_step(Workers(), micro_batch_size=4, padded=False)
    result = train(step, num_steps=1)[0]
    expected = (
        gradient_of(reference, 0, 4).square().sum().item(),
        4.0,
        gradient_of(reference, 0, BATCH_SIZE).square().sum().item(),
        float(BATCH_SIZE),
    )
    assert result.noise_pair == pytest.approx(expected, rel=1e-9)


def test_batch_of_one_micro_batch_is_measured_by_half_of_it_and_learns_the_same() -> None:
    step = a_step(Workers(), micro_batch_size=16, padded=False)
    unmeasured = a_step(Workers(), micro_batch_size=16, padded=False)
    reference = a_step(Workers(), micro_batch_size=16, padded=False)
    result = step.take(step=0, position=0, learning_rate=lambda _: 1e-3)
    assert result.noise_pair is not None  # type: ignore[union-attr]
    assert result.noise_pair[:2] == pytest.approx((gradient_of(reference, 0, 8).square().sum().item(), 8.0), rel=1e-9)  # type: ignore[union-attr]
    # Step 1 measures nothing; on the same rows it does the same.
    unmeasured.take(step=1, position=0, learning_rate=lambda _: 1e-3)
    pairs = zip(step.model.parameters(), unmeasured.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@given(st.floats(0.01, 100), st.floats(0.01, 100), st.integers(1, 50), st.integers(51, 1000))
def test_exact_norms_give_exact_estimates(squared: float, trace: float, small: int, large: int) -> None:
    found = unbiased_estimates(
        small_squared_norm=squared + trace / small,
        small_rows=small,
        large_squared_norm=squared + trace / large,
        large_rows=large,
    )
    assert found == pytest.approx((squared, trace), rel=1e-6, abs=1e-9)


def test_averages_are_separate_and_their_ratio_is_reported() -> None:
    noise = NoiseScale()
    assert noise.metrics() == {}
    for squared, trace in ((1.0, 30.0), (3.0, 10.0)) * 100:
        noise = noise.with_measurement(
            small_squared_norm=squared + trace, small_rows=1, large_squared_norm=squared + trace / 2, large_rows=2
        )
    metrics = noise.metrics()
    assert metrics["noise/squared_gradient_norm"] == pytest.approx(2.0, rel=0.06)
    # The mean of the ratios would be 16.7.
    assert metrics["noise/scale_rows"] == pytest.approx(10.0, rel=0.1)


def test_scale_is_not_reported_while_noise_hides_the_gradient() -> None:
    noise = NoiseScale().with_measurement(small_squared_norm=10.0, small_rows=1, large_squared_norm=1.0, large_rows=2)
    assert "noise/scale_rows" not in noise.metrics()


@given(st.floats(1, 1e7))
def test_measurements_stand_so_far_apart_that_they_cost_less_than_a_hundredth(tokens_per_step: float) -> None:
    # A norm is some four bytes a parameter, a token's arithmetic six operations a parameter: at ten billion bytes and
    # a trillion operations a second, a norm is worth 67 tokens.
    assert (
        0.01 * tokens_per_step * steps_between_measurements(tokens_per_step=tokens_per_step, needs_extra_pass=False)
        > 67
    )
    # An extra pass takes half of one step.
    assert 0.01 * steps_between_measurements(tokens_per_step=tokens_per_step, needs_extra_pass=True) > 0.5
