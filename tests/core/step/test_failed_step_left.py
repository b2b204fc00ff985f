"""Nothing of a step that ran out of memory is alive when its retry begins: no tensor, no graph, no exception."""

import gc
import weakref
from typing import Any

import pytest
import torch
from small_steps import a_step

from core.distributed.adaptive_micro_batch import Smaller
from core.distributed.workers import Workers
from core.memory.out_of_memory import OomFacts
from core.step.optimizer_step import StepResult
from core.torch_internals.operator_watch import TorchDispatchMode, tree_leaves


class ShortageError(torch.OutOfMemoryError):
    """One whose instances can be watched."""


class RunsOut(TorchDispatchMode):
    """Watches every storage that operators give, and runs out of memory at one operator of a pass."""

    def __init__(self, *, in_backward: bool, number: int) -> None:
        super().__init__()
        self.made: list[weakref.ref[Any]] = []
        self.error: weakref.ref[ShortageError] | None = None
        self._in_backward, self._left = in_backward, number

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if self.error is not None:
            return output
        self.made += [
            weakref.ref(one.untyped_storage()) for one in tree_leaves(output) if isinstance(one, torch.Tensor)
        ]
        if (torch._C._current_graph_task_id() != -1) == self._in_backward:
            self._left -= 1
            if self._left == 0:
                error = ShortageError("CUDA out of memory. Tried to allocate 1.00 KiB.")
                self.error = weakref.ref(error)
                raise error
        return output


@pytest.mark.parametrize("family", ["encoder", "decoder"])
@pytest.mark.parametrize("in_backward", [False, True])
def test_nothing_of_a_failed_step_is_alive_when_the_retry_begins(family: str, in_backward: bool) -> None:
    alive: list[int] = []
    errors: list[object] = []
    watch = RunsOut(in_backward=in_backward, number=12)

    def choose(tried: int, _facts: OomFacts) -> Smaller:
        lasting = {one.untyped_storage().data_ptr() for one in (*step.model.parameters(), *step.model.buffers())}
        left = [storage for made in watch.made if (storage := made()) is not None]
        alive.extend(storage.nbytes() for storage in left if storage.data_ptr() not in lasting)
        assert watch.error is not None
        errors.append(watch.error())
        return Smaller(tried // 2, is_neighbours=False)

    step = a_step(Workers(), micro_batch_size=8, family=family, choose_smaller=choose)
    gc.disable()  # The retry must not depend on the moment at which Python collects.
    try:
        with watch:
            result = step.take(step=0, position=0, learning_rate=lambda _: 1e-3)
    finally:
        gc.enable()
    assert isinstance(result, StepResult)
    assert errors == [None]
    assert sum(alive) <= 1024, f"{len(alive)} storages of the failed step are alive"
