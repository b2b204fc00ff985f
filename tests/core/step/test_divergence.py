"""When a run is given up, and when it is not."""

import math

import pytest

from core.step.divergence import DivergenceWatch
from core.step.optimizer_step import StepResult


def step_with(*, loss: float = 4.0, norm: float = 1.0) -> StepResult:
    return StepResult(
        loss=loss,
        auxiliary_loss=None,
        gradient_norm=norm,
        learning_rate=0.125,
        num_predicted=10,
        num_tokens=100,
        is_applied=True,
        noise_pair=None,
    )


def watch_after(num_steps: int) -> DivergenceWatch:
    watch = DivergenceWatch(vocabulary_size=1000)
    for step in range(num_steps):
        assert watch.verdict(step_with(loss=7.0 - step / num_steps), step=step) is None
    return watch


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (step_with(loss=math.nan), "the loss is not finite; loss nan"),
        (step_with(norm=math.inf), "the gradient is not finite; loss 4 nats per token, gradient norm inf"),
        (step_with(loss=14.1), "the loss is over"),
        (step_with(norm=1001.0), "the gradient norm is over"),
    ],
)
def test_diverged_step_is_named_with_its_numbers(result: StepResult, words: str) -> None:
    verdict = watch_after(20).verdict(result, step=21)
    assert verdict is not None
    assert verdict.startswith("diverged at step 21: ")
    assert words in verdict
    assert "learning rate 0.125" in verdict


@pytest.mark.parametrize("result", [step_with(loss=9.0), step_with(norm=300.0)])
def test_bad_step_that_runs_get_over_is_no_divergence(result: StepResult) -> None:
    assert watch_after(20).verdict(result, step=21) is None


def test_large_first_loss_is_no_explosion() -> None:
    assert DivergenceWatch(vocabulary_size=1000).verdict(step_with(loss=40.0), step=1) is None
