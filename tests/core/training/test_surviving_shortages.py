"""A run in which memory runs out once, at any operator of any step on any rank, ends as if nothing had happened.

The shortage is injected between two operators, where a real one would be raised; all that follows is the product's own.
"""

import math
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from small_corpus import small_corpus
from small_runs import small_run
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from two_workers import on_workers

from core.distributed.workers import Workers
from core.memory.storage_meter import StorageMeter
from core.model_files.checkpoint import MODEL_FILE, newest_checkpoint
from core.step import evaluation
from core.step.optimizer_step import OptimizerStep
from core.training import run_checkpoints
from core.training.run_end import RunEnd
from core.training.training_run import run_training

Phase = Literal["forward", "backward", "evaluation", "checkpoint"]
PHASES: tuple[Phase, ...] = ("forward", "backward", "evaluation", "checkpoint")
NUM_STEPS = 8
MICRO_BATCH = 6
"""Of 16 rows: two full micro-batches and a rest; on two workers one and a rest."""


@dataclass(frozen=True)
class Injection:
    """Where memory runs out, once."""

    rank: int
    phase: Phase
    number: int
    """Of the operator, counted over the run within its phase."""


class Watch(TorchDispatchMode):
    """Counts a run's operators and may run out of memory at one of them."""

    def __init__(self, injection: Injection | None) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.meter = StorageMeter()
        self.levels: dict[str, set[int]] = {"training": set(), "evaluation": set()}
        """Bytes held whenever a try of some work begins."""
        self.operators: dict[tuple[int, int], int] = {}
        """(step, rows at once) to the operators that the step took when it came to its end."""
        self._injection = injection
        self._part: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._part is not None:
            phase = self._part
            if phase == "training":
                phase = "forward" if torch._C._current_graph_task_id() == -1 else "backward"
            self.counts[phase] += 1
            if self._injection == Injection(self._rank, phase, self.counts[phase]):  # type: ignore[arg-type]
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 KiB. Injected.")
        return func(*args, **(kwargs or {}))

    @contextmanager
    def over(self, workers: Workers) -> Iterator[None]:
        """Watch a run of this worker."""
        self._rank = workers.rank
        local_work, count, first_rows = OptimizerStep._local_work, evaluation._count, evaluation.Evaluation._first_rows
        save, save_best = run_checkpoints.save_checkpoint, run_checkpoints.save_best

        def watched_step(step: OptimizerStep, shard: Any, number: int) -> Any:
            if isinstance(next(step.model.parameters()), FakeTensor):
                return local_work(step, shard, number)  # a prediction, which is this very step without memory
            step._forget_gradients()
            self._note_level("training")
            before = self.counts["forward"] + self.counts["backward"]
            result = self._in("training", local_work, step, shard, number)
            taken = self.counts["forward"] + self.counts["backward"] - before
            self.operators[number, step.micro_batch_size] = taken
            return result

        def watched_evaluation(*args: Any) -> Any:
            # Gradients of the step before are there or not; what an evaluation left behind would show beyond them.
            self._note_level("evaluation")
            return self._in("evaluation", count, *args)

        with (
            mock.patch.object(OptimizerStep, "_local_work", watched_step),
            mock.patch.object(evaluation, "_count", watched_evaluation),
            mock.patch.object(
                evaluation.Evaluation, "_first_rows", lambda own: self._in("evaluation", first_rows, own)
            ),
            mock.patch.object(
                run_checkpoints, "save_checkpoint", lambda *a, **k: self._in("checkpoint", save, *a, **k)
            ),
            mock.patch.object(run_checkpoints, "save_best", lambda *a, **k: self._in("checkpoint", save_best, *a, **k)),
            self,
        ):
            self.meter.start()
            try:
                yield
            finally:
                self.meter.stop()

    def _note_level(self, part: str) -> None:
        """Memory in use now, once gloo's threads, which run beside this one, have let go of what they exchanged."""
        patient_until = time.monotonic() + 60.0  # They wait for a processor as well.
        while self.meter.current_bytes > min(self.levels[part], default=math.inf) and time.monotonic() < patient_until:
            time.sleep(0.001)
        self.levels[part].add(self.meter.current_bytes)

    def _in(self, part: str, function: Any, *args: Any, **kwargs: Any) -> Any:
        self._part = part
        try:
            return function(*args, **kwargs)
        finally:
            self._part = None


@dataclass(frozen=True)
class Result:
    """What a run left behind on one worker."""

    end: RunEnd
    weights: dict[str, Any]
    counts: dict[str, int]
    levels: dict[str, set[int]]
    operators: dict[tuple[int, int], int]


def run_watched(workers: Workers, injection: Injection | None, micro_batch_size: int) -> Result:
    """A run of some steps with two evaluations and some checkpoints; rank 0 gives its weights."""
    run = small_run(family="encoder", micro_batch_size=micro_batch_size, tokens=NUM_STEPS * 256)
    watch = Watch(injection)
    with TemporaryDirectory() as folder:
        with watch.over(workers):
            end = run_training(
                run,
                small_corpus(),
                workers=workers,
                folder=Path(folder),
                report=lambda _: True,
                evaluate_at_tokens=[4 * 256],
                memory_limit_bytes=2**30,
                checkpoint_every_s=0.0,
            )
        weights = {}
        if workers.is_first:
            checkpoint = newest_checkpoint(Path(folder))
            assert checkpoint is not None
            weights = load_file(checkpoint / MODEL_FILE)
    return Result(end, weights, dict(watch.counts), watch.levels, watch.operators)


@lru_cache
def clean(count: int, micro_batch_size: int) -> list[Result]:
    return results(count, None, micro_batch_size)


def results(count: int, injection: Injection | None, micro_batch_size: int) -> list[Result]:
    if count == 1:
        return [run_watched(Workers(), injection, micro_batch_size)]
    return on_workers(count, run_watched, injection, micro_batch_size)


def an_injection(count: int, seed: int) -> Injection:
    rng = random.Random(seed)
    phase = PHASES[seed % len(PHASES)]
    rank = 0 if phase == "checkpoint" else rng.randrange(count)
    return Injection(rank, phase, rng.randint(1, clean(count, MICRO_BATCH)[rank].counts[phase]))


SEEDS = range(20)
CASES = [
    pytest.param(count, seed, id=f"{count} workers, seed {seed}", marks=[] if seed < 4 else pytest.mark.slow)
    for count in (1, 2)
    for seed in SEEDS
]


@pytest.mark.long
@pytest.mark.parametrize(("count", "seed"), CASES)
def test_a_run_that_ran_out_of_memory_once_ends_as_if_it_had_not(count: int, seed: int) -> None:
    injection = an_injection(count, seed)
    ranks = results(count, injection, MICRO_BATCH)
    for rank, (found, expected) in enumerate(zip(ranks, clean(count, MICRO_BATCH), strict=True)):
        assert found.end.outcome == "completed", (injection, found.end.reason)
        assert found.end.micro_batch_size_used == ranks[0].end.micro_batch_size_used
        for key, value in expected.end.metrics.items():
            assert found.end.metrics[key] == pytest.approx(value, rel=1e-4), (injection, key)
        # Memory returns to the level before to the byte: no try of any work begins with more than any other. (With two
        # workers a thread of gloo's may still hold the last sums that they exchanged, smaller than any parameter.)
        sums_bytes = 0 if count == 1 else 127
        for part, levels in found.levels.items():
            level = min(expected.levels[part])
            assert level <= min(levels), (injection, part)
            assert max(levels) <= level + sums_bytes, (injection, part)
        # Afterwards each step takes as many operators as one that had the smaller micro-batch from the start.
        for (step, rows), num_operators in found.operators.items():
            assert num_operators == clean(count, rows)[rank].operators[step, rows], (injection, step, rows)
    # fp32 sums in another order, enlarged by eight steps of AdamW.
    expected_weights = clean(count, MICRO_BATCH)[0].weights
    assert max(float(np.abs(ranks[0].weights[name] - expected_weights[name]).max()) for name in expected_weights) < 2e-5

    (shortage,) = ranks[0].end.oom_events
    assert shortage.facts.rank == injection.rank
    is_training = injection.phase in ("forward", "backward")
    assert shortage.facts.phase in (("forward", "backward") if is_training else (injection.phase,))
    if injection.phase == "backward":
        assert shortage.facts.phase == "backward"
    assert (ranks[0].end.micro_batch_size_used < MICRO_BATCH) == is_training  # type: ignore[operator]
