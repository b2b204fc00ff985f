"""The processes of one training run, and the few things they say to one another.

The process group belongs to the caller (a test, `torchrun`, Ray Train); a run of one worker needs none.
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
    # gloo: the process group's timeout is over; what it says afterwards; the other process has ended.
    r"Timed out waiting \d+ms|Application timeout caused pair closure|Connection (?:closed|reset) by peer"
    # NCCL, which most often ends the process instead (not seen on a GPU yet).
    r"|collective operation timeout|NCCL communicator was aborted"
)


class WorkerSilentError(RuntimeError):
    """Another worker has not answered within the process group's timeout, or is gone."""


@dataclass(frozen=True)
class Workers:
    """This process among the workers of one run."""

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where this worker's model lives."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.count:
            raise ValueError(f"rank={self.rank} is not in 0..{self.count - 1}")
        if self.count > 1 and not (dist.is_initialized() and dist.get_world_size() == self.count):
            raise ValueError(
                f"a run of {self.count} workers needs a torch.distributed process group of that size; "
                "call torch.distributed.init_process_group first"
            )

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which alone reports and writes."""
        return self.rank == 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Around every operation that needs all workers: one that does not answer has a name.

        Raises:
            WorkerSilentError: Instead of what the communication library says of it.
        """
        try:
            yield
        except RuntimeError as error:
            if _SILENCE.search(str(error)) is None:
                raise
            raise WorkerSilentError(
                f"rank {self.rank} of {self.count} has no answer from another worker, which is stuck or gone: {error}"
            ) from error

    def largest(self, value: int) -> int:
        """The largest of the workers' values."""
        if self.count == 1:
            return value
        with self.listening():
            shared = torch.tensor(value, dtype=torch.int64, device=self.device)
            dist.all_reduce(shared, op=dist.ReduceOp.MAX)
            return int(shared.item())

    def start_adding_up(self, tensor: Tensor) -> Callable[[], object]:
        """Begin to write the sum over the workers into the tensor; calling the result waits for it."""
        work: dist.Work = dist.all_reduce(tensor, async_op=True)
        return work.wait

    def add_up(self, tensor: Tensor) -> Tensor:
        """The tensor with the sum over the workers written into it; same shape on every rank."""
        if self.count > 1:
            with self.listening():
                dist.all_reduce(tensor)
        return tensor

    def from_first(self, value: int) -> int:
        """Rank 0's value, on every rank."""
        if self.count == 1:
            return value
        with self.listening():
            shared = torch.tensor(value, dtype=torch.int64, device=self.device)
            dist.broadcast(shared, src=0)
            return int(shared.item())

    def copy_first(self, tensor: Tensor) -> None:
        """Overwrite a tensor with rank 0's."""
        if self.count > 1:
            with self.listening():
                dist.broadcast(tensor, src=0)

    def all_values(self, value: object) -> list[object]:
        """Each worker's value, in order of rank; small Python values only."""
        if self.count == 1:
            return [value]
        values: list[object] = [None] * self.count
        with self.listening():
            dist.all_gather_object(values, value)
        return values


def check_same_model(model: nn.Module, settings: str, workers: Workers) -> None:
    """Refuse to train when a worker stands out: summing the gradients of different models hangs, or learns nothing.

    Args:
        settings: The run's settings as text; two ranks with different settings drift apart later.

    Raises:
        RuntimeError: On every rank, naming each rank that differs from rank 0 and the first thing in which it does.
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
            "the workers do not hold the same model, compared with rank 0: " + "; ".join(faults) + ". "
            "Start all workers with the same code, settings and seed."
        )


def _checksum(parameter: Tensor) -> int:
    # One parameter at a time, so that a model on a GPU is never copied whole.
    # As bytes, for numpy has no bf16.
    return zlib.crc32(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())


def _difference(first: dict[str, tuple[str, int]], other: dict[str, tuple[str, int]]) -> str:
    for name in [*first, *other]:
        if name not in other:
            return f"has no parameter {name}"
        if name not in first:
            return f"has a parameter {name} that rank 0 has not"
        if first[name][0] != other[name][0]:
            what = "other settings" if name == "settings" else f"{name} of shape"
            return f"{what} {other[name][0]} instead of {first[name][0]}"
        if first[name][1] != other[name][1]:
            return f"{name} of the same shape with other weights"
    raise AssertionError("no difference between two models that are not equal")
