"""The worker processes of one training run and their collective operations.

The caller creates the process group (a test, `torchrun`, Ray Train); a run of one worker needs none.
"""

import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

_SILENCE = re.compile(
    # gloo: timeout of the process group; operations after it; end of the other process.
    r"Timed out waiting \d+ms|Application timeout caused pair closure|Connection (?:closed|reset) by peer"
    # NCCL, which mostly ends the process instead (not tested on a GPU yet).
    r"|collective operation timeout|NCCL communicator was aborted"
)


class WorkerSilentError(RuntimeError):
    """Another worker did not answer within the timeout of the process group, or its process ended."""


@dataclass(frozen=True)
class Workers:
    """Rank, number and device of this process among the workers of one run.

    Raises:
        ValueError: The rank is out of range, or no process group of this size exists.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Device of this worker's model."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.count:
            raise ValueError(f"rank={self.rank} is not in 0..{self.count - 1}; ranks count from 0")
        if self.count > 1 and not (dist.is_initialized() and dist.get_world_size() == self.count):
            raise ValueError(
                f"a run of {self.count} workers needs a torch.distributed process group of that size; "
                "call torch.distributed.init_process_group first"
            )

    @property
    def is_first(self) -> bool:
        """True for rank 0, the only one that reports and writes."""
        return self.rank == 0

    @property
    def control_device(self) -> torch.device:
        """Device of tensors by which workers agree: the host if the process group adds up there, too.

        On the host an agreement neither waits for the GPU nor fails with it.
        """
        is_on_host = dist.is_initialized() and "cpu:" in dist.get_backend_config()
        return torch.device("cpu") if is_on_host else self.device

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Context for every operation that needs all workers.

        Raises:
            WorkerSilentError: Another worker does not answer; replaces the error of the communication library.
        """
        try:
            yield
        except RuntimeError as error:
            if _SILENCE.search(str(error)) is None:
                raise
            raise WorkerSilentError(
                f"rank {self.rank} of {self.count} got no answer from another worker, which hangs or has ended; see "
                f"that worker's log: {error}"
            ) from error

    def largest(self, value: int) -> int:
        """The largest value of all workers; all of them call it."""
        if self.count == 1:
            return value
        with self.listening():
            shared = torch.tensor(value, dtype=torch.int64, device=self.control_device)
            dist.all_reduce(shared, op=dist.ReduceOp.MAX)
            return int(shared.item())

    def start_adding_up(self, tensor: Tensor) -> Callable[[], object]:
        """Begin to write the sum over the workers into the tensor; calling the result waits for it."""
        work: dist.Work = dist.all_reduce(tensor, async_op=True)
        return work.wait

    def add_up(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over the workers in place and return it; it has the same shape on every rank."""
        if self.count > 1:
            with self.listening():
                dist.all_reduce(tensor)
        return tensor

    def from_first(self, value: int) -> int:
        """Rank 0's value, on every rank; all of them call it."""
        if self.count == 1:
            return value
        with self.listening():
            shared = torch.tensor(value, dtype=torch.int64, device=self.control_device)
            dist.broadcast(shared, src=0)
            return int(shared.item())

    def copy_first(self, tensor: Tensor) -> None:
        """Overwrite a tensor with that of rank 0."""
        if self.count > 1:
            with self.listening():
                dist.broadcast(tensor, src=0)

    def all_values(self, value: object) -> list[object]:
        """The values of all workers in order of rank; for small picklable values."""
        if self.count == 1:
            return [value]
        values: list[object] = [None] * self.count
        with self.listening():
            dist.all_gather_object(values, value)
        return values


def check_same_model(model: nn.Module, settings: str, workers: Workers) -> None:
    """Check that all workers hold the same model: summing gradients of different models hangs or learns nothing.

    Args:
        settings: Settings of the run as text; ranks with different settings would diverge later.

    Raises:
        RuntimeError: On every rank, naming each rank that differs from rank 0 and its first difference.
    """
    if workers.count == 1:
        return
    mine = {"settings": (settings, 0)} | {
        name: (str(tuple(parameter.shape)), _checksum(parameter)) for name, parameter in model.named_parameters()
    }
    first, *others = workers.all_values(mine)
    assert isinstance(first, dict)
    faults = [
        f"rank {rank}: {_difference(first, other)}"
        for rank, other in enumerate(others, start=1)
        if isinstance(other, dict) and other != first
    ]
    if faults:
        raise RuntimeError(
            "the workers hold different models, compared with rank 0: " + "; ".join(faults) + ". "
            "Start all workers with the same code, settings and seed."
        )


def _checksum(parameter: Tensor) -> int:
    # Copy one parameter at a time, never the whole model. Use bytes, because numpy has no bf16.
    return zlib.crc32(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())


def _difference(first: dict[str, tuple[str, int]], other: dict[str, tuple[str, int]]) -> str:
    for name in [*first, *other]:
        if name not in other:
            return f"has no parameter {name}"
        if name not in first:
            return f"has a parameter {name} that rank 0 lacks"
        if first[name][0] != other[name][0]:
            subject = "other settings" if name == "settings" else f"{name} of shape"
            return f"{subject} {other[name][0]} instead of {first[name][0]}"
        if first[name][1] != other[name][1]:
            return f"{name} of the same shape with other weights"
    raise AssertionError("no difference between two models that are not equal")
