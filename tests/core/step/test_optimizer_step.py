"""What a step learns may not depend on how it was cut into micro-batches, on how many workers, or on memory."""

import pickle
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from small_corpus import VOCABULARY
from small_steps import BATCH_SIZE, a_step, to_half, train
from two_workers import on_workers

from core.distributed.workers import Workers
from core.memory.memory_limit import memory_limit
from core.model_files.checkpoint import model_tensors
from core.settings.precision import choose_precision
from core.step import optimizer_step
from core.step.optimizer_step import LossScale, OptimizerStep, StepOutOfMemory, StepResult, UpdateOutOfMemoryError

torch.set_num_threads(1)


def weights_after_training(workers: Workers, micro_batch_size: int, changes: dict[str, Any]) -> dict[str, Any]:
    overlaps = changes.pop("overlaps", False)
    step = a_step(workers, micro_batch_size=micro_batch_size, **changes)
    step.overlaps_exchange = overlaps
    results = train(step)
    # numpy, for tensors would cross processes by shared memory
    weights: dict[str, Any] = {name: tensor.numpy().copy() for name, tensor in model_tensors(step.model).items()}
    return weights | {"loss": results[-1].loss, "norm": results[-1].gradient_norm}


def largest_difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    assert one.keys() == other.keys()
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


@lru_cache
def weights_in_one_pass(family: str) -> dict[str, Any]:
    return weights_after_training(Workers(), 16, {"family": family})


@pytest.mark.parametrize(
    ("family", "micro_batch_size"), [("encoder", 1), ("encoder", 3), ("encoder", 4), ("decoder", 3)]
)
def test_weights_after_20_steps_do_not_depend_on_the_micro_batch(family: str, micro_batch_size: int) -> None:
    whole = weights_in_one_pass(family)
    cut = weights_after_training(Workers(), micro_batch_size, {"family": family})
    # Rows have different lengths, so a mean of the micro-batches' means would be off in the second digit.
    assert largest_difference(whole, cut) < 1e-11


def test_weights_after_20_steps_in_fp32_agree_to_rounding() -> None:
    whole = weights_after_training(Workers(), 16, {"dtype": torch.float32})
    cut = weights_after_training(Workers(), 3, {"dtype": torch.float32})
    # AdamW divides by the root of a second moment near zero, which enlarges rounding of 1e-7 in early steps.
    assert largest_difference(whole, cut) < 2e-5


def weights_for_each(workers: Workers, micro_batch_sizes: list[int], changes: dict[str, Any]) -> list[dict[str, Any]]:
    return [weights_after_training(workers, size, dict(changes)) for size in micro_batch_sizes]


@pytest.mark.parametrize(
    ("count", "overlaps", "micro_batch_sizes"),
    [
        # 3 divides neither the batch nor a worker's share; 16 is more than a worker has.
        (2, False, [1, 3, 4, 16]),
        # During the backward pass the same bits are summed, as the next test shows: one cut that leaves a rest will do.
        (2, True, [3]),
        pytest.param(2, True, [1, 4, 16], marks=pytest.mark.slow),
        pytest.param(3, False, [1, 3, 4, 16], marks=pytest.mark.slow),
        pytest.param(3, True, [1, 3, 4, 16], marks=pytest.mark.slow),
    ],
)
def test_weights_after_20_steps_do_not_depend_on_the_number_of_workers(
    count: int, overlaps: bool, micro_batch_sizes: list[int]
) -> None:
    alone = weights_in_one_pass("encoder")
    ranks = on_workers(count, weights_for_each, micro_batch_sizes, {"overlaps": overlaps})
    for on_first, *on_others in zip(*ranks, strict=True):
        assert largest_difference(alone, on_first) < 1e-11
        assert all(largest_difference(on_first, other) == 0.0 for other in on_others)


def test_exchange_during_backward_gives_the_same_bits_as_after_it() -> None:
    after, _ = on_workers(2, weights_after_training, 3, {"dtype": torch.float32, "overlaps": False})
    during, _ = on_workers(2, weights_after_training, 3, {"dtype": torch.float32, "overlaps": True})
    assert largest_difference(after, during) == 0.0


def test_mixture_of_experts_trains_on_two_workers_as_on_one() -> None:
    # Routing is balanced within a micro-batch, so the same micro-batches of 4 must be there on both sides.
    mixture = {"model": {"feed_forward": "moe", "width": 16}, "family": "decoder"}
    alone = weights_after_training(Workers(), 4, dict(mixture))
    together, _ = on_workers(2, weights_after_training, 4, mixture | {"overlaps": True})
    assert largest_difference(alone, together) < 1e-10


def test_muon_learns_the_same_with_any_micro_batch_and_number_of_workers() -> None:
    muon = {"optimizer": "muon"}
    alone = weights_after_training(Workers(), 16, dict(muon))
    cut = weights_after_training(Workers(), 3, dict(muon))
    first, second = on_workers(2, weights_after_training, 3, muon)
    # fp64 rounding, which an iteration enlarges up to 3.4 times where a singular value is small.
    assert largest_difference(alone, cut) < 1e-9
    assert largest_difference(alone, first) < 1e-9
    assert largest_difference(first, second) == 0.0


def shrinking_weights(workers: Workers, short_rank: int, overlaps: bool) -> tuple[dict[str, Any], int]:
    """Train 20 steps; in the 6th, `short_rank` alone has too little memory for micro-batches of 8, but not of 4."""
    step = a_step(workers, micro_batch_size=8, choose_smaller=to_half, padded=False)
    train(step, num_steps=5)
    step.overlaps_exchange = overlaps
    train(step, num_steps=5, from_step=5)
    with memory_limit(None, workers.device) as meter:
        meter.track(step.model, step.optimizer)
        a_dry_run(step, rows=4)
        peak_at_4 = meter.peak_bytes
    budget = peak_at_4 + 60_000 if workers.rank == short_rank else None
    with memory_limit(budget, workers.device) as meter:
        meter.track(step.model, step.optimizer)
        train(step, num_steps=1, from_step=10)
    train(step, num_steps=9, from_step=11)
    weights = {name: tensor.numpy().copy() for name, tensor in model_tensors(step.model).items()}
    return weights, step.micro_batch_size


def a_dry_run(step: OptimizerStep, *, rows: int) -> None:
    """Forward and backward of some micro-batches, and no update."""
    was = step.micro_batch_size
    step.micro_batch_size = rows
    overlaps, step.overlaps_exchange = step.overlaps_exchange, False
    shard = step.source.shard(position=0, batch_size=16, rank=step.workers.rank, num_workers=step.workers.count)
    step._local_work(shard, 1)
    step._forget_gradients()
    step.micro_batch_size = was
    step.overlaps_exchange = overlaps


@pytest.mark.parametrize("overlaps", [False, True])
def test_one_rank_out_of_memory_shrinks_both_and_leaves_no_trace(overlaps: bool) -> None:
    alone = weights_after_training(Workers(), 16, {"padded": False})
    (first, first_size), (second, second_size) = on_workers(2, shrinking_weights, 1, overlaps)
    assert (first_size, second_size) == (4, 4)
    del alone["loss"], alone["norm"]
    assert largest_difference(alone, first) < 1e-11
    assert largest_difference(first, second) == 0.0


def test_out_of_memory_leaves_weights_and_optimizer_untouched() -> None:
    step = a_step(Workers(), micro_batch_size=16)
    train(step, num_steps=3)
    before = {name: tensor.clone() for name, tensor in model_tensors(step.model).items()}
    moments = [state["exp_avg"].clone() for state in step.optimizer.state.values()]
    with memory_limit(200_000, torch.device("cpu")):
        outcome = step.take(step=3, position=48, learning_rate=lambda _: 3e-3)
    assert isinstance(outcome, StepOutOfMemory)
    assert outcome.micro_batch_size == 16
    assert outcome.facts.bytes_asked is not None
    assert all(torch.equal(before[name], tensor) for name, tensor in model_tensors(step.model).items())
    assert all(
        torch.equal(moment, state["exp_avg"])
        for moment, state in zip(moments, step.optimizer.state.values(), strict=True)
    )
    assert all(parameter.grad is None for parameter in step.model.parameters())


def test_out_of_memory_in_the_update_is_never_tried_again_and_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    step = a_step(Workers(), micro_batch_size=8, choose_smaller=to_half)
    updates: list[int] = []

    def update(*_: Any, **__: Any) -> None:
        updates.append(1)
        torch.empty(2**50)  # more than any machine has

    monkeypatch.setattr(optimizer_step, "update", update)
    with pytest.raises(UpdateOutOfMemoryError, match="out of memory in optimizer on rank 0") as caught:
        train(step, num_steps=1)
    assert len(updates) == 1
    assert step.micro_batch_size == 8
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.facts, str(again)) == (caught.value.facts, str(caught.value))


def test_an_update_takes_no_memory_beyond_what_is_there() -> None:
    step = a_step(Workers(), micro_batch_size=8, dtype=torch.float32)
    train(step, num_steps=1)
    shard = step.source.shard(position=0, batch_size=16, rank=0, num_workers=1)
    sums = step._local_work(shard, 1)
    with memory_limit(None, torch.device("cpu")) as meter:
        meter.track(step.model, step.optimizer)
        before = meter.current_bytes
        step._finish(sums, lambda _: 1e-3)
        # A norm for each tensor, and a few sums.
        assert meter.peak_bytes - before < 4096


def failing_rank(workers: Workers) -> str:
    step = a_step(workers, micro_batch_size=8)
    if workers.rank == 1:
        # A corrupt row, as a damaged disk would give it: an id outside the vocabulary.
        step.source.blocks.tokens[:] = VOCABULARY.size + 5  # type: ignore[attr-defined]
    try:
        train(step, num_steps=1)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def test_failure_of_one_rank_ends_the_others_at_once_and_names_it() -> None:
    first, second = on_workers(2, failing_rank)
    assert first == "OtherRankFailedError: rank 1 of 2 failed; see the error of that rank for the cause"
    assert second.startswith("IndexError")


def test_dropout_of_a_step_done_again_is_the_same() -> None:
    results = []
    for _ in range(2):
        step = a_step(Workers(), micro_batch_size=8, model={"dropout": 0.2})
        torch.rand(7)  # other use of the global random state in between
        results.append(train(step, num_steps=3)[-1].loss)
    assert results[0] == results[1]


def test_gradient_that_is_not_finite_is_never_applied() -> None:
    step = a_step(Workers(), micro_batch_size=16)
    train(step, num_steps=2)
    before = {name: tensor.clone() for name, tensor in model_tensors(step.model).items()}
    with torch.no_grad():
        step.model.head_bias.fill_(float("inf"))  # type: ignore[operator, union-attr]
    result = step.take(step=2, position=32, learning_rate=lambda _: 3e-3)
    assert isinstance(result, StepResult)
    assert not result.is_applied
    assert all(
        torch.equal(before[name], tensor) for name, tensor in model_tensors(step.model).items() if name != "head_bias"
    )


def test_reported_gradient_norm_is_that_of_the_mean_loss() -> None:
    step = a_step(Workers(), micro_batch_size=4)
    reference = a_step(Workers(), micro_batch_size=4)
    result = train(step, num_steps=1)[0]
    shard = reference.source.shard(position=0, batch_size=BATCH_SIZE, rank=0, num_workers=1)
    batch = reference.source.batch(shard, 0, BATCH_SIZE)
    logits = reference.model(batch.inputs_BT).flatten(0, 1)[batch.positions_P]
    loss = torch.nn.functional.cross_entropy(logits, batch.labels_P)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(reference.model.parameters(), 1e9)
    assert result.loss == pytest.approx(loss.item(), rel=1e-12)
    assert result.gradient_norm == pytest.approx(norm.item(), rel=1e-12)
    assert result.num_predicted == batch.labels_P.numel()


def test_bf16_step_is_near_the_fp32_step() -> None:
    precise = train(a_step(Workers(), micro_batch_size=8, dtype=torch.float32))[-1]
    precision = choose_precision("bf16", torch.device("cpu"))
    rough = train(a_step(Workers(), micro_batch_size=8, dtype=torch.float32, precision=precision))[-1]
    # bf16 keeps 8 bits of a product's operands: 0.4 % of each, averaged over many.
    assert rough.loss == pytest.approx(precise.loss, rel=5e-3)


def test_loss_scale_halves_when_too_large_and_doubles_after_long_success() -> None:
    scale = LossScale(1024.0)
    scale.adapt(was_finite=False)
    assert scale.value == 512.0
    for _ in range(1999):
        scale.adapt(was_finite=True)
    assert scale.value == 512.0
    scale.adapt(was_finite=True)
    assert scale.value == 1024.0


def test_loss_scale_changes_no_update() -> None:
    # fp16 is for GPUs; its scale is a factor on gradients that goes out again, and powers of two round nothing.
    plain, scaled = a_step(Workers(), micro_batch_size=4), a_step(Workers(), micro_batch_size=4)
    scaled.loss_scale = LossScale(2.0**10)
    assert train(plain) == train(scaled)
    pairs = zip(plain.model.parameters(), scaled.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
