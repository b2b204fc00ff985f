"""Counting what a run leaves behind."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from full_rows import a_run
from small_corpus import small_corpus

from core.distributed.workers import Workers
from core.memory import tensor_memory
from core.memory.tensor_memory import SLACK_BYTES, live_tensor_bytes, multiply_both_ways, settled_level_bytes
from core.torch_internals.operator_watch import TorchDispatchMode
from core.training.training_run import run_training

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _what_other_tests_left_is_not_looked_through() -> Iterator[None]:
    """Millions of objects, seconds each time; what is counted here is what comes after."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def test_tensor_that_is_held_counts_once_with_its_views_and_not_when_it_is_gone() -> None:
    before = live_tensor_bytes(CPU)
    held = torch.zeros(1000, 1000)
    views = [held[:10], held.T]
    assert live_tensor_bytes(CPU) - before == 4_000_000
    del held, views
    assert live_tensor_bytes(CPU) == before


def test_runs_that_diverge_or_do_not_fit_leave_nothing_behind(tmp_path: Path) -> None:
    run = a_run(width=256, layers=2, sequence_length=16, micro_batch_size=8).with_overrides({"training.tokens": 10_000})
    changes = {"training.learning_rate": 1e4, "training.clip": None, "training.schedule": "constant"}
    before = live_tensor_bytes(CPU)
    outcomes = set()
    for name, one, limit in (("a", run.with_overrides(changes), None), ("b", run, 8_000_000), ("c", run, 100_000)):
        end = run_training(
            one, small_corpus(), workers=Workers(), folder=tmp_path / name, report=lambda _: True,
            evaluate_at_tokens=(), memory_limit_bytes=limit,
        )  # fmt: skip
        outcomes.add(end.outcome)
        assert live_tensor_bytes(CPU) - before < SLACK_BYTES, name
    assert outcomes == {"diverged", "infeasible"}


def test_workspaces_that_the_first_products_leave_are_part_of_the_level(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"bytes": 0}
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *_: held["bytes"])
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    # cuBLAS on Hopper: 32 MiB for each of two threads, once.
    monkeypatch.setattr(tensor_memory, "multiply_both_ways", lambda _: held.update(bytes=64 * 2**20))
    level_bytes = settled_level_bytes(torch.device("cuda", 0))
    tensor_memory.multiply_both_ways(torch.device("cuda", 0))  # A trial that ends as INFEASIBLE.
    assert live_tensor_bytes(torch.device("cuda", 0)) - level_bytes <= SLACK_BYTES


class Products(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.in_forward = self.in_backward = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.mm.default:
            self.in_forward += torch._C._current_graph_task_id() == -1
            self.in_backward += torch._C._current_graph_task_id() != -1
        return func(*args, **(kwargs or {}))


def test_the_first_products_run_in_the_forward_and_in_the_backward_pass() -> None:
    with Products() as products:
        multiply_both_ways(CPU)
    assert (products.in_forward, products.in_backward) == (1, 1)
