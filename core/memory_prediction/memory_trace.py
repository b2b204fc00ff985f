"""Record every allocation of training steps without memory, by running the real step on fake tensors.

The trace runs `OptimizerStep` itself, so prediction and reality cannot drift apart.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from core.distributed.workers import Workers
from core.layers import cache_blocks, cpu_attention
from core.memory.storage_meter import StorageMeter
from core.memory_prediction.caching_allocator import AllocationEvent
from core.memory_prediction.cuda_emulation import CudaForms
from core.models.lora import add_lora
from core.models.model_factory import build_model
from core.settings.model_config import ModelConfig
from core.settings.precision import Precision
from core.settings.training_config import LoraConfig, TrainingConfig
from core.step.optimizer import build_optimizer
from core.step.optimizer_step import OptimizerStep, StepResult
from core.step.step_profile import StepProfile
from core.step.step_stretches import Stretch
from core.torch_internals.fake_tensors import all_fake, device_query
from core.torch_internals.operator_watch import TorchDispatchMode, storage_key
from data_pipeline.tokens.batches import Batch, BatchSource, Shard

Part = Literal[
    "parameters", "cast parameters", "gradients", "optimizer state", "batch", "activations", "logits", "temporaries"
]


@dataclass(frozen=True)
class RunShape:
    """Exactly the properties that determine the memory of a run: runs of equal shape need equal memory."""

    model: ModelConfig
    vocabulary_size: int
    num_classes: int | None
    """Number of classes of a classifier; None for language models."""
    precision: Literal["fp32", "bf16", "fp16"]
    is_checkpointed: bool
    lora: LoraConfig | None
    optimizer: Literal["adamw", "muon"]
    micro_batch_size: int
    local_rows: int
    """Rows of one worker per step."""
    exchanges_gradients: bool
    """True for several workers: gradients permanently occupy one buffer."""
    predicted_per_row: int
    has_document_ids: bool
    device_type: Literal["cpu", "cuda"]


@dataclass(slots=True)
class _Allocation:
    num_bytes: int
    part: Part
    born_at: int
    died_at: int | None = None


class MemoryTrace:
    """Allocations in order, each with the part of the run it belongs to.

    Args:
        num_logits: Logits per position: the vocabulary size, or the number of classes.
    """

    def __init__(self, num_logits: int) -> None:
        self.events: list[AllocationEvent] = []
        self._allocations: list[_Allocation] = []
        self._living: dict[int, int] = {}  # Storage key to allocation number.
        self._part: Part = "temporaries"
        self._num_logits = num_logits
        self._parameter_shapes: set[torch.Size] = set()

    def note(self, key: int, num_bytes: int, tensor: Tensor | None) -> None:
        """Record that a storage was allocated or freed; the meter's `on_change`."""
        if tensor is None:
            number = self._living.pop(key)
            self._allocations[number].died_at = len(self.events)
        else:
            number = len(self._allocations)
            self._living[key] = number
            self._allocations.append(_Allocation(num_bytes, self._part_of(tensor), len(self.events)))
        self.events.append((number, num_bytes))

    def note_scratch(self, num_bytes: int) -> None:
        """Record the scratch memory of a kernel; the meter's `on_scratch`."""
        number = len(self._allocations)
        self._allocations.append(_Allocation(num_bytes, "temporaries", len(self.events), len(self.events) + 1))
        self.events += [(number, num_bytes), (number, -num_bytes)]

    @contextmanager
    def part(self, part: Part) -> Iterator[None]:
        """Assign the allocations in the block to a part."""
        before, self._part = self._part, part
        try:
            yield
        finally:
            self._part = before

    @contextmanager
    def forward_pass(self) -> Iterator[None]:
        """Count allocations in the block that outlive it as activations, kept for the backward pass."""
        first = len(self._allocations)
        yield
        for allocation in self._allocations[first:]:
            if allocation.died_at is None and allocation.part == "temporaries":
                allocation.part = "activations"

    def rise_since(self, first: int) -> int:
        """Peak bytes since event number `first`, relative to the bytes before it."""
        return int(max(np.cumsum([num_bytes for _, num_bytes in self.events[first:]], dtype=np.int64), default=0))

    def watch_gradients(self, model: nn.Module) -> None:
        """Recognise gradients of the parameters, and copies of parameters in another number format."""
        # The head's matrix gets its gradient without autograd, so check all parameters whenever a gradient arrives.
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        note = partial(self._note_gradients, trained)
        self._parameter_shapes.update(parameter.shape for parameter in model.parameters())
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(note)  # type: ignore[no-untyped-call]

    def peak(self) -> tuple[int, dict[Part, int]]:
        """(peak of live bytes, bytes of each part at that moment)."""
        sizes = np.array([num_bytes for _, num_bytes in self.events], dtype=np.int64)
        live_bytes = np.cumsum(sizes)
        moment = int(np.argmax(live_bytes))
        parts: dict[Part, int] = {}
        for allocation in self._allocations:
            if allocation.born_at <= moment and (allocation.died_at is None or allocation.died_at > moment):
                parts[allocation.part] = parts.get(allocation.part, 0) + allocation.num_bytes
        return int(live_bytes[moment]), parts

    def _part_of(self, tensor: Tensor) -> Part:
        if self._part != "temporaries":
            return self._part
        if tensor.ndim == 2 and tensor.shape in self._parameter_shapes:
            return "temporaries" if tensor.dtype == torch.float32 else "cast parameters"
        # (D, V) is the transposed gradient of a head matrix.
        is_matrix = tensor.shape[::-1] in self._parameter_shapes
        return "logits" if tensor.shape[-1:] == (self._num_logits,) and not is_matrix else "temporaries"

    def _note_gradients(self, parameters: Sequence[Tensor], _arrived: Tensor) -> None:
        for parameter in parameters:
            if parameter.grad is not None:
                number = self._living.get(storage_key(parameter.grad.untyped_storage()))
                if number is not None:
                    self._allocations[number].part = "gradients"


def trace_steps(shape: RunShape, *, is_real: bool = False) -> MemoryTrace:
    """All allocations of a run of this shape, from its finished model until its steps repeat themselves.

    It takes up to a second, negligible memory and no device, and does not change the random state.

    Args:
        is_real: Train on tensors with values, on the CPU, in the memory and the time that this takes: for a class whose
            operations depend on values.
    """
    trace = MemoryTrace(shape.num_classes or shape.vocabulary_size)
    meter = StorageMeter(
        of_fakes=not is_real, kernels_of=shape.device_type, on_change=trace.note, on_scratch=trace.note_scratch
    )
    with ExitStack() as modes:
        modes.enter_context(torch.random.fork_rng(devices=[]))
        if not is_real:
            modes.enter_context(all_fake())
        model = build_model(shape.model, shape.vocabulary_size, num_classes=shape.num_classes)
        precision = Precision(shape.precision, "cpu")
        if shape.lora is not None:
            add_lora(model, shape.model, shape.lora, frozen_dtype=precision.dtype)
        model.set_activation_checkpointing(shape.is_checkpointed)
        trace.watch_gradients(model)
        if not is_real:
            modes.enter_context(_TrueStatistics())  # type: ignore[no-untyped-call]
        meter.start()
        modes.callback(meter.stop)
        with trace.part("parameters"):
            meter.track(model)
        with trace.part("optimizer state"):
            optimizer = build_optimizer(
                model, TrainingConfig(optimizer=shape.optimizer), tokens_per_step=1.0, precision=precision
            )
        workers = _AbsentWorkers(count=2) if shape.exchanges_gradients else Workers()
        with trace.part("gradients"):
            step = OptimizerStep(
                model,
                optimizer,
                _FakeSource(shape, has_values=is_real),
                workers,
                precision,
                batch_size=shape.local_rows * workers.count,
                micro_batch_size=shape.micro_batch_size,
                tokens_per_step=1.0,
                clip=1.0,
            )
        step.profile = _PartMarks(trace)
        if not is_real:
            modes.enter_context(_UnreadValues())
        if shape.device_type == "cuda":
            modes.enter_context(cache_blocks.as_on_a_gpu())
            if not is_real:
                modes.enter_context(CudaForms())
        if not is_real:
            modes.enter_context(cache_blocks.shortened())
            modes.enter_context(cpu_attention.rehearsed(_Once(trace)))
        # Memory left by one pass counts in the peak of the next pass. A step with one pass therefore runs twice.
        for number in range(2 if shape.micro_batch_size >= shape.local_rows else 1):
            result = step.take(step=number, position=0, learning_rate=lambda _: 1e-4)
            assert isinstance(result, StepResult), f"a step on fake tensors cannot run out of memory: {result}"
    return trace


class _PartMarks(StepProfile):
    """Uses the stretches of the step's profile to distinguish activations from temporaries."""

    def __init__(self, trace: MemoryTrace) -> None:
        super().__init__(torch.device("cpu"))
        self._trace = trace

    @contextmanager
    def span(self, stretch: Stretch) -> Iterator[None]:
        with ExitStack() as stack:
            if stretch == "forward":
                stack.enter_context(self._trace.forward_pass())
            elif stretch == "data":
                stack.enter_context(self._trace.part("batch"))
            yield


class _Once:
    """Traces work of one form once, and afterwards records only its peak, which saves time."""

    def __init__(self, trace: MemoryTrace) -> None:
        self._trace = trace
        self._known: dict[Hashable, tuple[int, torch.Size, torch.dtype]] = {}

    def __call__(self, form: Hashable, work: Callable[[], Tensor]) -> Tensor:
        if form in self._known:
            rise_bytes, shape, dtype = self._known[form]
            self._trace.note_scratch(rise_bytes)
            return torch.empty(shape, dtype=dtype)
        first = len(self._trace.events)
        result = work()
        self._known[form] = (self._trace.rise_since(first), result.shape, result.dtype)
        return result


class _FakeSource(BatchSource):
    """Batches with the right shapes and no values; or with tokens drawn at random.

    Args:
        has_values: Draw tokens, and predict the first positions of each row.
    """

    def __init__(self, shape: RunShape, *, has_values: bool = False) -> None:
        self._shape, self._has_values = shape, has_values

    def shard(self, *, position: int, batch_size: int, rank: int, num_workers: int) -> Shard:  # noqa: ARG002
        rows = np.arange(batch_size // num_workers)
        return Shard(rows, rows)

    def batch(self, shard: Shard, start: int, stop: int) -> Batch:  # noqa: ARG002
        num_rows, num_tokens = stop - start, self._shape.model.sequence_length
        num_predicted = num_rows * self._shape.predicted_per_row
        has_ids = self._shape.has_document_ids
        if self._has_values:
            first_B1 = torch.arange(num_rows)[:, None] * num_tokens
            positions_P = (first_B1 + torch.arange(self._shape.predicted_per_row)).flatten()
            return Batch(
                inputs_BT=torch.randint(self._shape.vocabulary_size, (num_rows, num_tokens)),
                positions_P=positions_P,
                labels_P=torch.randint(self._shape.vocabulary_size, positions_P.shape),
                document_ids_BT=torch.zeros(num_rows, num_tokens, dtype=torch.int32) if has_ids else None,
                num_tokens=num_rows * num_tokens,
                most_predicted=num_predicted,
            )
        return Batch(
            inputs_BT=torch.empty(num_rows, num_tokens, dtype=torch.int64),
            positions_P=torch.empty(num_predicted, dtype=torch.int64),
            labels_P=torch.empty(num_predicted, dtype=torch.int64),
            document_ids_BT=torch.empty(num_rows, num_tokens, dtype=torch.int32) if has_ids else None,
            num_tokens=num_rows * num_tokens,
            most_predicted=num_predicted,
        )


class _UnreadValues(TorchFunctionMode):
    """Answers `.item()` with 1.0: fake tensors have no values, and any finite number is fine for a step."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.item:
            return 1.0
        return func(*args, **(kwargs or {}))


class _TrueStatistics(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Makes the statistics of layer norms over bf16 fp32, as in real kernels; torch's fake kernels give bf16."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is device_query:
            return args[0].device
        output = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.native_layer_norm.default:
            normed, mean, inverse_std = output
            return normed, mean.float(), inverse_std.float()
        return output


@dataclass(frozen=True)
class _AbsentWorkers(Workers):
    """Workers of which only this one exists; collective operations do nothing."""

    def __post_init__(self) -> None:
        pass

    def largest(self, value: int) -> int:
        return value

    def start_adding_up(self, tensor: Tensor) -> Callable[[], object]:  # noqa: ARG002
        return lambda: None

    def add_up(self, tensor: Tensor) -> Tensor:
        return tensor
