"""Workers of which only this process exists; collective operations leave its own values."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from core.distributed.workers import Workers


@dataclass(frozen=True)
class AbsentWorkers(Workers):
    """One rank of several, without the others."""

    def __post_init__(self) -> None:
        pass

    def largest(self, value: int) -> int:
        return value

    def from_first(self, value: int) -> int:
        return value

    def all_values(self, value: object) -> list[object]:
        return [value] * self.count

    def start_adding_up(self, tensor: Tensor) -> Callable[[], object]:  # noqa: ARG002
        return lambda: None

    def add_up(self, tensor: Tensor) -> Tensor:
        return tensor
