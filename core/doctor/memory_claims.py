"""Claims about memory: the predicted peak is the measured one, sizes that do not fit are refused, shortages change no
weight."""

from collections.abc import Iterator
from typing import Any

import torch

from core.distributed.adaptive_micro_batch import Smaller, half_of
from core.doctor.check import Check, verdict_of
from core.doctor.random_steps import random_step, take
from core.memory.memory_limit import memory_limit
from core.memory.out_of_memory import OomFacts
from core.memory.tensor_memory import release_memory
from core.memory_prediction.peak_memory import WorkerSetup, largest_micro_batch, predict_memory
from core.settings.precision import computes_bf16
from core.settings.run_config import RunConfig
from core.step.optimizer_step import StepOutOfMemory
from data_pipeline.schema.settings import format_bytes

FAMILIES: dict[str, dict[str, Any]] = {
    "encoder, RoBERTa": {"family": "encoder", "form": "roberta"},
    "encoder, modern": {"family": "encoder", "form": "modern"},
    "decoder, Llama": {"family": "decoder"},
    "decoder, grouped heads": {"family": "decoder", "kv_heads": 2},
    "decoder, experts": {"family": "decoder", "feed_forward": "moe"},
    "decoder, memory": {"family": "decoder", "feed_forward": "memory", "memory": {"entries": 4096}},
}
"""Every family of models, by name."""
_TOLERANCE = 0.02
_MICRO_BATCHES = (2, 4, 8)
_SHAPE: dict[str, tuple[dict[str, Any], int]] = {
    "cpu": ({"layers": 2, "width": 128, "heads": 4, "sequence_length": 64}, 2000),
    "cuda": ({"layers": 4, "width": 512, "heads": 8, "sequence_length": 512}, 32_000),
}
"""Shape of the models and their vocabulary, by device."""


def a_run(family: str, device: torch.device, *, batch_size: int = 16) -> tuple[RunConfig, int]:
    """A run of a family on a model that suits the device, and its vocabulary size."""
    shape, vocabulary_size = _SHAPE[device.type]
    model = shape | FAMILIES[family]
    objective = "causal_lm" if model["family"] == "decoder" else "masked_lm"
    settings = {"model": model, "objective": objective, "training": {"batch_size": batch_size}}
    return RunConfig.model_validate(settings), vocabulary_size


def prediction_holds(family: str, device: torch.device) -> Iterator[Check]:
    """The predicted peak of a family against the measured one, at three micro-batches."""
    setup = _setup(device)
    run, vocabulary_size = a_run(family, device)
    errors = {}
    for size in _MICRO_BATCHES:
        predicted = predict_memory(run, vocabulary_size, micro_batch_size=size, setup=setup).peak_bytes
        errors[size] = predicted / _measured_peak(run, vocabulary_size, size, device) - 1
    shown = ", ".join(f"{error:+.2%} at {size}" for size, error in errors.items())
    yield Check(
        f"predicted memory: {family}",
        verdict_of(all(abs(error) <= _TOLERANCE for error in errors.values())),
        f"prediction less measurement {shown} rows",
        {f"error_at_{size}_rows_share": error for size, error in errors.items()},
    )


def sizes_are_refused(device: torch.device) -> Iterator[Check]:
    """The largest micro-batch that is predicted to fit runs, and the next one runs out of memory."""
    run, vocabulary_size = a_run("decoder, Llama", device)
    setup = _setup(device)
    limit_bytes = predict_memory(run, vocabulary_size, micro_batch_size=7, setup=setup).peak_bytes
    largest = largest_micro_batch(run, vocabulary_size, memory_bytes=limit_bytes, setup=setup)
    ended = {}
    for size in (largest, largest + 1):
        release_memory(device)
        with memory_limit(limit_bytes, device):
            step = random_step(run, vocabulary_size, micro_batch_size=size, device=device)
            ended[size] = isinstance(take(step, num_steps=2), StepOutOfMemory)
        del step
    words = ", ".join(f"{size} rows {'ran out of memory' if short else 'ran'}" for size, short in ended.items())
    is_kept = ended == {largest: False, largest + 1: True}
    yield Check("largest micro-batch", verdict_of(is_kept), f"in {format_bytes(limit_bytes)}: {words}")


def shortages_are_survived(device: torch.device) -> Iterator[Check]:
    """Weights after steps that ran out of memory, in the forward and in the backward pass, against undisturbed ones."""
    run, vocabulary_size = a_run("encoder, RoBERTa", device)
    run = run.with_overrides({"training.precision": "fp32"})
    setup = _setup(device)
    undisturbed = random_step(run, vocabulary_size, micro_batch_size=4, device=device)
    take(undisturbed, num_steps=3)
    wanted = [parameter.detach().clone() for parameter in undisturbed.model.parameters()]
    del undisturbed
    peaks = {
        size: predict_memory(run, vocabulary_size, micro_batch_size=size, setup=setup).peak_bytes for size in (4, 16)
    }
    # Just below the whole need memory runs out late, just above that of the smaller size early.
    for share in (0.05, 0.9):
        limit_bytes = int(peaks[4] * 1.02 + share * (peaks[16] - peaks[4] * 1.02))
        seen: list[OomFacts] = []

        def choose(tried: int, facts: OomFacts, seen: list[OomFacts] = seen) -> Smaller:
            seen.append(facts)
            return Smaller(min(4, half_of(tried)), is_neighbours=False)

        release_memory(device)
        with memory_limit(limit_bytes, device):
            step = random_step(run, vocabulary_size, micro_batch_size=16, device=device, choose_smaller=choose)
            ended = take(step, num_steps=3)
        are_equal = not isinstance(ended, StepOutOfMemory) and all(
            torch.equal(parameter, other) for parameter, other in zip(step.model.parameters(), wanted, strict=True)
        )
        phases = ", ".join(str(facts.phase) for facts in seen) or "no pass"
        words = f"memory ran out in {phases}; weights {'are equal' if are_equal else 'differ'} after 3 steps"
        yield Check(f"shortage at {share:.0%}", verdict_of(are_equal and bool(seen)), words)
        del step


def _setup(device: torch.device) -> WorkerSetup:
    is_gpu = device.type == "cuda"
    return WorkerSetup(device_type="cuda" if is_gpu else "cpu", computes_bf16=not is_gpu or computes_bf16(device))


def _measured_peak(run: RunConfig, vocabulary_size: int, micro_batch_size: int, device: torch.device) -> int:
    release_memory(device)
    with memory_limit(None, device) as meter:
        step = random_step(run, vocabulary_size, micro_batch_size=micro_batch_size, device=device)
        take(step, num_steps=2)
        return meter.peak_bytes
