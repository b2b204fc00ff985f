"""Predict the peak memory of a run, the largest micro-batch that fits, and the changes that make a run fit.

A prediction covers the tensors of training on one worker. It excludes memory that exists before the first tensor or
belongs to the device: the CUDA context and the process group (compare with the memory that is free once both exist),
the Python process, and most scratch memory of kernels. Evaluation needs less than training, because it keeps no
activations. A compiled model needs at most the predicted memory of the uncompiled one.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch

from core.memory_prediction.caching_allocator import smallest_capacity_bytes
from core.memory_prediction.feasible_sizes import Feasible, Stretch
from core.memory_prediction.kept_predictions import MemoryPrediction, kept_or_traced
from core.memory_prediction.measured_memory import measured_peak
from core.memory_prediction.memory_trace import RunShape, trace_steps
from core.models.language_model import LanguageModel
from core.models.model_factory import build_model, without_values
from core.settings.model_config import ModelConfig
from core.settings.precision import choose_precision
from core.settings.run_config import RunConfig
from core.settings.training_config import LoraConfig
from core.step.objectives import chunks_of_a_class, num_chunks
from core.user_code.code_places import UserCodeError
from data_pipeline.schema.settings import format_bytes
from data_pipeline.tokens.batches import Batch, predicted_in_full_row

DeviceType = Literal["cpu", "cuda"]

_CUBLAS_WORKSPACES_BYTES = 2 * 8_519_680
"""cuBLAS keeps one workspace for the forward thread and one for the backward thread (`:4096:2:16:8`, its default
before Hopper). On Hopper each has 32 MiB, less than a thousandth of the device."""


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """Conditions that memory depends on besides the settings and the vocabulary of a run."""

    num_workers: int = 1
    device_type: DeviceType = "cpu"
    has_document_ids: bool = False
    """Rows hold several documents that must not see each other; this needs a mask of T x T per row."""
    computes_bf16: bool = True
    """The GPUs multiply bf16 natively, so `precision: auto` is bf16; a CPU is asked itself."""

    def rows_of(self, run: RunConfig) -> int:
        """Maximum rows of one worker per step."""
        return math.ceil(run.training.largest_batch_size / self.num_workers)


SINGLE_CPU_WORKER = WorkerSetup()


def predict_memory(
    run: RunConfig, vocabulary_size: int, *, micro_batch_size: int, setup: WorkerSetup = SINGLE_CPU_WORKER
) -> MemoryPrediction:
    """Predicted peak memory of one worker of a run. A new shape takes about a second; results are cached, and
    kept inside `predictions_kept_in`.

    Rows are assumed to be full. With padding or special tokens, which are never masked, fewer positions are predicted.

    Args:
        micro_batch_size: Rows of one forward/backward pass on one worker; capped at the worker's rows of a batch.

    Raises:
        ValueError: fp16 on a CPU, or a micro-batch size below 1.
    """
    if micro_batch_size < 1:
        raise ValueError(f"micro_batch_size={micro_batch_size} is below 1; use at least 1 row")
    return kept_or_traced(_shape_of(run, vocabulary_size, micro_batch_size=micro_batch_size, setup=setup), _traced)


def _shape_of(run: RunConfig, vocabulary_size: int, *, micro_batch_size: int, setup: WorkerSetup) -> RunShape:
    rows = setup.rows_of(run)
    return RunShape(
        model=_without_numbers(run.model),
        vocabulary_size=vocabulary_size,
        num_classes=run.objective.num_classes,
        precision=predicted_precision(run, setup),
        is_checkpointed=run.training.activation_checkpointing,
        lora=_lora_without_numbers(run.training.lora),
        optimizer=run.training.optimizer,
        micro_batch_size=min(micro_batch_size, rows),
        local_rows=_rows_worth_tracing(min(micro_batch_size, rows), rows),
        exchanges_gradients=setup.num_workers > 1,
        predicted_per_row=_predicted_per_row(run),
        has_document_ids=setup.has_document_ids,
        device_type=setup.device_type,
    )


def largest_micro_batch(
    run: RunConfig, vocabulary_size: int, *, memory_bytes: int, setup: WorkerSetup = SINGLE_CPU_WORKER
) -> int:
    """Largest micro-batch size in rows whose predicted peak is within `memory_bytes`; 0 if a single row does not fit.

    At most the worker's rows of a batch. The result is exact with about ten traces: it fits, and no larger size does.
    (On CUDA, rounding to segments may hide a size that is larger by one row.)

    The peak is not monotonic in the size. A batch in one pass needs no gradients besides its activations, a batch in
    several passes does; the last pass may be smaller; and at some sizes the vocabulary head uses one chunk more, which
    shrinks the logits. But the peak of a step is the peak of its largest pass, and over sizes with an equal number of
    chunks the peak of a first pass alone, and of a later pass alone, is convex.
    """
    rows = setup.rows_of(run)

    def peak(micro_batch_size: int, rows_of_batch: int) -> int:
        size = {"batch_size": rows_of_batch * setup.num_workers, "batch_schedule": None}
        training = run.training.model_copy(update=size)
        changed = run.model_copy(update={"training": training})
        return predict_memory(changed, vocabulary_size, micro_batch_size=micro_batch_size, setup=setup).peak_bytes

    if peak(rows, rows) <= memory_bytes:
        return rows
    half = rows // 2
    # Isolate a first pass by a following single row, and a later pass by an equal pass before it.
    first_sizes, later_sizes = (_stretches(run, vocabulary_size, *ends) for ends in ((half + 1, rows - 1), (1, half)))
    first_pass = Feasible(lambda size: peak(size, size + 1), memory_bytes, first_sizes)
    later_pass = Feasible(lambda size: peak(size, 2 * size), memory_bytes, later_sizes)
    for size in range(max(first_pass.largest, later_pass.largest), 0, -1):
        rest = rows % size
        fits = size in (first_pass if size > half else later_pass) and (rest == 0 or rest in later_pass)
        if fits and peak(size, rows) <= memory_bytes:
            return size
    return 0


def how_to_fit(
    run: RunConfig, vocabulary_size: int, *, memory_bytes: int, setup: WorkerSetup = SINGLE_CPU_WORKER
) -> str:
    """Text that compares the predicted need of a run with the memory, and names changes that make it fit.

    A micro-batch size of `auto` counts as one row, the minimum.
    """
    asked = run.training.micro_batch_size
    prediction = predict_memory(run, vocabulary_size, micro_batch_size=1 if asked == "auto" else asked, setup=setup)
    needs = f"needs {format_bytes(prediction.peak_bytes)} of {format_bytes(memory_bytes)}"
    if prediction.peak_bytes <= memory_bytes:
        return f"{needs}; fits"
    cures = []
    # A user's class decides itself which activations it keeps.
    choices = (True,) if run.training.activation_checkpointing else (False, True)
    for checkpointing in choices if run.model.class_ is None else (False,):
        changed = run.with_overrides({"training.activation_checkpointing": checkpointing})
        largest = largest_micro_batch(changed, vocabulary_size, memory_bytes=memory_bytes, setup=setup)
        is_new = checkpointing and not run.training.activation_checkpointing
        if largest > 0 and is_new and asked != "auto" and largest >= asked:
            cures.append("activation checkpointing")
        elif largest > 0:
            cures.append(f"micro-batch {largest}" + (" and activation checkpointing" if is_new else ""))
    largest_part = max(prediction.parts, key=lambda part: prediction.parts[part])
    shares = f"{largest_part} {'are' if largest_part.endswith('s') else 'is'} {prediction.share(largest_part):.0%}"
    if not cures:
        fixed = sum(prediction.parts.get(part, 0) for part in ("parameters", "gradients", "optimizer state"))
        without = ", with or without activation checkpointing" if run.model.class_ is None else ""
        return (
            f"{needs}; no micro-batch fits{without}: parameters, gradients and "
            f"optimizer state alone take {format_bytes(fixed)}; {shares}. Make the model or the vocabulary smaller"
        )
    return f"{needs}; fits with {' or with '.join(cures)}; {shares}"


def predicted_precision(run: RunConfig, setup: WorkerSetup) -> Literal["fp32", "bf16", "fp16"]:
    """Number format of the matrix products in a prediction: the setting, with `auto` resolved for the device."""
    wanted = run.training.precision
    if wanted == "auto" and setup.device_type == "cuda":
        return "bf16" if setup.computes_bf16 else "fp32"  # The process that predicts may have no GPU.
    return choose_precision(wanted, torch.device(setup.device_type)).name


def why_untraceable(run: RunConfig, vocabulary_size: int) -> str | None:
    """The line of a user's class that depends on values, so that its memory is measured and not traced; else None."""
    shape = _shape_of(run, vocabulary_size, micro_batch_size=1, setup=SINGLE_CPU_WORKER)
    try:
        trace_steps(shape)
    except UserCodeError as error:
        return str(error)
    return None


@lru_cache(maxsize=4096)
def _traced(shape: RunShape) -> MemoryPrediction:
    try:
        trace = trace_steps(shape)
    except UserCodeError:
        # Another error of the class itself comes again, from real tensors.
        measured_bytes, measured_parts = measured_peak(shape)
        return MemoryPrediction(measured_bytes, dict(sorted(measured_parts.items(), key=lambda part: -part[1])))
    live_bytes, parts = trace.peak()
    peak_bytes, named = live_bytes, {str(part): num_bytes for part, num_bytes in parts.items()}
    if shape.device_type == "cuda":
        peak_bytes = smallest_capacity_bytes(trace.events) + _CUBLAS_WORKSPACES_BYTES
        named["workspaces"] = _CUBLAS_WORKSPACES_BYTES
        named["allocator"] = peak_bytes - _CUBLAS_WORKSPACES_BYTES - live_bytes
    return MemoryPrediction(peak_bytes, dict(sorted(named.items(), key=lambda part: -part[1])))


def _rows_worth_tracing(micro_batch_size: int, rows: int) -> int:
    """Number of rows whose passes represent all passes: two full micro-batches and the remainder."""
    full, rest = divmod(rows, micro_batch_size)
    return min(full, 2) * micro_batch_size + rest


def _predicted_per_row(run: RunConfig) -> int:
    if run.objective.num_classes is not None:
        return 1
    return max(1, predicted_in_full_row(run.model.sequence_length, run.objective.masking_rate))


def _without_numbers(model: ModelConfig) -> ModelConfig:
    """The model with settings that change no shape set to constants, for the cache. Of a user's class any may."""
    if model.class_ is not None:
        return model
    numbers = {"dropout": 0.1 if model.dropout else 0.0, "norm_epsilon": 1e-5, "rotary_base": 10_000.0}
    return model.in_standard_form().model_copy(update=numbers)


def _lora_without_numbers(lora: LoraConfig | None) -> LoraConfig | None:
    return None if lora is None else lora.model_copy(update={"alpha": 1.0})


def _stretches(run: RunConfig, vocabulary_size: int, first: int, last: int) -> list[Stretch]:
    """The micro-batch sizes from first to last, split where the vocabulary head uses more chunks."""
    predicted = _predicted_per_row(run)
    if run.model.class_ is not None:
        # A class on the simple path has one chunk; a stretch more costs a trace.
        def chunks_of(size: int) -> int:
            return chunks_of_a_class(vocabulary_size, size * predicted)

    else:
        model = _model_without_memory(
            run.model, vocabulary_size, run.objective.num_classes, is_frozen=run.training.lora is not None
        )

        def chunks_of(size: int) -> int:
            return _num_chunks(model, size, row_length=run.model.sequence_length, predicted=predicted)

    found: list[Stretch] = []
    most = 0
    for size in range(first, last + 1):
        chunks = chunks_of(size)
        if found and chunks <= most:
            found[-1] = (found[-1][0], size)
        else:
            found.append((size, size))
        most = chunks
    return found


def _num_chunks(model: LanguageModel, num_rows: int, *, row_length: int, predicted: int) -> int:
    labels_P = torch.empty(num_rows * predicted, dtype=torch.int64, device="meta")
    inputs_BT = torch.empty(num_rows, row_length, dtype=torch.int64, device="meta")
    return num_chunks(
        model, Batch(inputs_BT, labels_P, labels_P, None, num_tokens=inputs_BT.numel(), most_predicted=labels_P.numel())
    )


@lru_cache(maxsize=16)
def _model_without_memory(
    config: ModelConfig, vocabulary_size: int, num_classes: int | None, *, is_frozen: bool
) -> LanguageModel:
    with without_values():
        return build_model(config, vocabulary_size, num_classes=num_classes).requires_grad_(not is_frozen)
