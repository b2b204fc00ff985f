"""Counting what a run leaves behind."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from full_rows import a_run
from small_corpus import small_corpus

from core.distributed.workers import Workers
from core.memory.tensor_memory import SLACK_BYTES, live_tensor_bytes
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
