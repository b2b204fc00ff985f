"""The plan of a sweep before it starts: lanes, rungs, tokens, and predicted memory."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from core.memory.device_facts import smallest_of
from core.memory_prediction.kept_predictions import predictions_kept_in
from core.memory_prediction.peak_memory import WorkerSetup, how_to_fit, largest_micro_batch, predict_memory
from core.settings.run_config import RunConfig
from data_pipeline.schema.settings import format_bytes
from sweeps.early_stopping.promotion import Promotions
from sweeps.early_stopping.rungs import rung_tokens
from sweeps.lanes.cards import Cards, cards_now, differences
from sweeps.lanes.lane_planning import AutoLanes, LanePlan, ResourcesError, plan_lanes, worker_memory_bytes
from sweeps.memory_knowledge.memory_frontier import MemoryFrontier, micro_batch_of
from sweeps.settings.sweep_config import SweepConfig

FIRST_MARGIN_ON_CUDA = 0.10
"""Share of the predicted peak that must stay free on a GPU until a trial shows that less is enough."""


@dataclass(frozen=True)
class SweepPlan:
    """A sweep with all decisions that depend on the machine."""

    sweep: SweepConfig
    vocabulary_size: int
    lanes: LanePlan
    memory_bytes: int
    """Memory of one worker."""
    computes_bf16: bool = True
    """All GPUs multiply bf16 natively."""

    @cached_property
    def rungs(self) -> tuple[int, ...]:
        """Token counts at which trials are compared."""
        return rung_tokens(self.sweep.early_stopping, self.sweep.budget.trial_tokens)

    @cached_property
    def promotions(self) -> Promotions | None:
        """The rule that promotes paused trials; None if trials do not pause."""
        stopping, num_trials = self.sweep.early_stopping, self.sweep.num_trials
        is_theirs = stopping.method == "trunk-and-branch"
        return Promotions(self.rungs, stopping.reduction_factor, num_trials) if is_theirs else None

    @cached_property
    def evaluate_at_tokens(self) -> tuple[int, ...]:
        """Token counts at which the holdout is evaluated: evenly spread points, and every rung that can stop trials."""
        total, points = self.sweep.budget.trial_tokens, self.sweep.evaluation.points
        even = {round(total * point / points) for point in range(1, points)}
        # Where trials pause, the branch evaluates its rung.
        return tuple(sorted(even if self.sweep.early_stopping.has_branches else even | set(self.rungs)))

    @property
    def judge_at_tokens(self) -> tuple[int, ...]:
        """Token counts at which downstream tasks are tried besides branches and the end: rungs that stop trials."""
        return self.rungs if self.sweep.early_stopping.method in ("asha", "median") else ()

    def predicted_bytes(self, run: RunConfig) -> int | None:
        """Predicted peak of one worker in bytes; None for micro-batch `auto`, which adapts to the memory."""
        return None if run.training.micro_batch_size == "auto" else self._predict(run)

    def _predict(self, run: RunConfig) -> int:
        micro_batch = micro_batch_of(run, self.lanes.workers)
        assert micro_batch is not None, "an automatic size is made a number first"
        return predict_memory(
            run, self.vocabulary_size, micro_batch_size=micro_batch, setup=self.worker_setup
        ).peak_bytes

    def largest_micro_batch(self, run: RunConfig, memory_bytes: int | None = None) -> int:
        """The largest micro-batch that fits, at most one worker's rows of a batch; 0 if not even one row fits.

        Args:
            memory_bytes: Memory to fit into. None: the memory of one worker.
        """
        memory = self.memory_bytes if memory_bytes is None else memory_bytes
        return largest_micro_batch(run, self.vocabulary_size, memory_bytes=memory, setup=self.worker_setup)

    def how_to_fit(self, run: RunConfig) -> str:
        """The memory that a run needs, and the changes that make it fit, as text."""
        return how_to_fit(run, self.vocabulary_size, memory_bytes=self.memory_bytes, setup=self.worker_setup)

    @property
    def worker_setup(self) -> WorkerSetup:
        """Workers, device and rows of its trials, for the memory prediction."""
        return worker_setup_of(self.sweep, self.lanes, computes_bf16=self.computes_bf16)

    def frontier(self, *, rows_filled: int = 100, source: str = "") -> MemoryFrontier:
        """A memory frontier for this machine, based on the prediction alone.

        Args:
            rows_filled: Percentage of the corpus's rows that holds tokens.
            source: Name of the sweep's folder.
        """
        conditions = asdict(self.worker_setup)
        if self.computes_bf16:
            del conditions["computes_bf16"]  # Observations from before it was asked are of such devices.
        setup = ", ".join(f"{name} {value}" for name, value in conditions.items())
        return MemoryFrontier(
            limit_bytes=self.memory_bytes,
            num_workers=self.lanes.workers,
            predict=self._predict,
            surroundings=f"vocabulary {self.vocabulary_size}, {setup}",
            rows_filled=rows_filled,
            # On a CPU the limit counts exactly the predicted tensors; on CUDA the allocator's share is unmeasured.
            first_margin=FIRST_MARGIN_ON_CUDA if self.lanes.use_gpu else 0.0,
            source=source,
        )


def worker_setup_of(sweep: SweepConfig, lanes: LanePlan, *, computes_bf16: bool = True) -> WorkerSetup:
    """Workers, device and rows of a sweep's trials on these lanes, for the memory prediction.

    Args:
        computes_bf16: All GPUs multiply bf16 natively.
    """
    return WorkerSetup(
        num_workers=lanes.workers,
        device_type="cuda" if lanes.use_gpu else "cpu",
        has_document_ids=sweep.packing.confines_attention,
        computes_bf16=computes_bf16,
    )


def predictions_kept(results_folder: Path, *, say: Callable[[str], None]) -> AbstractContextManager[None]:
    """Context in which memory predictions are shared by all commands on a results folder.

    Args:
        say: Receives a line if they cannot be kept.
    """
    return predictions_kept_in(results_folder / "memory" / "predictions.json", say=say)


def plan_sweep(
    sweep: SweepConfig,
    *,
    vocabulary_size: int,
    auto: AutoLanes | None = None,
    num_cpus: int | None = None,
    num_gpus: int | None = None,
    nodes: Sequence[Mapping[str, float]] = (),
    cards: Cards | None = None,
) -> SweepPlan:
    """Make all decisions that depend on the machine.

    Args:
        auto: Lanes for `concurrent_trials: auto` on one machine. None: one lane per core or GPU.
        num_cpus: CPU cores of the cluster. None: of this machine; likewise `num_gpus`.
        nodes: Cores (`CPU`) and GPUs (`GPU`) of each node of the cluster.
        cards: Returns facts about the GPUs; called if trials train on them. None: those of `cards_now`.

    Raises:
        ResourcesError: Not even one trial fits, or no GPU tells its memory.
    """
    lanes = plan_lanes(
        sweep.resources,
        num_trials=sweep.num_trials,
        auto=auto,
        num_cpus=num_cpus or os.cpu_count() or 1,
        num_gpus=torch.cuda.device_count() if num_gpus is None else num_gpus,
        nodes=nodes,
    )
    found = (cards or cards_now)() if lanes.use_gpu else ()
    smallest = smallest_of(found)
    if lanes.use_gpu and smallest is None:
        raise ResourcesError("resources.device asks for GPUs, and none is visible here; set resources.device: cpu")
    if words := differences(found):
        lanes = replace(lanes, reason=f"{lanes.reason}; {words}; the smallest counts")
    device_bytes = None if smallest is None else smallest.free_bytes
    memory_bytes = worker_memory_bytes(sweep.resources, lanes, device_bytes=device_bytes)
    plan = SweepPlan(sweep, vocabulary_size, lanes, memory_bytes, all(card.computes_bf16 for card in found))
    if lanes.gpus_per_worker < 1:
        _check_share(plan)
    return plan


def _check_share(plan: SweepPlan) -> None:
    """Check that the file's own settings are predicted to fit in a lane's share of a GPU.

    Raises:
        ResourcesError: They do not fit.
    """
    run = plan.sweep.run_config()
    if plan.largest_micro_batch(run) < (micro_batch_of(run, plan.lanes.workers) or 1):
        raise ResourcesError(
            f"resources.concurrent_trials={plan.lanes.count} gives each trial {plan.lanes.gpus_per_worker:.2g} of a "
            f"GPU, which is {format_bytes(plan.memory_bytes)}: {plan.how_to_fit(run)}. Or use fewer concurrent_trials."
        )
