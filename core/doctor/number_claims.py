"""Claims about numbers and speed: losses agree with the CPU's, a step waits for the device once, tokens in a second."""

import time
from collections.abc import Iterator

import torch

from core.doctor.check import Check, verdict_of
from core.doctor.memory_claims import a_run
from core.doctor.random_steps import random_step, take
from core.settings.precision import choose_precision, computes_bf16
from core.settings.run_config import RunConfig
from core.step.optimizer_step import StepOutOfMemory
from core.step.step_profile import matmul_flops_per_s, model_flops_a_token
from core.torch_internals.blocking_calls import BlockingCalls

_NUM_STEPS = 20
_AGREE_TO = {"fp32": 2e-3, "bf16": 3e-2}
"""Relative difference of losses; fp32 products use TF32 on CUDA."""
_CALLS_A_STEP = 1
"""Loss, counts and gradient norm, read together."""
_TIMED_S = 3.0
_SIZES = {
    "cpu": {"small": {"layers": 2, "width": 128, "heads": 4, "sequence_length": 64}},
    "cuda": {
        "26 M": {"layers": 8, "width": 512, "heads": 8, "sequence_length": 512},
        "84 M": {"layers": 12, "width": 768, "heads": 12, "sequence_length": 512},
    },
}
_VOCABULARY = {"cpu": 2000, "cuda": 6400}


def losses_agree(device: torch.device) -> Iterator[Check]:
    """Losses of 20 steps in each number format of the device, against fp32 on the CPU."""
    wanted = _losses(torch.device("cpu"), "fp32")
    for name in ("fp32", "bf16"):
        subject = f"losses in {name}"
        if name == "fp32" and device.type == "cpu":
            yield Check(subject, "not applicable", "they are the ones that others are compared with")
        elif name == "bf16" and not computes_bf16(device):
            yield Check(subject, "not applicable", f"the {device.type} does not multiply bf16")
        else:
            found = _losses(device, name)
            error = max(abs(one / other - 1) for one, other in zip(found, wanted, strict=True))
            words = f"differ by at most {error:.2e} from fp32 on the CPU in {_NUM_STEPS} steps"
            yield Check(subject, verdict_of(error <= _AGREE_TO[name]), words, {f"loss_error_{name}_share": error})


def steps_wait_rarely(device: torch.device) -> Iterator[Check]:
    """Calls of one step that wait for the device."""
    run, vocabulary_size = a_run("decoder, Llama", device)
    step = random_step(run, vocabulary_size, micro_batch_size=8, device=device)
    take(step, num_steps=2)
    with BlockingCalls() as calls:
        take(step, num_steps=1)
    words = f"{calls.total} calls of a step wait for the device: {calls}"
    yield Check("waiting calls", verdict_of(calls.total <= _CALLS_A_STEP), words, {"calls_a_step": float(calls.total)})


def speeds_of(device: torch.device) -> Iterator[Check]:
    """Tokens in a second, and the share of the rate of matrix products."""
    for name, shape in _SIZES[device.type].items():
        run = RunConfig.model_validate(
            {"model": {"family": "decoder", **shape}, "objective": "causal_lm", "training": {"batch_size": 32}}
        )
        precision = choose_precision("auto", device)
        for compiles in (False, True) if device.type == "cuda" else (False,):
            step = random_step(run, _VOCABULARY[device.type], micro_batch_size=16, device=device)
            if compiles:
                step.compile_body()
            take(step, num_steps=3)
            began_at, tokens = time.perf_counter(), 0
            while time.perf_counter() - began_at < _TIMED_S:
                results = take(step, num_steps=1)
                assert not isinstance(results, StepOutOfMemory), results
                tokens += results[0].num_tokens
            rate = tokens / (time.perf_counter() - began_at)
            batch = step.source.batch(step.source.shard(position=0, batch_size=1, rank=0, num_workers=1), 0, 1)
            flops = model_flops_a_token(step.model, batch.to(device), precision)
            share = rate * flops / matmul_flops_per_s(device, precision.dtype)
            words = f"{rate:,.0f} tokens/s, {share:.0%} of the rate of matrix products in {precision.name}"
            figures = {"tokens_per_s": rate, "matmul_share": share}
            yield Check(f"speed: {name}{', compiled' if compiles else ''}", "pass", words, figures)


def _losses(device: torch.device, precision: str) -> list[float]:
    run, vocabulary_size = a_run("decoder, Llama", device)
    run = run.with_overrides({"training.precision": precision})
    results = take(random_step(run, vocabulary_size, micro_batch_size=8, device=device), num_steps=_NUM_STEPS)
    assert not isinstance(results, StepOutOfMemory), results
    return [result.loss for result in results]
